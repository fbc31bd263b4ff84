"""Triton kernel that places samples of rays in the unit cube; see `nerf_trainer.ops.cube_places`."""

# Triton's launch options are unknown to type checkers.
# pyright: reportCallIssue=false

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Float
from torch import Tensor

from nerf_trainer.geometry import contraction
from nerf_trainer.geometry.contraction import Norm

_BLOCK = 256
_FARTHEST = tl.constexpr(contraction.FARTHEST)
_RADIUS = tl.constexpr(contraction.CONTRACTED_RADIUS)


@triton.jit
def _local(origins_ptr, directions_ptr, center_ptr, extents_ptr, ray, t, mask, AXIS: tl.constexpr):
    """One coordinate of the samples, relative to the box: its faces are at -1 and 1."""
    origin = tl.load(origins_ptr + ray * 3 + AXIS, mask=mask, other=0.0)
    direction = tl.load(directions_ptr + ray * 3 + AXIS, mask=mask, other=0.0)
    point = origin + t * direction
    return (point - tl.load(center_ptr + AXIS)) * (2.0 / tl.load(extents_ptr + AXIS))


@triton.jit
def _bounded(x):
    return tl.where(x > _FARTHEST, _FARTHEST, tl.where(x < -_FARTHEST, -_FARTHEST, x))


@triton.jit
def _place(
    origins_ptr,
    directions_ptr,
    lengths_ptr,
    center_ptr,
    extents_ptr,
    places_ptr,
    inside_ptr,
    n_samples,
    n,
    NORM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """NORM: 0 without a contraction, 2 for spheres, 3 for boxes."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = row < n
    ray = (row // n_samples).to(tl.int64)
    t = tl.load(lengths_ptr + row, mask=mask, other=0.0)
    x = _local(origins_ptr, directions_ptr, center_ptr, extents_ptr, ray, t, mask, 0)
    y = _local(origins_ptr, directions_ptr, center_ptr, extents_ptr, ray, t, mask, 1)
    z = _local(origins_ptr, directions_ptr, center_ptr, extents_ptr, ray, t, mask, 2)
    scale = 0.5
    if NORM == 0:
        inside = (tl.abs(x) <= 1.0) & (tl.abs(y) <= 1.0) & (tl.abs(z) <= 1.0)
        tl.store(inside_ptr + row, inside.to(tl.uint8), mask=mask)
    else:
        x, y, z = _bounded(x), _bounded(y), _bounded(z)
        if NORM == 2:
            square = x * x + y * y + z * z
            r = tl.sqrt(tl.where(square < 1.0, 1.0, square))
        else:
            r = tl.maximum(tl.maximum(tl.abs(x), tl.abs(y)), tl.maximum(tl.abs(z), 1.0))
        scale = (2.0 - 1.0 / r) / r * (0.5 / _RADIUS)
    places_ptr += row.to(tl.int64) * 3
    tl.store(places_ptr, x * scale + 0.5, mask=mask)
    tl.store(places_ptr + 1, y * scale + 0.5, mask=mask)
    tl.store(places_ptr + 2, z * scale + 0.5, mask=mask)


def place(
    origins: Float[Tensor, "R 3"],
    directions: Float[Tensor, "R 3"],
    lengths: Float[Tensor, "R S"],
    center: Float[Tensor, "3"],
    extents: Float[Tensor, "3"],
    norm: Norm | None,
) -> tuple[Float[Tensor, "M 3"], Bool[Tensor, "M"] | None]:
    """Places in the cube, and which are in the box."""
    n, device = lengths.numel(), lengths.device
    places = torch.empty(n, 3, device=device)
    inside = torch.empty(n, dtype=torch.uint8, device=device) if norm is None else None
    if n > 0:
        kind = {None: 0, Norm.L2: 2, Norm.LINF: 3}[norm]
        _place[(triton.cdiv(n, _BLOCK),)](
            *(origins, directions, lengths, center, extents, places, inside, lengths.shape[1], n),
            NORM=kind,
            BLOCK=_BLOCK,
            num_warps=4,
        )
    return places, None if inside is None else inside.view(torch.bool)
