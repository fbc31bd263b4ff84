"""Where the samples of rays lie, the first ones and those drawn where a coarse pass saw something: a kernel for each.

No gradient flows through either. Symbols are those of `ops.stepfun`: t are distances along a ray, w weights of the
intervals between edges, u numbers in [0, 1].
"""

import torch
from jaxtyping import Float
from torch import Tensor

from nerf_trainer.ops.backend import uses_triton
from nerf_trainer.ops.reference import ray_sampling as reference

MOST_PLACES = 1024
"""A program of the kernel holds this many places of a ray, drawn and kept; more run in plain torch."""


def place(
    near: Float[Tensor, "*r"],
    far: Float[Tensor, "*r"],
    n: int,
    generator: torch.Generator | None = None,
    in_disparity: bool = False,
) -> Float[Tensor, "*r n"]:
    """n distances from near to far, evenly spaced, or each at a uniform place in its stratum.

    Without a generator near and far are included; with one see `stepfun.jitter`.

    Args:
        generator: draws the places within strata; None spaces evenly.
        in_disparity: space in inverse distance, which needs near > 0.
    """
    if not uses_triton(near) or n < 2:
        return reference.place(near, far, n, generator, in_disparity)
    from nerf_trainer.ops.kernels import ray_sampling as kernels

    u = None if generator is None else torch.rand((*near.shape, n), generator=generator, device=near.device)
    return kernels.place(near.flatten(), far.flatten(), n, u, in_disparity).reshape(*near.shape, n)


def resample(
    t: Float[Tensor, "*r M"],
    weights: Float[Tensor, "*r N"],
    n: int,
    generator: torch.Generator | None = None,
    eps: float = 1e-5,
    between_midpoints: bool = True,
    keep: bool = True,
) -> Float[Tensor, "*r K"]:
    """Draw n distances where the weights are (`stepfun.sample_pdf`); sorted.

    Args:
        t: increasing distances: samples, or edges of intervals.
        weights: of the N = M - 2 intervals between the midpoints of t, or of the N = M - 1 between t.
        generator: draws u uniformly; None takes n evenly spaced u from 0 to 1, both included.
        eps: added to each weight, so that a ray that met nothing is sampled evenly.
        between_midpoints: the weights lie between the midpoints of neighbouring t; otherwise between t.
        keep: give t beside what was drawn: K = M + n, otherwise n.
    """
    most = max(t.shape[-1], n, n + t.shape[-1] if keep else 0)
    if not uses_triton(t) or most > MOST_PLACES or n < 2:
        return reference.resample(t, weights, n, generator, eps, between_midpoints, keep)
    from nerf_trainer.ops.kernels import ray_sampling as kernels

    rays = t.shape[:-1]
    u = None if generator is None else torch.rand((*rays, n), generator=generator, device=t.device)
    return kernels.resample(
        t.detach().reshape(-1, t.shape[-1]),
        weights.detach().reshape(-1, weights.shape[-1]),
        n,
        u,
        eps,
        between_midpoints,
        keep,
    ).reshape(*rays, n + t.shape[-1] if keep else n)
