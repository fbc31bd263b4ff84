"""How the views of a scene stand: what they look at, from how far, which way is up, and which of them stand apart."""

from dataclasses import dataclass
from enum import Enum

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.cameras.trajectories import nearest_point_to_axes

_PARALLEL = 0.94
"""Length of the mean viewing direction from which on views count as facing one way (axes within some 20 degrees)."""
_IN_FRONT = 0.75
"""The part of the views that must agree on what they look at."""
_AHEAD = 0.2
"""How far ahead a common target must lie, in radii of the views' own sphere: views in one place that look all around
share a point as well."""
_AIMED_DEGREES = 30.0
"""A view that looks at a point has it within this angle of its axis."""
_ODD_DEGREES = 25.0
"""A view is odd only if it is further off than this, however well the others agree."""
_ODD_TIMES = 6.0
"""And further off than so many times what half of the views stay below."""


class Layout(Enum):
    """What kind of capture the views are."""

    INWARD = "around a scene, looking at it"
    FACING = "from one side, looking one way"
    OUTWARD = "looking outward, away from each other"
    MIXED = "looking at no common point"


@dataclass(frozen=True)
class Arrangement:
    """Where B views stand and look; angles in degrees."""

    target: Float[Tensor, "3"]
    """The point that most optical axes pass nearest to."""
    depths: Float[Tensor, "B"]
    """Its depth along each view's axis; negative where it lies behind the view."""
    aim: Float[Tensor, "B"]
    """Angle between each axis and the way to the target, 0 to 180."""
    up: Float[Tensor, "3"]
    """The mean of the views' up directions, those that stand apart left out; unit length."""
    tilt: Float[Tensor, "B"]
    """Angle between each view's up direction and `up`."""
    center: Float[Tensor, "3"]
    """Centre of a sphere around all views."""
    radius: float
    """That sphere's radius."""
    layout: Layout
    """What kind of capture this is."""

    @property
    def share_in_front(self) -> float:
        """The part of the views that have the target before them."""
        return (self.depths > 0).float().mean().item()

    @property
    def off_aim(self) -> Bool[Tensor, "B"]:
        """Views that look elsewhere than nearly all others; none where the views have no common target."""
        if self.layout is Layout.FACING:
            return torch.zeros_like(self.aim, dtype=torch.bool)
        return _apart(self.aim) if self.layout is Layout.INWARD else torch.zeros_like(self.aim, dtype=torch.bool)

    @property
    def off_level(self) -> Bool[Tensor, "B"]:
        """Views whose up direction is far from nearly all others'."""
        return _apart(self.tilt) & (self.tilt > 60.0) & (self.tilt.median() < 45.0)


def arrangement(cameras: Cameras) -> Arrangement:
    """How views stand to each other and to what they look at; a few views that look elsewhere do not move the target.

    The target has the least squared distance to the optical axes (`nearest_point_to_axes`) of those views that, over
    five rounds, pass it at no more than three times the median distance.
    """
    centers, forward = cameras.centers, cameras.forward_axes
    keep = torch.ones(len(cameras), dtype=torch.bool)
    target = nearest_point_to_axes(cameras)
    for _ in range(5):
        off = torch.linalg.cross(target - centers, forward).norm(dim=-1)
        keep = off <= 3.0 * off.median() + 1e-6
        target = nearest_point_to_axes(cameras[keep.nonzero()[:, 0]])
    to_target = target - centers
    depths = (to_target * forward).sum(dim=-1)
    cosine = (normalize(to_target, dim=-1) * forward).sum(dim=-1).clamp(-1.0, 1.0)
    up, tilt = _level(cameras)
    center = (centers.amin(dim=0) + centers.amax(dim=0)) / 2
    aim = torch.rad2deg(cosine.acos())
    return Arrangement(
        target=target,
        depths=depths,
        aim=aim,
        up=up,
        tilt=tilt,
        center=center,
        radius=(centers - center).norm(dim=-1).max().item(),
        layout=_layout(forward, aim, tilt, depths / max((centers - center).norm(dim=-1).max().item(), 1e-12)),
    )


def view_sphere_radius(cameras: Cameras, around: Float[Tensor, "3"]) -> float:
    """Radius of the largest sphere around a point that the middle one of the views sees whole, world units.

    A view at distance d whose narrower half angle of view is a sees a sphere of radius d sin(a) whole.
    """
    distances = (cameras.centers - around).norm(dim=-1)
    return (distances * (fields_of_view(cameras).amin(dim=1) / 2).deg2rad().sin()).median().item()


def fields_of_view(cameras: Cameras) -> Float[Tensor, "B 2"]:
    """Horizontal and vertical angles of view in degrees, of pinholes with these focal lengths."""
    sides = cameras.image_size_hw.flip(-1).to(cameras.focal)
    return 2 * torch.rad2deg((sides / 2 / cameras.focal).atan())


def depth_span(cameras: Cameras, points: Float[Tensor, "P 3"], part: float = 0.01) -> tuple[float, float] | None:
    """Nearest and farthest depth at which the views see points, the outermost `part` of them left out at both ends.

    None where no view sees any.
    """
    chosen = points[:: max(1, len(points) // 4000)]
    depths = []
    for i in range(len(cameras)):
        xy, z = cameras[i].project(chosen[None])
        height, width = cameras.image_size_hw[i].tolist()
        inside = (z > 0) & (xy >= 0).all(dim=-1) & (xy[..., 0] < width) & (xy[..., 1] < height)
        depths.append(z[inside])
    seen = torch.cat(depths)
    if len(seen) == 0:
        return None
    ends = seen[torch.randperm(len(seen), generator=torch.Generator().manual_seed(0))[:1_000_000]]
    return torch.quantile(ends, part).item(), torch.quantile(ends, 1 - part).item()


def _level(cameras: Cameras) -> tuple[Float[Tensor, "3"], Float[Tensor, "B"]]:
    ups = cameras.up_axes
    up = normalize(ups.mean(dim=0), dim=0)
    agreeing = ups[(ups * up).sum(dim=-1) > 0]  # without views that stand on their heads
    up = normalize(agreeing.mean(dim=0), dim=0) if len(agreeing) else up
    return up, torch.rad2deg((ups * up).sum(dim=-1).clamp(-1.0, 1.0).acos())


def _layout(forward: Tensor, aim: Tensor, tilt: Tensor, depths: Tensor) -> Layout:
    """Depths in radii of the sphere around the views."""
    if forward.mean(dim=0).norm() > _PARALLEL and tilt.median() < 45.0:
        return Layout.FACING
    if (aim < _AIMED_DEGREES).float().mean() >= _IN_FRONT and depths.median() > _AHEAD:
        return Layout.INWARD
    if (aim > 180.0 - 2 * _AIMED_DEGREES).float().mean() >= _IN_FRONT and (depths < 0).float().mean() > 0.5:
        return Layout.OUTWARD
    return Layout.MIXED


def _apart(angles: Float[Tensor, "B"]) -> Bool[Tensor, "B"]:
    return (angles > _ODD_DEGREES) & (angles > _ODD_TIMES * angles.median())
