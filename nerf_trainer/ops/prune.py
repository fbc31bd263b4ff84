"""Leaving out of a row of samples those that are hidden: what training sees none of has no gradient either.

Each ray keeps its samples up to the last one that light reaches, as `composite_packed` counts it: a transmittance of at
least `early_stop` before them. What is left is packed anew, in a shorter row. Not differentiable.

R: rays; M: candidates; K: places in the row of those that are kept.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from nerf_trainer.ops.backend import uses_triton
from nerf_trainer.ops.march import Marched, fitted
from nerf_trainer.ops.reference import prune as reference


@torch.no_grad()
def prune(
    candidates: Marched,
    densities: Float[Tensor, "M"],
    scale: Float[Tensor, "R"],
    early_stop: float,
    budget: int,
) -> Marched:
    """The samples that are not hidden, in a row of their own; the kernels read nothing back.

    A ray whose candidates had no room, or whose samples no longer fit, has none and is not complete, and neither is any
    ray behind it.

    Args:
        candidates: samples in their row of M.
        densities: of the candidates, per world unit; negative ones and what is no number count as 0. Those of padding
            don't matter.
        scale: world units in a unit of length along each ray.
        early_stop: transmittance below which a sample is hidden.
        budget: length of the new row, K.
    """
    row = (candidates.starts, candidates.ends, candidates.ray_index, candidates.first, candidates.count)
    if uses_triton(densities):
        from nerf_trainer.ops.kernels import prune as implementation
    else:
        implementation = reference
    count = implementation.count_visible(densities, *row, scale, early_stop)
    first, kept, complete, n_used = fitted(count, len(candidates.starts), budget)
    starts, ends, ray_index = implementation.take(*row[:2], candidates.first, first, kept, n_used, budget)
    return Marched(starts, ends, ray_index, first, kept, complete & candidates.complete, n_used)
