"""Volume rendering of rays that all have as many samples: density to weights, and what they add up to, in one kernel.

Symbols are those of `ops.compositing`: sigma is density, delta an interval's width, tau their product, T the
transmittance that reaches a sample, w its weight. All in float32, whatever densities and features come in.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from nerf_trainer.ops.backend import uses_triton
from nerf_trainer.ops.reference import ray_compositing as reference

MOST_CHANNELS = 8
"""The kernels keep the sums of this many feature channels; wider features run in plain torch."""


class Composited(NamedTuple):
    """What rays saw."""

    features: Float[Tensor, "*r C"]
    """Sum of weights times features, on the background."""
    depth: Float[Tensor, "*r"]
    """Sum of weights times lengths."""
    opacity: Float[Tensor, "*r"]
    """Sum of the weights: 1 - exp(-sum tau)."""
    weights: Float[Tensor, "*r S"]
    """Of each sample."""


def composite(
    densities: Float[Tensor, "*r S"],
    features: Float[Tensor, "*r S C"],
    lengths: Float[Tensor, "*r S"],
    directions: Float[Tensor, "*r 3"],
    background: Float[Tensor, "*r C_or_1"] | Float[Tensor, "C_or_1"],
    bins: Float[Tensor, "*r S_plus_1"] | None = None,
    noise: Float[Tensor, "*r S"] | None = None,
    last_width: float = 1e10,
    relu: bool = True,
) -> Composited:
    """Weights w_i = T_i (1 - exp(-sigma_i delta_i)) and what they add up to (Mildenhall et al. 2020, equation 3).

    The kernels give gradients to densities and features; where anything else needs one, plain torch gives it.

    Args:
        densities: per world unit, before the ReLU.
        features: what is rendered.
        lengths: distances of the samples, increasing, in lengths of `directions`.
        directions: their lengths scale the widths of intervals; 1 but in NDC.
        background: what the features are put on, for each ray or for all.
        bins: edges of the intervals; None lets each reach from its sample to the next.
        noise: added to the densities before the ReLU.
        last_width: without bins, the width of the interval behind the last sample.
        relu: take negative densities as 0; without, there have to be none.
    """
    fixed = (lengths, directions, background, bins, noise)
    differentiable = all(tensor is None or not tensor.requires_grad for tensor in fixed)
    if not (uses_triton(densities) and differentiable and features.shape[-1] <= MOST_CHANNELS):
        return Composited(
            *reference.composite(densities, features, lengths, directions, background, bins, noise, last_width, relu)
        )
    rays, (n_samples, n_channels) = densities.shape[:-1], features.shape[-2:]
    rows = (
        densities.reshape(-1, n_samples),
        features.reshape(-1, n_samples, n_channels),
        lengths.reshape(-1, n_samples),
        directions.reshape(-1, 3),
        background.expand(*rays, n_channels).reshape(-1, n_channels),
        None if bins is None else bins.reshape(-1, n_samples + 1),
        None if noise is None else noise.reshape(-1, n_samples),
    )
    seen, depth, opacity, weights = _Composite.apply(*rows, last_width, relu)
    return Composited(
        seen.reshape(*rays, n_channels), depth.reshape(rays), opacity.reshape(rays), weights.reshape(*rays, n_samples)
    )


class _Composite(torch.autograd.Function):
    """`composite` of flat rays by its kernels; backward computes the transmittance anew."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        from nerf_trainer.ops.kernels import ray_compositing as kernels

        *tensors, last_width, relu = arguments
        rays = kernels.Rays(*arguments)
        seen, depth, opacity, weights = kernels.composite(rays)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, weights)
        ctx.settings = (last_width, relu)
        return seen, depth, opacity, weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        from nerf_trainer.ops.kernels import ray_compositing as kernels

        *tensors, own_weights = ctx.saved_tensors
        rays = kernels.Rays(*tensors, *ctx.settings)
        gradients = kernels.composite_backward(
            rays, own_weights, kernels.Gradients(*grad_outputs), ctx.needs_input_grad[:2]
        )
        return (*gradients, *(None,) * (len(ctx.needs_input_grad) - 2))
