"""Rows of several tables by the same index, in one kernel: what samples in a row know of their rays.

R: rows; M: how many are asked for.
"""

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from nerf_trainer.ops.backend import uses_triton


@torch.no_grad()
def gather_rows(
    tables: tuple[Shaped[Tensor, "R ..."], ...], index: Int[Tensor, "M"]
) -> tuple[Shaped[Tensor, "M ..."], ...]:
    """Row `index` of each table, the last one where the index is beyond it. Not differentiable."""
    if uses_triton(index):
        from nerf_trainer.ops.kernels.gather_rows import gather_rows as gather

        return gather(tables, index)
    return tuple(table.index_select(0, index.clamp(max=table.shape[0] - 1)) for table in tables)
