"""Triton kernels of densities from their logarithms; see `nerf_trainer.ops.log_density`."""

# Triton's launch options are unknown to type checkers.
# pyright: reportCallIssue=false

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Float
from torch import Tensor

from nerf_trainer.ops.reference import log_density as reference

_BLOCK = 128
_LARGEST = tl.constexpr(reference.LARGEST_EXPONENT)
_IN_GRADIENT = tl.constexpr(reference.LARGEST_IN_GRADIENT)


@triton.jit
def _densities(outputs_ptr, inside_ptr, densities_ptr, bias, n, G: tl.constexpr, BLOCK: tl.constexpr):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = rows < n
    logarithm = tl.load(outputs_ptr + rows.to(tl.int64) * G, mask=mask, other=0.0) + bias
    density = tl.exp(tl.where(logarithm > _LARGEST, _LARGEST, logarithm))
    if inside_ptr is not None:
        density = tl.where(tl.load(inside_ptr + rows, mask=mask, other=0) != 0, density, 0.0)
    tl.store(densities_ptr + rows, density, mask=mask)


@triton.jit
def _outputs_gradient(
    outputs_ptr,
    inside_ptr,
    of_density_ptr,
    of_outputs_ptr,
    gradient_ptr,
    bias,
    n,
    G: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    rows, columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, COLUMNS)
    mask = rows < n
    logarithm = tl.load(outputs_ptr + rows.to(tl.int64) * G, mask=mask, other=0.0) + bias
    clamped = tl.where(logarithm > _IN_GRADIENT, _IN_GRADIENT, logarithm)
    slope = tl.exp(tl.where(clamped < -_IN_GRADIENT, -_IN_GRADIENT, clamped))
    if inside_ptr is not None:
        slope = tl.where(tl.load(inside_ptr + rows, mask=mask, other=0) != 0, slope, 0.0)
    first = tl.load(of_density_ptr + rows, mask=mask, other=0.0) * slope
    places = rows.to(tl.int64)[:, None] * G + columns[None, :]
    whole = mask[:, None] & (columns < G)[None, :]
    gradient = tl.where(columns[None, :] == 0, first[:, None], 0.0)
    if of_outputs_ptr is not None:
        gradient += tl.load(of_outputs_ptr + places, mask=whole, other=0.0).to(tl.float32)
    tl.store(gradient_ptr + places, gradient, mask=whole)


def densities(outputs: Float[Tensor, "N G"], bias: float, inside: Bool[Tensor, "N"] | None) -> Float[Tensor, "N 1"]:
    """The densities."""
    n, g = outputs.shape
    found = torch.empty(n, 1, device=outputs.device)
    if n > 0:
        _densities[(triton.cdiv(n, _BLOCK),)](outputs, _bytes(inside), found, bias, n, g, _BLOCK, num_warps=4)
    return found


def outputs_gradient(
    outputs: Float[Tensor, "N G"],
    bias: float,
    inside: Bool[Tensor, "N"] | None,
    of_density: Float[Tensor, "N 1"],
    of_outputs: Float[Tensor, "N G"] | None,
) -> Float[Tensor, "N G"]:
    """Gradient of the outputs, given those of the densities and of what the next network saw; None is 0."""
    n, g = outputs.shape
    gradient = torch.empty_like(outputs)
    if n > 0:
        given = None if of_outputs is None else of_outputs.contiguous()
        _outputs_gradient[(triton.cdiv(n, _BLOCK),)](
            *(outputs, _bytes(inside), of_density.contiguous(), given, gradient, bias, n, g),
            COLUMNS=triton.next_power_of_2(g),
            BLOCK=_BLOCK,
            num_warps=4,
        )
    return gradient


def _bytes(inside: Bool[Tensor, "N"] | None) -> Tensor | None:
    return None if inside is None else inside.contiguous().view(torch.uint8)
