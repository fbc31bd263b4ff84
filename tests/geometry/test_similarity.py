import math

import torch

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.geometry.similarity import Similarity
from tests.scene_kit import orbit

QUARTER_TURN = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
MOVE = Similarity(2.0, QUARTER_TURN, torch.tensor([10.0, 20.0, 30.0], dtype=torch.float64))


def test_a_point_by_hand():
    assert MOVE.points(torch.tensor([[1.0, 0.0, 5.0]])).tolist() == [[10.0 + 2 * 0, 20.0 + 2 * 1, 30.0 + 2 * 5]]
    assert MOVE.points(torch.zeros(2, 4, 3)).shape == (2, 4, 3)


def test_views_of_the_moved_world_see_the_same():
    views = orbit(5)
    R, T = MOVE.views(views.R, views.T)
    moved = Cameras(R, T, views.focal, views.principal_point, views.image_size_hw)
    points = torch.randn(5, 7, 3, generator=torch.Generator().manual_seed(0))
    here, depth = views.project(points)
    there, moved_depth = moved.project(MOVE.points(points))
    torch.testing.assert_close(there, here, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(moved_depth, 2.0 * depth)
    torch.testing.assert_close(moved.centers, MOVE.points(views.centers), atol=1e-4, rtol=1e-5)


def test_inverse_and_composition():
    points = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(MOVE.inverse().points(MOVE.points(points)), points)
    other = Similarity(0.5, QUARTER_TURN.T, torch.tensor([-1.0, 0.0, math.pi], dtype=torch.float64))
    torch.testing.assert_close(other.after(MOVE).points(points), other.points(MOVE.points(points)))
    homogeneous = torch.cat([points, torch.ones(6, 1, dtype=torch.float64)], dim=1)
    torch.testing.assert_close((homogeneous @ MOVE.matrix().T)[:, :3], MOVE.points(points))
    assert Similarity.identity().is_identity and not MOVE.is_identity
