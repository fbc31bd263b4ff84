"""Sines and cosines of scaled coordinates (Mildenhall et al. 2020, equation 4), in one kernel.

The kernel is for inputs that need no gradient, as the samples of given rays. Others, whose gradients may be
differentiated in their turn (normals of a surface), run in plain torch.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from nerf_trainer.ops.backend import uses_triton
from nerf_trainer.ops.reference import harmonic as reference


def harmonics(
    x: Float[Tensor, "*n D"],
    frequencies: Float[Tensor, "K"],
    append_input: bool = True,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "*n E"]:
    """[sin(f_k x_d), cos(f_k x_d), x_d]: all sines, coordinate by coordinate, all cosines, and the input.

    Phases, sines and cosines are float32's, whatever the result is rounded to: the highest have no room for rounding.
    Those of float64 are float64's.

    Args:
        frequencies: f, radians per unit of x.
        append_input: whether the input is part of the result.
        dtype: of the result; None for that of the sines.
    """
    precise = torch.float64 if x.dtype is torch.float64 else torch.float32
    if not uses_triton(x) or (x.requires_grad and torch.is_grad_enabled()):
        return reference.harmonics(x, frequencies, append_input).to(dtype or precise)
    from nerf_trainer.ops.kernels import harmonic as kernels

    out = kernels.harmonics(x.detach().reshape(-1, x.shape[-1]), frequencies, append_input, dtype or precise)
    return out.reshape(*x.shape[:-1], out.shape[-1])
