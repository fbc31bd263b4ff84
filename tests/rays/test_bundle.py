"""Slicing and reshaping of rays."""

import pytest
import torch

from nerf_trainer.rays.samplers import NearFarRaySampler
from tests.scene_kit import orbit, straight_rays


def test_flatten_and_slice_keep_rays_together() -> None:
    rays = NearFarRaySampler(n_pts_per_ray_evaluation=3).grid(orbit(2, size=4), (4, 4))
    part = rays.flatten()[5:9]
    assert part.ray_shape == (1, 4)
    torch.testing.assert_close(part.directions[0, 2], rays.directions[0, 1, 3])
    torch.testing.assert_close(part.lengths[0, 2], rays.lengths[0, 1, 3])


def test_rays_by_number() -> None:
    rays = NearFarRaySampler(n_pts_per_ray_evaluation=3).grid(orbit(2, size=4), (4, 4)).flatten()
    part = rays[torch.tensor([30, 2, 30])]
    assert part.ray_shape == (1, 3) and part.camera_index.tolist() == [[1, 0, 1]]
    torch.testing.assert_close(part.points[0, 1], rays.points[0, 2])
    assert rays[torch.tensor([], dtype=torch.int64)].points.shape == (1, 0, 3, 3)


def test_points() -> None:
    rays = straight_rays(1, 1.0, 3.0, n_samples=3)
    torch.testing.assert_close(rays.points[0, 0], torch.tensor([[0.0, 0, 1], [0, 0, 2], [0, 0, 3]]))


def test_points_without_samples_say_so() -> None:
    with pytest.raises(ValueError, match="no lengths"):
        _ = straight_rays().points
