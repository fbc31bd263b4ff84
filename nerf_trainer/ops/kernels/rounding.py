"""Rounding of the factors of matrix products."""

import triton
import triton.language as tl


@triton.jit
def rounded(x, DTYPE: tl.constexpr, PRECISION: tl.constexpr):
    """`x` in the type of a product's factors: float32 for TF32 to the nearest of TF32's numbers, with 10 bits of
    mantissa, where a product of Triton's would drop the other 13."""
    y = x.to(DTYPE)
    if PRECISION == "tf32" and y.dtype == tl.float32:
        nearest = ((y.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
        y = tl.where(y == y, nearest, y)  # the sum would make a number of what is none
    return y
