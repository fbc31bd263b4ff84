"""`ops.harmonic` in Triton: a program lifts a block of inputs, sines and cosines of the same phases together."""

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

ELEMENTS = 512
"""Phases of a program."""


@triton.jit
def _harmonics_kernel(
    x,
    frequencies,
    out,
    n,
    D: tl.constexpr,
    K: tl.constexpr,
    E: tl.constexpr,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Columns are the phases f_k x_d, by coordinate; E is the width of the result."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    if K > 0:
        there = (row < n) & (column < D * K)
        value = tl.load(x + row * D + column // K, mask=there, other=0.0).to(tl.float32)
        phase = value * tl.load(frequencies + column % K, mask=column < D * K, other=0.0)
        place = out + row * E + column
        tl.store(place, tl.sin(phase), mask=there)
        tl.store(place + D * K, tl.cos(phase), mask=there)
    if E > 2 * D * K:
        there = (row < n) & (column < D)
        tl.store(out + row * E + 2 * D * K + column, tl.load(x + row * D + column, mask=there, other=0.0), mask=there)


def harmonics(
    x: Float[Tensor, "N D"], frequencies: Float[Tensor, "K"], append_input: bool, dtype: torch.dtype
) -> Float[Tensor, "N E"]:
    """Sines, cosines and the input, beside one another."""
    (n, n_coordinates), n_frequencies = x.shape, len(frequencies)
    width = n_coordinates * (2 * n_frequencies + int(append_input))
    out = torch.empty(n, width, dtype=dtype, device=x.device)
    columns = int(triton.next_power_of_2(n_coordinates * max(1, n_frequencies)))
    block = max(1, ELEMENTS // columns)
    if out.numel() > 0:
        launch: Any = _harmonics_kernel[(triton.cdiv(n, block),)]
        launch(
            x.contiguous(),
            frequencies,
            out,
            n,
            D=n_coordinates,
            K=n_frequencies,
            E=width,
            BLOCK=block,
            COLUMNS=columns,
            num_warps=4,
        )
    return out
