"""Photographs as targets: what they are composited on, and how; and their values at rays."""

from enum import Enum

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import grid_sample

from nerf_trainer.rays.bundle import RayBundle


class Background(Enum):
    """What renderings and photographs are composited on."""

    RAYMARCHER = "raymarcher"
    """Renderings on the raymarcher's own `bg_color`; masked photographs on the model's."""
    COLOR = "color"
    """Both on the model's `bg_color`."""
    RANDOM = "random"
    """Both on a colour drawn for each ray while training, which keeps haze from posing as background; on `bg_color` in
    evaluation."""


def over(
    rgb: Float[Tensor, "*n 3"],
    alpha: Float[Tensor, "*n 1"] | None,
    background: Float[Tensor, "*n 3"],
    threshold: float | None,
) -> Float[Tensor, "*n 3"]:
    """Photographs on a background.

    Args:
        alpha: foreground probability in [0, 1]; None takes photographs as they are.
        threshold: probability above which a pixel is taken whole, and not at all else; None blends by it.
    """
    if alpha is None:
        return rgb
    alpha = alpha if threshold is None else (alpha > threshold).to(rgb.dtype)
    return rgb * alpha + background * (1.0 - alpha)


def at_rays(
    image: Float[Tensor, "B C H W"] | None, rays: RayBundle, mode: str = "bilinear"
) -> Float[Tensor, "*rays C"] | None:
    """An image batch at the rays' pixels, exact at pixel centres; the rays' groups are views or one for all."""
    if image is None:
        return None
    height, width = image.shape[-2:]
    if rays.ray_shape == (image.shape[0], height, width):
        return image.permute(0, 2, 3, 1)
    if rays.ray_shape[0] != image.shape[0] or rays.near.ndim == 2:
        x, y = rays.xy.long().unbind(-1)
        return image.permute(0, 2, 3, 1)[rays.camera_index, y, x]
    grid = 2.0 * rays.xy / torch.tensor([width, height], device=rays.xy.device, dtype=rays.xy.dtype) - 1.0
    sampled = grid_sample(image, grid, mode=mode, padding_mode="border", align_corners=False)
    return sampled.permute(0, 2, 3, 1)
