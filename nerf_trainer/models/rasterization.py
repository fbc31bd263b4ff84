"""Pictures out of the rays of a training step: what was rendered at drawn pixels, spread over those between them."""

import torch
from torch.nn.functional import interpolate

from nerf_trainer.ops.splat import splat_points
from nerf_trainer.rays.bundle import RayBundle
from nerf_trainer.renderers.base import RendererOutput

SPACINGS = 2.0
"""Radius of a ray's disc, in mean distances between rays: of n rays at random, a share of exp(-4 pi) of a picture is
left uncovered."""
MAX_RADIUS = 4.0
"""Largest radius that discs are drawn with, pixels. Sparser rays are drawn on a coarser grid, whose picture is then
stretched: it has no finer detail, and its cost depends on the number of rays alone."""


@torch.no_grad()
def rasterize_rays(
    rays: RayBundle, rendered: RendererOutput, image_hw: tuple[int, int], n_views: int
) -> RendererOutput:
    """Splat what rays saw at the pixels they went through: a whole view, roughly, out of a random draw of pixels.

    A pixel shows the rays around it, the nearest first, as a weighted mean: a pixel that was drawn shows its own ray,
    as long as no coarser grid is needed, so that the rays of a full grid give the same picture back. What no disc
    reaches is 0. No gradient flows through the result. It has as many pixels as asked for, whatever the number of rays,
    and reads values back from the device: not for a captured step.

    Args:
        rays: their `xy` in pixels of a view of `image_hw`, their `camera_index` in [0, n_views).
        rendered: features, depths and masks of the same rays.
        image_hw: height and width of the views and of the pictures, pixels.
        n_views: how many pictures.

    Returns:
        features, depths (not divided by the mask) and masks, of ray shape (n_views, height, width).
    """
    height, width = image_hw
    radius = SPACINGS * (height * width * n_views / max(1, rays.n_rays)) ** 0.5
    shrink = min(1.0, MAX_RADIUS / radius)
    grid_hw = max(1, round(shrink * height)), max(1, round(shrink * width))
    scale = rays.xy.new_tensor([grid_hw[1] / width, grid_hw[0] / height])
    seen = torch.cat([part.float() for part in (rendered.features, rendered.depths, rendered.masks)], dim=-1)
    splat = splat_points(
        (rays.xy * scale).reshape(-1, 2),
        torch.ones_like(rays.near).flatten(),
        seen.reshape(-1, seen.shape[-1]),
        grid_hw,
        radius * shrink,
        view=rays.camera_index.flatten(),
        n_views=n_views,
    )
    image = torch.cat([splat.features, splat.opacity], dim=-1)
    if grid_hw != image_hw:
        image = interpolate(image.permute(0, 3, 1, 2), image_hw, mode="bilinear").permute(0, 2, 3, 1)
    covered = image[..., -1:]
    mean = torch.where(covered > 0.0, image[..., :-1] / covered.clamp(min=1e-12), 0.0)
    return RendererOutput(features=mean[..., :-2], depths=mean[..., -2:-1], masks=mean[..., -1:])
