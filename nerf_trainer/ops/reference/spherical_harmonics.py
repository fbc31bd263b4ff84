"""Real spherical harmonics in plain torch: what the kernel of `ops/kernels/spherical_harmonics` computes."""

import torch
from jaxtyping import Float
from torch import Tensor

C0 = 0.28209479177387814
"""sqrt(1 / (4 pi))"""
C1 = 0.4886025119029199
"""sqrt(3 / (4 pi))"""
C2 = (1.0925484305920792, 0.31539156525252005, 0.5462742152960396)
"""sqrt(15 / (4 pi)), sqrt(5 / (16 pi)), sqrt(15 / (16 pi))"""
C3 = (0.5900435899266435, 2.890611442640554, 0.4570457994644658, 0.3731763325901154, 1.445305721320277)
"""sqrt(35 / (32 pi)), sqrt(105 / (4 pi)), sqrt(21 / (32 pi)), sqrt(7 / (16 pi)), sqrt(105 / (16 pi))"""


def spherical_harmonics_reference(directions: Float[Tensor, "*n 3"], n_degrees: int) -> Float[Tensor, "*n K"]:
    """As `nerf_trainer.ops.spherical_harmonics.spherical_harmonics`, in the type of `directions`."""
    x, y, z = directions.unbind(-1)
    basis = [torch.full_like(x, C0)]
    if n_degrees > 1:
        basis += [C1 * y, C1 * z, C1 * x]
    xx, yy, zz = x * x, y * y, z * z
    if n_degrees > 2:
        basis += [C2[0] * x * y, C2[0] * y * z, C2[1] * (3.0 * zz - 1.0), C2[0] * x * z, C2[2] * (xx - yy)]
    if n_degrees > 3:
        basis += [
            C3[0] * y * (3.0 * xx - yy),
            C3[1] * x * y * z,
            C3[2] * y * (5.0 * zz - 1.0),
            C3[3] * z * (5.0 * zz - 3.0),
            C3[2] * x * (5.0 * zz - 1.0),
            C3[4] * z * (xx - yy),
            C3[0] * x * (xx - 3.0 * yy),
        ]
    return torch.stack(basis, dim=-1)
