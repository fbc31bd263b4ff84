"""Samples between each camera's own bounds, which are depths along its axis."""

from dataclasses import replace

import pytest
import torch

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.config import registry
from nerf_trainer.errors import ConfigError
from nerf_trainer.rays.camera_bounds import CameraBoundsRaySampler
from nerf_trainer.rays.samplers import NearFarRaySampler, RaySamplerBase
from tests.scene_kit import orbit


def bounded() -> Cameras:
    return replace(orbit(2, 4.0, size=8), bounds=torch.tensor([[2.0, 6.0], [1.0, 10.0]]))


def test_samples_of_a_view_lie_between_two_planes() -> None:
    sampler = CameraBoundsRaySampler(n_pts_per_ray_evaluation=5)
    assert registry.get(RaySamplerBase, "CameraBoundsRaySampler") is CameraBoundsRaySampler
    cameras = bounded()
    sampler.learn_views(lambda: cameras)
    rays = sampler.grid(cameras, (8, 8))
    _, depth = cameras.project(rays.points)
    for view, (near, far) in enumerate(((1.8, 6.0), (0.9, 10.0))):
        expected = torch.linspace(near, far, 5).expand(8, 8, 5)
        torch.testing.assert_close(depth[view], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(rays.directions.norm(dim=-1), torch.ones(2, 8, 8))


def test_bounds_are_widened_as_asked() -> None:
    sampler = CameraBoundsRaySampler(near_factor=0.5, far_factor=2.0, n_rays_per_image_sampled_from_mask=3)
    cameras = bounded()
    rays = sampler.draw(cameras)
    cosine = (rays.directions * cameras.forward_axes[:, None]).sum(dim=-1)
    torch.testing.assert_close(rays.near * cosine, torch.tensor([[1.0], [0.5]]).expand(2, 3))
    torch.testing.assert_close(rays.far * cosine, torch.tensor([[12.0], [20.0]]).expand(2, 3))


def test_views_without_bounds_are_refused() -> None:
    sampler = CameraBoundsRaySampler()
    views = orbit(2)
    for ask in (lambda: sampler.learn_views(lambda: views), lambda: sampler.draw(views)):
        with pytest.raises(ConfigError, match="the dataset knows no bounds of its cameras; use NearFarRaySampler"):
            ask()


@pytest.mark.parametrize(
    "options",
    [
        {"near_factor": 1.1},
        {"near_factor": -0.1},
        {"far_factor": 0.9},
        {"far_factor": float("inf")},
        {"far_factor": float("nan")},
        {"near_factor": 0.0, "linear_in_disparity": True},
    ],
)
def test_factors_that_make_no_sense(options: dict) -> None:
    with pytest.raises(ConfigError, match="near_factor, far_factor: "):
        CameraBoundsRaySampler(**options)


def test_a_nearest_depth_behind_the_farthest_distance_is_refused() -> None:
    options = {"min_depth": 0.5, "max_depth": 1.8}
    NearFarRaySampler(**options).learn_views(bounded)
    NearFarRaySampler(begin_at_camera_bounds=True, **options).learn_views(lambda: orbit(2))
    with pytest.raises(ConfigError, match=r"max_depth: 1\.8, but a view sees nothing nearer than 2;"):
        NearFarRaySampler(begin_at_camera_bounds=True, **options).learn_views(bounded)


def test_rays_between_two_distances_may_begin_at_the_views_own_nearest_depths() -> None:
    options = {"min_depth": 1.5, "max_depth": 8.0, "n_pts_per_ray_evaluation": 3}
    rays = NearFarRaySampler(begin_at_camera_bounds=True, **options).grid(bounded(), (2, 2))
    torch.testing.assert_close(rays.near, torch.tensor([2.0, 1.5])[:, None, None].expand(2, 2, 2))
    assert (rays.far == 8.0).all()
    for sampler, cameras in (
        (NearFarRaySampler(begin_at_camera_bounds=True, **options), orbit(2)),
        (NearFarRaySampler(**options), bounded()),
    ):
        assert (sampler.grid(cameras, (2, 2)).near == 1.5).all()


def test_samplers_say_from_where_on_a_view_has_samples() -> None:
    options = {"min_depth": 1.5, "max_depth": 8.0}
    assert NearFarRaySampler(**options).nearest(bounded()).tolist() == [1.5, 1.5]
    assert NearFarRaySampler(begin_at_camera_bounds=True, **options).nearest(bounded()).tolist() == [2.0, 1.5]
