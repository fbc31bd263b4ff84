"""The multiresolution hash encoding (Müller et al. 2022, Instant Neural Graphics Primitives, section 3).

N: points; L: levels, coarse to fine; F: features of a node; T: rows of all levels together.
"""

from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.autograd.function import once_differentiable

from nerf_trainer.ops.backend import uses_triton
from nerf_trainer.ops.deterministic import must_be_deterministic
from nerf_trainer.ops.hash_levels import HashLevels
from nerf_trainer.ops.reference.hash_encode import hash_encode_reference, table_gradient_in_order


def hash_encode(
    points: Float[Tensor, "N 3"],
    table: Float[Tensor, "T F"],
    levels: HashLevels,
    n_used: Int[Tensor, ""] | None = None,
) -> Shaped[Tensor, "N LF"]:
    """The features of each level's nodes, interpolated linearly along each axis; coarse levels first.

    Computed in float32 (the twin: in the table's type). Under autocast the result is rounded to its type, as nothing
    but products of matrices follows. Differentiable once, in `table` and `points`; the gradient of points is computed
    only where it is asked for. On a GPU the table's gradient is a sum of atomic additions, whose order, and so whose
    last bits, change from run to run; on a CPU, and in deterministic mode, it is the same each time.

    Args:
        points: in [0, 1]; a coordinate outside is taken for the nearer of the two, without a gradient.
        table: a row for each node, or for each place of the hash, level by level as `levels` says.
        n_used: rows of `points` from this one on are padding: their encoding is zero, they give no gradient, and next
            to no time is spent on them.
    """
    if tuple(table.shape) != (levels.n_rows, levels.n_features):
        raise ValueError(f"table: shape {tuple(table.shape)}; expected {(levels.n_rows, levels.n_features)}")
    if uses_triton(table):
        return _HashEncode.apply(points, table, levels, n_used, _output_dtype(table))
    with torch.autocast(table.device.type, enabled=False):
        encoded = hash_encode_reference(points, table, levels.resolutions, levels.starts, levels.sizes, n_used)
    return encoded.to(_output_dtype(table))


def _output_dtype(table: Tensor) -> torch.dtype:
    device_type = table.device.type
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else table.dtype


class _HashEncode(torch.autograd.Function):
    """The encoding by Triton's kernels."""

    @staticmethod
    def forward(
        ctx: Any, points: Tensor, table: Tensor, levels: HashLevels, n_used: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        from nerf_trainer.ops.kernels.hash_encode import encode

        points = points.float().contiguous()
        ctx.levels = levels
        ctx.save_for_backward(points, table, n_used)
        return encode(points, table, levels, n_used, dtype)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        from nerf_trainer.ops.kernels.hash_encode import points_gradient, table_gradient

        points, table, n_used = ctx.saved_tensors
        upstream = grad_outputs[0].contiguous()
        of_points = of_table = None
        if ctx.needs_input_grad[0]:
            of_points = points_gradient(points, table, upstream, ctx.levels, n_used)
        if ctx.needs_input_grad[1] and must_be_deterministic(table):
            levels: HashLevels = ctx.levels
            rows_of = (levels.resolutions, levels.starts, levels.sizes)
            of_table = table_gradient_in_order(points, upstream, table, *rows_of, n_used)
        elif ctx.needs_input_grad[1]:
            of_table = table_gradient(points, upstream, ctx.levels, n_used)
        return of_points, of_table, None, None, None
