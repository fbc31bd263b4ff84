"""The learned encoding of Instant-NGP: features on grids of growing resolution, some of them sharing their places."""

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from nerf_trainer.ops.hash_encode import hash_encode
from nerf_trainer.ops.hash_levels import HashLevels

INITIAL_RANGE = 1e-4
"""Features start uniformly distributed within plus and minus this (Müller et al. 2022, section 4)."""


class HashEncoding(nn.Module):
    """A table of features and what reads it; see `nerf_trainer.ops.hash_encode`.

    Args:
        levels: the resolutions, and where each level's rows are.
    """

    def __init__(self, levels: HashLevels) -> None:
        super().__init__()
        self.levels = levels
        self.table = nn.Parameter(torch.empty(levels.n_rows, levels.n_features))
        nn.init.uniform_(self.table, -INITIAL_RANGE, INITIAL_RANGE)

    @property
    def output_dim(self) -> int:
        """Width of the encoding."""
        return self.levels.output_dim

    def forward(self, points: Float[Tensor, "N 3"], n_used: Int[Tensor, ""] | None = None) -> Shaped[Tensor, "N LF"]:
        """Encode points of [0, 1]^3; rows from `n_used` on are padding."""
        return hash_encode(points, self.table, self.levels, n_used)

    def extra_repr(self) -> str:
        resolutions = ", ".join(map(str, self.levels.resolutions))
        return f"{self.levels.n_features} features at resolutions {resolutions}; {self.levels.n_rows:,} rows"
