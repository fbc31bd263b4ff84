"""Real spherical harmonics of directions, up to degree 3: the view-dependent encoding of Instant-NGP.

Orthonormal over the sphere, without the Condon-Shortley phase, ordered by degree l and, within, by order from -l to l:
1; y, z, x; xy, yz, 3z^2 - 1, xz, x^2 - y^2; y(3x^2 - y^2), xyz, y(5z^2 - 1), z(5z^2 - 3), x(5z^2 - 1), z(x^2 - y^2),
x(x^2 - 3y^2), each with its factor (Sloan 2008, Stupid Spherical Harmonics Tricks, appendix A2, less its signs).
"""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from nerf_trainer.ops.backend import uses_triton
from nerf_trainer.ops.reference.spherical_harmonics import spherical_harmonics_reference

MOST_DEGREES = 4
"""Degrees 0 to 3, 16 functions."""


def spherical_harmonics(directions: Float[Tensor, "*n 3"], n_degrees: int = MOST_DEGREES) -> Shaped[Tensor, "*n K"]:
    """The first `n_degrees`^2 functions at each direction.

    Computed in float32 (float64 where that is given). Under autocast the result is rounded to its type. Where the
    directions need a gradient, plain torch computes it.

    Args:
        directions: of unit length; the functions are polynomials, so that others, zero too, give finite values.
        n_degrees: 1 to 4.
    """
    if not 1 <= n_degrees <= MOST_DEGREES:
        raise ValueError(f"n_degrees: {n_degrees}; expected 1 to {MOST_DEGREES}")
    device_type = directions.device.type
    precise = directions if directions.dtype == torch.float64 else directions.float()
    dtype = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else precise.dtype
    if uses_triton(directions) and not (directions.requires_grad and torch.is_grad_enabled()):
        from nerf_trainer.ops.kernels.spherical_harmonics import evaluate

        basis = evaluate(precise.reshape(-1, 3).contiguous(), n_degrees, dtype)
        return basis.view(*directions.shape[:-1], n_degrees**2)
    with torch.autocast(device_type, enabled=False):
        return spherical_harmonics_reference(precise, n_degrees).to(dtype)
