"""Spheres and rays.

Symbols: o, d are a ray's origin and unit direction, t is a distance along it; c, r are the sphere's centre and radius.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def closest_approach(
    origins: Float[Tensor, "*rays 3"], directions: Float[Tensor, "*rays 3"], center: Float[Tensor, "3"]
) -> Float[Tensor, "*rays"]:
    """The distance along each ray, 0 or more, of its point nearest to `center`: max(0, (c - o) . d).

    Args:
        directions: of unit length.
    """
    return ((center - origins) * directions).sum(dim=-1).clamp(min=0.0)


def ray_sphere(
    origins: Float[Tensor, "*rays 3"],
    directions: Float[Tensor, "*rays 3"],
    center: Float[Tensor, "3"],
    radius: float,
) -> tuple[Float[Tensor, "*rays"], Float[Tensor, "*rays"], Bool[Tensor, "*rays"]]:
    """Where rays enter and leave a sphere, and which do.

    |o + t d - c| = r has the roots b -+ sqrt(r^2 - |h|^2), with b = (c - o) . d and h = c - o - b d, the way from the
    line's nearest point to the centre. |h|^2 is not computed as |c - o|^2 - b^2, a difference of large numbers for a
    ray that starts far away.

    Args:
        directions: of unit length.

    Returns:
        The distances of entry and exit, 0 or more (a ray that starts inside enters at 0), and whether the ray meets the
        sphere in front of its origin. Both distances are 0 where it does not.
    """
    to_center = center - origins
    b = (to_center * directions).sum(dim=-1)
    h = to_center - b[..., None] * directions
    half = (radius**2 - h.square().sum(dim=-1)).clamp(min=0.0).sqrt()
    exit_ = b + half
    meets = (half > 0.0) & (exit_ > 0.0)
    zero = torch.zeros_like(b)
    return torch.where(meets, (b - half).clamp(min=0.0), zero), torch.where(meets, exit_, zero), meets
