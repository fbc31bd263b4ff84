"""Rotations of points, in full precision."""

from jaxtyping import Float
from torch import Tensor


def rotate(R: Float[Tensor, "*#batch 3 3"], x: Float[Tensor, "*#batch 3"]) -> Float[Tensor, "*batch 3"]:
    """R x for each matrix and vector.

    Written as products and a sum, not as a matrix product: those run in bfloat16 under autocast and in TensorFloat-32
    where that is allowed, which moves a pixel's ray by a pixel or more.
    """
    return (R * x[..., None, :]).sum(dim=-1)
