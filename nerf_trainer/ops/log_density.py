"""Densities from their logarithms: the first of what a density network says (Müller et al. 2022, section 5.4).

N: samples; G: outputs of the density network.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from nerf_trainer.ops.backend import uses_triton
from nerf_trainer.ops.reference.log_density import log_density_reference


def log_density(
    outputs: Float[Tensor, "N G"], bias: float = 0.0, inside: Bool[Tensor, "N"] | None = None
) -> tuple[Float[Tensor, "N 1"], Float[Tensor, "N G"]]:
    """exp(outputs[:, 0] + bias) in float32, and the outputs as they are, for the network that follows.

    Both at once, so that their gradients meet in one pass over memory. The exponent is clamped to at most 60, in the
    gradient to [-15, 15], so that neither a huge density nor a tiny one stops training. Differentiable once.

    Args:
        outputs: of the density network.
        bias: added to the logarithms.
        inside: whether a sample is where the field is; density is 0 elsewhere, without a gradient.
    """
    outputs = outputs.float() if outputs.dtype in (torch.bfloat16, torch.float16) else outputs
    if not uses_triton(outputs):
        return log_density_reference(outputs, bias, inside)
    return _LogDensity.apply(outputs, bias, inside)


class _LogDensity(torch.autograd.Function):
    """`log_density` by Triton's kernels."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, bias: float, inside: Tensor | None) -> tuple[Tensor, Tensor]:
        from nerf_trainer.ops.kernels.log_density import densities

        outputs = outputs.contiguous()
        ctx.bias = bias
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(outputs, inside)
        return densities(outputs, bias, inside), outputs.view_as(outputs)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor | None
    ) -> tuple[Tensor | None, None, None]:
        from nerf_trainer.ops.kernels.log_density import outputs_gradient

        outputs, inside = ctx.saved_tensors
        of_density, of_outputs = grad_outputs
        if of_density is None:
            return of_outputs, None, None
        return outputs_gradient(outputs, ctx.bias, inside, of_density, of_outputs), None, None
