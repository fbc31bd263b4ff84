"""Live previews of a training: which views are rendered for them, and when curves are shown.

They are for the eye alone. Nothing that is rendered here changes a later step: the random streams are put back, and
what goes wrong with a view is said once and ends the previews of its split, not the run. Only the process that has a
preview (the first of several) does anything.
"""

import time
from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.data.loaders import FrameLoader
from nerf_trainer.errors import UserError
from nerf_trainer.frames import FrameData
from nerf_trainer.models.base import ImplicitronModelBase, Predictions, Targets
from nerf_trainer.randomness import undisturbed
from nerf_trainer.training.session import Preview, Session, TrainingRun
from nerf_trainer.visualization.plots import History

LONGEST_SIDE = 256
"""Views are shown at most this high and wide, pixels, so that a preview costs little beside the steps between two.
Models that look at source views, whose images come in one tensor with the target's, render them whole."""
_SECONDS_BETWEEN_CURVES = 2.0


class LivePreviews:
    """What a training shows of itself.

    Args:
        run: what the loop was given.
        interval: steps between pictures; 0 or less shows curves alone.
    """

    def __init__(self, run: TrainingRun, interval: int) -> None:
        self._run = run
        self._interval = interval
        self._given_up: set[str] = set()
        self._curves_at = 0.0
        self._held_out: tuple[str, FrameData] | None = None
        if run.preview is not None and interval > 0:
            run.preview.knock()  # so that nothing is rendered for a server that isn't there

    def is_due(self, step: int) -> bool:
        """Whether pictures are due after a step."""
        return self._run.preview is not None and self._interval > 0 and step % self._interval == 0

    def pictures(self, session: Session, batch: FrameData) -> None:
        """Show a view of the current batch and one that is not trained on, each beside its photograph, and the curves.

        Where the model makes pictures of the rays that it drew, these stand for the batch; otherwise one of its views
        is rendered as in evaluation.

        Args:
            batch: what the last step was taken on.
        """
        preview = self._run.preview
        if preview is None:
            return
        self.curves(session.stats.history)  # which cost next to nothing, and find out whether anybody is there
        held_out = "val" if self._run.loaders.val is not None else "test"
        if preview.reachable:
            self._attempt("train", lambda: self._show_batch(preview, session, batch))
        if preview.reachable:
            self._attempt(held_out, lambda: self._show_held_out(preview, session))

    def curves(self, history: History, at_once: bool = False) -> None:
        """Show the curves of the run so far, unless they were just shown."""
        preview, now = self._run.preview, time.monotonic()
        if preview is None or (not at_once and now - self._curves_at < _SECONDS_BETWEEN_CURVES):
            return
        self._curves_at = now
        preview.curves(history)

    def _attempt(self, split: str, show: Callable[[], None]) -> None:
        """Show something of a split; never again when that can't be done."""
        if split in self._given_up:
            return
        try:
            show()
        except (UserError, torch.OutOfMemoryError) as error:
            self._given_up.add(split)
            reason = str(error).strip().splitlines() or [type(error).__name__]
            self._run.display.note(f"no live previews of {split} views: {reason[0]}")

    def _show_batch(self, preview: Preview, session: Session, batch: FrameData) -> None:
        caption = f"train, step {session.step}"
        if session.rasterize is not None:
            targets = _as_targets(batch)
            preview.view(Predictions(session.rasterize(), targets), "train", f"{caption}, drawn rays")
            return
        view = chosen_view(batch, session.step // self._interval, session.model.looks_at_source_views)
        if view is not None:
            self._render(preview, session, view, "train", caption)

    def _show_held_out(self, preview: Preview, session: Session) -> None:
        """The first view of validation, or of the tests where the data has no validation; always the same."""
        if self._held_out is None:
            self._held_out = self._first_held_out()
        if self._held_out is not None:
            split, view = self._held_out
            self._render(preview, session, view, split, f"{split}, step {session.step}")

    def _first_held_out(self) -> tuple[str, FrameData] | None:
        loaders, runtime = self._run.loaders, self._run.runtime
        candidates: list[tuple[str, FrameLoader | None]] = [("val", loaders.val), ("test", loaders.test)]
        for split, loader in candidates:
            if loader is not None and len(loader) > 0:
                loader.place(runtime.device, runtime.seed, runtime.rank, runtime.world_size)
                view = next(iter(loader.steps(0)))
                return split, view if view.pixels is None else resident_view(view, 0)
        return None

    def _render(self, preview: Preview, session: Session, view: FrameData, split: str, caption: str) -> None:
        """Render the first of some frames as in evaluation, the others being what it may be rendered from."""
        model, sources = session.model, None
        if model.looks_at_source_views:
            sources = view.image_rgb[1:] if view.image_rgb is not None else None
        else:
            view = shrunk(view[:1], LONGEST_SIDE)
        with undisturbed(model, self._run.runtime.device):
            predictions = _evaluated(model, view, self._run)
        named = f"{caption}, {view.sequence_name[0]}" if any(view.sequence_name[:1]) else caption
        preview.view(
            predictions, split, f"{named}, frame {view.frame_number[0]}" if view.frame_number else named, sources
        )


def _evaluated(model: ImplicitronModelBase, frames: FrameData, run: TrainingRun) -> Predictions:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), run.runtime.autocast():
            return model(frames)
    finally:
        model.train(was_training)


def chosen_view(batch: FrameData, turn: int, with_sources: bool) -> FrameData | None:
    """A view of a training batch, the first of what is returned, with the views of its sequence after it where those
    are looked at. None where the batch has none that fits.

    Args:
        batch: images of one or more sequences, or a resident scene.
        turn: counts the previews: resident scenes show one view after another.
    """
    if batch.pixels is not None:
        return resident_view(batch, turn % len(batch))
    if not with_sources:
        return batch[:1]
    names = batch.sequence_name or ("",) * len(batch)
    for i, name in enumerate(names):
        others = [k for k, other in enumerate(names) if other == name and k != i]
        if others:
            return batch.select([i, *others])
    return None


def resident_view(scene: FrameData, index: int) -> FrameData:
    """One view of a resident scene with its photograph as an image. Reads the place of its pixels back."""
    store = scene.pixels
    assert store is not None
    height, width = scene.cameras.image_size_hw[index].tolist()
    end = int(store.ends[index])
    rgba = store.rgba[end - height * width : end].reshape(1, height, width, 4).permute(0, 3, 1, 2).float() / 255
    view = scene[index : index + 1]
    return replace(view, pixels=None, image_rgb=rgba[:, :3], fg_probability=rgba[:, 3:] if store.has_alpha else None)


def shrunk(view: FrameData, longest_side: int) -> FrameData:
    """A single view with fewer pixels, where it is larger than `longest_side` in height or width; the same rays bound
    it."""
    height, width = view.cameras.image_size_hw[0].tolist()
    if max(height, width) <= longest_side:
        return view
    scale = longest_side / max(height, width)
    size_hw = max(1, round(scale * height)), max(1, round(scale * width))
    return replace(
        view,
        cameras=_resized_cameras(view.cameras, size_hw),
        image_rgb=_resized(view.image_rgb, size_hw, "area"),
        fg_probability=_resized(view.fg_probability, size_hw, "area"),
        mask_crop=_resized(view.mask_crop, size_hw, "nearest-exact"),
        depth_map=_resized(view.depth_map, size_hw, "nearest-exact"),
        depth_mask=_resized(view.depth_mask, size_hw, "nearest-exact"),
    )


def _resized_cameras(cameras: Cameras, size_hw: tuple[int, int]) -> Cameras:
    """The same views on images of another size: each axis is scaled by itself."""
    old_hw = cameras.image_size_hw
    scale = (torch.tensor([size_hw]) / old_hw).flip(-1).to(cameras.focal)
    return replace(
        cameras,
        focal=cameras.focal * scale,
        principal_point=cameras.principal_point * scale,
        image_size_hw=torch.tensor([size_hw], dtype=old_hw.dtype).expand_as(old_hw),
    )


def _resized(
    image: Float[Tensor, "1 C _ _"] | None, size_hw: tuple[int, int], mode: str
) -> Float[Tensor, "1 C _ _"] | None:
    return None if image is None else interpolate(image.float(), size_hw, mode=mode)


def _as_targets(batch: FrameData) -> Targets:
    """The photograph of a batch's first view as a whole target, on black where it is masked. Its depth is left out: it
    is measured along the view's axis, that of rays along these."""
    rgb, alpha = batch.image_rgb, batch.fg_probability
    if rgb is not None:
        rgb = (rgb[:1] if alpha is None else rgb[:1] * alpha[:1]).permute(0, 2, 3, 1)
    return Targets(rgb=rgb, fg_probability=None if alpha is None else alpha[:1].permute(0, 2, 3, 1))
