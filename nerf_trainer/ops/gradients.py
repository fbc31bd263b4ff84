"""Functions that change gradients, not values."""

from jaxtyping import Float
from torch import Tensor


def clamp_gradient(x: Float[Tensor, "*n"], limit: float) -> Float[Tensor, "*n"]:
    """x as it is; the gradient that comes back through it is clamped, element by element, to [-limit, limit].

    Keeps the gradients of a recurrence from growing from step to step.
    """
    same = x.view_as(x)
    if same.requires_grad:
        same.register_hook(lambda gradient: gradient.clamp(-limit, limit))
    return same
