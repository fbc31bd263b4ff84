"""Splatting: points drawn as soft discs on a picture, composited from front to back.

Symbols: a point p is at pixel position u_p (pixels, centres at +0.5) and depth z_p, with features f_p and opacity o_p.
Its disc has the radius r (pixels) and at a pixel's centre, d away from u_p, the opacity

    alpha = o_p (1 - d^2 / r^2)   where d < r, else 0.

With the points i = 1, 2, ... that cover a pixel in order of depth (of equal depths the nearer to the centre first),

    T_i = prod_{j < i} (1 - alpha_j)    w_i = T_i alpha_i    F = sum_i w_i f_i    A = sum_i w_i.

After Zwicker, Pfister, van Baar and Gross, Surface Splatting (2001), with discs in the picture's plane and this
fall-off, which is that of PyTorch3D's point renderer, instead of projected Gaussians; composited as in Porter and Duff
(1984).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

_POINTS_AT_ONCE = 2**20
"""Points whose pixels are looked for together, which bounds the memory for pixels that no disc covers."""


@dataclass(frozen=True)
class Splat:
    """V pictures of points. What no disc covers is 0 everywhere; no background is added."""

    features: Float[Tensor, "V H W C"]
    """F, the composited features."""
    opacity: Float[Tensor, "V H W 1"]
    """A, in [0, 1]."""
    depth: Float[Tensor, "V H W 1"]
    """The composited depth sum_i w_i z_i: not divided by the opacity."""


@dataclass(frozen=True)
class _Coverage:
    """The M pairs of a point and a pixel that its disc covers, pixel after pixel and in each from front to back."""

    point: Int[Tensor, "M"]
    pixel: Int[Tensor, "M"]
    """Flat index into (V, H, W)."""
    rank: Int[Tensor, "M"]
    """How many pairs of the same pixel come before."""


def splat_points(
    xy: Float[Tensor, "N 2"],
    depth: Float[Tensor, "N"],
    features: Float[Tensor, "N C"],
    size_hw: tuple[int, int],
    radius: float,
    opacity: Float[Tensor, "N"] | None = None,
    view: Int[Tensor, "N"] | None = None,
    n_views: int = 1,
) -> Splat:
    """Draw projected points as discs, every point that covers a pixel taken into account.

    Gradients reach `features`, `opacity`, `depth` (through the composited depth) and `xy` (through the fall-off). The
    order of the points and the set of pixels that a disc covers have none; the fall-off is 0 where that set changes, so
    that the pictures are continuous in `xy`, but they jump where two points change places in depth.

    Memory and time grow with the pairs of a point and a pixel, at most (2 radius + 1)^2 for each point within the
    picture; the number of pairs is read back from the device.

    Args:
        xy: pixel positions (x, y).
        depth: along the view axis. Points at depth 0 or less, points that are not finite, and those whose disc lies
            outside of the picture are left out.
        features: what the points show.
        size_hw: the pictures' height and width, pixels.
        radius: of the discs, pixels, above 0. A disc below sqrt(1/2) may lie between pixel centres and vanish.
        opacity: of the disc's centre, in [0, 1]; None is 1.
        view: the picture that each point belongs to, in [0, n_views); None is the first.
        n_views: how many pictures.

    Returns:
        pictures in the type of `features`, at least float32.
    """
    if radius <= 0.0:
        raise ValueError(f"radius: {radius}, expected a number of pixels above 0")
    (height, width), dtype = size_hw, torch.promote_types(features.dtype, torch.float32)
    covered = _coverage(xy.detach(), depth.detach(), size_hw, radius, view)
    row, column = covered.pixel // width % height, covered.pixel % width
    centers = torch.stack([column, row], dim=-1) + 0.5
    distance2 = (xy[covered.point] - centers).square().sum(dim=-1)
    alpha = (1.0 - distance2 / radius**2).clamp(min=0.0).to(dtype)
    if opacity is not None:
        alpha = alpha * opacity[covered.point].to(dtype)
    weights = alpha * _transmittance(1.0 - alpha, covered.rank)
    values = torch.cat([features.to(dtype), torch.ones_like(depth, dtype=dtype)[:, None], depth.to(dtype)[:, None]], -1)
    flat = torch.zeros(n_views * height * width, values.shape[1], dtype=dtype, device=xy.device)
    flat = flat.index_add(0, covered.pixel, weights[:, None] * values[covered.point])
    image = flat.reshape(n_views, height, width, -1)
    return Splat(features=image[..., :-2], opacity=image[..., -2:-1].clamp(max=1.0), depth=image[..., -1:])


def _coverage(
    xy: Float[Tensor, "N 2"],
    depth: Float[Tensor, "N"],
    size_hw: tuple[int, int],
    radius: float,
    view: Int[Tensor, "N"] | None,
) -> _Coverage:
    """Which points cover which pixels, in the order of compositing."""
    height, width = size_hw
    limit = torch.tensor([width, height], device=xy.device, dtype=xy.dtype)
    inside = ((xy > -radius) & (xy < limit + radius)).all(dim=-1) & (depth > 0.0) & depth.isfinite()
    kept = inside.nonzero()[:, 0]
    order = torch.arange(len(kept), device=xy.device)
    discs = [_discs(xy[kept[part]], part, size_hw, radius) for part in order.split(_POINTS_AT_ONCE)]
    place, x, y, distance2 = (torch.cat(values) for values in zip(*discs, strict=True))
    point = kept[place]
    picture = torch.zeros_like(point) if view is None else view[point].long()
    pixel = (picture * height + y) * width + x
    # A stable sort, the last criterion first: distance, where depths are equal at all, then pixel and depth.
    depths, layer = depth[kept].unique(return_inverse=True)
    key, order = pixel * max(1, len(depths)) + layer[place], torch.arange(len(point), device=xy.device)
    if len(depths) < len(kept):
        order = distance2.argsort(stable=True)
    order = order[key[order].argsort(stable=True)]
    point, pixel = point[order], pixel[order]
    _, count = pixel.unique_consecutive(return_counts=True)
    start = (count.cumsum(0) - count).repeat_interleave(count)
    return _Coverage(point=point, pixel=pixel, rank=torch.arange(len(point), device=xy.device) - start)


def _discs(
    xy: Float[Tensor, "n 2"], point: Int[Tensor, "n"], size_hw: tuple[int, int], radius: float
) -> tuple[Int[Tensor, "m"], Int[Tensor, "m"], Int[Tensor, "m"], Float[Tensor, "m"]]:
    """The pixels that some points' discs cover: the point's number, x and y of each pair, and the squared distance."""
    first = (xy - radius - 0.5).ceil().long()
    steps = torch.arange(int(2.0 * radius) + 1, device=xy.device)
    x, y = first[:, :1, None] + steps, first[:, 1:, None] + steps[:, None]
    distance2 = (xy[:, :1, None] - (x + 0.5)).square() + (xy[:, 1:, None] - (y + 0.5)).square()
    covers = (distance2 < radius**2) & (x >= 0) & (x < size_hw[1]) & (y >= 0) & (y < size_hw[0])
    pair, row, column = covers.nonzero().unbind(-1)
    return point[pair], x[pair, 0, column], y[pair, row, 0], distance2[pair, row, column]


def _transmittance(passed: Float[Tensor, "M"], rank: Int[Tensor, "M"]) -> Float[Tensor, "M"]:
    """The product of `passed` over the pairs of the same pixel that come before each.

    A segmented scan by doubling (Hillis and Steele 1986): after the step s each product spans 2 s pairs. Products, not
    sums of logarithms: a pair that passes nothing is exact, in value and in gradient.
    """
    longest = int(rank.max()) if len(rank) > 0 else 0
    product = _shifted(passed, 1, rank)
    step = 1
    while step < longest:
        product = product * _shifted(product, step, rank)
        step *= 2
    return product


def _shifted(values: Float[Tensor, "M"], by: int, rank: Int[Tensor, "M"]) -> Float[Tensor, "M"]:
    """`values` moved `by` pairs further; 1 where that would come from another pixel."""
    moved = torch.cat([torch.ones_like(values[:by]), values[:-by]])
    return torch.where(rank >= by, moved, 1.0)
