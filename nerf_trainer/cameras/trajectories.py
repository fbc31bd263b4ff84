"""Camera paths for fly-arounds, fitted to the views that a scene was photographed from.

All paths look at the scene's centre with the photographs' mean up direction upwards.
"""

import math
from dataclasses import dataclass
from enum import Enum

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.geometry.rotation import rotate


class TrajectoryType(Enum):
    """The shape of a path."""

    circular_lsq_fit = "circular_lsq_fit"
    """The circle that fits the camera centres best."""
    figure_eight = "figure_eight"
    """A lying eight around the middle of the views."""
    trefoil_knot = "trefoil_knot"
    """A trefoil knot around the middle of the views."""
    figure_eight_knot = "figure_eight_knot"
    """The four-crossing knot around the middle of the views."""
    spiral = "spiral"
    """Two turns around the middle of the views, moving in and out, looking at the depth where there is most to see: for
    scenes that were photographed from the front (Mildenhall et al. 2020)."""
    level_circle = "level_circle"
    """The level circle at the views' mean height and root mean square distance, looking at what they look at: for
    scenes that were photographed from all round, at whatever heights (LLFF's path of spherified scenes)."""


ONE_WAY = 40.0
"""Views face one way if none is turned farther than this, in degrees, from their mean direction, nor from their mean
up; a whole ring around a scene never is, for one of the two angles is then 45 degrees or more."""

SPIRAL_PERCENTILE = 0.9
"""The part of the views whose offsets from their middle the spiral stays within."""
SPIRAL_FAR_WEIGHT = 0.75
"""How much the far bound counts in the disparity that the spiral's views look at."""


@dataclass(frozen=True)
class Ring:
    """The circle that camera centres lie on, as well as they do."""

    center: Float[Tensor, "3"]
    """Centre, world units."""
    radius: Float[Tensor, ""]
    """Radius, world units."""
    axes: Float[Tensor, "3 3"]
    """Rows: two directions in the circle's plane, then its normal, which points up."""


def mean_up(cameras: Cameras) -> Float[Tensor, "3"]:
    """The mean of the views' up directions, unit length: what is up in a scene."""
    return normalize(cameras.up_axes.mean(dim=0), dim=0)


def nearest_point_to_axes(cameras: Cameras) -> Float[Tensor, "3"]:
    """The point with the least squared distance to all optical axes: what the views look at.

    Solves sum_i (I - d_i d_i^T) (x - c_i) = 0 for views at c_i along d_i; where the axes are (nearly) parallel a small
    weight draws x to the mean of the points one mean camera distance ahead.
    """
    centers, directions = cameras.centers.double(), cameras.forward_axes.double()
    spread = (centers - centers.mean(dim=0)).norm(dim=-1).mean().clamp(min=1e-3)
    ahead = (centers + spread * directions).mean(dim=0)
    eye = torch.eye(3, dtype=torch.float64, device=centers.device)
    projectors = eye - directions[:, :, None] * directions[:, None]
    weight = 1e-6 * len(cameras)
    left = projectors.sum(dim=0) + weight * eye
    right = (projectors @ centers[..., None]).sum(dim=0)[:, 0] + weight * ahead
    return torch.linalg.solve(left, right).to(cameras.R.dtype)


def fit_ring(centers: Float[Tensor, "B 3"], up: Float[Tensor, "3"]) -> Ring:
    """The least-squares circle through points: their best plane, then the algebraic circle fit within it (Kasa 1976).

    Fewer than three distinct points get the circle around `up` that their mean distance from their mean gives.
    """
    mean = centers.mean(dim=0)
    offsets = (centers - mean).double()
    _, scales, directions = torch.linalg.svd(offsets, full_matrices=True)
    flat = len(centers) >= 3 and bool(scales[1] > 1e-4 * scales[0].clamp(min=1e-12))
    normal = directions[2] if flat else up.double()
    normal = normal * torch.where(normal @ up.double() < 0, -1.0, 1.0)
    first = directions[0] - (directions[0] @ normal) * normal
    if not bool(first.norm() > 1e-6):
        first = directions[1] - (directions[1] @ normal) * normal
    first = normalize(first, dim=0)
    axes = torch.stack([first, torch.linalg.cross(normal, first), normal])
    xy = offsets @ axes[:2].T
    if not flat:
        radius = offsets.norm(dim=-1).mean().clamp(min=1e-3)
        return Ring(mean, radius.to(centers.dtype), axes.to(centers.dtype))
    # x^2 + y^2 = 2 a x + 2 b y + c
    system = torch.cat([2.0 * xy, torch.ones_like(xy[:, :1])], dim=1)
    a, b, c = torch.linalg.lstsq(system, xy.square().sum(dim=1, keepdim=True)).solution[:, 0]
    center = mean + (a * axes[0] + b * axes[1]).to(mean.dtype)
    radius = (c + a * a + b * b).clamp(min=1e-12).sqrt()
    return Ring(center, radius.to(centers.dtype), axes.to(centers.dtype))


def look_at(
    positions: Float[Tensor, "n 3"], target: Float[Tensor, "3"], up: Float[Tensor, "3"]
) -> tuple[Float[Tensor, "n 3 3"], Float[Tensor, "n 3"]]:
    """World to camera rotations and translations of views at `positions` that look at `target`, `up` being upwards."""
    forward = normalize(target - positions, dim=-1)
    right = torch.linalg.cross(forward, up.expand_as(forward))
    # Looking along up, any right will do.
    spare = torch.linalg.cross(forward, up.roll(1).expand_as(forward))
    right = normalize(torch.where(right.norm(dim=-1, keepdim=True) < 1e-6, spare, right), dim=-1)
    R = torch.stack([right, torch.linalg.cross(forward, right), forward], dim=-2)
    return R, -rotate(R, positions)


def trajectory(
    cameras: Cameras,
    n: int,
    kind: TrajectoryType = TrajectoryType.circular_lsq_fit,
    max_angle: float = 6.283185307179586,
    scale: float = 1.1,
    up: Float[Tensor, "3"] | None = None,
    size_hw: tuple[int, int] | None = None,
) -> Cameras:
    """A path of n views around what `cameras` look at.

    Args:
        max_angle: how much of the path is travelled, radians; 2 pi is all of it.
        scale: the path's size against the photographs' distances.
        up: upward direction; None takes the mean of the cameras'.
        size_hw: the views' size in pixels; None takes the first camera's. The mean field of view is kept.
    """
    up = mean_up(cameras) if up is None else normalize(up.to(cameras.R), dim=0)
    target, angle = nearest_point_to_axes(cameras), torch.arange(n, device=cameras.device) * (max_angle / n)
    if kind is TrajectoryType.spiral and face_one_way(cameras):
        positions, target = _spiral(cameras, target, up, angle, scale)
    elif kind is TrajectoryType.level_circle:
        positions = _level_circle(cameras.centers, target, up, angle, scale)
    elif kind is TrajectoryType.circular_lsq_fit:
        ring = fit_ring(cameras.centers, up)
        circle = torch.stack([angle.cos(), angle.sin()], dim=-1) @ ring.axes[:2]
        positions = ring.center + scale * ring.radius * circle
    else:
        positions, target = _around_the_middle(cameras, target, up, kind, angle, scale)
    R, T = look_at(positions, target, up)
    return _pinholes(cameras, R, T, size_hw)


def face_one_way(cameras: Cameras) -> bool:
    """Whether the scene was photographed from the front: all views look one way, the same way up (`ONE_WAY`)."""
    return all(
        bool((axes @ normalize(axes.mean(dim=0), dim=0)).min() > math.cos(math.radians(ONE_WAY)))
        for axes in (cameras.forward_axes, cameras.up_axes)
    )


def fitting_type(cameras: Cameras) -> TrajectoryType:
    """The path that suits how a scene was photographed."""
    return TrajectoryType.spiral if face_one_way(cameras) else TrajectoryType.circular_lsq_fit


def _spiral(
    cameras: Cameras, target: Tensor, up: Tensor, angle: Tensor, scale: float
) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "3"]]:
    """Positions and what they look at, in the manner of NeRF's front-facing videos.

    In the axes of the mean pose (right, up, back) the spiral goes as far as nine tenths of the photographs do, each way
    by itself. It looks at the depth whose disparity is a quarter of that of 0.9 times the nearest bound plus three
    quarters of that of 5 times the farthest; where the cameras have no bounds, at the depth of `target`, at least
    twice as far as the spiral reaches.
    """
    middle = cameras.centers.mean(dim=0)
    back = normalize(-cameras.forward_axes.mean(dim=0), dim=0)
    right = normalize(torch.linalg.cross(up, back), dim=0)
    axes = torch.stack([right, torch.linalg.cross(back, right), back])
    offsets = ((cameras.centers - middle)[:, None] * axes).sum(dim=-1)
    reach = offsets.abs().quantile(SPIRAL_PERCENTILE, dim=0)
    if cameras.bounds is not None:
        near, far = 0.9 * cameras.bounds.min(), 5.0 * cameras.bounds.max()
        focus = 1.0 / ((1.0 - SPIRAL_FAR_WEIGHT) / near + SPIRAL_FAR_WEIGHT / far)
    else:
        focus = torch.maximum((middle - target) @ back, 2.0 * reach.max()).clamp(min=1e-3)
    reach = torch.where(reach.max() > 1e-6 * focus, reach, 0.1 * focus)  # one view, or several in one place
    curve = torch.stack([(2 * angle).cos(), -(2 * angle).sin(), -angle.sin()], dim=-1)
    return middle + (scale * reach * curve) @ axes, middle - focus * back


def _level_circle(
    centers: Float[Tensor, "B 3"], target: Tensor, up: Tensor, angle: Tensor, scale: float
) -> Float[Tensor, "n 3"]:
    """Positions on the circle around `up` through `target`, from the side of the first view."""
    offsets = centers - target
    height = (offsets @ up).mean()
    radius = (offsets.square().sum(dim=-1).mean() - height.square()).clamp(min=1e-6).sqrt()
    aside = [offsets[0], torch.roll(up, 1), torch.roll(up, 2)]  # of which one at least is not along up
    level = [vector - (vector @ up) * up for vector in aside]
    first = normalize(next(v for v in level if v.norm() > 1e-4 * radius), dim=0)
    around = torch.stack([first, torch.linalg.cross(up, first)])
    return target + height * up + scale * radius * torch.stack([angle.cos(), angle.sin()], dim=-1) @ around


def _around_the_middle(
    cameras: Cameras, target: Tensor, up: Tensor, kind: TrajectoryType, angle: Tensor, scale: float
) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "3"]]:
    """Positions around the view nearest to the mean of all, at its distance from the target, and the target: a point
    before that view where it stands on the target itself (all views in one place, looking all round).

    The curve's first two coordinates move sideways and up, as far as the photographs spread (at most half the way to
    the target); the third moves towards the target and away from it, a fifth as far.
    """
    centers = cameras.centers
    nearest = int((centers - centers.mean(dim=0)).norm(dim=-1).argmin())
    middle = centers[nearest]
    if bool((middle - target).norm() < 1e-5):
        target = middle + 1e-3 * cameras.forward_axes[nearest]
    distance = (middle - target).norm()
    back = normalize(middle - target, dim=0)
    right = normalize(torch.linalg.cross(up, back), dim=0)
    axes = torch.stack([right, torch.linalg.cross(back, right), 0.2 * back])
    spread = (centers - middle).norm(dim=-1).quantile(0.9)
    reach = torch.minimum(spread, 0.5 * distance) if spread > 0 else 0.2 * distance
    offsets = (_curve(kind, angle) * scale * reach) @ axes
    if kind is TrajectoryType.spiral:
        return middle + offsets, target
    moved = normalize(middle + offsets - target, dim=-1)
    depth = offsets @ back
    return target + moved * (distance + depth)[:, None], target


def _curve(kind: TrajectoryType, t: Float[Tensor, "n"]) -> Float[Tensor, "n 3"]:
    """Closed curves within the unit ball, sideways, up and back, over one turn of t."""
    if kind is TrajectoryType.spiral:
        return torch.stack([(2 * t).cos(), (2 * t).sin(), t.sin()], dim=-1)
    if kind is TrajectoryType.figure_eight:
        return torch.stack([t.sin(), 0.5 * (2 * t).sin(), torch.zeros_like(t)], dim=-1)
    if kind is TrajectoryType.trefoil_knot:
        return torch.stack([t.sin() + 2 * (2 * t).sin(), t.cos() - 2 * (2 * t).cos(), -(3 * t).sin()], dim=-1) / 3
    wide = 2 + (2 * t).cos()
    return torch.stack([wide * (3 * t).cos(), wide * (3 * t).sin(), (4 * t).sin()], dim=-1) / 3


def _pinholes(cameras: Cameras, R: Tensor, T: Tensor, size_hw: tuple[int, int] | None) -> Cameras:
    """Views with the mean field of view at the asked size, principal point in the middle, no distortion, and bounds
    that take in all that `cameras` see.
    """
    n = len(R)
    height, width = size_hw or tuple(cameras.image_size_hw[0].tolist())
    relative = cameras.focal / cameras.image_size_hw.to(cameras.focal).flip(-1)
    # Square pixels: the smaller of both fits, so that the whole photographed field of view stays visible.
    pixels = relative.mean(dim=0) * torch.tensor([width, height], device=cameras.device)
    bounds = cameras.bounds
    return Cameras(
        R=R,
        T=T,
        focal=pixels.min().expand(n, 2),
        principal_point=torch.tensor([width / 2, height / 2], device=cameras.device).expand(n, 2),
        image_size_hw=torch.tensor([[height, width]]).expand(n, 2),
        bounds=None if bounds is None else torch.stack([bounds[:, 0].min(), bounds[:, 1].max()]).expand(n, 2),
    )
