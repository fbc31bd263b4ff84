"""Densities from their logarithms in plain torch: what the kernels of `ops/kernels/log_density` compute."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

LARGEST_EXPONENT = 60.0
"""exp(60) = 1e26 leaves float32 room for products with an interval's width."""
LARGEST_IN_GRADIENT = 15.0
"""Exponents are clamped to plus and minus this in the gradient, as Instant-NGP's are."""


def log_density_reference(
    outputs: Float[Tensor, "N G"], bias: float, inside: Bool[Tensor, "N"] | None
) -> tuple[Float[Tensor, "N 1"], Float[Tensor, "N G"]]:
    """As `nerf_trainer.ops.log_density.log_density`."""
    density = _TruncatedExp.apply(outputs[:, :1] + bias)
    return density if inside is None else density.masked_fill(~inside[:, None], 0.0), outputs


class _TruncatedExp(torch.autograd.Function):
    """exp(x), with a gradient that stays finite and does not vanish."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(max=LARGEST_EXPONENT).exp()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (x,) = ctx.saved_tensors
        return grad_outputs[0] * x.clamp(-LARGEST_IN_GRADIENT, LARGEST_IN_GRADIENT).exp()
