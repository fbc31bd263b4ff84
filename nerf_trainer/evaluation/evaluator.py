"""Evaluation of a model on held-out views: metrics, a table, and the files that hold them."""

import contextlib
import json
import math
import shutil
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from nerf_trainer.cameras.difficulty import camera_difficulty
from nerf_trainer.config import ReplaceableBase, registry
from nerf_trainer.data.loaders import FrameLoader
from nerf_trainer.errors import ConfigError
from nerf_trainer.evaluation.lpips import Lpips, LpipsNet, LpipsUnavailableError, load_lpips
from nerf_trainer.evaluation.summaries import ResultRow, difficulty_lines, difficulty_name, result_table, summarize
from nerf_trainer.evaluation.view_synthesis import (
    LPIPS_NAMES,
    Metrics,
    ViewResult,
    background_of,
    evaluate_view,
    keeps_background,
)
from nerf_trainer.frames import FrameData
from nerf_trainer.models.base import ImplicitronModelBase
from nerf_trainer.whole_files import replace_file

RESULTS_FILE = "results_test.json"
"""The summary: a list of objects with subset, subsubset, metrics, eval_epoch, and how the numbers were made."""
IMAGES_FILE = "results_test_images.jsonl"
"""One object a line and view."""


def _print_line(text: str) -> None:
    print(text, flush=True)


@dataclass(frozen=True)
class EvaluationContext:
    """What an evaluation must know of the run that it is part of.

    A training loop makes it: `EvaluationContext(exp_dir, epoch, step, runtime.autocast, runtime.gather_objects,
    runtime.is_main, display.line)`.
    """

    exp_dir: Path | None = None
    """Folder that the files go to; None writes none."""
    epoch: int = 0
    """Epoch that the model has reached."""
    step: int = 0
    """Optimizer steps that the model has taken."""
    autocast: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext
    """The context that a forward runs in; the run's signals end an evaluation within it."""
    gather: Callable[[list[ViewResult]], list[ViewResult]] = list
    """All ranks' views, on every rank."""
    is_main: bool = True
    """Whether this process writes files and speaks."""
    say: Callable[[str], None] = _print_line
    """Takes lines for the user: progress, notices, the table."""


class EvaluatorBase(ReplaceableBase):
    """Judges a model on held-out views."""

    @abstractmethod
    def run(self, model: ImplicitronModelBase, loader: FrameLoader, context: EvaluationContext) -> list[ResultRow]:
        """Evaluate the views of `loader` that are this rank's, and summarize those of all ranks.

        Args:
            model: not wrapped for distributed training. Rendered in evaluation mode and without gradients; each of its
                modules is left in the mode that it was in.
            loader: placed on the model's device. The first frame of each batch is the target, others are sources.
            context: what the evaluation is part of. Files and words come from its main process alone.

        Returns:
            the summary, the same on every rank.
        """


@registry.register
class ImplicitronEvaluator(EvaluatorBase):
    """Renders each held-out view and compares it with its photograph: see `view_synthesis.evaluate_view`."""

    is_multisequence: bool = False
    """Divide the summary by frame type, camera difficulty and number of source views."""
    camera_difficulty_bin_breaks: tuple[float, float] = (0.97, 0.98)
    """Where hard ends and medium begins, and where medium ends and easy begins: overlaps of views, in (0, 1)."""
    lpips_net: LpipsNet = LpipsNet.auto
    """Network of LPIPS: auto (VGG16 where its weights are, else AlexNet), alex, vgg, none."""
    lpips_weights: str | None = None
    """Folder with the weights of that network's convolutions, before the places where they are looked for anyway."""

    def __post_init__(self) -> None:
        lower, upper = self.camera_difficulty_bin_breaks
        if not 0 < lower < upper < 1:
            raise ConfigError(
                f"camera_difficulty_bin_breaks: found {lower}, {upper}; expected two rising numbers between 0 and 1, "
                "such as [0.97, 0.98]"
            )
        self._lpips: Lpips | None = None
        self._lpips_missing: str | None = None
        self._background_noted = False
        self._refused: set[str] = set()

    def run(self, model: ImplicitronModelBase, loader: FrameLoader, context: EvaluationContext) -> list[ResultRow]:
        self._prepare_lpips(context)
        say = context.say if context.is_main else _say_nothing
        with _evaluation_mode(model), torch.no_grad():
            own = [
                self._view(model, frames, context, f"[test] view {i + 1}/{len(loader)}", say)
                for i, frames in enumerate(loader.steps(context.epoch))
            ]
        views = sorted(context.gather(own), key=_order)
        protocol = self._protocol(views, context)
        rows = summarize(views, self.is_multisequence, self.camera_difficulty_bin_breaks)
        rows = [replace(row, eval_epoch=context.epoch, protocol=protocol) for row in rows]
        if context.is_main:
            lines = [self._view_json(view, protocol, context) for view in views]
            self._report(rows, lines, context)
            if difficulties := [view.difficulty for view in views if view.difficulty is not None]:
                context.say(difficulty_lines(difficulties, self.camera_difficulty_bin_breaks))
            self._note_background(views, context)
        return rows

    def _report(
        self, rows: Sequence[ResultRow], lines: Sequence[Mapping[str, object]], context: EvaluationContext
    ) -> None:
        """Print the table and write the files. A full disk is no reason to end a training: it costs a file, of which
        the first is said.

        Args:
            lines: what is written of each view.
        """
        width = shutil.get_terminal_size(fallback=(80, 24)).columns
        context.say(result_table(rows, width) if rows else "Nothing was evaluated: the test split has no view.")
        if context.exp_dir is None:
            return
        summary = json.dumps([_row_json(row) for row in rows], indent=1, allow_nan=False) + "\n"
        views = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
        for name, text in ((IMAGES_FILE, views), (RESULTS_FILE, summary)):
            try:
                replace_file(context.exp_dir / name, text)
            except OSError as error:
                if name not in self._refused:
                    self._refused.add(name)
                    context.say(f"{context.exp_dir / name}: not written ({error.strerror or type(error).__name__})")

    def _note_background(self, views: Sequence[ViewResult], context: EvaluationContext) -> None:
        """Say once where masked metrics compare a rendering that has a background with a photograph that has none."""
        if not self._background_noted and any(view.keeps_background for view in views):
            self._background_noted = True
            context.say(
                "note: what is rendered has the photographs' own background, and masked metrics compare it with black:"
                " only full-image and foreground metrics measure this model; for others, train with mask_images=true"
            )

    def _prepare_lpips(self, context: EvaluationContext) -> None:
        """Load LPIPS at the first run; where that can't be, say so once."""
        if self.lpips_net is LpipsNet.none or self._lpips is not None or self._lpips_missing is not None:
            return
        try:
            self._lpips = load_lpips(self.lpips_net, Path(self.lpips_weights) if self.lpips_weights else None)
        except LpipsUnavailableError as error:
            self._lpips_missing = str(error)
            if context.is_main:
                context.say(f"LPIPS is not measured: {error}")

    def _view(
        self,
        model: ImplicitronModelBase,
        frames: FrameData,
        context: EvaluationContext,
        label: str,
        say: Callable[[str], None],
    ) -> ViewResult:
        """Render and judge one batch's target."""
        started = time.perf_counter()
        with context.autocast():
            predictions = model(_with_trusted_depth(frames))
        device = predictions.rendered.features.device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - started
        if self._lpips is not None:
            self._lpips.to(device)
        metrics = evaluate_view(predictions, self._lpips)
        sources = _source_views(frames)
        if self._lpips_missing is not None:
            metrics |= dict.fromkeys(LPIPS_NAMES if "psnr_masked" in metrics else LPIPS_NAMES[:1])
        height, width = predictions.rendered.features.shape[1:3]
        view = ViewResult(
            metrics=metrics,
            sequence_name=frames.sequence_name[0] if frames.sequence_name else "",
            frame_number=frames.frame_number[0] if frames.frame_number else 0,
            frame_type=frames.frame_type[0] if frames.frame_type else "",
            image_path=frames.image_path[0] if frames.image_path else "",
            image_size_hw=(height, width),
            n_src=len(sources),
            category=frames.sequence_category[0] if frames.sequence_category else "",
            difficulty=_difficulty(frames, sources) if self.is_multisequence else None,
            background=background_of(predictions.targets),
            keeps_background=keeps_background(predictions.targets),
            seconds=seconds,
        )
        psnr = metrics.get("psnr_full_image")
        score = "no photograph" if psnr is None else f"PSNR {psnr:.2f} dB"
        say(f"{label}  {score}  {seconds:.2f} s  {Path(view.image_path).name}".rstrip())
        return view

    def _protocol(self, views: Sequence[ViewResult], context: EvaluationContext) -> dict[str, object]:
        sizes = sorted({view.image_size_hw for view in views})
        backgrounds = sorted({view.background for view in views if view.background is not None})
        protocol: dict[str, object] = {
            "step": context.step,
            "image_sizes_hw": [list(size) for size in sizes],
            "background": list(backgrounds[0]) if len(backgrounds) == 1 else [list(b) for b in backgrounds] or None,
            "lpips_net": None if self._lpips is None else self._lpips.net.value,
        }
        if self.is_multisequence:
            protocol["camera_difficulty_bin_breaks"] = list(self.camera_difficulty_bin_breaks)
        if self._lpips_missing is not None:
            protocol["lpips_missing"] = self._lpips_missing
        return protocol

    def _view_json(
        self, view: ViewResult, protocol: Mapping[str, object], context: EvaluationContext
    ) -> dict[str, object]:
        """What is written of one view."""
        return {
            "image_path": view.image_path,
            "sequence_name": view.sequence_name,
            "category": view.category or None,
            "frame_number": view.frame_number,
            "frame_type": view.frame_type,
            "image_size_hw": list(view.image_size_hw),
            "n_src": view.n_src,
            "difficulty": view.difficulty,
            "difficulty_bin": difficulty_name(view.difficulty, self.camera_difficulty_bin_breaks),
            "background": None if view.background is None else list(view.background),
            "metrics": _json_metrics(view.metrics),
            "seconds": round(view.seconds, 4),
            "lpips_net": protocol["lpips_net"],
            "eval_epoch": context.epoch,
            "step": context.step,
        }


@contextlib.contextmanager
def _evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode within, each module's own mode after."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _with_trusted_depth(frames: FrameData) -> FrameData:
    """The frames with depth where it can be trusted, as far as that is told; 0, unknown, elsewhere."""
    if frames.depth_map is None or frames.depth_mask is None:
        return frames
    return replace(frames, depth_map=frames.depth_map * frames.depth_mask)


def _source_views(frames: FrameData) -> list[int]:
    """The frames of a batch beside its target, the first, that show its sequence; all where sequences have no names."""
    names = frames.sequence_name
    return [i for i in range(1, len(frames)) if not names or names[i] == names[0]]


def _difficulty(frames: FrameData, sources: Sequence[int]) -> float | None:
    """How easily the target is seen from its source views; None without any, or where the scene is elsewhere."""
    if not sources:
        return None
    return _finite(camera_difficulty(frames.cameras[0], frames.cameras[sources]).item())


def _order(view: ViewResult) -> tuple[str, int, int, str, float]:
    """What views are sorted by: an order that doesn't depend on which rank rendered which."""
    return view.sequence_name, view.frame_number, view.n_src, view.image_path, view.difficulty or 0.0


def lpips_net(folder: Path, step: int) -> str | None:
    """The network of LPIPS that the results in a run's folder were made with; None where they are not of `step`."""
    try:
        rows = json.loads((folder / RESULTS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return next((row["lpips_net"] for row in rows if row["step"] == step), None)


def _row_json(row: ResultRow) -> dict[str, object]:
    content: dict[str, object] = {
        "subset": row.subset,
        "subsubset": row.subsubset,
        "metrics": _json_metrics(row.metrics),
        "eval_epoch": row.eval_epoch,
        "n_views": row.n_views,
    }
    if row.category_mean is not None:
        content["categories"] = {
            category.category: {"metrics": _json_metrics(category.metrics), "n_views": category.n_views}
            for category in row.categories
        }
        content["category_mean"] = _json_metrics(row.category_mean)
    return content | row.protocol


def _json_metrics(metrics: Metrics) -> dict[str, float | None]:
    return {name: _finite(value) for name, value in metrics.items()}


def _finite(value: float | None) -> float | None:
    """JSON has no numbers for what is not finite."""
    return value if value is not None and math.isfinite(value) else None


def _say_nothing(text: str) -> None:
    """Ranks other than the first keep quiet."""
