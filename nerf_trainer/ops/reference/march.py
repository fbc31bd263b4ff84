"""Marching in plain torch: steps are looked up one after the other, of many rays together, in pieces that fit a cache.

The order of floating-point operations is that of `kernels.march`, so that both find the same steps.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nerf_trainer.ops.occupancy_bits import OccupiedCells
from nerf_trainer.ops.ray_steps import BoundedRays, Steps

STEPS_AT_ONCE = 2**15
"""Most steps of all rays that are looked up together."""
TOGETHER = 64
"""Steps of a ray that are."""
PARALLEL = 1e-20
"""Below this a ray does not move along an axis."""
LOG2_E = 1.4426950408889634


class _Rays(NamedTuple):
    """Rays in the coordinates of the innermost box, which is [-1, 1]^3, and where they are within the outermost.

    *rays is (R), or (R, 1) so that steps have a dimension of their own.
    """

    number: Int[Tensor, "*rays"]
    origin: Float[Tensor, "*rays 3"]
    direction: Float[Tensor, "*rays 3"]
    speed: Float[Tensor, "*rays"]
    """World units per unit of length."""
    jitter: Float[Tensor, "*rays"]
    t_in: Float[Tensor, "*rays"]
    t_out: Float[Tensor, "*rays"]

    def at(self, index: Int[Tensor, "n"]) -> "_Rays":
        return _Rays(*(value[index] for value in self))

    def spread(self) -> "_Rays":
        return _Rays(*(value[:, None] for value in self))


class Samples(NamedTuple):
    """Samples of rays, in the order of rays and along them."""

    ray: Int[Tensor, "K"]
    start: Float[Tensor, "K"]
    end: Float[Tensor, "K"]


def occupied_steps(rays: BoundedRays, cells: OccupiedCells, steps: Steps) -> Samples:
    """All samples of all rays."""
    inner = _within(rays, cells)
    if len(inner.t_in) == 0:
        return Samples(inner.number, inner.t_in, inner.t_in)
    longest = int((_step_of(inner.t_out, inner, steps) - _step_of(inner.t_in, inner, steps)).max()) + 2
    pieces = zip(*(value.split(STEPS_AT_ONCE // TOGETHER) for value in inner), strict=True)
    found = [_kept(_Rays(*piece), longest, cells, steps) for piece in pieces]
    return Samples(*(torch.cat(values) for values in zip(*found, strict=True)))


def _within(rays: BoundedRays, cells: OccupiedCells) -> _Rays:
    """The rays that meet the outermost box between near and far."""
    origins, directions, near, far, jitter = rays
    x, y, z = directions.unbind(dim=-1)
    speed = ((x * x + y * y) + z * z).double().sqrt().float()  # torch rounds float32's otherwise than the hardware
    place = [(origins[:, a] - cells.center[a]) * (2.0 / cells.extents[a]) for a in range(3)]
    ahead = [directions[:, a] * (2.0 / cells.extents[a]) for a in range(3)]
    t_in, t_out = near, far
    for o, d in zip(place, ahead, strict=True):
        parallel = d.abs() < PARALLEL
        safe = torch.where(parallel, 1.0, d)
        low, high = (-cells.reach - o) / safe, (cells.reach - o) / safe
        endless = torch.where(o.abs() <= cells.reach, torch.inf, -torch.inf)
        t_in = torch.maximum(t_in, torch.where(parallel, -endless, torch.minimum(low, high)))
        t_out = torch.minimum(t_out, torch.where(parallel, endless, torch.maximum(low, high)))
    meets = ((t_in < t_out) & (speed > 0.0)).nonzero()[:, 0]
    values = (torch.stack(place, dim=-1), torch.stack(ahead, dim=-1), speed, jitter, t_in, t_out)
    return _Rays(meets, *(value[meets] for value in values))


def _step_of(t: Float[Tensor, "*rays"], rays: _Rays, steps: Steps) -> Float[Tensor, "*rays"]:
    """The coordinate s of lengths t."""
    w = t * rays.speed
    if steps.cone_angle == 0.0:
        return w * (1.0 / steps.step)
    w1, s1, w2, s2 = steps.bends()
    grown = torch.log2(w.clamp(min=w1) * (1.0 / w1)) * (1.0 / (steps.cone_angle * LOG2_E)) + s1
    far = (w - w2) * (1.0 / steps.largest) + s2
    return torch.where(w <= w1, w * (1.0 / steps.step), torch.where(w <= w2, grown, far))


def _edge(index: Int[Tensor, "*#steps"], rays: _Rays, steps: Steps) -> Float[Tensor, "..."]:
    """The lengths at which steps begin."""
    shifted = index.float() + rays.jitter
    if steps.cone_angle == 0.0:
        step = torch.full_like(rays.speed, steps.step)  # a number over a tensor is the number times its inverse
        return rays.t_in + shifted * (step / rays.speed)
    w1, s1, w2, s2 = steps.bends()
    s = _step_of(rays.t_in, rays, steps) + shifted
    grown = torch.exp2((s.clamp(max=s2) - s1) * (steps.cone_angle * LOG2_E)) * w1
    w = torch.where(s <= s1, s * steps.step, torch.where(s <= s2, grown, (s - s2) * steps.largest + w2))
    return w / rays.speed


def _kept(rays: _Rays, longest: int, cells: OccupiedCells, steps: Steps) -> Samples:
    """The samples of some rays, `TOGETHER` steps at a time while rays have some left."""
    index = torch.arange(longest, device=rays.speed.device)
    kept = torch.zeros(len(rays.speed), longest, dtype=torch.bool, device=rays.speed.device)
    n_kept = kept.sum(dim=1)
    for part in index.split(TOGETHER):
        going = ((n_kept < steps.most) & (_edge(part[0], rays, steps) < rays.t_out)).nonzero()[:, 0]
        if len(going) == 0:
            break
        some = rays.at(going).spread()
        edges = _edge(torch.cat([part, part[-1:] + 1]), some, steps)
        middle = 0.5 * (edges[:, :-1] + edges[:, 1:])
        found = _occupied(middle, some, cells) & (middle < some.t_out)
        kept[going, part[0] : part[-1] + 1] = found
        n_kept[going] += found.sum(dim=1)
    kept &= kept.cumsum(dim=1, dtype=torch.int32) <= steps.most
    ray, step = kept.nonzero().unbind(dim=-1)
    those = rays.at(ray)
    return Samples(those.number, _edge(step, those, steps), _edge(step + 1, those, steps))


def _occupied(t: Float[Tensor, "R S"], rays: _Rays, cells: OccupiedCells) -> Bool[Tensor, "R S"]:
    """Whether the cells at lengths t are occupied; what lies outside of the boxes counts with their faces."""
    place = [rays.origin[..., a] + t * rays.direction[..., a] for a in range(3)]
    cascade = torch.zeros_like(t, dtype=torch.int32)
    if cells.contracted or cells.n_cascades > 1:
        farthest = torch.maximum(torch.maximum(place[0].abs(), place[1].abs()), place[2].abs())
        scale = torch.ones_like(t)
        if cells.contracted:
            r = farthest.clamp(min=1.0)
            scale = 0.5 * ((2.0 - r.reciprocal()) / r)
        for k in range(1, cells.n_cascades):
            outside = farthest > 2.0 ** (k - 1)
            cascade += outside
            scale = torch.where(outside, 2.0**-k, scale)
        place = [p * scale for p in place]
    half = 0.5 * cells.resolution
    x, y, z = ((p * half + half).clamp(0, cells.resolution - 1).to(torch.int32) for p in place)
    across = cells.resolution // 2
    byte = ((cascade * across + (x >> 1)) * across + (y >> 1)) * across + (z >> 1)
    bit = (x & 1) * 4 + (y & 1) * 2 + (z & 1)
    return ((cells.bits.flatten()[byte] >> bit) & 1).bool()
