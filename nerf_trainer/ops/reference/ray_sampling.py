"""`ops.ray_sampling` in plain torch."""

import torch
from jaxtyping import Float
from torch import Tensor

from nerf_trainer.ops.stepfun import jitter, midpoints, sample_pdf, spaced


def place(
    near: Float[Tensor, "*r"], far: Float[Tensor, "*r"], n: int, generator: torch.Generator | None, in_disparity: bool
) -> Float[Tensor, "*r n"]:
    """See `ops.ray_sampling.place`."""
    t = spaced(near, far, n, in_disparity)
    return t if generator is None else jitter(t, generator)


def resample(
    t: Float[Tensor, "*r M"],
    weights: Float[Tensor, "*r N"],
    n: int,
    generator: torch.Generator | None,
    eps: float,
    between_midpoints: bool,
    keep: bool,
) -> Float[Tensor, "*r K"]:
    """See `ops.ray_sampling.resample`."""
    drawn = sample_pdf(midpoints(t) if between_midpoints else t, weights, n, generator, eps)
    if not keep:
        return drawn if generator is None else drawn.sort(dim=-1).values
    return torch.cat([t, drawn], dim=-1).sort(dim=-1).values
