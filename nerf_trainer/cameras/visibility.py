"""Which places of a scene any view shows.

A ball is seen where its picture reaches into the image and it is not nearer than `nearest` as a whole. The tests are
generous: a ball may count as seen that is just outside of the image, none is left out that is inside. For a ball of
radius r at distance b from the camera, an angle theta off the axis, the picture on the plane at depth 1 reaches out by

    tan(theta + phi) - tan(theta) = sin(phi) / (cos(theta) cos(theta + phi)),  sin(phi) = r / b.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nerf_trainer.cameras.cameras import Cameras

PAIRS_AT_ONCE = 2**21
"""Most pairs of a ball and a view that are looked at together, which bounds memory."""

_THROUGH_A_LENS = 2.0
"""How much larger than a pinhole's the picture of a ball may be through a lens that distorts."""


@torch.no_grad()
def seen_by_any(
    cameras: Cameras, centers: Float[Tensor, "N 3"], radii: Float[Tensor, "N"], nearest: float = 0.0
) -> Bool[Tensor, "N"]:
    """Whether any view shows some of each ball.

    Args:
        radii: of the balls, world units.
        nearest: what a camera has around itself within this distance, world units, it does not show.
    """
    at_once = max(1, PAIRS_AT_ONCE // len(cameras))
    pieces = zip(centers.split(at_once), radii.split(at_once), strict=True)
    return torch.cat([_seen(cameras, *piece, nearest).any(dim=0) for piece in pieces])


def _seen(
    cameras: Cameras, centers: Float[Tensor, "N 3"], radii: Float[Tensor, "N"], nearest: float
) -> Bool[Tensor, "B N"]:
    """Whether each view shows each ball."""
    local = cameras.transform_to_camera(centers.expand(len(cameras), -1, 3))
    z, aside = local[..., 2], local[..., :2].norm(dim=-1)
    distance = local.norm(dim=-1)
    sin = (radii / distance.clamp(min=1e-12)).clamp(max=1.0)
    cos = (1.0 - sin * sin).sqrt()
    # cos(theta) and cos(theta + phi), times the distance; where the latter is not above 0 the ball reaches to the side.
    edge = z * cos - aside * sin
    reach = torch.where(edge > 0.0, radii * distance / (z.clamp(min=1e-12) * edge.clamp(min=1e-12)), torch.inf)
    ahead = z + radii > 0.0
    pixels, _ = cameras.project(centers.expand(len(cameras), -1, 3))
    if cameras.lenses is not None:
        fisheye = cameras.lenses.fisheye[:, None]
        reach = _THROUGH_A_LENS * torch.where(fisheye, torch.asin(sin), reach)
        ahead = ahead | fisheye
    margin = reach[..., None] * cameras.focal[:, None]
    size = cameras.image_size_hw.flip(-1).to(pixels)[:, None]
    inside = ((pixels > -margin) & (pixels < size + margin)).all(dim=-1) | (edge <= 0.0)
    holds_camera = distance <= radii
    return ((inside & ahead) | holds_camera) & (distance + radii >= nearest)
