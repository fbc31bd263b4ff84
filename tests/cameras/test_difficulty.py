"""Overlaps of views, against loops over points in double precision."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.cameras.difficulty import camera_difficulty, cube_points, seen, view_overlaps
from tests.scene_kit import orbit


def sighted(cameras: Cameras, i: int, point: np.ndarray) -> np.ndarray | None:
    """The unit ray along which a view sees a point; None where it doesn't. As docs/conventions.md projects."""
    R, T = cameras.R[i].double().numpy(), cameras.T[i].double().numpy()
    x, y, z = R @ point + T
    (fx, fy), (cx, cy) = cameras.focal[i].tolist(), cameras.principal_point[i].tolist()
    height, width = cameras.image_size_hw[i].tolist()
    if z <= 0 or not (0 <= fx * x / z + cx <= width and 0 <= fy * y / z + cy <= height):
        return None
    ray = point + R.T @ T
    return ray / math.sqrt(float(ray @ ray))


def slow_overlap(cameras: Cameras, i: int, j: int, points: np.ndarray) -> float:
    """The module's equations, point by point."""
    n_i = n_j = s_ij = 0.0
    for point in points:
        ray_i, ray_j = sighted(cameras, i, point), sighted(cameras, j, point)
        n_i += ray_i is not None
        n_j += ray_j is not None
        if ray_i is not None and ray_j is not None:
            s_ij += float(ray_i @ ray_j)
    return (len(points) + s_ij) / (len(points) + n_i + n_j - s_ij)


def assorted() -> Cameras:
    """Six views around the origin of a portrait format, two of them with other focal lengths and centres."""
    views = orbit(6, distance=4.0, size=16, focal=19.3)
    views = replace(views, image_size_hw=torch.tensor([[24, 16]]).expand(6, 2))
    views.focal[1] *= 3.1
    views.principal_point[2] += torch.tensor([5.2, 3.1])
    return views


def test_overlaps_are_those_of_the_equations():
    views, points = assorted(), cube_points(resolution=7)
    expected = [slow_overlap(views, 0, j, points.double().numpy()) for j in range(1, 6)]
    assert view_overlaps(views[0], views[1:], points).tolist() == pytest.approx(expected, abs=1e-6)
    assert max(expected) - min(expected) > 0.03, "all alike proves little"


def test_points_are_the_middles_of_the_cells_of_a_cube():
    points = cube_points(half_side=2.0, center=(1.0, 0.0, -3.0), resolution=4)
    assert points.shape == (64, 3)
    for axis, middle in enumerate((1.0, 0.0, -3.0)):
        assert sorted(set(points[:, axis].tolist())) == pytest.approx([middle + d for d in (-1.5, -0.5, 0.5, 1.5)])
    assert cube_points().shape == (16**3, 3) and cube_points().max() == 7.5


def test_a_view_overlaps_itself_wholly_and_others_the_less_the_further_they_are():
    views = orbit(8)
    overlaps = view_overlaps(views[0], views)
    assert overlaps[0].item() == pytest.approx(1.0, abs=1e-6)
    assert (overlaps[:3] - overlaps[1:4] > 0.01).all()
    assert overlaps[1:4].tolist() == pytest.approx(overlaps[5:].flip(0).tolist(), abs=0.02), "on either side"


def test_views_that_see_nothing_alike_overlap_by_the_points_that_count_anyway():
    """Two views at one place, back to back."""
    R = torch.stack([torch.eye(3), torch.diag(torch.tensor([-1.0, 1.0, -1.0]))])
    views = replace(orbit(2), R=R, T=torch.zeros(2, 3))
    n = seen(views, cube_points()).sum(dim=1).tolist()
    assert n[0] == n[1] > 0
    assert view_overlaps(views[0], views[1]).item() == pytest.approx(4096 / (4096 + 2 * n[0]))


def test_points_behind_a_view_and_beside_its_image_are_not_seen():
    view = orbit(1)
    ahead, up = view.forward_axes[0], view.up_axes[0]
    points = torch.stack([view.centers[0] + step for step in (ahead, -ahead, ahead + 0.4 * up, ahead + 0.43 * up)])
    assert seen(view, points).tolist() == [[True, False, True, False]]  # focal 1.2 sizes: half an image is 0.4167


def test_difficulty_is_the_mean_of_the_two_largest_overlaps():
    views = orbit(8)
    near, next_near, far = (view_overlaps(views[0], views[i]).item() for i in (1, 2, 4))
    assert camera_difficulty(views[0], views[[4, 2, 1]]).item() == pytest.approx((near + next_near) / 2)
    assert camera_difficulty(views[0], views[[4, 1]]).item() == pytest.approx((near + far) / 2)
    assert camera_difficulty(views[0], views[4]).item() == pytest.approx(far)
    with pytest.raises(ValueError, match="source view"):
        camera_difficulty(views[0], views[1:1])


def test_nothing_is_said_of_a_scene_that_is_elsewhere():
    views = orbit(3)
    away = replace(views, T=views.T - 1000 * views.forward_axes.new_tensor([0.0, 0.0, 1.0]))  # the cube is behind
    assert camera_difficulty(away[0], views).isnan()
    assert not camera_difficulty(views[0], away).isnan()
