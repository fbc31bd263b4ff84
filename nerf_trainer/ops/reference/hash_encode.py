"""The multiresolution hash encoding in plain torch: what the kernels of `ops/kernels/hash_encode` compute.

The symbols are those of `nerf_trainer.ops.hash_encode`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag

PRIMES = (1, 2_654_435_761, 805_459_861)
"""Factors of x, y and z in the hash (Müller et al. 2022, equation 4)."""


def hash_encode_reference(
    points: Float[Tensor, "N 3"],
    table: Float[Tensor, "T F"],
    resolutions: Sequence[int],
    starts: Sequence[int],
    sizes: Sequence[int],
    n_used: Int[Tensor, ""] | None = None,
) -> Float[Tensor, "N LF"]:
    """As `nerf_trainer.ops.hash_encode.hash_encode`, in the type of `table`; differentiable by autograd, once.

    Gradients of the table are summed in an order that depends on nothing but the points, on a CPU.

    Args:
        resolutions: cells along each axis, of each level.
        starts: first row of each level in the table.
        sizes: rows of each level.
    """
    coordinates = points.to(table.dtype).T.contiguous().clamp(0.0, 1.0)
    corners = [
        level_corners(coordinates, resolution, size) for resolution, size in zip(resolutions, sizes, strict=True)
    ]
    rows = torch.cat([indices + start for (indices, _), start in zip(corners, starts, strict=True)])
    weights = torch.cat([weights for _, weights in corners])
    features: Tensor = _WeightedRows.apply(table, rows, weights)
    encoded = features.view(len(corners), -1, table.shape[1]).transpose(0, 1).flatten(1)
    if n_used is None:
        return encoded
    return encoded.masked_fill((torch.arange(points.shape[0], device=points.device) >= n_used)[:, None], 0.0)


def level_corners(
    coordinates: Float[Tensor, "3 N"], resolution: int, size: int
) -> tuple[Int[Tensor, "N 8"], Float[Tensor, "N 8"]]:
    """Rows within a level of the corners of each point's cell, int32, and their trilinear weights.

    The corner's bits, from the lowest, say which of two nodes it has along x, y and z.

    Args:
        coordinates: in [0, 1], the axes apart.
        resolution: cells along each axis; node i of an axis is at i / resolution.
        size: rows of the level: all nodes where there is room for them, else a power of two.
    """
    scaled = coordinates * resolution
    cell = scaled.detach().floor().int().clamp(0, resolution - 1)  # the last cell has both of its faces
    upper = scaled - cell
    lower = 1.0 - upper
    node = torch.stack([cell, cell + 1])
    if size == (resolution + 1) ** 3:
        x, y, z = node[:, 0], node[:, 1] * (resolution + 1), node[:, 2] * (resolution + 1) ** 2
        planes = [y[j] + z[k] for k in (0, 1) for j in (0, 1)]
        rows = [x[i] + plane for plane in planes for i in (0, 1)]
    else:
        x, y, z = ((node[:, axis].long() * PRIMES[axis] & (size - 1)).int() for axis in range(3))
        planes = [y[j] ^ z[k] for k in (0, 1) for j in (0, 1)]
        rows = [x[i] ^ plane for plane in planes for i in (0, 1)]
    weights_z_y = [wy * wz for wz in (lower[2], upper[2]) for wy in (lower[1], upper[1])]
    weights = [wx * w for w in weights_z_y for wx in (lower[0], upper[0])]
    return torch.stack(rows, dim=-1), torch.stack(weights, dim=-1)


def table_gradient_in_order(
    points: Float[Tensor, "N 3"],
    upstream: Shaped[Tensor, "N LF"],
    table: Float[Tensor, "T F"],
    resolutions: Sequence[int],
    starts: Sequence[int],
    sizes: Sequence[int],
    n_used: Int[Tensor, ""] | None = None,
) -> Float[Tensor, "T F"]:
    """The table's gradient by itself, level by level, each a sum of rows that torch sorts in deterministic mode.

    Args:
        upstream: the gradient of the encoding; of points that are padding, anything.
        table: whose gradient; its values don't matter.
    """
    n_features = table.shape[1]
    coordinates = points.to(table.dtype).T.contiguous().clamp(0.0, 1.0)
    if n_used is not None:
        padding = (torch.arange(points.shape[0], device=points.device) >= n_used)[:, None]
        upstream = upstream.masked_fill(padding, 0.0)
    of_levels = upstream.to(table.dtype).unflatten(1, (len(sizes), n_features)).unbind(1)
    gradient = torch.zeros_like(table)
    for resolution, start, size, of_level in zip(resolutions, starts, sizes, of_levels, strict=True):
        rows, weights = level_corners(coordinates, resolution, size)
        spread = (weights[..., None] * of_level[:, None]).flatten(0, 1)
        gradient[start : start + size].index_add_(0, rows.flatten().long(), spread)
    return gradient


class _WeightedRows(torch.autograd.Function):
    """Sums of rows of a table times weights: (M F) of rows (M 8) and weights (M 8).

    torch's own backward of `embedding_bag` sorts and adds row by row; here each feature is scattered by itself, which
    takes a fraction of the time on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(table, rows, weights)
        return embedding_bag(rows, table, per_sample_weights=weights, mode="sum")

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, None, Tensor | None]:
        table, rows, weights = ctx.saved_tensors
        upstream = grad_outputs[0].contiguous()
        table_gradient = weight_gradient = None
        if ctx.needs_input_grad[0]:
            table_gradient = torch.empty_like(table)
            flat = rows.flatten().long()
            for feature in range(table.shape[1]):
                total = table.new_zeros(table.shape[0])
                table_gradient[:, feature] = total.scatter_add_(
                    0, flat, (weights * upstream[:, feature, None]).flatten()
                )
        if ctx.needs_input_grad[2]:
            columns = [(table.index_select(0, corner) * upstream).sum(-1) for corner in rows.unbind(-1)]
            weight_gradient = torch.stack(columns, dim=-1)
        return table_gradient, None, weight_gradient
