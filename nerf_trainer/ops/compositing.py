"""Volume rendering along rays.

Symbols: sigma is density (per world unit), delta an interval's width (world units), tau = sigma * delta its optical
thickness, alpha = 1 - exp(-tau) its opacity, T the transmittance that reaches it, w = T * alpha its weight
(Max 1995; Mildenhall et al. 2020, equation 3).
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from nerf_trainer.ops.deterministic import running_sum

_FEW_CHANNELS = 4
"""Up to so many channels a CPU is faster one channel after another."""


def interval_widths(lengths: Float[Tensor, "*r S"], last: float, replicate_last: bool = False) -> Float[Tensor, "*r S"]:
    """Distances from each sample to the next; the last one's is `last`, or that of its neighbour."""
    widths = lengths[..., 1:] - lengths[..., :-1]
    tail = widths[..., -1:] if replicate_last else torch.full_like(lengths[..., :1], last)
    return torch.cat([widths, tail], dim=-1)


def shifted(values: Float[Tensor, "*r S"], by: int) -> Float[Tensor, "*r S"]:
    """`values` moved `by` samples further along the ray; zeros come in at the front."""
    if by == 0:
        return values
    return torch.cat([torch.zeros_like(values[..., :by]), values[..., :-by]], dim=-1)


def emission_absorption_weights(
    tau: Float[Tensor, "*r S"], surface_thickness: int = 1
) -> tuple[Float[Tensor, "*r S"], Float[Tensor, "*r"]]:
    """Weights w_i = T_i (1 - exp(-tau_i)) and the ray's opacity 1 - exp(-sum tau).

    Args:
        tau: optical thickness, non-negative.
        surface_thickness: T_i leaves out this many samples up to and including i; 1 is the textbook's, with which the
            weights sum to the opacity.

    On a CPU the textbook's weights have a gradient written out, in half the passes over memory that recorded
    operations take; they can be differentiated once.
    """
    if tau.device.type == "cpu" and surface_thickness == 1:
        weights, opacity = _EmissionAbsorption.apply(tau)
        return weights, opacity
    total = running_sum(tau, dim=-1)
    weights = -torch.expm1(-tau) * torch.exp(-shifted(total, surface_thickness))
    return weights, -torch.expm1(-total[..., -1])


class _EmissionAbsorption(torch.autograd.Function):
    """Weights and opacity, for which d w_i / d tau_i = T_{i+1}, d w_j / d tau_i = -w_j where j > i, and
    d opacity / d tau_i is what the ray lets through.
    """

    @staticmethod
    def forward(ctx: Any, tau: Tensor) -> tuple[Tensor, Tensor]:
        total = running_sum(tau, dim=-1)
        opacity = -torch.expm1(-total[..., -1])
        behind = total.neg().exp_()
        before = torch.cat([torch.ones_like(behind[..., :1]), behind[..., :-1]], dim=-1)
        weights = torch.expm1(-tau).neg_().mul_(before)
        ctx.save_for_backward(behind, weights)
        return weights, opacity

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        of_weights, of_opacity = grad_outputs
        behind, weights = ctx.saved_tensors
        hidden = running_sum(of_weights * weights, dim=-1)
        through = of_opacity[..., None] * behind[..., -1:]
        return (of_weights * behind).add_(hidden).add_(through - hidden[..., -1:])


def cumulative_weights(
    tau: Float[Tensor, "*r S"], surface_thickness: int = 1
) -> tuple[Float[Tensor, "*r S"], Float[Tensor, "*r"]]:
    """Additive opacity, capped at 1 (Lombardi et al., Neural Volumes, 2019, equation 6).

    Each sample takes what it asks for, tau_i at most 1, or what its predecessors left, whichever is less.
    """
    opacity = running_sum(tau, dim=-1).clamp(max=1.0)
    return torch.minimum(tau.clamp(max=1.0), 1.0 - shifted(opacity, surface_thickness)), opacity[..., -1]


def accumulate(weights: Float[Tensor, "*r S"], values: Float[Tensor, "*r S C"]) -> Float[Tensor, "*r C"]:
    """The weighted sum of values along each ray. Differentiable once on a CPU, where values are colours."""
    if values.device.type == "cpu" and 1 < values.shape[-1] <= _FEW_CHANNELS:
        sums: Tensor = _AccumulateFew.apply(weights, values)
        return sums
    return (weights[..., None] * values).sum(dim=-2)


class _AccumulateFew(torch.autograd.Function):
    """One channel after another: loops as long as a ray, not as short as a colour."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, values: Tensor) -> Tensor:
        ctx.save_for_backward(weights, values)
        return torch.stack([(weights * channel).sum(dim=-1) for channel in values.unbind(-1)], dim=-1)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        weights, values = ctx.saved_tensors
        upstream = grad_outputs[0].unsqueeze(-2).unbind(-1)
        of_weights = of_values = None
        if ctx.needs_input_grad[0]:
            of_weights = torch.zeros_like(weights, memory_format=torch.contiguous_format)
            for channel, gradient in zip(values.unbind(-1), upstream, strict=True):
                of_weights.addcmul_(channel, gradient)
        if ctx.needs_input_grad[1]:
            of_values = torch.empty_like(values, memory_format=torch.contiguous_format)
            for channel, gradient in zip(of_values.unbind(-1), upstream, strict=True):
                torch.mul(weights, gradient, out=channel)
        return of_weights, of_values
