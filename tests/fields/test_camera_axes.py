"""Points and directions in the axes of each ray's own view, against the cameras' own transform."""

from dataclasses import replace

import pytest
import torch

from nerf_trainer.fields.base import FieldInputs
from nerf_trainer.fields.camera_axes import directions_in_camera_axes, points_in_camera_axes
from nerf_trainer.rays.samplers import NearFarRaySampler
from tests.scene_kit import orbit, straight_rays


def test_points_are_those_of_the_cameras() -> None:
    cameras = orbit(3)
    bundle = NearFarRaySampler(n_pts_per_ray_evaluation=4).grid(cameras, (2, 2))
    found = points_in_camera_axes(bundle, FieldInputs(cameras=cameras))
    torch.testing.assert_close(found, cameras.transform_to_camera(bundle.points))


def test_each_ray_is_seen_by_its_own_view() -> None:
    """The views' forward axes are all (0, 0, 1) to themselves, in whatever order rays name their views."""
    cameras, index = orbit(3), torch.tensor([2, 0, 1, 0, 2])
    bundle = replace(straight_rays(5), camera_index=index[None])
    ahead = cameras.forward_axes[bundle.camera_index]
    found = directions_in_camera_axes(ahead, bundle, FieldInputs(cameras=cameras))
    torch.testing.assert_close(found, torch.tensor([0.0, 0.0, 1.0]).expand(1, 5, 3))


def test_full_precision_under_autocast() -> None:
    cameras = orbit(2, distance=300.0)
    bundle, inputs = NearFarRaySampler(n_pts_per_ray_evaluation=4).grid(cameras, (2, 2)), FieldInputs(cameras=cameras)
    expected = points_in_camera_axes(bundle, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(points_in_camera_axes(bundle, inputs), expected)


def test_without_cameras_it_is_refused() -> None:
    bundle = NearFarRaySampler().grid(orbit(1), (1, 1))
    with pytest.raises(ValueError, match="cameras"):
        points_in_camera_axes(bundle, FieldInputs())
