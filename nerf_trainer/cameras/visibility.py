"""Which places of a scene any view shows.

A ball is seen where its picture reaches into the image and it is not nearer than `nearest` as a whole. The tests are
generous: a ball may count as seen that is just outside of the image, none is left out that is inside. A ball of radius
r at distance b, an angle theta off the axis, spans the angle phi to each side, sin(phi) = r / b. It can't be seen
where theta - phi is beyond the corners of the image. On the plane at depth 1 its picture reaches out from the centre's
by

    tan(theta + phi) - tan(theta) = sin(phi) / (cos(theta) cos(theta + phi)),

and likewise, with theta - phi, towards the axis.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.cameras.spread import well_spread

PAIRS_AT_ONCE = 2**21
"""Most pairs of a ball and a view that are looked at together, which bounds memory."""

FEW_VIEWS = (1, 4, 16, 64)
"""How many views, far apart, have been asked after each round; the last round asks all others."""

_THROUGH_A_LENS = 2.0
"""How much larger than a pinhole's the picture of a ball may be through a lens that distorts."""


@torch.no_grad()
def seen_by_any(
    cameras: Cameras,
    centers: Float[Tensor, "N 3"],
    radii: Float[Tensor, "N"],
    nearest: float | Float[Tensor, "B"] = 0.0,
) -> Bool[Tensor, "N"]:
    """Whether any view shows some of each ball.

    A few views far apart show most of what all of them show: later ones are asked for what is left.

    Args:
        radii: of the balls, world units.
        nearest: what a camera has around itself within this distance, world units, it does not show; one number, or
            one for each view.
    """
    nearest = torch.as_tensor(nearest, dtype=torch.float32, device=centers.device).expand(len(cameras))
    seen, asked = torch.zeros(len(centers), dtype=torch.bool, device=centers.device), set[int]()
    on_host = cameras.to("cpu")  # choosing views is many small steps, each of which is read back
    for n_views in (*(n for n in FEW_VIEWS if n < len(cameras)), len(cameras)):
        views = [view for view in well_spread(on_host, n_views) if view not in asked]
        asked.update(views)
        for left in (~seen).nonzero()[:, 0].split(max(1, PAIRS_AT_ONCE // len(views))):
            seen[left] = _seen(cameras[views], centers[left], radii[left], nearest[views]).any(dim=0)
    return seen


def _seen(
    cameras: Cameras, centers: Float[Tensor, "N 3"], radii: Float[Tensor, "N"], nearest: Float[Tensor, "B"]
) -> Bool[Tensor, "B N"]:
    """Whether each view shows each ball."""
    local = cameras.transform_to_camera(centers.expand(len(cameras), -1, 3))
    distance, z, aside = local.norm(dim=-1), local[..., 2], local[..., :2].norm(dim=-1)
    sin = (radii / distance.clamp(min=1e-12)).clamp(max=1.0)
    theta, phi = torch.atan2(aside, z), torch.asin(sin)
    outward, inward = (theta + phi).cos(), (theta - phi).cos()
    reach = sin / (theta.cos() * torch.maximum(outward, 0.5 * inward)).clamp(min=1e-12)
    if cameras.lenses is not None:
        reach = _THROUGH_A_LENS * torch.where(cameras.lenses.fisheye[:, None], phi, reach)
    pixels, _ = cameras.project(centers.expand(len(cameras), -1, 3))
    margin = reach[..., None] * cameras.focal[:, None]
    size = cameras.image_size_hw.flip(-1).to(pixels)[:, None]
    inside = ((pixels > -margin) & (pixels < size + margin)).all(dim=-1)
    within = theta - phi <= _corner_angles(cameras)[:, None]
    shown = (inside | (z <= 0.0)) & within
    return (shown | (distance <= radii)) & (distance + radii >= nearest[:, None])


def _corner_angles(cameras: Cameras) -> Float[Tensor, "B"]:
    """How far off the axis of each view the farthest corner of its image is."""
    size = cameras.image_size_hw.flip(-1).to(cameras.focal)[:, None]
    corners = size * torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], device=cameras.device)
    number = torch.arange(len(cameras), device=cameras.device)[:, None].expand(-1, 4)
    _, directions = cameras.pixel_rays(corners, number)
    cos = (directions * cameras.forward_axes[:, None]).sum(dim=-1)
    return torch.acos(cos.clamp(-1.0, 1.0)).amax(dim=-1)
