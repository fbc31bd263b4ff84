"""Interpolation of dense grids of one, two or three axes: lines, planes and volumes.

D: axes (1 to 3); X, Y, Z: nodes along each; C: channels; M: points.
A grid is stored channels last, (X, Y, Z, C): the channels of a node are neighbours in memory, so that a corner costs
one cache line. Local coordinates span [-1, 1] along each axis. With `align_corners` -1 and 1 are the first and the last
node; without, they are the outer faces of the cells around these nodes. Both, and the paddings, mean what they mean in
`torch.nn.functional.grid_sample`, whose last axis is our first. Along an axis of one node a grid is constant where
corners are aligned.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag, grid_sample

from nerf_trainer.ops.deterministic import must_be_deterministic

Mode = Literal["bilinear", "nearest"]
Padding = Literal["zeros", "border", "reflection"]


def interpolate_grid(
    grid: Float[Tensor, "*nodes C"],
    local: Float[Tensor, "M D"],
    mode: Mode = "bilinear",
    padding: Padding = "zeros",
    align_corners: bool = True,
) -> Float[Tensor, "M C"]:
    """Values of `grid`, which has as many axes as points have coordinates, at points in local coordinates.

    Linear interpolation on a CPU takes a path of its own, which uses all cores in both directions, and adds up in the
    same order each time, so that deterministic mode takes it on a GPU too; the rest is torch's. Differentiable in both
    arguments, once. Runs in the precision of its arguments under autocast as well.

    Args:
        mode: "bilinear" is linear along every axis; "nearest" takes the nearest node.
        padding: beyond the outermost nodes the grid continues with zeros, its border, or its mirror image.
    """
    in_order = grid.device.type == "cpu" or must_be_deterministic(grid)
    if in_order and mode == "bilinear" and padding != "reflection" and min(grid.shape[:-1]) > 1:
        first, weights = linear_corners(local, grid.shape[:-1], padding, align_corners)
        return gather_corners(grid, first, weights)
    if local.shape[1] == 1:  # torch has planes and volumes: a line is a plane with one node across
        grid, local = grid[:, None], torch.cat([local, torch.zeros_like(local)], dim=1)
    volume = grid.permute(*reversed(range(grid.ndim)))[None]
    places = local.reshape(1, -1, *(1,) * (local.shape[1] - 1), local.shape[1])
    return grid_sample(volume, places, mode, padding, align_corners).reshape(grid.shape[-1], -1).T


def node_coordinates(
    local: Float[Tensor, "*n D"], resolution: Sequence[int], align_corners: bool
) -> Float[Tensor, "*n D"]:
    """Local coordinates as fractional node numbers: node i of an axis is at i."""
    nodes = local.new_tensor(list(resolution))
    if align_corners:
        return (local + 1.0) * (0.5 * (nodes - 1.0))
    return (local + 1.0) * (0.5 * nodes) - 0.5


def linear_corners(
    local: Float[Tensor, "M D"], resolution: Sequence[int], padding: Padding, align_corners: bool
) -> tuple[Int[Tensor, "M"], Float[Tensor, "M K"]]:
    """The cell that each point falls into, and the weights of the cell's K = 2^D corners.

    Weights are hat functions, max(0, 1 - |u - i|), so that cells at the border serve the points beyond it as well: zero
    padding is what the hats of existing nodes leave there.

    Args:
        padding: zeros or border.

    Returns:
        flat number of each cell's lowest corner; weights of the corners, the last axis fastest.
    """
    u = node_coordinates(local, resolution, align_corners).T.contiguous()
    first: Tensor | None = None
    weights: list[Tensor] = []
    for axis, n in zip(u, resolution, strict=True):
        axis = axis.clamp(0.0, n - 1.0) if padding == "border" else axis
        low = axis.detach().floor().clamp_(0, n - 2)
        offset = axis - low
        hats = ((1.0 - offset.abs()).relu(), (1.0 - (offset - 1.0).abs()).relu())
        first = low.int() if first is None else first * n + low.int()
        weights = [weight * hat for weight in weights for hat in hats] if weights else list(hats)
    assert first is not None, "a grid has an axis"
    return first, torch.stack(weights, dim=-1)


def gather_corners(
    grid: Float[Tensor, "*nodes C"], first: Int[Tensor, "M"], weights: Float[Tensor, "M K"]
) -> Float[Tensor, "M C"]:
    """Weighted sums of the corners of cells, given by their lowest corner."""
    return _GatherCorners.apply(grid, first, weights)


def _corner_offsets(shape: Sequence[int]) -> list[int]:
    """Flat distances of a cell's corners from its lowest one, the last axis fastest, in a grid (*nodes C)."""
    offsets = []
    for corner in product((0, 1), repeat=len(shape) - 1):
        flat = 0
        for step, n in zip(corner, shape, strict=False):
            flat = flat * n + step
        offsets.append(flat)
    return offsets


class _GatherCorners(torch.autograd.Function):
    """Forward: one weighted embedding bag a point. Backward: gradients are summed within a cell before they are spread.

    Points in one cell become one bag, so that each corner's spread writes to distinct rows: plain indexed reads and
    writes, which run on all cores and add up in an order that does not depend on how many there are.
    """

    @staticmethod
    def forward(ctx: Any, grid: Tensor, first: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(grid, first, weights)
        offsets = torch.tensor(_corner_offsets(grid.shape), dtype=torch.int32, device=grid.device)
        table = grid.reshape(-1, grid.shape[-1])
        return embedding_bag(first[:, None] + offsets, table, per_sample_weights=weights, mode="sum")

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, None, Tensor | None]:
        grid, first, weights = ctx.saved_tensors
        upstream = grad_outputs[0].contiguous()
        grid_gradient = weight_gradient = None
        if ctx.needs_input_grad[0]:
            grid_gradient = _spread(grid, first, weights, upstream)
        if ctx.needs_input_grad[2]:
            table = grid.reshape(-1, grid.shape[-1])
            columns = [(table[first + offset] * upstream).sum(-1) for offset in _corner_offsets(grid.shape)]
            weight_gradient = torch.stack(columns, dim=-1)
        return grid_gradient, None, weight_gradient


def _spread(grid: Tensor, first: Tensor, weights: Tensor, upstream: Tensor) -> Tensor:
    """Transpose of the gather: each point's `upstream` (M, C) times its weights, added to its corners."""
    total = torch.zeros_like(grid, memory_format=torch.contiguous_format)
    table = total.view(-1, grid.shape[-1])
    if grid.shape[-1] == 1:  # a single channel's table fits the cache: adding in turn beats sorting
        offsets = torch.tensor(_corner_offsets(grid.shape), dtype=torch.int32, device=grid.device)
        corners = first[:, None] + offsets
        table[:, 0].scatter_add_(0, corners.flatten().long(), (weights * upstream).flatten())
        return total
    ordered, order = first.sort(stable=True)
    cells, counts = torch.unique_consecutive(ordered, return_counts=True)
    starts = (counts.cumsum(0) - counts).int()
    weights_in_order = weights.index_select(0, order).T.contiguous()
    order = order.int()
    for weight, offset in zip(weights_in_order, _corner_offsets(grid.shape), strict=True):
        sums = embedding_bag(order, upstream, starts, per_sample_weights=weight, mode="sum")
        rows = (cells + offset).long()
        table.index_copy_(0, rows, sums.add_(table.index_select(0, rows)))
    return total


def resample_grid(
    grid: Float[Tensor, "*nodes C"],
    resolution: Sequence[int],
    align_corners: bool = True,
    lower: Sequence[float] = (-1.0, -1.0, -1.0),
    upper: Sequence[float] = (1.0, 1.0, 1.0),
) -> Float[Tensor, "*new_nodes C"]:
    """The same function on a grid of another resolution, over the box from `lower` to `upper` (local coordinates).

    Linear along each axis, the border continued; values stay within the range of the old ones. Exact for affine
    functions, and at every old node that is a new one too.
    """
    for axis, n in enumerate(resolution):
        grid = _resample_axis(grid, axis, n, align_corners, lower[axis], upper[axis])
    return grid.contiguous()


def _resample_axis(grid: Tensor, axis: int, n: int, align_corners: bool, lower: float, upper: float) -> Tensor:
    """New nodes along one axis, each between two old ones; no matrix product, which might be rounded to 10 bits."""
    n_old = grid.shape[axis]
    i = torch.arange(n, dtype=torch.float64, device=grid.device)
    unit = (i + 0.5) / n if not align_corners else i / (n - 1) if n > 1 else torch.full_like(i, 0.5)
    local = lower + (upper - lower) * unit
    u = (local + 1.0) * (0.5 * (n_old - 1)) if align_corners else (local + 1.0) * (0.5 * n_old) - 0.5
    u = u.clamp(0.0, n_old - 1.0)
    low = u.floor().clamp(max=max(n_old - 2, 0))
    weight = (u - low).to(grid.dtype).reshape(-1, *(1,) * (grid.ndim - 1 - axis))
    below = grid.index_select(axis, low.long())
    return below.lerp(grid.index_select(axis, (low + 1.0).clamp(max=n_old - 1.0).long()), weight)


def grid_total_variation(grid: Float[Tensor, "*nodes C"]) -> Float[Tensor, ""]:
    """Mean squared forward difference along each axis, summed over the axes (Fridovich-Keil et al. 2022, equation 3,
    without the root). An axis of one node adds nothing.
    """
    total = grid.new_zeros(())
    for axis in range(grid.ndim - 1):
        if grid.shape[axis] > 1:
            total = total + grid.diff(dim=axis).square().mean()
    return total
