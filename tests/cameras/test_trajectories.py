"""Paths of cameras whose answer is known."""

import math

import pytest
import torch

from nerf_trainer.cameras.trajectories import (
    TrajectoryType,
    fit_ring,
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


def test_few_views_still_have_a_path() -> None:
    for n in (1, 2):
        path = trajectory(orbit(6)[:n], 8)
        assert path.centers.isfinite().all() and path.R.isfinite().all()
