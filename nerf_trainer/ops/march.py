"""Marching along rays through a grid that says which cells are worth looking at.

A sample is an interval from one step of a ray (`ray_steps`) to the next. It is kept where the cell of its midpoint is
occupied: a cell of the smallest cascade that holds the midpoint, or of one grid of contracted space
(`occupancy_bits`). Empty cells are crossed at once, which moves no sample. Not differentiable: where samples are has no
gradient.

R: rays; M: samples of all of them in one row.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nerf_trainer.ops.backend import uses_triton
from nerf_trainer.ops.occupancy_bits import OccupiedCells
from nerf_trainer.ops.ray_steps import BoundedRays, Steps
from nerf_trainer.ops.reference import march as reference


@dataclass(frozen=True)
class Marched:
    """The samples of R rays in one row of M; what follows the first `n_used` is padding."""

    starts: Float[Tensor, "M"]
    """Where each interval begins along its ray, as a length t; 0 in the padding."""
    ends: Float[Tensor, "M"]
    """Where it ends."""
    ray_index: Int[Tensor, "M"]
    """The ray of each sample, int32; R in the padding."""
    first: Int[Tensor, "R"]
    """The place of each ray's first sample, int32."""
    count: Int[Tensor, "R"]
    """How many samples each ray has, int32."""
    complete: Bool[Tensor, "R"]
    """False from the first ray on whose samples the row had no room for: these rays have none."""
    n_used: Int[Tensor, ""]
    """Samples that belong to rays, int32."""


@torch.no_grad()
def march(rays: BoundedRays, cells: OccupiedCells, steps: Steps, budget: int | None = None) -> Marched:
    """The samples of each ray that lie in occupied cells.

    Triton's kernel and the twin give the same samples to the last bit without a cone; with one, the device's
    exponentials and logarithms move samples by parts in 10^6. A ray that grazes the faces of cells, within 10^-5 of
    them, may have some more or less. The twin reads back how long the longest ray is.

    Args:
        budget: length of the row M. Rays that no longer fit have no samples; nothing is read back by the kernel. None:
            as long as is needed, which is read back.
    """
    rays = BoundedRays(*(value.float().contiguous() for value in rays))
    n_rays, device = len(rays.near), rays.near.device
    if uses_triton(rays.origins):
        from nerf_trainer.ops.kernels import march as kernels

        count, notes = kernels.count_samples(rays, cells, steps)
        first, kept, complete, n_used = fitted(count, n_rays * steps.most, budget)
        length = int(n_used) if budget is None else budget
        starts, ends, ray_index = kernels.write_samples(rays, cells, steps, notes, first, kept, length)
        return Marched(starts, ends, ray_index, first, kept, complete, n_used)
    samples = reference.occupied_steps(rays, cells, steps)
    count = torch.bincount(samples.ray, minlength=n_rays).to(torch.int32)
    first, kept, complete, n_used = fitted(count, n_rays * steps.most, budget)
    used = int(n_used)
    starts, ends = torch.zeros(2, used if budget is None else budget, device=device).unbind()
    ray_index = torch.full_like(starts, n_rays, dtype=torch.int32)
    starts[:used], ends[:used], ray_index[:used] = samples.start[:used], samples.end[:used], samples.ray[:used]
    return Marched(starts, ends, ray_index, first, kept, complete, n_used)


def fitted(
    count: Int[Tensor, "R"], most: int, budget: int | None
) -> tuple[Int[Tensor, "R"], Int[Tensor, "R"], Bool[Tensor, "R"], Int[Tensor, ""]]:
    """Places in the row of what fits: first, count, complete and n_used as in `Marched`.

    Args:
        count: the samples of each ray.
        most: samples that all rays together have at most.
    """
    total = count.cumsum(dim=0, dtype=torch.int32 if most < 2**31 else torch.int64)
    if budget is None:
        complete, kept = torch.ones_like(count, dtype=torch.bool), count
    else:
        complete = total <= budget
        kept = torch.where(complete, count, 0)
    n_used = kept.sum(dtype=torch.int32)
    # Before the first ray that does not fit there are just as many as are used; before later ones more.
    first = torch.minimum(total - count, n_used)
    return first.to(torch.int32), kept, complete, n_used
