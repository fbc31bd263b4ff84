"""`ops.prune` in Triton: a warp walks along each ray as in `kernels.packed`.

Its sums are those of `kernels.packed`, so that compositing what is left finds the same transmittances.
"""
# pyright: reportCallIssue=false

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from nerf_trainer.ops.kernels.packed import BLOCK, OPAQUE, Row, thickness


@triton.jit
def _count_visible(densities, starts, ends, first, count, scales, visible, limit, BLOCK: tl.constexpr):
    ray = tl.program_id(0)
    begin = tl.load(first + ray)
    n = tl.load(count + ray)
    scale = tl.load(scales + ray)
    lane = tl.arange(0, BLOCK)
    before = 0.0
    done = 0
    last = tl.zeros([BLOCK], dtype=tl.int32)
    while (done < n) & (before <= limit):
        there = done + lane < n
        tau, _, _, _ = thickness(densities, starts, ends, begin + done + lane, there, scale)
        tau = tl.minimum(tau, OPAQUE)
        reach = before + (tl.cumsum(tau, axis=0) - tau)
        last = tl.where(there & (reach <= limit), done + lane + 1, last)
        before += tl.sum(tau, axis=0)
        done += BLOCK
    tl.store(visible + ray, tl.max(last, axis=0))


@triton.jit(do_not_specialize=["n_rays", "length"])
def _take(
    starts,
    ends,
    source,
    first,
    count,
    n_used,
    taken_starts,
    taken_ends,
    ray_index,
    n_rays,
    length,
    BLOCK: tl.constexpr,
):
    # One program for each ray, then one for each block of places, whose padding it fills.
    program = tl.program_id(0)
    lane = tl.arange(0, BLOCK)
    if program < n_rays:
        begin = tl.load(source + program)
        to = tl.load(first + program)
        n = tl.load(count + program)
        done = 0
        while done < n:
            there = done + lane < n
            at = begin + done + lane
            place = to + done + lane
            tl.store(taken_starts + place, tl.load(starts + at, mask=there), mask=there)
            tl.store(taken_ends + place, tl.load(ends + at, mask=there), mask=there)
            tl.store(ray_index + place, tl.zeros([BLOCK], dtype=tl.int32) + program, mask=there)
            done += BLOCK
    else:
        place = (program - n_rays) * BLOCK + lane
        padding = (place >= tl.load(n_used)) & (place < length)
        zero = tl.zeros([BLOCK], dtype=tl.float32)
        tl.store(taken_starts + place, zero, mask=padding)
        tl.store(taken_ends + place, zero, mask=padding)
        tl.store(ray_index + place, tl.zeros([BLOCK], dtype=tl.int32) + n_rays, mask=padding)


def count_visible(
    densities: Float[Tensor, "M"],
    starts: Float[Tensor, "M"],
    ends: Float[Tensor, "M"],
    ray_index: Int[Tensor, "M"],
    first: Int[Tensor, "R"],
    count: Int[Tensor, "R"],
    scale: Float[Tensor, "R"],
    early_stop: float,
) -> Int[Tensor, "R"]:
    """How many samples each ray has up to the last one that light reaches, int32."""
    visible = torch.empty_like(count)
    if len(count) > 0:
        limit = Row(starts, ends, first, count, scale, early_stop).limit
        _count_visible[(len(count),)](
            densities.contiguous(), starts, ends, first, count, scale, visible, limit, BLOCK=BLOCK, num_warps=1
        )
    return visible


def take(
    starts: Float[Tensor, "M"],
    ends: Float[Tensor, "M"],
    source: Int[Tensor, "R"],
    first: Int[Tensor, "R"],
    count: Int[Tensor, "R"],
    n_used: Int[Tensor, ""],
    length: int,
) -> tuple[Float[Tensor, "K"], Float[Tensor, "K"], Int[Tensor, "K"]]:
    """Starts, ends and rays of `count` samples of each ray, from `source` on in the row they are taken from and from
    `first` on in one of `length`; 0, 0 and R in its padding."""
    taken_starts, taken_ends = torch.empty(2, length, device=starts.device).unbind()
    ray_index = torch.empty(length, dtype=torch.int32, device=starts.device)
    _take[(len(count) + triton.cdiv(length, BLOCK),)](
        *(starts, ends, source, first, count, n_used, taken_starts, taken_ends, ray_index),
        *(len(count), length),
        BLOCK=BLOCK,
        num_warps=1,
    )
    return taken_starts, taken_ends, ray_index
