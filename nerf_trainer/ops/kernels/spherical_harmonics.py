"""Triton kernel of real spherical harmonics: a row of functions for each direction."""

# Triton's launch options are unknown to type checkers.
# pyright: reportCallIssue=false

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Shaped
from torch import Tensor

from nerf_trainer.ops.reference import spherical_harmonics as reference

_BLOCK = 128
_C0 = tl.constexpr(reference.C0)
_C1 = tl.constexpr(reference.C1)
_C2_0 = tl.constexpr(reference.C2[0])
_C2_1 = tl.constexpr(reference.C2[1])
_C2_2 = tl.constexpr(reference.C2[2])
_C3_0 = tl.constexpr(reference.C3[0])
_C3_1 = tl.constexpr(reference.C3[1])
_C3_2 = tl.constexpr(reference.C3[2])
_C3_3 = tl.constexpr(reference.C3[3])
_C3_4 = tl.constexpr(reference.C3[4])


@triton.jit
def _four(a, b, c, d):
    """Four values of each row side by side: (BLOCK, 2, 2), a, b, c, d in memory's order."""
    return tl.join(tl.join(a, c), tl.join(b, d))


@triton.jit
def _evaluate(directions_ptr, out_ptr, n, N_FUNCTIONS: tl.constexpr, BLOCK: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCK
    offsets, columns = tl.arange(0, BLOCK), tl.arange(0, 16)
    mask = first + offsets < n
    places = directions_ptr + first * 3 + offsets * 3
    x = tl.load(places, mask=mask, other=0.0)
    y = tl.load(places + 1, mask=mask, other=0.0)
    z = tl.load(places + 2, mask=mask, other=0.0)
    xx, yy, zz = x * x, y * y, z * z
    # Functions k, k + 4, k + 8 and k + 12 for k = 0, 1, 2, 3; a thread has whole rows, and writes them at once.
    # Constants come last: the interpreter takes what begins with one for a constant.
    fours_0 = _four(x * 0.0 + _C0, x * y * _C2_0, (xx - yy) * _C2_2, z * (5.0 * zz - 3.0) * _C3_3)
    fours_1 = _four(y * _C1, y * z * _C2_0, y * (3.0 * xx - yy) * _C3_0, x * (5.0 * zz - 1.0) * _C3_2)
    fours_2 = _four(z * _C1, (3.0 * zz - 1.0) * _C2_1, x * y * z * _C3_1, z * (xx - yy) * _C3_4)
    fours_3 = _four(x * _C1, x * z * _C2_0, y * (5.0 * zz - 1.0) * _C3_2, x * (xx - 3.0 * yy) * _C3_0)
    rows = tl.reshape(_four(fours_0, fours_1, fours_2, fours_3), [BLOCK, 16])
    out = out_ptr + first * N_FUNCTIONS + offsets[:, None] * N_FUNCTIONS + columns[None, :]
    tl.store(out, rows.to(out_ptr.dtype.element_ty), mask=mask[:, None] & (columns < N_FUNCTIONS)[None, :])


def evaluate(directions: Float[Tensor, "N 3"], n_degrees: int, dtype: torch.dtype) -> Shaped[Tensor, "N K"]:
    """The first `n_degrees`^2 functions at each direction, in `dtype`."""
    basis = torch.empty(len(directions), n_degrees**2, dtype=dtype, device=directions.device)
    if len(directions) > 0:
        grid = (triton.cdiv(len(directions), _BLOCK),)
        _evaluate[grid](directions, basis, len(directions), n_degrees**2, _BLOCK, num_warps=4)
    return basis
