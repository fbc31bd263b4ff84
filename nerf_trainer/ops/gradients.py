"""Functions that change gradients, not values."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


class _ClampedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, limit: float) -> Tensor:
        ctx.limit = limit
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        return gradients[0].clamp(-ctx.limit, ctx.limit), None


def clamp_gradient(x: Float[Tensor, "*n"], limit: float) -> Float[Tensor, "*n"]:
    """x as it is; the gradient that comes back through it is clamped, element by element, to [-limit, limit].

    Keeps the gradients of a recurrence from growing from step to step.
    """
    return _ClampedGradient.apply(x, limit)  # type: ignore[return-value]
