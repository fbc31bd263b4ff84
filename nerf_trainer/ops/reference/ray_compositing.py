"""`ops.ray_compositing` in plain torch; autograd differentiates it."""

import torch
from jaxtyping import Float
from torch import Tensor

from nerf_trainer.ops.compositing import accumulate, emission_absorption_weights, interval_widths


def composite(
    densities: Float[Tensor, "*r S"],
    features: Float[Tensor, "*r S C"],
    lengths: Float[Tensor, "*r S"],
    directions: Float[Tensor, "*r 3"],
    background: Float[Tensor, "*r C_or_1"] | Float[Tensor, "C_or_1"],
    bins: Float[Tensor, "*r S_plus_1"] | None,
    noise: Float[Tensor, "*r S"] | None,
    last_width: float,
    relu: bool,
) -> tuple[Float[Tensor, "*r C"], Float[Tensor, "*r"], Float[Tensor, "*r"], Float[Tensor, "*r S"]]:
    """Features on the background, depth, opacity and weights; see `ops.ray_compositing.composite`."""
    density = densities.float() if noise is None else densities.float() + noise
    widths = interval_widths(lengths, last_width) if bins is None else bins[..., 1:] - bins[..., :-1]
    widths = widths * torch.linalg.vector_norm(directions, dim=-1, keepdim=True)
    weights, opacity = emission_absorption_weights(widths * (density.relu() if relu else density))
    seen = accumulate(weights, features.float()) + (1.0 - opacity[..., None]) * background
    return seen, accumulate(weights, lengths[..., None])[..., 0], opacity, weights
