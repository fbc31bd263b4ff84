"""Paths of cameras whose answer is known."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.cameras.trajectories import (
    TrajectoryType,
    face_one_way,
    fit_ring,
    fitting_type,
    look_at,
    mean_up,
    nearest_point_to_axes,
    trajectory,
)
from tests.scene_kit import orbit


def test_a_ring_is_recovered() -> None:
    up = torch.tensor([0.0, 0.6, 0.8])
    first = torch.tensor([1.0, 0.0, 0.0])
    second = torch.linalg.cross(up, first)
    angle = torch.tensor([0.1, 0.7, 1.9, 2.5])  # less than half of the circle
    center = torch.tensor([1.0, -2.0, 0.5])
    points = center + 3.0 * (angle.cos()[:, None] * first + angle.sin()[:, None] * second)
    ring = fit_ring(points, up)
    torch.testing.assert_close(ring.center, center, atol=1e-3, rtol=0)
    assert ring.radius.item() == pytest.approx(3.0, abs=1e-3)
    torch.testing.assert_close(ring.axes[2], up, atol=1e-4, rtol=0)


def test_the_point_that_views_look_at() -> None:
    cameras = orbit(5, 4.0)
    torch.testing.assert_close(nearest_point_to_axes(cameras), torch.zeros(3), atol=1e-4, rtol=0)


def test_up_of_an_orbit_is_z() -> None:
    torch.testing.assert_close(mean_up(orbit(8)), torch.tensor([0.0, 0.0, 1.0]), atol=1e-5, rtol=0)


def test_look_at_puts_the_target_in_the_middle_and_up_upwards() -> None:
    R, T = look_at(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0.5, 0.0, 0.0]), torch.tensor([0.0, 0.0, 1.0]))
    torch.testing.assert_close(R[0] @ R[0].T, torch.eye(3), atol=1e-6, rtol=0)
    assert torch.linalg.det(R[0]).item() == pytest.approx(1.0, abs=1e-5)
    local = R[0] @ torch.tensor([0.5, 0.0, 0.0]) + T[0]
    torch.testing.assert_close(local[:2], torch.zeros(2), atol=1e-6, rtol=0)
    assert local[2] == pytest.approx(math.sqrt(2.5**2 + 1 + 4), rel=1e-5)
    above = R[0] @ torch.tensor([0.5, 0.0, 0.1]) + T[0]
    assert above[1] < 0  # +y is down


def test_looking_along_up_still_gives_a_rotation() -> None:
    R, _ = look_at(torch.tensor([[0.0, 0.0, 5.0]]), torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))
    torch.testing.assert_close(R[0] @ R[0].T, torch.eye(3), atol=1e-5, rtol=0)


def test_the_circle_follows_the_orbit_of_the_photographs() -> None:
    cameras = orbit(12, 4.0)
    path = trajectory(cameras, 24, scale=1.0)
    torch.testing.assert_close(path.centers.norm(dim=-1), torch.full((24,), 4.0), atol=1e-3, rtol=0)
    torch.testing.assert_close(path.centers[:, 2], cameras.centers[:1, 2].expand(24), atol=1e-3, rtol=0)
    steps = (path.centers - path.centers.roll(1, 0)).norm(dim=-1)
    torch.testing.assert_close(steps, steps.mean().expand(24), atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", list(TrajectoryType))
def test_every_path_is_closed_and_looks_at_the_scene(kind: TrajectoryType) -> None:
    cameras = orbit(10, 4.0)
    path = trajectory(cameras, 60, kind)
    assert len(path) == 60
    xy, depth = path.project(torch.zeros(60, 1, 3))
    assert (depth > 1.0).all()
    torch.testing.assert_close(xy[:, 0], path.principal_point, atol=1e-2, rtol=0)
    steps = (path.centers - path.centers.roll(1, 0)).norm(dim=-1)
    assert steps.min() > 0 and steps[0] < 3 * steps[1:].max()


def test_another_size_keeps_the_field_of_view() -> None:
    cameras = orbit(6, size=16, focal=20.0)
    path = trajectory(cameras, 4, size_hw=(64, 64))
    torch.testing.assert_close(path.focal, torch.full((4, 2), 80.0))
    torch.testing.assert_close(path.principal_point, torch.full((4, 2), 32.0))
    assert path.image_size_hw.tolist() == [[64, 64]] * 4


def panorama(n: int = 8) -> Cameras:
    """Views from one place, all round."""
    like = orbit(n)
    return replace(like, T=-(like.R @ torch.tensor([3.0, 1.0, 2.0])))


@pytest.mark.parametrize("kind", list(TrajectoryType))
def test_few_views_and_views_from_one_place_have_a_path(kind: TrajectoryType) -> None:
    for cameras in (orbit(6)[:1], orbit(6)[:2], orbit(6)[[2, 2, 2]], panorama()):
        path = trajectory(cameras, 8, kind)
        assert path.centers.isfinite().all()
        torch.testing.assert_close(path.R @ path.R.mT, torch.eye(3).expand(8, 3, 3), atol=1e-5, rtol=0)
        assert len(trajectory(cameras, 1, kind)) == 1


def facing(n: int = 9, bounds: tuple[float, float] | None = (2.0, 10.0)) -> Cameras:
    """Views from the front in a world whose axes are not the views' own, spread unequally along all three."""
    angle = torch.arange(n) * 1.7
    up = torch.tensor([0.36, 0.48, 0.8])
    away = torch.tensor([0.8, -0.6, 0.0])
    right = torch.linalg.cross(away, up)
    spread = torch.stack([0.5 * angle.cos(), 0.3 * angle.sin(), 0.1 * (2 * angle).cos()], dim=-1)
    places = torch.tensor([3.0, -1.0, 2.0]) + spread @ torch.stack([right, up, away])
    R, T = look_at(places, torch.tensor([3.0, -1.0, 2.0]) + 6.0 * away, up)
    like = orbit(n)
    return replace(like, R=R, T=T, bounds=None if bounds is None else torch.tensor([bounds]).expand(n, 2))


def unit(v: np.ndarray) -> np.ndarray:
    return v / np.linalg.norm(v)


def nerfs_spiral(cameras: Cameras, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Centres (n, 3) and viewing directions (n, 3) of the path of NeRF's front-facing videos: two turns, half as fast
    along the axis, radii the 90th percentiles of the cameras' coordinates in the mean pose's axes.
    """
    back, up = -cameras.forward_axes.numpy(), cameras.up_axes.numpy()
    z = unit(back.sum(axis=0))
    x = unit(np.cross(up.sum(axis=0), z))
    pose = np.stack([x, np.cross(z, x), z], axis=1)
    middle = cameras.centers.numpy().mean(axis=0)
    assert cameras.bounds is not None
    near, far = 0.9 * cameras.bounds.min().item(), 5.0 * cameras.bounds.max().item()
    focus = 1.0 / (0.25 / near + 0.75 / far)
    radii = np.percentile(np.abs((cameras.centers.numpy() - middle) @ pose), 90, axis=0)
    centers, directions = [], []
    for theta in np.linspace(0.0, 4 * np.pi, n + 1)[:-1]:
        center = middle + pose @ (np.array([np.cos(theta), -np.sin(theta), -np.sin(0.5 * theta)]) * radii)
        centers.append(center)
        directions.append(unit(middle - focus * z - center))
    return np.stack(centers), np.stack(directions)


def test_the_spiral_is_nerfs() -> None:
    cameras = facing()
    path = trajectory(cameras, 30, TrajectoryType.spiral, scale=1.0)
    centers, directions = nerfs_spiral(cameras, 30)
    np.testing.assert_allclose(path.centers.numpy(), centers, atol=1e-5)
    np.testing.assert_allclose(path.forward_axes.numpy(), directions, atol=1e-5)
    assert path.bounds is not None and path.bounds[0].tolist() == [2.0, 10.0]
    twice = trajectory(cameras, 30, TrajectoryType.spiral, scale=2.0)
    middle = cameras.centers.mean(dim=0)
    torch.testing.assert_close(twice.centers - middle, 2 * (path.centers - middle), atol=1e-5, rtol=1e-4)


def test_without_bounds_the_spiral_looks_at_what_the_views_look_at() -> None:
    path = trajectory(facing(bounds=None), 30, TrajectoryType.spiral)
    target = torch.tensor([3.0, -1.0, 2.0]) + 6.0 * torch.tensor([0.8, -0.6, 0.0])
    torch.testing.assert_close(nearest_point_to_axes(path), target, atol=0.1, rtol=0)


def test_one_view_and_views_in_one_place_still_have_a_spiral() -> None:
    for cameras in (facing()[:1], facing(bounds=None)[:1], facing()[[2, 2, 2]]):
        path = trajectory(cameras, 12, TrajectoryType.spiral)
        assert path.centers.isfinite().all() and (path.centers - cameras.centers[0]).norm(dim=-1).min() > 1e-5
        assert (path.forward_axes @ cameras.forward_axes[0]).min() > 0.9


def rings(elevation: float, n: int = 12) -> Cameras:
    """Views all round the origin, `elevation` degrees above the horizon."""
    angle, e = torch.arange(n) * (2 * math.pi / n), math.radians(elevation)
    places = 3 * torch.stack([angle.cos() * math.cos(e), angle.sin() * math.cos(e), angle * 0 + math.sin(e)], dim=-1)
    R, T = look_at(places, torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))
    return replace(orbit(n), R=R, T=T)


@pytest.mark.parametrize("elevation", [0, 20, 44, 46, 60, 85])
def test_no_ring_faces_one_way(elevation: float) -> None:
    cameras = rings(elevation)
    assert not face_one_way(cameras)
    assert fitting_type(cameras) is TrajectoryType.circular_lsq_fit


def test_views_from_the_front_get_the_spiral() -> None:
    assert face_one_way(facing())
    assert fitting_type(facing()) is TrajectoryType.spiral
    rolled = torch.diag(torch.tensor([-1.0, -1.0, 1.0]))
    upside_down = facing()
    assert not face_one_way(replace(upside_down, R=torch.cat([upside_down.R[:8], (rolled @ upside_down.R[8])[None]])))


def test_the_level_circle_is_level_whatever_the_heights() -> None:
    """Views on a third of a ring and above: the best circle through them is tilted, the level one is not."""
    part = Cameras.cat([rings(15, 36)[:12], rings(50, 36)[4:8]])
    path = trajectory(part, 40, TrajectoryType.level_circle, scale=1.0, up=torch.tensor([0.0, 0.0, 1.0]))
    heights = part.centers[:, 2]
    torch.testing.assert_close(path.centers[:, 2], heights.mean().expand(40), atol=1e-3, rtol=0)
    torch.testing.assert_close(path.centers.norm(dim=-1), torch.full((40,), 3.0), atol=1e-2, rtol=0)
    torch.testing.assert_close(path.centers[:, :2].mean(dim=0), torch.zeros(2), atol=1e-2, rtol=0)
    torch.testing.assert_close(path.forward_axes, -path.centers / 3.0, atol=1e-2, rtol=0)
    best = trajectory(part, 40, TrajectoryType.circular_lsq_fit, scale=1.0)
    assert (best.centers[:, 2].max() - best.centers[:, 2].min()) > 0.3


def test_a_level_circle_of_views_straight_above() -> None:
    above = rings(90)[:1]
    path = trajectory(above, 8, TrajectoryType.level_circle, up=torch.tensor([0.0, 0.0, 1.0]))
    assert path.centers.isfinite().all() and path.R.isfinite().all()
