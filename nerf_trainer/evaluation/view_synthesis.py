"""What a rendered view is worth: its metrics."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nerf_trainer.evaluation.image_metrics import SSIM_WINDOW, ssim
from nerf_trainer.evaluation.lpips import Lpips
from nerf_trainer.losses import functions
from nerf_trainer.models.base import Predictions, Targets

DEPTH_CROP = 5
"""Pixels along each border that a depth error leaves out: depth is least sure there."""
LPIPS_NAMES = ("lpips_full_image", "lpips_masked")
"""Metrics that need weights which may be missing."""

_BLACK = (0.0, 0.0, 0.0)

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
    category: str = ""
    """The kind of object that its sequence shows, where the dataset says so."""
    difficulty: float | None = None
    """Overlap of the target with its nearest source views, in (0, 1], where it is known; see `cameras.difficulty`."""
    background: tuple[float, float, float] | None = None
    """Colour behind the foreground of the target, where it is one."""
    keeps_background: bool = False
    """Whether the target shows the photograph's own background."""
    seconds: float = 0.0
    """Time the model took to render it."""


def background_of(targets: Targets) -> tuple[float, float, float] | None:
    """The one colour of all target pixels that count and have no foreground; None where there is no such pixel or no
    such colour.
    """
    behind = _behind(targets)
    if len(behind) == 0 or not _is_one_color(behind):
        return None
    red, green, blue = (round(value, 3) for value in behind.float().mean(dim=0).tolist())
    return red, green, blue


def keeps_background(targets: Targets) -> bool:
    """Whether what has no foreground shows the photograph's own background, and not one colour."""
    behind = _behind(targets)
    return len(behind) > 0 and not _is_one_color(behind)


def _behind(targets: Targets) -> Float[Tensor, "n 3"]:
    """The colours of all target pixels that count and have no foreground."""
    if targets.rgb is None or targets.fg_probability is None:
        return torch.empty(0, 3)
    is_behind = targets.fg_probability[..., 0] == 0
    if targets.mask_crop is not None:
        is_behind = is_behind & (targets.mask_crop[..., 0] > functions.MASK_THRESHOLD)
    return targets.rgb[is_behind]


def _is_one_color(colors: Float[Tensor, "n 3"]) -> bool:
    return bool((colors.amax(dim=0) - colors.amin(dim=0)).max() <= 1e-3)


@torch.no_grad()
def evaluate_view(predictions: Predictions, lpips: Lpips | None = None) -> Metrics:
    """Compare one rendered view with its photograph, at the size it was rendered.

    - `psnr_full_image`, `rgb_l1_full_image`, `ssim_full_image`, `lpips_full_image`: with the target as it is.
    - `psnr_masked`, `rgb_l1_masked`, `lpips_masked`: with the target whose background (foreground probability of at
      most 0.5) is the one colour that the model renders over, that of `background_of`; black, as CO3D's evaluation has
      it, where there is no such colour.
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
        masked = torch.where(foreground, rgb, rgb.new_tensor(background_of(targets) or _BLACK))
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
