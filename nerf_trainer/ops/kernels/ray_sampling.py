"""`ops.ray_sampling` in Triton: a program holds the cumulated weights and all places of one ray."""

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

PLACES = 1024
"""Places that a program of `place` computes."""
BEYOND = float("inf")
"""What fills up a row that is sorted."""


@triton.jit
def _linear(j, last):
    """j / last, from either end, so that both ends are exact."""
    forward = j.to(tl.float32) / last
    return tl.where(2 * j < last, forward, 1.0 - (last - j).to(tl.float32) / last)


@triton.jit
def _spaced(near, far, j, last, IN_DISPARITY: tl.constexpr):
    """The j-th of last + 1 distances from near to far, evenly spaced in distance or its inverse."""
    s = _linear(j, last)
    if IN_DISPARITY:
        return 1.0 / ((1.0 - s) / near + s / far)
    return near * (1.0 - s) + far * s


@triton.jit
def _place_kernel(
    near, far, u, out, n_places, N, STRATIFIED: tl.constexpr, IN_DISPARITY: tl.constexpr, BLOCK: tl.constexpr
):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = place < n_places
    ray, j = place // N, (place % N).to(tl.int32)
    begin, end = tl.load(near + ray, mask=there, other=1.0), tl.load(far + ray, mask=there, other=1.0)
    t = _spaced(begin, end, j, N - 1, IN_DISPARITY)
    if STRATIFIED:
        before = _spaced(begin, end, tl.maximum(j - 1, 0), N - 1, IN_DISPARITY)
        behind = _spaced(begin, end, tl.minimum(j + 1, N - 1), N - 1, IN_DISPARITY)
        lower, upper = 0.5 * (before + t), 0.5 * (t + behind)
        t = lower + (upper - lower) * tl.load(u + place, mask=there, other=0.0)
    tl.store(out + place, t, mask=there)


@triton.jit
def _resample_kernel(
    t,
    weights,
    u,
    out,
    M,
    N,
    n,
    weights_r,
    eps,
    STEPS: tl.constexpr,
    STRATIFIED: tl.constexpr,
    BETWEEN_MIDPOINTS: tl.constexpr,
    KEEP: tl.constexpr,
    FILL: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_U: tl.constexpr,
):
    """BLOCK_N holds the N weights, shifted by one; BLOCK_U all places that come out, those drawn first."""
    ray = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK_N)
    # cdf[k] is the share of the weights before edge k: of the k-1-th and those before.
    inside = (k >= 1) & (k <= N)
    w = tl.load(weights + ray * weights_r + k - 1, mask=inside, other=0.0).to(tl.float32) + eps
    w = tl.where(inside, w, 0.0)
    cdf = tl.cumsum(w / tl.sum(w, axis=0), axis=0)
    cdf = tl.where(k < N, cdf, 1.0)
    edge = tl.load(t + ray * M + k, mask=k <= N, other=0.0)
    if BETWEEN_MIDPOINTS:
        edge = 0.5 * (tl.load(t + ray * M + k + 1, mask=k <= N, other=0.0) + edge)

    j = tl.arange(0, BLOCK_U)
    if STRATIFIED:
        at = tl.load(u + ray * n + j, mask=j < n, other=0.0)
    else:
        at = tl.where(j < n, _linear(j, n - 1), 0.0)
    # The last edge whose cdf is at most u: bisection over edges 0 to N - 1.
    below = tl.zeros([BLOCK_U], tl.int32)
    for step in tl.static_range(STEPS):
        further = below + (1 << (STEPS - 1 - step))
        reached = tl.gather(cdf, tl.minimum(further, BLOCK_N - 1), 0) <= at
        below = tl.where((further < N) & reached, further, below)
    cdf_below, cdf_above = tl.gather(cdf, below, 0), tl.gather(cdf, below + 1, 0)
    t_below, t_above = tl.gather(edge, below, 0), tl.gather(edge, below + 1, 0)
    width = cdf_above - cdf_below
    fraction = (at - cdf_below) / tl.where(width > 0.0, width, 1.0)
    fraction = tl.minimum(tl.maximum(fraction, 0.0), 1.0)
    drawn = t_below + fraction * (t_above - t_below)
    n_places = n
    if KEEP:
        n_places = n + M
        kept = tl.load(t + ray * M + j - n, mask=(j >= n) & (j < n + M), other=FILL)
        drawn = tl.where(j < n, drawn, kept)
    drawn = tl.where(j < n_places, drawn, FILL)
    tl.store(out + ray * n_places + j, tl.sort(drawn), mask=j < n_places)


def place(
    near: Float[Tensor, "R"], far: Float[Tensor, "R"], n: int, u: Float[Tensor, "*r n"] | None, in_disparity: bool
) -> Float[Tensor, "R n"]:
    """n distances along each ray; within their strata by `u`."""
    out = torch.empty(len(near), n, device=near.device)
    if out.numel() > 0:
        launch: Any = _place_kernel[(triton.cdiv(out.numel(), PLACES),)]
        launch(
            near,
            far,
            near if u is None else u,
            out,
            out.numel(),
            n,
            STRATIFIED=u is not None,
            IN_DISPARITY=in_disparity,
            BLOCK=PLACES,
            num_warps=8,
        )
    return out


def resample(
    t: Float[Tensor, "R M"],
    weights: Float[Tensor, "R N"],
    n: int,
    u: Float[Tensor, "*r n"] | None,
    eps: float,
    between_midpoints: bool,
    keep: bool,
) -> Float[Tensor, "R K"]:
    """Sorted places drawn by `u`, or at even quantiles, with those of t where they are kept."""
    (n_rays, n_t), n_weights = t.shape, weights.shape[1]
    n_places = n + n_t if keep else n
    weights = weights if weights.stride(1) == 1 else weights.contiguous()
    out = torch.empty(n_rays, n_places, device=t.device)
    block = int(triton.next_power_of_2(n_places))
    if out.numel() > 0:
        launch: Any = _resample_kernel[(n_rays,)]
        launch(
            t.contiguous(),
            weights,
            t if u is None else u,
            out,
            n_t,
            n_weights,
            n,
            weights.stride(0),
            eps,
            STEPS=max(1, (n_weights - 1).bit_length()),
            STRATIFIED=u is not None,
            BETWEEN_MIDPOINTS=between_midpoints,
            KEEP=keep,
            FILL=BEYOND,
            BLOCK_N=int(triton.next_power_of_2(n_weights + 1)),
            BLOCK_U=block,
            num_warps=1 if block <= 256 else 4,
        )
    return out
