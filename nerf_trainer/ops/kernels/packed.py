"""`ops.packed` in Triton: a warp walks along each ray, 32 samples at a time, and stops where the ray is spent.

Each program knows the optical thickness before its 32 samples; a scan gives what lies before each of them. The backward
pass walks the same way again: what comes behind a sample is the ray's whole, which the forward pass left, less what
came so far.
"""
# pyright: reportCallIssue=false

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from nerf_trainer.ops.reference import packed as reference

OPAQUE = tl.constexpr(reference.OPAQUE)

BLOCK = 32
"""Samples of a ray that are looked at together: a warp's width."""
UNLIMITED = 3e38
"""Optical thickness that no ray reaches, for no early stop."""


@dataclass(frozen=True)
class Row:
    """How samples lie in their row; see `ops.packed`."""

    starts: Float[Tensor, "M"]
    ends: Float[Tensor, "M"]
    first: Int[Tensor, "R"]
    count: Int[Tensor, "R"]
    scale: Float[Tensor, "R"] | None
    early_stop: float

    @property
    def limit(self) -> float:
        """Optical thickness behind which nothing counts."""
        return -math.log(self.early_stop) if self.early_stop > 0.0 else UNLIMITED


def composite(
    densities: Float[Tensor, "M"], features: Float[Tensor, "M C"], row: Row, with_weights: bool
) -> tuple[Float[Tensor, "R C"], Float[Tensor, "R"], Float[Tensor, "R"], Float[Tensor, "M"] | None]:
    """Features, opacity and depth of each ray, and the weights where they are asked for."""
    n_rays, n_channels = len(row.count), features.shape[-1]
    colors = torch.empty(n_rays, n_channels, device=densities.device)
    opacity, depth = torch.empty(2, n_rays, device=densities.device).unbind(0)
    weights = torch.zeros(len(densities), device=densities.device) if with_weights else None
    if n_rays > 0:
        _composite[(n_rays,)](
            *(densities, features, row.starts, row.ends, row.first, row.count, row.scale),
            *(colors, opacity, depth, weights),
            *(n_channels, row.limit),
            HAS_SCALE=row.scale is not None,
            WITH_WEIGHTS=with_weights,
            BLOCK=BLOCK,
            CHANNELS=triton.next_power_of_2(n_channels),
            num_warps=1,
        )
    return colors, opacity, depth, weights


def composite_backward(
    densities: Float[Tensor, "M"],
    features: Float[Tensor, "M C"],
    row: Row,
    outputs: Sequence[Tensor | None],
    gradients: Sequence[Tensor | None],
) -> tuple[Float[Tensor, "M"], Float[Tensor, "M C"]]:
    """Gradients of the densities and features, 0 for padding.

    Args:
        densities: as given to `composite`.
        features: likewise.
        row: likewise.
        outputs: what `composite` returned.
        gradients: of each output; None is 0.
    """
    n_rays, n_channels = len(row.count), features.shape[-1]
    of_densities, of_features = torch.zeros_like(densities), torch.zeros_like(features)
    given = [None if gradient is None else gradient.contiguous() for gradient in gradients]
    if n_rays > 0:
        _composite_backward[(n_rays,)](
            *(densities, features, row.starts, row.ends, row.first, row.count, row.scale),
            *outputs,
            *given,
            *(of_densities, of_features),
            *(n_channels, row.limit),
            HAS_SCALE=row.scale is not None,
            OF_COLORS=given[0] is not None,
            OF_OPACITY=given[1] is not None,
            OF_DEPTH=given[2] is not None,
            OF_WEIGHTS=given[3] is not None,
            BLOCK=BLOCK,
            CHANNELS=triton.next_power_of_2(n_channels),
            num_warps=1,
        )
    return of_densities, of_features


def distortion(
    weights: Float[Tensor, "M"],
    starts: Float[Tensor, "M"],
    ends: Float[Tensor, "M"],
    first: Int[Tensor, "R"],
    count: Int[Tensor, "R"],
) -> Float[Tensor, "R"]:
    """The spread of each ray's weights."""
    spread = torch.empty(len(count), device=weights.device)
    if len(count) > 0:
        _distortion[(len(count),)](weights, starts, ends, first, count, spread, BLOCK=BLOCK, num_warps=1)
    return spread


def distortion_backward(
    gradient: Float[Tensor, "R"],
    weights: Float[Tensor, "M"],
    starts: Float[Tensor, "M"],
    ends: Float[Tensor, "M"],
    first: Int[Tensor, "R"],
    count: Int[Tensor, "R"],
) -> Float[Tensor, "M"]:
    """The gradient of the weights, 0 for padding."""
    of_weights = torch.zeros_like(weights)
    if len(count) > 0:
        _distortion_backward[(len(count),)](
            gradient, weights, starts, ends, first, count, of_weights, BLOCK=BLOCK, num_warps=1
        )
    return of_weights


@triton.jit
def thickness(densities, starts, ends, place, there, scale):
    """Optical thickness before it is limited, and the middle of the interval."""
    density = tl.load(densities + place, mask=there, other=0.0).to(tl.float32)
    start = tl.load(starts + place, mask=there, other=0.0)
    end = tl.load(ends + place, mask=there, other=0.0)
    width = (end - start) * scale
    is_dense = density > 0.0
    return tl.where(is_dense, density, 0.0) * width, width, 0.5 * (start + end), is_dense


@triton.jit
def _opacity(tau):
    """1 - exp(-tau), also where tau is small: there the first terms of its series."""
    series = tau * (1.0 - tau * (0.5 - tau * (1.0 / 6.0 - tau * (1.0 / 24.0))))
    return tl.where(tau < 0.01, series, 1.0 - tl.exp(-tau))


@triton.jit
def _composite(
    densities,
    features,
    starts,
    ends,
    first,
    count,
    scales,
    colors,
    opacities,
    depths,
    weights,
    n_channels,
    limit,
    HAS_SCALE: tl.constexpr,
    WITH_WEIGHTS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    ray = tl.program_id(0)
    begin = tl.load(first + ray)
    n = tl.load(count + ray)
    scale = 1.0
    if HAS_SCALE:
        scale = tl.load(scales + ray)
    lane = tl.arange(0, BLOCK)
    channel = tl.arange(0, CHANNELS)
    color = tl.zeros([CHANNELS], dtype=tl.float32)
    opacity = tl.zeros([BLOCK], dtype=tl.float32)
    depth = tl.zeros([BLOCK], dtype=tl.float32)
    before = 0.0
    done = 0
    while (done < n) & (before <= limit):
        there = done + lane < n
        place = begin + done + lane
        tau, _, middle, _ = thickness(densities, starts, ends, place, there, scale)
        tau = tl.minimum(tau, OPAQUE)
        reach = before + (tl.cumsum(tau, axis=0) - tau)
        weight = tl.where(there & (reach <= limit), tl.exp(-reach) * _opacity(tau), 0.0)
        at = place[:, None] * n_channels + channel[None, :]
        feature = tl.load(features + at, mask=there[:, None] & (channel < n_channels)[None, :], other=0.0)
        color += tl.sum(weight[:, None] * feature.to(tl.float32), axis=0)
        opacity += weight
        depth += weight * middle
        if WITH_WEIGHTS:
            tl.store(weights + place, weight, mask=there)
        before += tl.sum(tau, axis=0)
        done += BLOCK
    tl.store(colors + ray * n_channels + channel, color, mask=channel < n_channels)
    tl.store(opacities + ray, tl.sum(opacity, axis=0))
    tl.store(depths + ray, tl.sum(depth, axis=0))


@triton.jit
def _composite_backward(
    densities,
    features,
    starts,
    ends,
    first,
    count,
    scales,
    colors,
    opacities,
    depths,
    weights,
    of_colors,
    of_opacities,
    of_depths,
    of_weights,
    of_densities,
    of_features,
    n_channels,
    limit,
    HAS_SCALE: tl.constexpr,
    OF_COLORS: tl.constexpr,
    OF_OPACITY: tl.constexpr,
    OF_DEPTH: tl.constexpr,
    OF_WEIGHTS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    # With v_i the derivative of the loss with respect to w_i:
    # dL/dtau_i = T_i exp(-tau_i) v_i - sum over j > i of w_j v_j, and dL/df_i = w_i dL/dF.
    ray = tl.program_id(0)
    begin = tl.load(first + ray)
    n = tl.load(count + ray)
    scale = 1.0
    if HAS_SCALE:
        scale = tl.load(scales + ray)
    lane = tl.arange(0, BLOCK)
    channel = tl.arange(0, CHANNELS)
    is_channel = channel < n_channels
    of_color = tl.zeros([CHANNELS], dtype=tl.float32)
    of_opacity = 0.0
    of_depth = 0.0
    behind = 0.0
    if OF_COLORS:
        of_color = tl.load(of_colors + ray * n_channels + channel, mask=is_channel, other=0.0)
        behind += tl.sum(of_color * tl.load(colors + ray * n_channels + channel, mask=is_channel, other=0.0), axis=0)
    if OF_OPACITY:
        of_opacity = tl.load(of_opacities + ray)
        behind += of_opacity * tl.load(opacities + ray)
    if OF_DEPTH:
        of_depth = tl.load(of_depths + ray)
        behind += of_depth * tl.load(depths + ray)
    done = 0
    if OF_WEIGHTS:
        while done < n:
            there = done + lane < n
            at = begin + done + lane
            weight = tl.load(weights + at, mask=there, other=0.0)
            behind += tl.sum(weight * tl.load(of_weights + at, mask=there, other=0.0), axis=0)
            done += BLOCK
    before = 0.0
    done = 0
    while (done < n) & (before <= limit):
        there = done + lane < n
        place = begin + done + lane
        whole, width, middle, is_dense = thickness(densities, starts, ends, place, there, scale)
        tau = tl.minimum(whole, OPAQUE)
        reach = before + (tl.cumsum(tau, axis=0) - tau)
        reached = there & (reach <= limit)
        weight = tl.where(reached, tl.exp(-reach) * _opacity(tau), 0.0)
        of_weight = of_opacity + of_depth * middle
        if OF_COLORS:
            at = place[:, None] * n_channels + channel[None, :]
            in_row = there[:, None] & is_channel[None, :]
            feature = tl.load(features + at, mask=in_row, other=0.0).to(tl.float32)
            of_weight += tl.sum(of_color[None, :] * feature, axis=1)
            tl.store(of_features + at, weight[:, None] * of_color[None, :], mask=in_row)
        if OF_WEIGHTS:
            of_weight += tl.load(of_weights + place, mask=there, other=0.0)
        share = weight * of_weight
        of_tau = tl.exp(-(reach + tau)) * of_weight - (behind - tl.cumsum(share, axis=0))
        of_density = tl.where(reached & is_dense & (whole < OPAQUE), of_tau * width, 0.0)
        tl.store(of_densities + place, of_density, mask=there)
        behind -= tl.sum(share, axis=0)
        before += tl.sum(tau, axis=0)
        done += BLOCK


@triton.jit
def _contracted(lengths):
    return tl.where(lengths < 1.0, 0.5 * lengths, 1.0 - 0.5 / tl.maximum(lengths, 1.0))


@triton.jit
def _interval(starts, ends, place, there, origin):
    """Middle, as seen from `origin` so that differences of middles stay exact, and width in contracted lengths."""
    start = _contracted(tl.load(starts + place, mask=there, other=0.0)) - origin
    end = _contracted(tl.load(ends + place, mask=there, other=0.0)) - origin
    return 0.5 * (start + end), end - start


@triton.jit
def _distortion(weights, starts, ends, first, count, spreads, BLOCK: tl.constexpr):
    ray = tl.program_id(0)
    begin = tl.load(first + ray)
    n = tl.load(count + ray)
    origin = _contracted(tl.load(starts + begin, mask=n > 0, other=0.0))
    lane = tl.arange(0, BLOCK)
    spread = tl.zeros([BLOCK], dtype=tl.float32)
    sum_w = 0.0
    sum_wm = 0.0
    done = 0
    while done < n:
        there = done + lane < n
        place = begin + done + lane
        w = tl.load(weights + place, mask=there, other=0.0)
        m, width = _interval(starts, ends, place, there, origin)
        w_before = sum_w + (tl.cumsum(w, axis=0) - w)
        wm_before = sum_wm + (tl.cumsum(w * m, axis=0) - w * m)
        spread += 2.0 * w * (m * w_before - wm_before) + w * w * width / 3.0
        sum_w += tl.sum(w, axis=0)
        sum_wm += tl.sum(w * m, axis=0)
        done += BLOCK
    tl.store(spreads + ray, tl.sum(spread, axis=0))


@triton.jit
def _distortion_backward(of_spreads, weights, starts, ends, first, count, of_weights, BLOCK: tl.constexpr):
    # d/dw_i: 2 sum over j of w_j |m_i - m_j| + 2/3 w_i width_i; the first sum split at i.
    ray = tl.program_id(0)
    begin = tl.load(first + ray)
    n = tl.load(count + ray)
    of_spread = tl.load(of_spreads + ray)
    origin = _contracted(tl.load(starts + begin, mask=n > 0, other=0.0))
    lane = tl.arange(0, BLOCK)
    total_w = 0.0
    total_wm = 0.0
    done = 0
    while done < n:
        there = done + lane < n
        place = begin + done + lane
        w = tl.load(weights + place, mask=there, other=0.0)
        m, _ = _interval(starts, ends, place, there, origin)
        total_w += tl.sum(w, axis=0)
        total_wm += tl.sum(w * m, axis=0)
        done += BLOCK
    sum_w = 0.0
    sum_wm = 0.0
    done = 0
    while done < n:
        there = done + lane < n
        place = begin + done + lane
        w = tl.load(weights + place, mask=there, other=0.0)
        m, width = _interval(starts, ends, place, there, origin)
        w_upto = sum_w + tl.cumsum(w, axis=0)
        wm_upto = sum_wm + tl.cumsum(w * m, axis=0)
        apart = m * (2.0 * w_upto - w - total_w) + total_wm - 2.0 * wm_upto + w * m
        tl.store(of_weights + place, of_spread * (2.0 * apart + w * width * (2.0 / 3.0)), mask=there)
        sum_w += tl.sum(w, axis=0)
        sum_wm += tl.sum(w * m, axis=0)
        done += BLOCK
