"""Where samples of rays lie in the unit cube, in plain torch: what the kernel of `ops/kernels/cube_places` computes."""

from jaxtyping import Bool, Float
from torch import Tensor

from nerf_trainer.geometry.contraction import CONTRACTED_RADIUS, Norm, contract


def cube_places_reference(
    origins: Float[Tensor, "R 3"],
    directions: Float[Tensor, "R 3"],
    lengths: Float[Tensor, "R S"],
    center: Float[Tensor, "3"],
    extents: Float[Tensor, "3"],
    norm: Norm | None,
) -> tuple[Float[Tensor, "M 3"], Bool[Tensor, "M"] | None]:
    """As `nerf_trainer.ops.cube_places.cube_places`."""
    points = (origins[:, None] + lengths[..., None] * directions[:, None]).reshape(-1, 3)
    local = (points - center) * (2.0 / extents)
    if norm is None:
        return 0.5 * local + 0.5, (local.abs() <= 1.0).all(dim=-1)
    return contract(local, norm) * (0.5 / CONTRACTED_RADIUS) + 0.5, None
