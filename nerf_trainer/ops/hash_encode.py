"""The multiresolution hash encoding (Müller et al. 2022, Instant Neural Graphics Primitives, section 3).

N: points; L: levels, coarse to fine; F: features of a node; T: rows of all levels together.
Level l has N_l = floor(N_min b^l) cells along each axis, b = exp((ln N_max - ln N_min) / (L - 1)), and (N_l + 1)^3
nodes. Where its table has room for all nodes each has a row of its own (row x + (N_l + 1) (y + (N_l + 1) z)); else the
row of a node is (x xor 2654435761 y xor 805459861 z) mod the table's size, a power of two, and nodes share rows.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.autograd.function import once_differentiable

from nerf_trainer.ops.backend import uses_triton
from nerf_trainer.ops.deterministic import must_be_deterministic
from nerf_trainer.ops.reference.hash_encode import hash_encode_reference, table_gradient_in_order


@dataclass(frozen=True)
class HashLevels:
    """The resolutions of an encoding, and where each level's rows are."""

    n_levels: int = 8
    """Number of levels, L."""
    n_features: int = 4
    """Features of a node at each level, F: 1, 2, 4 or 8."""
    log2_table_size: int = 19
    """Binary logarithm of the most rows a level has."""
    base_resolution: int = 16
    """Cells along each axis at the coarsest level, N_min."""
    finest_resolution: int = 2048
    """Cells along each axis at the finest level, N_max."""

    def __post_init__(self) -> None:
        if self.n_levels < 1:
            raise ValueError(f"n_levels: {self.n_levels}; expected at least 1")
        if self.n_features not in (1, 2, 4, 8):
            raise ValueError(f"n_features: {self.n_features}; expected 1, 2, 4 or 8")
        if not 1 <= self.log2_table_size <= 24:
            raise ValueError(f"log2_table_size: {self.log2_table_size}; expected 1 to 24")
        if not 1 <= self.base_resolution <= self.finest_resolution <= 2**20:
            raise ValueError(
                f"base_resolution, finest_resolution: {self.base_resolution}, {self.finest_resolution}; expected"
                " 1 <= base_resolution <= finest_resolution <= 2^20"
            )
        if self.n_rows * self.n_features >= 2**31:
            raise ValueError(
                f"{self.n_levels} levels of {self.n_features} features: {self.n_rows} rows; expected fewer numbers than"
                " 2^31: set log2_table_size lower"
            )

    @cached_property
    def growth(self) -> float:
        """b, by which the resolution grows from level to level; 1 where there is one level."""
        if self.n_levels == 1:
            return 1.0
        return math.exp(math.log(self.finest_resolution / self.base_resolution) / (self.n_levels - 1))

    @cached_property
    def resolutions(self) -> tuple[int, ...]:
        """N_l: cells along each axis, of each level."""
        # Rounding must not take a cell from N_min b^l where that is a whole number.
        return tuple(
            math.floor(self.base_resolution * self.growth**level * (1 + 1e-9)) for level in range(self.n_levels)
        )

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Rows of each level: all of its nodes, or 2^log2_table_size."""
        return tuple(min((n + 1) ** 3, 2**self.log2_table_size) for n in self.resolutions)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The first row of each level."""
        return tuple(sum(self.sizes[:level]) for level in range(self.n_levels))

    @property
    def n_rows(self) -> int:
        """Rows of all levels together, T."""
        return sum(self.sizes)

    @property
    def output_dim(self) -> int:
        """Width of the encoding, L F."""
        return self.n_levels * self.n_features


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
