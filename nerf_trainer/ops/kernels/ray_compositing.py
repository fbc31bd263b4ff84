"""`ops.ray_compositing` in Triton: a program holds all samples of a few rays in registers.

What comes before a sample is summed over the samples shifted by one, which are read once more (from the first cache):
taking a sample's own share off an inclusive sum would leave nothing of the others' where its interval is 1e10 wide.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

WARPS = 4
"""Warps of a program."""
SAMPLES = 1024
"""Samples of a program: of as many rays as these make, up to one for each warp."""


class Rays(NamedTuple):
    """What is composited; see `ops.ray_compositing.composite`."""

    densities: Float[Tensor, "R S"]
    features: Float[Tensor, "R S C"]
    lengths: Float[Tensor, "R S"]
    directions: Float[Tensor, "R 3"]
    background: Float[Tensor, "R C"]
    bins: Float[Tensor, "R S_plus_1"] | None
    noise: Float[Tensor, "R S"] | None
    last_width: float
    relu: bool


class Gradients(NamedTuple):
    """Gradients of what came out; None is 0."""

    features: Float[Tensor, "R C"] | None
    depth: Float[Tensor, "R"] | None
    opacity: Float[Tensor, "R"] | None
    weights: Float[Tensor, "R S"] | None


@triton.jit
def _one_minus_exp(tau):
    """1 - exp(-tau) for tau >= 0, to float32's precision also near 0, where the difference would lose it."""
    series = 1.0 - tau * (1.0 / 8.0)
    series = 1.0 - tau * (1.0 / 7.0) * series
    series = 1.0 - tau * (1.0 / 6.0) * series
    series = 1.0 - tau * (1.0 / 5.0) * series
    series = 1.0 - tau * (1.0 / 4.0) * series
    series = 1.0 - tau * (1.0 / 3.0) * series
    series = 1.0 - tau * (1.0 / 2.0) * series
    return tl.where(tau < 0.5, tau * series, 1.0 - tl.exp(-tau))


@triton.jit
def _width(lengths, bins, ray, sample, there, norm, S, LAST: tl.constexpr, HAS_BINS: tl.constexpr):
    """Interval widths in world units."""
    if HAS_BINS:
        edge = bins + ray * (S + 1) + sample
        width = tl.load(edge + 1, mask=there, other=0.0) - tl.load(edge, mask=there, other=0.0)
    else:
        place = lengths + ray * S + sample
        inner = there & (sample + 1 < S)
        width = tl.load(place + 1, mask=inner, other=0.0) - tl.load(place, mask=inner, other=0.0)
        width = tl.where(sample + 1 < S, width, LAST)
    return width * norm


@triton.jit
def _density(densities, noise, ray, sample, there, S, stride_r, stride_s, HAS_NOISE: tl.constexpr):
    """Densities before the ReLU; 0 where there is no sample."""
    sigma = tl.load(densities + ray * stride_r + sample * stride_s, mask=there, other=0.0).to(tl.float32)
    if HAS_NOISE:
        sigma += tl.load(noise + ray * S + sample, mask=there, other=0.0)
    return sigma


@triton.jit
def _norm(directions, ray, in_rays):
    x = tl.load(directions + ray * 3, mask=in_rays, other=0.0)
    y = tl.load(directions + ray * 3 + 1, mask=in_rays, other=0.0)
    z = tl.load(directions + ray * 3 + 2, mask=in_rays, other=0.0)
    return tl.sqrt(x * x + y * y + z * z)


# fmt: off
@triton.jit
def _composite_kernel(
    densities, features, lengths, directions, background, bins, noise,
    out_features, out_depth, out_opacity, out_weights,
    R, S, density_r, density_s, feature_r, feature_s, feature_c, behind_r, behind_c,
    LAST: tl.constexpr, RELU: tl.constexpr, HAS_BINS: tl.constexpr, HAS_NOISE: tl.constexpr,
    C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    in_rays = row < R
    ray, sample = row[:, None], tl.arange(0, BLOCK_S)[None, :]
    there = in_rays[:, None] & (sample < S)
    before = in_rays[:, None] & (sample >= 1) & (sample <= S)
    norm = _norm(directions, row, in_rays)[:, None]
    sigma = _density(densities, noise, ray, sample, there, S, density_r, density_s, HAS_NOISE)
    sigma_before = _density(densities, noise, ray, sample - 1, before, S, density_r, density_s, HAS_NOISE)
    if RELU:
        sigma, sigma_before = tl.maximum(sigma, 0.0), tl.maximum(sigma_before, 0.0)
    tau = tl.where(there, sigma * _width(lengths, bins, ray, sample, there, norm, S, LAST, HAS_BINS), 0.0)
    tau_before = sigma_before * _width(lengths, bins, ray, sample - 1, before, norm, S, LAST, HAS_BINS)
    tau_before = tl.where(before & there, tau_before, 0.0)
    weight = _one_minus_exp(tau) * tl.exp(-tl.cumsum(tau_before, axis=1))
    opacity = _one_minus_exp(tl.sum(tau, axis=1))
    t = tl.load(lengths + ray * S + sample, mask=there, other=0.0)
    tl.store(out_weights + ray * S + sample, weight, mask=there)
    tl.store(out_depth + row, tl.sum(weight * t, axis=1), mask=in_rays)
    tl.store(out_opacity + row, opacity, mask=in_rays)
    for c in tl.static_range(C):
        place = features + ray * feature_r + sample * feature_s + c * feature_c
        value = tl.load(place, mask=there, other=0.0).to(tl.float32)
        behind = tl.load(background + row * behind_r + c * behind_c, mask=in_rays, other=0.0)
        tl.store(out_features + row * C + c, tl.sum(weight * value, axis=1) + (1.0 - opacity) * behind, mask=in_rays)


@triton.jit
def _weight_gradient(
    features, lengths, grad_features, grad_depth, grad_weights,
    row, sample, there, in_rays, S, feature_r, feature_s, feature_c,
    FEATURES: tl.constexpr, DEPTH: tl.constexpr, WEIGHTS: tl.constexpr, C: tl.constexpr,
):
    """The gradient of each weight, by all that it adds to but the opacity."""
    ray = row[:, None]
    total = tl.zeros(there.shape, tl.float32)
    if WEIGHTS:
        total += tl.load(grad_weights + ray * S + sample, mask=there, other=0.0)
    if DEPTH:
        of_depth = tl.load(grad_depth + row, mask=in_rays, other=0.0)[:, None]
        total += of_depth * tl.load(lengths + ray * S + sample, mask=there, other=0.0)
    if FEATURES:
        for c in tl.static_range(C):
            of_feature = tl.load(grad_features + row * C + c, mask=in_rays, other=0.0)[:, None]
            place = features + ray * feature_r + sample * feature_s + c * feature_c
            total += of_feature * tl.load(place, mask=there, other=0.0).to(tl.float32)
    return total


@triton.jit
def _composite_backward_kernel(
    densities, features, lengths, directions, background, bins, noise,
    weights, grad_features, grad_depth, grad_opacity, grad_weights, out_densities, out_features,
    R, S, density_r, density_s, feature_r, feature_s, feature_c, behind_r, behind_c,
    LAST: tl.constexpr, RELU: tl.constexpr, HAS_BINS: tl.constexpr, HAS_NOISE: tl.constexpr,
    FEATURES: tl.constexpr, DEPTH: tl.constexpr, OPACITY: tl.constexpr, WEIGHTS: tl.constexpr,
    TO_DENSITIES: tl.constexpr, TO_FEATURES: tl.constexpr,
    C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr,
):
    """d w_i / d tau_j is -w_i behind j (i > j), T_j exp(-tau_j) at j; d opacity / d tau_j is exp(-sum tau)."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    in_rays = row < R
    ray, sample = row[:, None], tl.arange(0, BLOCK_S)[None, :]
    there = in_rays[:, None] & (sample < S)
    if TO_FEATURES:
        weight = tl.load(weights + ray * S + sample, mask=there, other=0.0)
        for c in tl.static_range(C):  # pyright: ignore[reportGeneralTypeIssues]
            of_feature = tl.load(grad_features + row * C + c, mask=in_rays, other=0.0)[:, None]
            tl.store(out_features + (ray * S + sample) * C + c, weight * of_feature, mask=there)
    if TO_DENSITIES:
        norm = _norm(directions, row, in_rays)[:, None]
        raw = _density(densities, noise, ray, sample, there, S, density_r, density_s, HAS_NOISE)
        width = _width(lengths, bins, ray, sample, there, norm, S, LAST, HAS_BINS)
        sigma = raw
        if RELU:
            sigma = tl.maximum(raw, 0.0)
        reached = tl.exp(-tl.cumsum(tl.where(there, sigma * width, 0.0), axis=1))  # T_j exp(-tau_j)
        grad = reached * _weight_gradient(
            features, lengths, grad_features, grad_depth, grad_weights, row, sample, there, in_rays, S,
            feature_r, feature_s, feature_c, FEATURES, DEPTH, WEIGHTS, C,
        )
        next_there = in_rays[:, None] & (sample + 1 < S)
        behind = tl.load(weights + ray * S + sample + 1, mask=next_there, other=0.0) * _weight_gradient(
            features, lengths, grad_features, grad_depth, grad_weights, row, sample + 1, next_there, in_rays, S,
            feature_r, feature_s, feature_c, FEATURES, DEPTH, WEIGHTS, C,
        )
        grad -= tl.cumsum(behind, axis=1, reverse=True)
        of_opacity = tl.zeros([BLOCK_R], tl.float32)
        if OPACITY:
            of_opacity += tl.load(grad_opacity + row, mask=in_rays, other=0.0)
        if FEATURES:
            for c in tl.static_range(C):
                of_background = tl.load(background + row * behind_r + c * behind_c, mask=in_rays, other=0.0)
                of_opacity -= of_background * tl.load(grad_features + row * C + c, mask=in_rays, other=0.0)
        left = tl.exp(-tl.sum(tl.where(there, sigma * width, 0.0), axis=1))
        grad += (of_opacity * left)[:, None]
        grad *= width
        if RELU:
            grad = tl.where(raw > 0.0, grad, 0.0)
        tl.store(out_densities + ray * S + sample, grad, mask=there)
# fmt: on


def composite(rays: Rays) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features (R, C), depth (R), opacity (R) and weights (R, S), in float32."""
    rays = _dense(rays)
    (n_rays, n_samples), n_channels = rays.densities.shape, rays.features.shape[-1]
    seen = rays.lengths.new_empty(n_rays, n_channels, dtype=torch.float32)
    depth, opacity = (rays.lengths.new_empty(n_rays, dtype=torch.float32) for _ in range(2))
    weights = rays.lengths.new_empty(n_rays, n_samples, dtype=torch.float32)
    if n_rays > 0:
        grid, constants, options = _launch(rays)
        launch: Any = _composite_kernel[grid]
        launch(*_pointers(rays), seen, depth, opacity, weights, *_numbers(rays), **constants, **options)
    return seen, depth, opacity, weights


def composite_backward(
    rays: Rays, weights: Float[Tensor, "R S"], gradients: Gradients, needed: tuple[bool, ...]
) -> tuple[Float[Tensor, "R S"] | None, Float[Tensor, "R S C"] | None]:
    """Gradients of densities and features, in their dtypes, each where it is needed and there is one."""
    rays = _dense(rays)
    to_densities, to_features = needed[0], needed[1] and gradients.features is not None
    of_densities = torch.empty(rays.densities.shape, dtype=rays.densities.dtype, device=weights.device)
    of_features = torch.empty(
        rays.features.shape if to_features else 0, dtype=rays.features.dtype, device=weights.device
    )
    if len(weights) > 0:
        grid, constants, options = _launch(rays)
        given = [None if gradient is None else gradient.contiguous() for gradient in gradients]
        launch: Any = _composite_backward_kernel[grid]
        launch(
            *_pointers(rays),
            weights,
            *(weights if gradient is None else gradient for gradient in given),
            of_densities,
            of_features,
            *_numbers(rays),
            **{
                name: gradient is not None
                for name, gradient in zip(("FEATURES", "DEPTH", "OPACITY", "WEIGHTS"), given, strict=True)
            },
            TO_DENSITIES=to_densities,
            TO_FEATURES=to_features,
            **constants,
            **options,
        )
    return of_densities if to_densities else None, of_features if to_features else None


def _dense(rays: Rays) -> Rays:
    """Rows without gaps, but for densities, features and background, whose strides the kernels are told."""
    return rays._replace(
        lengths=rays.lengths.contiguous(),
        directions=rays.directions.contiguous(),
        bins=None if rays.bins is None else rays.bins.contiguous(),
        noise=None if rays.noise is None else rays.noise.contiguous(),
    )


def _pointers(rays: Rays) -> tuple[Tensor, ...]:
    """The tensors that kernels read; what is missing is never read, and stands in by another."""
    bins = rays.lengths if rays.bins is None else rays.bins
    noise = rays.lengths if rays.noise is None else rays.noise
    return rays.densities, rays.features, rays.lengths, rays.directions, rays.background, bins, noise


def _numbers(rays: Rays) -> tuple[int, ...]:
    strides = (*rays.densities.stride(), *rays.features.stride(), *rays.background.stride())
    return (*rays.densities.shape, *strides)


def _launch(rays: Rays) -> tuple[tuple[int], dict[str, object], dict[str, int]]:
    """Grid, constants and options of either kernel."""
    n_rays, n_samples = rays.densities.shape
    block = max(32, int(triton.next_power_of_2(n_samples)))
    block_rays = max(1, min(WARPS, SAMPLES // block))
    constants: dict[str, object] = {
        "LAST": rays.last_width,
        "RELU": rays.relu,
        "HAS_BINS": rays.bins is not None,
        "HAS_NOISE": rays.noise is not None,
        "C": rays.features.shape[-1],
        "BLOCK_R": block_rays,
        "BLOCK_S": block,
    }
    return (int(triton.cdiv(n_rays, block_rays)),), constants, {"num_warps": WARPS}
