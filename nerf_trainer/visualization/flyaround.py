"""Renderings along a camera path: any model, one view at a time, and what is shown of each."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.data.splits import DatasetBase
from nerf_trainer.frames import FrameData
from nerf_trainer.models.base import ImplicitronModelBase, Predictions
from nerf_trainer.visualization.colormaps import colorize, grey, to_bytes, value_range
from nerf_trainer.visualization.source_views import SourceViewBatches


@dataclass(frozen=True)
class ViewPictures:
    """A rendered view as pictures in host memory. Each field is the name of a video."""

    images_render: UInt8[Tensor, "H W 3"]
    """Colours."""
    masks_render: UInt8[Tensor, "H W 3"]
    """Opacity, black to white."""
    depths_render: UInt8[Tensor, "H W 3"]
    """Distance of what was hit, dark is near; white where nothing was."""
    disparities_render: UInt8[Tensor, "H W 3"]
    """Its inverse, dark is far; white where nothing was hit."""

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The fields, in order."""
        return tuple(f.name for f in fields(cls))

    def items(self) -> Iterator[tuple[str, UInt8[Tensor, "H W 3"]]]:
        """Names and pictures, in order."""
        return ((f.name, getattr(self, f.name)) for f in fields(self))


def render_views(
    model: ImplicitronModelBase,
    cameras: Cameras,
    device: torch.device | str,
    autocast: Callable[[], AbstractContextManager[object]],
    sequence_name: str = "",
    times: Float[Tensor, "N"] | None = None,
    sources: FrameData | None = None,
) -> Iterator[Predictions]:
    """Render views one by one as in evaluation; no photographs of them are needed. The model's mode is put back at the
    end.

    Args:
        model: on `device`.
        autocast: gives the context that forwards run in.
        sequence_name: the scene that the views belong to.
        times: each view's time since the sequence began, in the dataset's unit, for a scene that moves.
        sources: the photographs that a model which looks at source views is shown with every view; in host memory.
    """
    names, was_training = ((sequence_name,) if sequence_name else ()), model.training
    beside = None if sources is None else SourceViewBatches(sources.to(device))
    model.eval()
    try:
        for i in range(len(cameras)):
            camera, time = cameras[i].to(device), None if times is None else times[i : i + 1].to(device)
            frames = (
                FrameData(cameras=camera, sequence_name=names, frame_timestamp=time)
                if beside is None
                else beside.of(camera, time)
            )
            with torch.no_grad(), autocast():
                predictions = model(frames)
            yield predictions
    finally:
        model.train(was_training)


def filmed(dataset: DatasetBase, sequence: str) -> tuple[Cameras, tuple[float, float] | None]:
    """The views of one sequence, and the times of its first and last, where the dataset knows them."""
    frames = [i for i, name in enumerate(dataset.frame_sequences) if name == sequence]
    times = dataset.frame_timestamps
    span = None if times is None else (min(times[i] for i in frames), max(times[i] for i in frames))
    return dataset.cameras()[frames], span


def depth_range(views: Iterator[Predictions]) -> tuple[float, float]:
    """The nearest and farthest depth worth showing over several views: one scale for a whole video."""
    depths, opacities = [], []
    for predictions in views:
        depths.append(predictions.depths_normalized.float().flatten().cpu())
        opacities.append(predictions.masks_render.float().flatten().cpu())
    if not depths:
        return 0.0, 1.0
    return value_range(torch.cat(depths), torch.cat(opacities))


def pictures(predictions: Predictions, depths: tuple[float, float] | None = None) -> ViewPictures:
    """The first view of a whole-view rendering as pictures.

    Args:
        predictions: of a model in evaluation.
        depths: the depths shown darkest and brightest; None takes this view's own range.
    """
    opacity = predictions.masks_render[0, 0].float().cpu()
    depth = predictions.depths_normalized[0, 0].float().cpu()
    disparity = predictions.disparities_render[0, 0].float().cpu()
    near, far = value_range(depth, opacity) if depths is None else depths
    near = max(near, 1e-3 * abs(far), 1e-6)  # of which the inverse is taken
    far = max(far, 1.001 * near)
    return ViewPictures(
        images_render=_rgb(predictions.images_render[0]),
        masks_render=grey(opacity),
        depths_render=colorize(depth, near, far, opacity),
        disparities_render=colorize(disparity, 1.0 / far, 1.0 / near, opacity),
    )


def _rgb(features: Float[Tensor, "C H W"]) -> UInt8[Tensor, "H W 3"]:
    """The first three channels, or the first one as grey."""
    shown = features[:3] if features.shape[0] >= 3 else features[:1].expand(3, -1, -1)
    return to_bytes(shown.float().permute(1, 2, 0)).cpu()
