"""What a rendered view is worth: its metrics, and their means over views."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from tabulate import tabulate
from torch import Tensor

from nerf_trainer.evaluation.image_metrics import SSIM_WINDOW, ssim
from nerf_trainer.evaluation.lpips import Lpips
from nerf_trainer.losses import functions
from nerf_trainer.models.base import Predictions, Targets

DEPTH_CROP = 5
"""Pixels along each border that a depth error leaves out: depth is least sure there."""
N_SRC_VIEWS = (1, 3, 5, 7, 9)
"""Numbers of source views that get a row of their own in a summary over sequences."""
DIFFICULTY_NAMES = ("hard", "medium", "easy")
"""Bins of camera difficulty, from the least overlap of source and target views to the most."""
LPIPS_NAMES = ("lpips_full_image", "lpips_masked")
"""Metrics that need weights which may be missing."""

Metrics = dict[str, float | None]
"""A view's or a summary's metrics; None where a value could not be had."""


@dataclass(frozen=True)
class ViewResult:
    """What one evaluated view scored."""

    metrics: Metrics
    """By name; what the inputs don't allow is absent."""
    sequence_name: str = ""
    """The sequence it belongs to."""
    frame_number: int = 0
    """Its number within its split's file."""
    frame_type: str = ""
    """known or unseen, in CO3D with the subset (train_known, test_unseen, ...)."""
    image_path: str = ""
    """Where the photograph is."""
    image_size_hw: tuple[int, int] = (0, 0)
    """Height and width that were rendered and compared, pixels."""
    n_src: int = 0
    """How many source views the model was given."""
    difficulty: float | None = None
    """Overlap of the target with its nearest source views, in [0, 1], where it is known."""
    background: tuple[float, float, float] | None = None
    """Colour behind the foreground of the target; None where the photograph's own background is compared."""
    seconds: float = 0.0
    """Time the model took to render it."""


@dataclass(frozen=True)
class ResultRow:
    """The mean metrics of a group of views."""

    subset: str
    """test; train and test over sequences."""
    subsubset: str
    """diff=all, diff=hard, n_src=3, ..."""
    metrics: Metrics
    """Means over the views that have the metric; None where none has."""
    n_views: int = 0
    """How many views were averaged."""
    eval_epoch: int = 0
    """Epoch that the model had reached."""
    protocol: dict[str, object] = field(default_factory=dict)
    """How the numbers were made: checkpoint step, image sizes, background, network of LPIPS."""


def background_of(targets: Targets) -> tuple[float, float, float] | None:
    """The one colour of all target pixels without foreground; None where there is no such pixel or no such colour."""
    if targets.rgb is None or targets.fg_probability is None:
        return None
    behind = targets.rgb[targets.fg_probability[..., 0] == 0]
    if len(behind) == 0 or (behind.amax(dim=0) - behind.amin(dim=0)).max() > 1e-3:
        return None
    red, green, blue = (round(value, 3) for value in behind.float().mean(dim=0).tolist())
    return red, green, blue


@torch.no_grad()
def evaluate_view(predictions: Predictions, lpips: Lpips | None = None) -> Metrics:
    """Compare one rendered view with its photograph, at the size it was rendered.

    - `psnr_full_image`, `rgb_l1_full_image`, `ssim_full_image`, `lpips_full_image`: with the target as it is.
    - `psnr_masked`, `rgb_l1_masked`, `lpips_masked`: with the target whose background (foreground probability of at
      most 0.5) is one colour: that of `background_of`, or black.
    - `psnr_fg`, `rgb_l1_fg`: over the foreground's pixels alone.
    - `iou`: of the rendered opacity with the foreground.
    - `depth_abs_fg`: the foreground's depth error after the best scaling, without 5 pixels at each border.

    PSNRs, L1s, IoU and depth leave out pixels that `mask_crop` says don't count; SSIM leaves out windows with such
    pixels; for LPIPS the rendering has the photograph's pixels there, which differ in nothing. A metric whose inputs
    are missing is absent; foreground metrics are None where no pixel is foreground; SSIM and LPIPS are None for images
    too small, SSIM too where no window counts.

    Args:
        predictions: one view, (1, H, W).
        lpips: None leaves LPIPS out.
    """
    targets, rendered = predictions.targets, predictions.rendered
    if targets.rgb is None:
        return {}
    rgb, image, crop = targets.rgb.float(), rendered.features.float(), _float(targets.mask_crop)
    metrics: dict[str, Tensor | None] = {}
    _add_rgb(metrics, "full_image", image, rgb, crop)
    metrics["ssim_full_image"] = _ssim(image, rgb, crop)
    _add_lpips(metrics, "full_image", lpips, image, rgb, crop)
    if targets.fg_probability is not None:
        foreground = targets.fg_probability > functions.MASK_THRESHOLD
        behind = rgb.new_tensor(background_of(targets) or (0.0, 0.0, 0.0))
        masked = torch.where(foreground, rgb, behind)
        _add_rgb(metrics, "masked", image, masked, crop)
        _add_lpips(metrics, "masked", lpips, image, masked, crop)
        _add_foreground(metrics, predictions, foreground, crop)
    return {name: None if value is None else value.item() for name, value in metrics.items()}


def _add_rgb(
    metrics: dict[str, Tensor | None],
    name: str,
    image: Float[Tensor, "1 H W 3"],
    rgb: Float[Tensor, "1 H W 3"],
    weights: Float[Tensor, "1 H W 1"] | None,
) -> None:
    metrics[f"psnr_{name}"] = functions.psnr(functions.mse(image, rgb, weights))
    metrics[f"rgb_l1_{name}"] = functions.l1(image, rgb, weights)


def _ssim(
    image: Float[Tensor, "1 H W 3"], rgb: Float[Tensor, "1 H W 3"], crop: Float[Tensor, "1 H W 1"] | None
) -> Tensor | None:
    if min(rgb.shape[1:3]) < SSIM_WINDOW:
        return None
    value = ssim(_as_image(image), _as_image(rgb), None if crop is None else crop.permute(0, 3, 1, 2))[0]
    return None if value.isnan() else value


def _add_lpips(
    metrics: dict[str, Tensor | None],
    name: str,
    lpips: Lpips | None,
    image: Float[Tensor, "1 H W 3"],
    rgb: Float[Tensor, "1 H W 3"],
    crop: Float[Tensor, "1 H W 1"] | None,
) -> None:
    if lpips is not None:
        image = image if crop is None else torch.where(crop > functions.MASK_THRESHOLD, image, rgb)
        large_enough = min(rgb.shape[1:3]) >= lpips.min_size
        metrics[f"lpips_{name}"] = lpips(_as_image(image), _as_image(rgb))[0] if large_enough else None


def _add_foreground(
    metrics: dict[str, Tensor | None],
    predictions: Predictions,
    foreground: Bool[Tensor, "1 H W 1"],
    crop: Float[Tensor, "1 H W 1"] | None,
) -> None:
    targets, rendered = predictions.targets, predictions.rendered
    weights = foreground.float() if crop is None else foreground.float() * crop
    metrics["iou"] = functions.iou(rendered.masks.float(), foreground.float(), crop)
    is_any = bool(weights.any())
    if targets.rgb is not None and is_any:
        _add_rgb(metrics, "fg", rendered.features.float(), targets.rgb.float(), weights)
    else:
        metrics["psnr_fg"] = metrics["rgb_l1_fg"] = None
    if targets.depth is not None:
        border = min(DEPTH_CROP, (min(weights.shape[1:3]) - 1) // 2)
        predicted, depth, weights = (
            x[:, border : x.shape[1] - border, border : x.shape[2] - border]
            for x in (rendered.depths.float(), targets.depth.float(), weights)
        )
        is_known = bool(((depth > 0) & (weights > functions.MASK_THRESHOLD)).any())
        metrics["depth_abs_fg"] = functions.depth_abs(predicted, depth, weights) if is_known else None


def _as_image(view: Float[Tensor, "1 H W 3"]) -> Float[Tensor, "1 3 H W"]:
    return view.clamp(0, 1).permute(0, 3, 1, 2)


def _float(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.float()


def mean_metrics(views: Iterable[Metrics]) -> Metrics:
    """The mean of each metric over the views that have it; None where none has. The order of views doesn't matter."""
    values: dict[str, list[float]] = {}
    for metrics in views:
        for name, value in metrics.items():
            held = values.setdefault(name, [])
            if value is not None and math.isfinite(value):
                held.append(value)
    return {name: math.fsum(held) / len(held) if held else None for name, held in values.items()}


def summarize(
    views: Sequence[ViewResult],
    is_multisequence: bool = False,
    difficulty_breaks: tuple[float, float] = (0.97, 0.98),
) -> list[ResultRow]:
    """Mean metrics of all views, and over sequences of the groups that CO3D's many-sequence task asks for.

    A single scene gives one row, test and diff=all. Over sequences the views are first divided by frame type into train
    and test; each subset has a row for all its views, for each bin of camera difficulty (where difficulties are known),
    and for each number of source views; groups without views have no row.

    Args:
        difficulty_breaks: where hard ends and medium begins, and where medium ends and easy begins.
    """
    if not is_multisequence:
        return [_row("test", "diff=all", views)] if views else []
    rows = []
    for subset in ("train", "test"):
        of_subset = [view for view in views if ("train" in view.frame_type) == (subset == "train")]
        groups = {"diff=all": of_subset}
        for name in DIFFICULTY_NAMES:
            groups[f"diff={name}"] = [v for v in of_subset if _difficulty_name(v, difficulty_breaks) == name]
        for n_src in N_SRC_VIEWS:
            groups[f"n_src={n_src}"] = [v for v in of_subset if v.n_src == n_src]
        rows += [_row(subset, name, group) for name, group in groups.items() if group]
    return rows


def _difficulty_name(view: ViewResult, breaks: tuple[float, float]) -> str | None:
    if view.difficulty is None:
        return None
    return DIFFICULTY_NAMES[sum(view.difficulty >= edge for edge in breaks)]


def _row(subset: str, subsubset: str, views: Sequence[ViewResult]) -> ResultRow:
    metrics = mean_metrics(view.metrics for view in views)
    return ResultRow(subset=subset, subsubset=subsubset, metrics=metrics, n_views=len(views))


def metric_label(name: str, lpips_net: str | None) -> str:
    """A metric's name as it is printed: LPIPS with its network, without which its numbers mean little."""
    return f"{name} ({lpips_net})" if name in LPIPS_NAMES and lpips_net is not None else name


def result_table(rows: Sequence[ResultRow]) -> str:
    """The rows as a table to print: a column a group, a line a metric."""
    names = dict.fromkeys(name for row in rows for name in row.metrics)
    several = len({row.subset for row in rows}) > 1
    heads = [f"{row.subset} {row.subsubset}" if several else row.subsubset for row in rows]
    nets = {str(net) for row in rows if (net := row.protocol.get("lpips_net")) is not None}
    net = nets.pop() if len(nets) == 1 else None
    cells = [[metric_label(name, net), *(_cell(row.metrics.get(name)) for row in rows)] for name in names]
    cells.append(["views", *(str(row.n_views) for row in rows)])
    table = tabulate(
        cells, headers=["metric", *heads], disable_numparse=True, colalign=["left"] + ["right"] * len(rows)
    )
    subsets = " and ".join(dict.fromkeys(row.subset for row in rows))
    return f"New views, subset {subsets}\n{table}"


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
