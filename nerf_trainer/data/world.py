"""World frames: where a dataset's origin lies, how its axes point and how long its unit is, once it is read.

Structure from motion leaves all three to chance. A provider that settles them moves the cameras by a similarity and
gives it back as `DatasetMap.dataset_from_world`; further ones (a scale) compose with `Similarity.after`.
"""

from dataclasses import replace
from enum import Enum

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.cameras.trajectories import nearest_point_to_axes
from nerf_trainer.errors import DataError
from nerf_trainer.geometry.similarity import Similarity

LEAST_MEAN = 1e-3
"""Unit vectors whose mean is shorter than this have no mean direction; with fewer than about a million views, chance
alone leaves more."""


class WorldFrame(Enum):
    """A choice of origin, axes and unit."""

    AS_IS = "as_is"
    """The world of the files."""
    RECENTRED = "recentred"
    """The mean pose is the identity: origin at the cameras' mean, x right, y up, z back towards the viewer; the unit
    stays. For photographs from the front (LLFF's recenter_poses, Mildenhall et al. 2019)."""
    SPHERIFIED = "spherified"
    """Origin at the point nearest to all optical axes, z towards the cameras' mean, their root mean square distance
    from the origin 1. For photographs from all round and above (LLFF's spherify_poses)."""
    UPRIGHT = "upright"
    """Origin at the point nearest to all optical axes, z along the mean of the cameras' up directions by the smallest
    turn that does it, the farthest camera at distance 1. For photographs from all round, at whatever heights."""


def moved(cameras: Cameras, by: Similarity) -> Cameras:
    """The same views of the mapped world, in their own dtype: every point falls on the pixel that it fell on, depths
    and bounds are `by.scale` times as large.
    """
    R, T = by.views(cameras.R, cameras.T)
    bounds = None if cameras.bounds is None else (by.scale * cameras.bounds.double()).to(cameras.bounds.dtype)
    return replace(cameras, R=R, T=T, bounds=bounds)


def settled(cameras: Cameras, frame: WorldFrame) -> tuple[Cameras, Similarity]:
    """The views in a world frame of this kind, and what leads there from theirs.

    Args:
        cameras: at least one view, in host memory.

    Raises:
        DataError: the views look or stand so that there is no such frame (from all round, for `RECENTRED`).
    """
    wide = replace(cameras, R=cameras.R.double(), T=cameras.T.double())
    by = _SIMILARITIES[frame](wide)
    return (cameras if frame is WorldFrame.AS_IS else moved(cameras, by)), by


def _as_is(cameras: Cameras) -> Similarity:
    return Similarity.identity()


def _recentred(cameras: Cameras) -> Similarity:
    """The inverse of the mean pose: its z is the mean of the cameras' back axes, its x = up x z, its y = z x x."""
    back = _direction(-cameras.forward_axes.mean(dim=0), "look all round", "from the front (all to one side)")
    right = torch.linalg.cross(cameras.up_axes.mean(dim=0), back)
    right = _direction(right, "have no common direction to the right", "from the front, held the same way up")
    axes = torch.stack([right, torch.linalg.cross(back, right), back])
    return _around(cameras.centers.mean(dim=0), axes, 1.0)


def _spherified(cameras: Cameras) -> Similarity:
    """z is the way from the middle to the cameras' mean; x = (0.1, 0.2, 0.3) x z, as LLFF has it, fixes the turn about
    z. Cameras whose mean is the middle (less than `LEAST_MEAN` of their distance away) get their mean up as z.
    """
    middle = nearest_point_to_axes(cameras)
    offsets = cameras.centers - middle
    radius = _length(offsets.square().sum(dim=-1).mean().sqrt())
    z = offsets.mean(dim=0) / radius
    z = normalize(z, dim=0) if z.norm() > LEAST_MEAN else _mean_up(cameras)
    aside = torch.linalg.cross(z.new_tensor([0.1, 0.2, 0.3]), z)
    if aside.norm() < LEAST_MEAN:
        aside = torch.linalg.cross(z.new_tensor([1.0, 0.0, 0.0]), z)
    x = normalize(aside, dim=0)
    return _around(middle, torch.stack([x, torch.linalg.cross(z, x), z]), 1.0 / radius)


def _upright(cameras: Cameras) -> Similarity:
    middle = nearest_point_to_axes(cameras)
    radius = _length((cameras.centers - middle).norm(dim=-1).max())
    return _around(middle, _turn_to_z(_mean_up(cameras)), 1.0 / radius)


_SIMILARITIES = {
    WorldFrame.AS_IS: _as_is,
    WorldFrame.RECENTRED: _recentred,
    WorldFrame.SPHERIFIED: _spherified,
    WorldFrame.UPRIGHT: _upright,
}


def _around(origin: Float[Tensor, "3"], axes: Float[Tensor, "3 3"], scale: float) -> Similarity:
    """y = scale * axes (x - origin), the rows of `axes` being the new axes."""
    return Similarity(scale, axes, -scale * (axes @ origin))


def _turn_to_z(up: Float[Tensor, "3"]) -> Float[Tensor, "3 3"]:
    """The smallest rotation that takes the unit vector `up` to (0, 0, 1): with v = up x z and c = up . z it is
    1 + [v] + [v]^2 / (1 + c), [v] being the cross product as a matrix; half a turn about x where `up` is -z.
    """
    x, y, c = up.tolist()
    eye = torch.eye(3, dtype=up.dtype)
    if 1.0 + c < 1e-9:
        return eye * up.new_tensor([1.0, -1.0, -1.0])
    cross = up.new_tensor([[0.0, 0.0, -x], [0.0, 0.0, -y], [x, y, 0.0]])
    return eye + cross + (cross @ cross) / (1.0 + c)


def _mean_up(cameras: Cameras) -> Float[Tensor, "3"]:
    return _direction(cameras.up_axes.mean(dim=0), "have no common up direction", "held the same way up")


def _direction(mean: Float[Tensor, "3"], found: str, expected: str) -> Float[Tensor, "3"]:
    """The unit vector along a mean of unit vectors, if it has a direction."""
    if not mean.norm() > LEAST_MEAN:
        raise DataError(
            f"world frame: found cameras that {found} (their mean axis has length {mean.norm():.2g}), expected"
            f" photographs taken {expected}; choose another world frame or keep the world of the files"
        )
    return normalize(mean, dim=0)


def _length(radius: Float[Tensor, ""]) -> float:
    """A distance of cameras that the unit can be made of."""
    if not radius > 1e-9:
        raise DataError(
            "world frame: found all cameras in one place, at the point they look at, expected some distance between"
            " them that can be made the unit; keep the world of the files"
        )
    return float(radius)
