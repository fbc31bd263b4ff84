"""Volume rendering along rays.

Symbols: sigma is density (per world unit), delta an interval's width (world units), tau = sigma * delta its optical
thickness, alpha = 1 - exp(-tau) its opacity, T the transmittance that reaches it, w = T * alpha its weight
(Max 1995; Mildenhall et al. 2020, equation 3).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from nerf_trainer.ops.deterministic import running_sum


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
    """
    total = running_sum(tau, dim=-1)
    weights = -torch.expm1(-tau) * torch.exp(-shifted(total, surface_thickness))
    return weights, -torch.expm1(-total[..., -1])


def cumulative_weights(
    tau: Float[Tensor, "*r S"], surface_thickness: int = 1
) -> tuple[Float[Tensor, "*r S"], Float[Tensor, "*r"]]:
    """Additive opacity, capped at 1 (Lombardi et al., Neural Volumes, 2019, equation 6).

    Each sample takes what it asks for, tau_i at most 1, or what its predecessors left, whichever is less.
    """
    opacity = running_sum(tau, dim=-1).clamp(max=1.0)
    return torch.minimum(tau.clamp(max=1.0), 1.0 - shifted(opacity, surface_thickness)), opacity[..., -1]


def accumulate(weights: Float[Tensor, "*r S"], values: Float[Tensor, "*r S C"]) -> Float[Tensor, "*r C"]:
    """The weighted sum of values along each ray."""
    return (weights[..., None] * values).sum(dim=-2)
