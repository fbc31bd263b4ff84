"""The levels of a multiresolution hash grid (Müller et al. 2022, Instant Neural Graphics Primitives, section 3).

Level l has N_l = floor(N_min b^l) cells along each axis, b = exp((ln N_max - ln N_min) / (L - 1)), and (N_l + 1)^3
nodes. Where its table has room for all nodes each has a row of its own (row x + (N_l + 1) (y + (N_l + 1) z)); else the
row of a node is (x xor 2654435761 y xor 805459861 z) mod the table's size, a power of two, and nodes share rows.
"""

import math
from dataclasses import dataclass
from functools import cached_property


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
