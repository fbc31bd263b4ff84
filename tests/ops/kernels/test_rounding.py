"""Rounding of the factors of matrix products in kernels."""
# ruff: noqa: E402  (what kernels see are a module's names, and Triton is imported after it is known where they run)

import math

import pytest
import torch

from tests.ops.kernel_kit import device_for_kernels

DEVICE = device_for_kernels()
triton = pytest.importorskip("triton")
import triton.language as tl

from nerf_trainer.ops.kernels.rounding import rounded


@triton.jit
def rounding_kernel(x, out, PRECISION: tl.constexpr):
    at = tl.arange(0, 8)
    tl.store(out + at, rounded(tl.load(x + at), tl.float32, PRECISION))


def test_factors_are_rounded_to_the_nearest_number_of_tf32() -> None:
    """TF32 has 10 bits of mantissa: of numbers from 1 to 2 those 2^-10 apart."""
    step = 2.0**-10
    x = [1.0, 1 + 0.4 * step, 1 + 0.6 * step, -1 - 0.6 * step, 2 - 0.1 * step, math.inf, math.nan, -0.0]
    wanted = [1.0, 1.0, 1 + step, -1 - step, 2.0, math.inf, math.nan, -0.0]
    values = torch.tensor(x, device=DEVICE)
    values[6:7].view(torch.int32).fill_(0x7FFFFFFF)  # the one that GPUs make
    out = torch.empty_like(values)
    rounding_kernel[(1,)](values, out, "tf32")
    torch.testing.assert_close(out.cpu(), torch.tensor(wanted), rtol=0.0, atol=0.0, equal_nan=True)
    rounding_kernel[(1,)](values, out, "ieee")
    torch.testing.assert_close(out, values, rtol=0.0, atol=0.0, equal_nan=True)
