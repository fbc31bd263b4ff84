"""Triton kernels of the multiresolution hash encoding; the symbols are those of `nerf_trainer.ops.hash_encode`.

A program takes a block of points at a few levels. These are the slow axis of the launch, so that their rows, 8 MB a
level of the usual 47 and more, are what is read, or added to, at a time. The F features of a row are neighbours: a
corner is one vector load, and one vector addition in the backward pass (`red.global.add.v4.f32` for four features on
sm_90). Levels that a program takes together are neighbours in the encoding: their features are written in one piece.
"""

# Triton's launch options, and what its language makes of constants and loops, are unknown to type checkers.
# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from nerf_trainer.ops.hash_levels import HashLevels
from nerf_trainer.ops.reference.hash_encode import PRIMES

_BLOCK = 256  # points of a program
_N_WARPS = 4
LEVELS_TOGETHER = 4
"""Most levels of a program: 1, 2 or 4; fewer where they do not divide the levels, or have over 8 features together."""
_PRIME_Y = tl.constexpr(PRIMES[1])
_PRIME_Z = tl.constexpr(PRIMES[2])


@triton.jit
def _at_level(level, VALUES: tl.constexpr):
    """VALUES[level] of a tuple known to the compiler, for a level that is not."""
    value = level * 0 + VALUES[0]
    for i in tl.static_range(1, len(VALUES)):
        value = tl.where(level == i, VALUES[i], value)
    return value


@triton.jit
def _along_axis(points_ptr, places, mask, resolution):
    """The cell of each point along one axis, int32, and how far the point is from its lower face, in cells."""
    coordinate = tl.load(points_ptr + places, mask=mask, other=0.0)
    coordinate = tl.where(coordinate > 0.0, coordinate, tl.where(coordinate <= 0.0, 0.0, coordinate))
    scaled = tl.where(coordinate > 1.0, 1.0, coordinate) * resolution.to(tl.float32)
    cell = tl.minimum(tl.maximum(tl.floor(scaled).to(tl.int32), 0), resolution - 1)
    return cell, scaled - cell.to(tl.float32)


@triton.jit
def _corner(x, y, z, resolution, size, CORNER: tl.constexpr):
    """The row within its level of one corner of the cells (x, y, z); the bits of CORNER are steps along x, y and z."""
    x += CORNER & 1
    y += (CORNER >> 1) & 1
    z += CORNER >> 2
    n = resolution + 1
    own = x + n * (y + n * z)
    shared = x.to(tl.uint32) ^ (y.to(tl.uint32) * _PRIME_Y) ^ (z.to(tl.uint32) * _PRIME_Z)
    # All nodes have a row of their own where the level has as many rows; n^3 may not fit 32 bits elsewhere.
    is_dense = n.to(tl.int64) * n * n == size
    return tl.where(is_dense, own, (shared & (size - 1).to(tl.uint32)).to(tl.int32))


@triton.jit
def _hat(upper, STEP: tl.constexpr):
    """The weight of the lower (STEP 0) or upper (1) node."""
    if STEP == 1:
        weight = upper
    else:
        weight = 1.0 - upper
    return weight


@triton.jit
def _used(n_used_ptr, n_points):
    """How many points are no padding."""
    n = n_points
    if n_used_ptr is not None:
        n = tl.minimum(tl.load(n_used_ptr).to(tl.int32), n_points)
    return n


@triton.jit
def _cells(places, offsets, used, resolution):
    """The cells of points, and how far the points are from their lower faces, along x, y and z."""
    x, u = _along_axis(places, offsets * 3, used, resolution)
    y, v = _along_axis(places, offsets * 3 + 1, used, resolution)
    z, w = _along_axis(places, offsets * 3 + 2, used, resolution)
    return (x, y, z), (u, v, w)


@triton.jit
def _corner_weight(upper, CORNER: tl.constexpr):
    """The trilinear weight of one corner."""
    return _hat(upper[0], CORNER & 1) * (_hat(upper[1], (CORNER >> 1) & 1) * _hat(upper[2], CORNER >> 2))


@triton.jit
def _of_level(
    table_ptr,
    places,
    offsets,
    used,
    level,
    RESOLUTIONS: tl.constexpr,
    STARTS: tl.constexpr,
    SIZES: tl.constexpr,
    F: tl.constexpr,
):
    """The interpolated features of one level (BLOCK F), 0 for padding."""
    features = tl.arange(0, F)
    resolution, size = _at_level(level, RESOLUTIONS), _at_level(level, SIZES)
    level_ptr = table_ptr + _at_level(level, STARTS) * F
    cell, upper = _cells(places, offsets, used, resolution)
    total = tl.zeros([offsets.shape[0], F], tl.float32)
    for corner in tl.static_range(8):
        row = _corner(cell[0], cell[1], cell[2], resolution, size, corner)
        weight = _corner_weight(upper, corner)
        total += weight[:, None] * tl.load(level_ptr + row[:, None] * F + features[None, :])
    return tl.where(used[:, None], total, 0.0)


@triton.jit
def _add_to_level(
    gradient_ptr,
    places,
    offsets,
    used,
    g,
    level,
    RESOLUTIONS: tl.constexpr,
    STARTS: tl.constexpr,
    SIZES: tl.constexpr,
    F: tl.constexpr,
):
    """Add the gradient of one level's features, times the weights of corners, to the rows of these."""
    features = tl.arange(0, F)
    resolution, size = _at_level(level, RESOLUTIONS), _at_level(level, SIZES)
    level_ptr = gradient_ptr + _at_level(level, STARTS) * F
    cell, upper = _cells(places, offsets, used, resolution)
    counts = tl.max((g != 0.0).to(tl.int32), axis=1) != 0  # what nothing depends on adds nothing
    for corner in tl.static_range(8):
        row = _corner(cell[0], cell[1], cell[2], resolution, size, corner)
        target = level_ptr + row[:, None] * F + features[None, :]
        tl.atomic_add(target, _corner_weight(upper, corner)[:, None] * g, mask=counts[:, None], sem="relaxed")


@triton.jit
def _beside(a, b):
    """Two tables of as many rows and columns, side by side."""
    return tl.reshape(tl.permute(tl.join(a, b), (0, 2, 1)), (a.shape[0], 2 * a.shape[1]))


@triton.jit
def _halves(both):
    """What `_beside` put side by side."""
    return tl.split(tl.permute(tl.reshape(both, (both.shape[0], 2, both.shape[1] // 2)), (0, 2, 1)))


@triton.jit
def _encode(
    points_ptr,
    table_ptr,
    out_ptr,
    n_used_ptr,
    n_points,
    RESOLUTIONS: tl.constexpr,
    STARTS: tl.constexpr,
    SIZES: tl.constexpr,
    F: tl.constexpr,
    TOGETHER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * BLOCK
    level = tl.program_id(1) * TOGETHER
    offsets, features = tl.arange(0, BLOCK), tl.arange(0, TOGETHER * F)
    used = first + offsets < _used(n_used_ptr, n_points)
    total = tl.zeros([BLOCK, TOGETHER * F], tl.float32)
    if first < _used(n_used_ptr, n_points):
        places = points_ptr + first * 3
        one = _of_level(table_ptr, places, offsets, used, level, RESOLUTIONS, STARTS, SIZES, F)
        if TOGETHER == 1:
            total = one
        else:
            two = _beside(one, _of_level(table_ptr, places, offsets, used, level + 1, RESOLUTIONS, STARTS, SIZES, F))
            if TOGETHER == 2:
                total = two
            else:
                third = _of_level(table_ptr, places, offsets, used, level + 2, RESOLUTIONS, STARTS, SIZES, F)
                fourth = _of_level(table_ptr, places, offsets, used, level + 3, RESOLUTIONS, STARTS, SIZES, F)
                total = _beside(two, _beside(third, fourth))
    WIDTH: tl.constexpr = len(RESOLUTIONS) * F
    out = out_ptr + first * WIDTH + level * F
    mask = (first + offsets < n_points)[:, None]
    tl.store(out + offsets[:, None] * WIDTH + features[None, :], total.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _table_gradient(
    points_ptr,
    upstream_ptr,
    gradient_ptr,
    n_used_ptr,
    n_points,
    RESOLUTIONS: tl.constexpr,
    STARTS: tl.constexpr,
    SIZES: tl.constexpr,
    F: tl.constexpr,
    TOGETHER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * BLOCK
    level = tl.program_id(1) * TOGETHER
    n_used = _used(n_used_ptr, n_points)
    if first < n_used:
        offsets, features = tl.arange(0, BLOCK), tl.arange(0, TOGETHER * F)
        used = first + offsets < n_used
        places = points_ptr + first * 3
        WIDTH: tl.constexpr = len(RESOLUTIONS) * F
        upstream = upstream_ptr + first * WIDTH + level * F
        g = tl.load(upstream + offsets[:, None] * WIDTH + features[None, :], mask=used[:, None], other=0.0)
        g = g.to(tl.float32)
        if TOGETHER == 1:
            _add_to_level(gradient_ptr, places, offsets, used, g, level, RESOLUTIONS, STARTS, SIZES, F)
        elif TOGETHER == 2:
            one, other = _halves(g)
            _add_to_level(gradient_ptr, places, offsets, used, one, level, RESOLUTIONS, STARTS, SIZES, F)
            _add_to_level(gradient_ptr, places, offsets, used, other, level + 1, RESOLUTIONS, STARTS, SIZES, F)
        else:
            lower, upper = _halves(g)
            one, other = _halves(lower)
            _add_to_level(gradient_ptr, places, offsets, used, one, level, RESOLUTIONS, STARTS, SIZES, F)
            _add_to_level(gradient_ptr, places, offsets, used, other, level + 1, RESOLUTIONS, STARTS, SIZES, F)
            one, other = _halves(upper)
            _add_to_level(gradient_ptr, places, offsets, used, one, level + 2, RESOLUTIONS, STARTS, SIZES, F)
            _add_to_level(gradient_ptr, places, offsets, used, other, level + 3, RESOLUTIONS, STARTS, SIZES, F)


@triton.jit
def _points_gradient(
    points_ptr,
    table_ptr,
    upstream_ptr,
    gradient_ptr,
    n_used_ptr,
    n_points,
    RESOLUTIONS: tl.constexpr,
    STARTS: tl.constexpr,
    SIZES: tl.constexpr,
    F: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """All levels in turn, as their gradients are added up; d/dx of the weights is (-1, 1) N_l along x."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    offsets, features = tl.arange(0, BLOCK), tl.arange(0, F)
    used = first + offsets < _used(n_used_ptr, n_points)
    along_x = tl.zeros([BLOCK], tl.float32)
    along_y = tl.zeros([BLOCK], tl.float32)
    along_z = tl.zeros([BLOCK], tl.float32)
    WIDTH: tl.constexpr = len(RESOLUTIONS) * F
    places = points_ptr + first * 3
    for level in range(len(RESOLUTIONS)):
        resolution, size = _at_level(level, RESOLUTIONS), _at_level(level, SIZES)
        level_ptr = table_ptr + _at_level(level, STARTS) * F
        upstream = upstream_ptr + first * WIDTH + level * F
        g = tl.load(upstream + offsets[:, None] * WIDTH + features[None, :], mask=used[:, None], other=0.0)
        g = g.to(tl.float32) * resolution.to(tl.float32)
        x, u = _along_axis(places, offsets * 3, used, resolution)
        y, v = _along_axis(places, offsets * 3 + 1, used, resolution)
        z, w = _along_axis(places, offsets * 3 + 2, used, resolution)
        for corner in tl.static_range(8):
            row = _corner(x, y, z, resolution, size, corner)
            along = tl.sum(tl.load(level_ptr + row[:, None] * F + features[None, :]) * g, axis=1)
            wx, wy, wz = _hat(u, corner & 1), _hat(v, (corner >> 1) & 1), _hat(w, corner >> 2)
            along_x += (2 * (corner & 1) - 1) * (wy * wz) * along
            along_y += (2 * ((corner >> 1) & 1) - 1) * (wx * wz) * along
            along_z += (2 * (corner >> 2) - 1) * (wx * wy) * along
    _put_within(gradient_ptr + first * 3, places, offsets * 3, first + offsets < n_points, along_x)
    _put_within(gradient_ptr + first * 3, places, offsets * 3 + 1, first + offsets < n_points, along_y)
    _put_within(gradient_ptr + first * 3, places, offsets * 3 + 2, first + offsets < n_points, along_z)


@triton.jit
def _put_within(gradient_ptr, points_ptr, places, mask, gradient):
    """Write the gradient of a coordinate; one outside [0, 1] was clamped and has none."""
    coordinate = tl.load(points_ptr + places, mask=mask, other=0.0)
    within = (coordinate >= 0.0) & (coordinate <= 1.0)
    tl.store(gradient_ptr + places, tl.where(within, gradient, 0.0), mask=mask)


def encode(
    points: Float[Tensor, "N 3"],
    table: Float[Tensor, "T F"],
    levels: HashLevels,
    n_used: Int[Tensor, ""] | None,
    dtype: torch.dtype,
) -> Shaped[Tensor, "N LF"]:
    """The encoding, in `dtype`; zero for padding."""
    encoded = torch.empty(len(points), levels.output_dim, dtype=dtype, device=points.device)
    if len(points) > 0:
        grid = (triton.cdiv(len(points), _BLOCK), levels.n_levels // _together(levels))
        _encode[grid](points, table, encoded, n_used, len(points), *_grouped(levels), BLOCK=_BLOCK, num_warps=_N_WARPS)
    return encoded


def table_gradient(
    points: Float[Tensor, "N 3"],
    upstream: Shaped[Tensor, "N LF"],
    levels: HashLevels,
    n_used: Int[Tensor, ""] | None,
) -> Float[Tensor, "T F"]:
    """Gradient of the table, float32, given that of the encoding."""
    gradient = torch.zeros(levels.n_rows, levels.n_features, device=points.device)
    if len(points) > 0:
        grid = (triton.cdiv(len(points), _BLOCK), levels.n_levels // _together(levels))
        _table_gradient[grid](
            points, upstream, gradient, n_used, len(points), *_grouped(levels), BLOCK=_BLOCK, num_warps=_N_WARPS
        )
    return gradient


def points_gradient(
    points: Float[Tensor, "N 3"],
    table: Float[Tensor, "T F"],
    upstream: Shaped[Tensor, "N LF"],
    levels: HashLevels,
    n_used: Int[Tensor, ""] | None,
) -> Float[Tensor, "N 3"]:
    """Gradient of the points, float32, given that of the encoding; zero for padding."""
    gradient = torch.empty_like(points)
    if len(points) > 0:
        grid = (triton.cdiv(len(points), _BLOCK),)
        _points_gradient[grid](
            points, table, upstream, gradient, n_used, len(points), *_layout(levels), BLOCK=_BLOCK, num_warps=_N_WARPS
        )
    return gradient


def _layout(levels: HashLevels) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]:
    """RESOLUTIONS, STARTS, SIZES and F of the kernels."""
    return levels.resolutions, levels.starts, levels.sizes, levels.n_features


def _grouped(levels: HashLevels) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int, int]:
    """The same, and TOGETHER of the kernels that take levels together."""
    return (*_layout(levels), _together(levels))


def _together(levels: HashLevels) -> int:
    """Levels of a program."""
    fits = (n for n in (4, 2, 1) if n <= LEVELS_TOGETHER and n * levels.n_features <= 8 and levels.n_levels % n == 0)
    return next(fits, 1)
