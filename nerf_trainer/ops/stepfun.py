"""Step functions along rays: placing samples, and drawing new ones where the weights are.

Symbols: t are distances along a ray, increasing (*r N or N+1); w are non-negative weights of the N intervals between
N+1 edges (*r N); u are numbers in [0, 1] that pick points of the cumulated weights.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from nerf_trainer.ops.deterministic import running_sum


def spaced(
    near: Float[Tensor, "*r"], far: Float[Tensor, "*r"], n: int, in_disparity: bool = False
) -> Float[Tensor, "*r n"]:
    """n distances from near to far, both included, evenly spaced in distance or in its inverse.

    Even spacing in disparity needs near > 0.
    """
    s = torch.linspace(0.0, 1.0, n, device=near.device, dtype=near.dtype)
    near, far = near[..., None], far[..., None]
    if in_disparity:
        return 1.0 / ((1.0 - s) / near + s / far)
    return near * (1.0 - s) + far * s


def midpoints(t: Float[Tensor, "*r n"]) -> Float[Tensor, "*r n_minus_1"]:
    """The centres of the intervals between neighbours."""
    return 0.5 * (t[..., 1:] + t[..., :-1])


def jitter(t: Float[Tensor, "*r n"], generator: torch.Generator) -> Float[Tensor, "*r n"]:
    """Move each of t to a uniform place in its stratum, whose borders are the midpoints between neighbours.

    The first and last strata are half as wide and begin and end at the first and last t (Mildenhall et al. 2020,
    section 5.2, as its authors implement it).
    """
    mid = midpoints(t)
    lower = torch.cat([t[..., :1], mid], dim=-1)
    upper = torch.cat([mid, t[..., -1:]], dim=-1)
    u = torch.rand(t.shape, generator=generator, device=t.device, dtype=t.dtype)
    return lower + (upper - lower) * u


def sample_pdf(
    edges: Float[Tensor, "*r N_plus_1"],
    weights: Float[Tensor, "*r N"],
    n: int,
    generator: torch.Generator | None = None,
    eps: float = 1e-5,
) -> Float[Tensor, "*r n"]:
    """Draw n distances from the piecewise-constant density that `weights` spread over the intervals between `edges`.

    Inverse transform sampling (Mildenhall et al. 2020, section 5.2). No gradient flows through the result.

    Args:
        generator: draws u uniformly; None takes n evenly spaced u from 0 to 1, both included.
        eps: added to each weight, so that a ray that met nothing is sampled evenly.
    """
    weights = weights.detach() + eps
    cdf = running_sum(weights / weights.sum(dim=-1, keepdim=True), dim=-1)
    cdf = torch.cat([torch.zeros_like(cdf[..., :1]), cdf[..., :-1], torch.ones_like(cdf[..., :1])], dim=-1)
    shape = (*cdf.shape[:-1], n)
    if generator is None:
        u = torch.linspace(0.0, 1.0, n, device=cdf.device, dtype=cdf.dtype).expand(shape).contiguous()
    else:
        u = torch.rand(shape, generator=generator, device=cdf.device, dtype=cdf.dtype)
    return invert_cdf(edges.detach(), cdf, u)


def invert_cdf(
    edges: Float[Tensor, "*r M"], cdf: Float[Tensor, "*r M"], u: Float[Tensor, "*r n"]
) -> Float[Tensor, "*r n"]:
    """The t at which `cdf`, which rises from 0 to 1 over `edges`, reaches u; linear within each interval."""
    above = torch.searchsorted(cdf.contiguous(), u, right=True).clamp(1, cdf.shape[-1] - 1)
    below = above - 1
    cdf_below, cdf_above = cdf.gather(-1, below), cdf.gather(-1, above)
    t_below, t_above = edges.gather(-1, below), edges.gather(-1, above)
    width = cdf_above - cdf_below
    fraction = ((u - cdf_below) / torch.where(width > 0, width, torch.ones_like(width))).clamp(0.0, 1.0)
    return t_below + fraction * (t_above - t_below)


def blur_weights(weights: Float[Tensor, "*r N"]) -> Float[Tensor, "*r N"]:
    """The larger of each two neighbours, averaged over both: a wider, never narrower, envelope of the weights.

    mip-NeRF's resampling filter (Barron et al. 2021, equation 18).
    """
    padded = torch.cat([weights[..., :1], weights, weights[..., -1:]], dim=-1)
    pairs = torch.maximum(padded[..., :-1], padded[..., 1:])
    return 0.5 * (pairs[..., :-1] + pairs[..., 1:])
