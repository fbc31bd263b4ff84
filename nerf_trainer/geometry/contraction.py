"""Contraction: all of space into a ball, or a box, of radius 2 (Barron et al. 2022, mip-NeRF 360, equation 10).

Points are relative to a box: its centre is the origin, its faces are at -1 and 1. r is the norm of a point: Euclidean
(L2), whose unit ball is the sphere that touches the faces, or the largest coordinate (L-infinity), whose unit ball is
the box itself. What lies within stays where it is; a point outside goes to radius 2 - 1/r, so that equal steps in
disparity are equal steps of the result.
"""

from enum import Enum

import torch
from jaxtyping import Float
from torch import Tensor

CONTRACTED_RADIUS = 2.0
"""Radius of what all of space is contracted into; nothing reaches it but rounding."""

FARTHEST = 1e18
"""Coordinates are taken for no larger than this, so that squares of them have room in float32."""


class Norm(Enum):
    """The norm that says what is within, and how far away what is outside."""

    L2 = "L2"
    """Euclidean: spheres."""
    LINF = "LINF"
    """The largest coordinate, by magnitude: boxes."""


def contract(points: Float[Tensor, "*n 3"], norm: Norm = Norm.L2) -> Float[Tensor, "*n 3"]:
    """x where r <= 1, else (2 - 1/r) x / r.

    Differentiable; gradients are finite everywhere, at the origin and in the far distance too.
    """
    points = points.clamp(-FARTHEST, FARTHEST)
    r = _radius(points, norm)
    return points * ((2.0 - 1.0 / r) / r)


def uncontract(contracted: Float[Tensor, "*n 3"], norm: Norm = Norm.L2) -> Float[Tensor, "*n 3"]:
    """The inverse of `contract`: y where its radius s <= 1, else y / (s (2 - s)).

    Radius 2 and more, which `contract` makes of no point, is taken for the largest that rounding tells from 2.
    """
    s = _radius(contracted, norm)
    left = (CONTRACTED_RADIUS - s).clamp(min=torch.finfo(s.dtype).eps)
    return contracted / (s * left)


def _radius(points: Float[Tensor, "*n 3"], norm: Norm) -> Float[Tensor, "*n 1"]:
    """The norm where it exceeds 1, else 1, constant: the root's gradient at 0 is never asked for."""
    if norm is Norm.LINF:
        return points.abs().amax(dim=-1, keepdim=True).clamp(min=1.0)
    return points.square().sum(dim=-1, keepdim=True).clamp(min=1.0).sqrt()
