"""Where samples of rays lie in the unit cube that a box, or all of space around it, is mapped to.

R: rays; S: samples of each; M = R S.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nerf_trainer.geometry.contraction import Norm
from nerf_trainer.ops.backend import uses_triton
from nerf_trainer.ops.reference.cube_places import cube_places_reference


def cube_places(
    origins: Float[Tensor, "R 3"],
    directions: Float[Tensor, "R 3"],
    lengths: Float[Tensor, "R S"],
    center: Float[Tensor, "3"],
    extents: Float[Tensor, "3"],
    norm: Norm | None = None,
) -> tuple[Float[Tensor, "M 3"], Bool[Tensor, "M"] | None]:
    """Places of the samples origins + lengths * directions, float32, and whether each lies in the box.

    Without a norm the box is the cube, and what is outside of it lies outside. With one all of space is contracted
    (`geometry.contraction`): the cube's middle half is the box, and None is returned for what lies in it. Where a
    gradient is asked for, plain torch computes it.

    Args:
        center: of the box, world units.
        extents: lengths of the box along x, y and z.
        norm: of the contraction.
    """
    origins, directions, lengths = origins.float(), directions.float(), lengths.float()
    differentiable = torch.is_grad_enabled() and any(t.requires_grad for t in (origins, directions, lengths))
    if uses_triton(origins) and not differentiable:
        from nerf_trainer.ops.kernels.cube_places import place

        return place(origins.contiguous(), directions.contiguous(), lengths.contiguous(), center, extents, norm)
    with torch.autocast(origins.device.type, enabled=False):
        return cube_places_reference(origins, directions, lengths, center, extents, norm)
