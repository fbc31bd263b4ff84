"""Triton kernels of grids in vector-matrix factors: all modes of a block of points in one go.

M: points; R: components of a mode, which is a plane and the line across it; C: components of all modes, or 1. Factors
have their channels last: a node's are neighbours in memory, are read 16 bytes at a time, and their gradients are added
so. A mode's channels go in portions of `CHUNK`.
"""
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportArgumentType=false

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

_BLOCK = 64
_CHUNK = 16


@triton.jit
def _corners(local, n_nodes, BORDER: tl.constexpr, ALIGNED: tl.constexpr):
    """The lower of the two nodes around points on an axis, and both nodes' weights; 0 beyond the outermost nodes.

    What is no number is looked up at the first node, so that nothing is read outside.
    """
    u = (local + 1.0) * (0.5 * (n_nodes - 1)) if ALIGNED else (local + 1.0) * (0.5 * n_nodes) - 0.5
    if BORDER:
        u = tl.minimum(tl.maximum(u, 0.0), n_nodes - 1.0)
    low = tl.where(u >= 0.0, tl.minimum(tl.floor(u), n_nodes - 2.0), 0.0)
    offset = u - low
    return low.to(tl.int32), tl.maximum(1.0 - tl.abs(offset), 0.0), tl.maximum(1.0 - tl.abs(offset - 1.0), 0.0)


@triton.jit
def _axes(local_ptr, rows, is_point, n_x, n_y, n_z, BORDER: tl.constexpr, ALIGNED: tl.constexpr):
    """The nodes around points along x, y and z."""
    places = local_ptr + rows.to(tl.int64) * 3
    x = _corners(tl.load(places, mask=is_point, other=0.0), n_x, BORDER, ALIGNED)
    y = _corners(tl.load(places + 1, mask=is_point, other=0.0), n_y, BORDER, ALIGNED)
    z = _corners(tl.load(places + 2, mask=is_point, other=0.0), n_z, BORDER, ALIGNED)
    return x, y, z


@triton.jit
def _read(ptr, places, weights, mask):
    """Some channels of nodes, times the nodes' weights."""
    return tl.load(ptr + places, mask=mask, other=0.0) * weights[:, None]


@triton.jit
def _add(ptr, places, weights, values, mask):
    """Add some channels, times the nodes' weights, to nodes."""
    tl.atomic_add(ptr + places, values * weights[:, None], mask=mask, sem="relaxed")


@triton.jit
def _on_plane(ptr, places, stride, a, b, mask, R: tl.constexpr):
    """Some channels of a plane, interpolated; `places` are those of the lowest corners, `stride` the first axis's."""
    low = _read(ptr, places, a[1] * b[1], mask) + _read(ptr, places + R, a[1] * b[2], mask)
    places += stride
    return low + _read(ptr, places, a[2] * b[1], mask) + _read(ptr, places + R, a[2] * b[2], mask)


@triton.jit
def _on_line(ptr, places, c, mask, R: tl.constexpr):
    """Some channels of a line, interpolated."""
    return _read(ptr, places, c[1], mask) + _read(ptr, places + R, c[2], mask)


@triton.jit
def _sample_mode(
    total,
    out_ptr,
    plane_ptr,
    line_ptr,
    a,
    b,
    c,
    n_b,
    rows,
    is_point,
    R: tl.constexpr,
    AHEAD: tl.constexpr,
    WIDTH: tl.constexpr,
    SUMMED: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """A mode's components, added to `total` or written behind the AHEAD ones of the modes before."""
    for start in tl.static_range(0, R, CHUNK):
        channels = start + tl.arange(0, CHUNK)
        mask = is_point[:, None] & (channels < R)[None, :]
        places = ((a[0] * n_b + b[0]) * R)[:, None] + channels[None, :]
        plane = _on_plane(plane_ptr, places, n_b * R, a, b, mask, R)
        line = _on_line(line_ptr, (c[0] * R)[:, None] + channels[None, :], c, mask, R)
        if SUMMED:
            total += plane * line
        else:
            places = rows.to(tl.int64)[:, None] * WIDTH + (AHEAD + channels)[None, :]
            tl.store(out_ptr + places, plane * line, mask=mask)
    return total


@triton.jit
def _spread_mode(
    upstream,
    upstream_ptr,
    plane_ptr,
    line_ptr,
    d_plane_ptr,
    d_line_ptr,
    a,
    b,
    c,
    n_b,
    rows,
    is_point,
    R: tl.constexpr,
    AHEAD: tl.constexpr,
    WIDTH: tl.constexpr,
    SUMMED: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Gradients of a mode's plane and line; points without a gradient add nothing."""
    for start in tl.static_range(0, R, CHUNK):
        channels = start + tl.arange(0, CHUNK)
        mask = is_point[:, None] & (channels < R)[None, :]
        if SUMMED:
            g = tl.where(mask, upstream[:, None], 0.0)
        else:
            places = rows.to(tl.int64)[:, None] * WIDTH + (AHEAD + channels)[None, :]
            g = tl.load(upstream_ptr + places, mask=mask, other=0.0)
        mask = (tl.max((g != 0.0).to(tl.int32), axis=1) > 0)[:, None] & (channels < R)[None, :]
        places = ((a[0] * n_b + b[0]) * R)[:, None] + channels[None, :]
        on_line = (c[0] * R)[:, None] + channels[None, :]
        d_line = g * _on_plane(plane_ptr, places, n_b * R, a, b, mask, R)
        d_plane = g * _on_line(line_ptr, on_line, c, mask, R)
        _add(d_line_ptr, on_line, c[1], d_line, mask)
        _add(d_line_ptr, on_line + R, c[2], d_line, mask)
        _add(d_plane_ptr, places, a[1] * b[1], d_plane, mask)
        _add(d_plane_ptr, places + R, a[1] * b[2], d_plane, mask)
        places += n_b * R
        _add(d_plane_ptr, places, a[2] * b[1], d_plane, mask)
        _add(d_plane_ptr, places + R, a[2] * b[2], d_plane, mask)


@triton.jit(do_not_specialize=["n_points", "n_x", "n_y", "n_z"])
def _forward_kernel(
    local_ptr,
    plane_xy_ptr,
    line_z_ptr,
    plane_yz_ptr,
    line_x_ptr,
    plane_xz_ptr,
    line_y_ptr,
    out_ptr,
    n_points,
    n_x,
    n_y,
    n_z,
    R_XY: tl.constexpr,
    R_YZ: tl.constexpr,
    R_XZ: tl.constexpr,
    BORDER: tl.constexpr,
    ALIGNED: tl.constexpr,
    SUMMED: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_point = rows < n_points
    x, y, z = _axes(local_ptr, rows, is_point, n_x, n_y, n_z, BORDER, ALIGNED)
    total = tl.zeros((BLOCK, CHUNK), tl.float32)
    width: tl.constexpr = R_XY + R_YZ + R_XZ
    total = _sample_mode(
        total, out_ptr, plane_xy_ptr, line_z_ptr, x, y, z, n_y, rows, is_point, R_XY, 0, width, SUMMED, CHUNK
    )
    total = _sample_mode(
        total, out_ptr, plane_yz_ptr, line_x_ptr, y, z, x, n_z, rows, is_point, R_YZ, R_XY, width, SUMMED, CHUNK
    )
    total = _sample_mode(
        total, out_ptr, plane_xz_ptr, line_y_ptr, x, z, y, n_z, rows, is_point, R_XZ, R_XY + R_YZ, width, SUMMED, CHUNK
    )
    if SUMMED:
        tl.store(out_ptr + rows, tl.sum(total, axis=1), mask=is_point)


@triton.jit(do_not_specialize=["n_points", "n_x", "n_y", "n_z"])
def _backward_kernel(
    upstream_ptr,
    local_ptr,
    plane_xy_ptr,
    line_z_ptr,
    plane_yz_ptr,
    line_x_ptr,
    plane_xz_ptr,
    line_y_ptr,
    d_plane_xy_ptr,
    d_line_z_ptr,
    d_plane_yz_ptr,
    d_line_x_ptr,
    d_plane_xz_ptr,
    d_line_y_ptr,
    n_points,
    n_x,
    n_y,
    n_z,
    R_XY: tl.constexpr,
    R_YZ: tl.constexpr,
    R_XZ: tl.constexpr,
    BORDER: tl.constexpr,
    ALIGNED: tl.constexpr,
    SUMMED: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_point = rows < n_points
    x, y, z = _axes(local_ptr, rows, is_point, n_x, n_y, n_z, BORDER, ALIGNED)
    up = tl.load(upstream_ptr + rows, mask=is_point, other=0.0) if SUMMED else 0.0
    width: tl.constexpr = R_XY + R_YZ + R_XZ
    pointers = (plane_xy_ptr, line_z_ptr, d_plane_xy_ptr, d_line_z_ptr)
    _spread_mode(up, upstream_ptr, *pointers, x, y, z, n_y, rows, is_point, R_XY, 0, width, SUMMED, CHUNK)
    pointers = (plane_yz_ptr, line_x_ptr, d_plane_yz_ptr, d_line_x_ptr)
    _spread_mode(up, upstream_ptr, *pointers, y, z, x, n_z, rows, is_point, R_YZ, R_XY, width, SUMMED, CHUNK)
    pointers = (plane_xz_ptr, line_y_ptr, d_plane_xz_ptr, d_line_y_ptr)
    _spread_mode(up, upstream_ptr, *pointers, x, z, y, n_z, rows, is_point, R_XZ, R_XY + R_YZ, width, SUMMED, CHUNK)


def vm_components_forward(
    local: Float[Tensor, "M 3"], factors: Sequence[Tensor], border: bool, aligned: bool, summed: bool
) -> Float[Tensor, "M C"]:
    """The components, or their sum; see `nerf_trainer.ops.vm_sample`.

    Args:
        local: points.
        factors: the xy plane, the line along z, the yz plane, the line along x, the xz plane and the line along y.
        border: continue the grid with its border instead of zeros.
        aligned: whether -1 and 1 are nodes.
        summed: give the sum.
    """
    n_points, counts = len(local), [plane.shape[-1] for plane in factors[::2]]
    out = torch.empty(n_points, 1 if summed else sum(counts), device=local.device)
    if n_points > 0:
        _forward_kernel[(triton.cdiv(n_points, _BLOCK),)](
            local, *factors, out, n_points, *_nodes(factors), *counts, border, aligned, summed, _BLOCK, _CHUNK
        )
    return out


def vm_components_backward(
    upstream: Float[Tensor, "M C"],
    local: Float[Tensor, "M 3"],
    factors: Sequence[Tensor],
    border: bool,
    aligned: bool,
    summed: bool,
) -> list[Tensor]:
    """The factors' gradients."""
    n_points, counts = len(local), [plane.shape[-1] for plane in factors[::2]]
    gradients = [torch.zeros_like(factor) for factor in factors]
    if n_points > 0:
        _backward_kernel[(triton.cdiv(n_points, _BLOCK),)](
            upstream,
            local,
            *factors,
            *gradients,
            n_points,
            *_nodes(factors),
            *counts,
            border,
            aligned,
            summed,
            _BLOCK,
            _CHUNK,
        )
    return gradients


def _nodes(factors: Sequence[Tensor]) -> tuple[int, int, int]:
    """Nodes along x, y and z."""
    return factors[3].shape[0], factors[5].shape[0], factors[1].shape[0]
