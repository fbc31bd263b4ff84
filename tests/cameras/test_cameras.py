"""Projection by hand, and its inverse."""

import pytest
import torch

from nerf_trainer.cameras.cameras import Cameras


def one_camera(**changes: torch.Tensor) -> Cameras:
    values = {
        "R": torch.eye(3)[None],
        "T": torch.zeros(1, 3),
        "focal": torch.tensor([[100.0, 50.0]]),
        "principal_point": torch.tensor([[32.0, 24.0]]),
        "image_size_hw": torch.tensor([[48, 64]]),
    }
    return Cameras(**(values | changes))


def random_cameras(n: int, seed: int = 0) -> Cameras:
    generator = torch.Generator().manual_seed(seed)
    rotations = torch.linalg.qr(torch.randn(n, 3, 3, generator=generator, dtype=torch.float64)).Q
    rotations = rotations * torch.linalg.det(rotations)[:, None, None]
    return Cameras(
        R=rotations,
        T=torch.randn(n, 3, generator=generator, dtype=torch.float64),
        focal=50.0 + 50.0 * torch.rand(n, 2, generator=generator, dtype=torch.float64),
        principal_point=30.0 + torch.rand(n, 2, generator=generator, dtype=torch.float64),
        image_size_hw=torch.tensor([[60, 64]]).expand(n, 2),
    )


def test_project_by_hand() -> None:
    # x = 100 * 1/4 + 32, y = 50 * (-2)/4 + 24
    xy, depth = one_camera().project(torch.tensor([[[1.0, -2.0, 4.0]]]))
    torch.testing.assert_close(xy, torch.tensor([[[57.0, -1.0]]]))
    torch.testing.assert_close(depth, torch.tensor([[4.0]]))


def test_axes_are_opencv() -> None:
    """A point to the right lands right, one below lands lower (larger y), one in front has positive depth."""
    cameras = one_camera()
    center, _ = cameras.project(torch.tensor([[[0.0, 0.0, 1.0]]]))
    right, _ = cameras.project(torch.tensor([[[0.1, 0.0, 1.0]]]))
    below, _ = cameras.project(torch.tensor([[[0.0, 0.1, 1.0]]]))
    assert right[0, 0, 0] > center[0, 0, 0] and below[0, 0, 1] > center[0, 0, 1]
    torch.testing.assert_close(cameras.forward_axes, torch.tensor([[0.0, 0.0, 1.0]]))
    torch.testing.assert_close(cameras.up_axes, torch.tensor([[0.0, -1.0, 0.0]]))


def test_translation_and_center() -> None:
    """A camera at (0, 0, -5) that looks along +z has T = (0, 0, 5)."""
    cameras = one_camera(T=torch.tensor([[0.0, 0.0, 5.0]]))
    torch.testing.assert_close(cameras.centers, torch.tensor([[0.0, 0.0, -5.0]]))


@pytest.mark.parametrize("shape", [(3,), (2, 5), (1,)])
def test_unproject_inverts_project(shape: tuple[int, ...]) -> None:
    cameras = random_cameras(4)
    generator = torch.Generator().manual_seed(1)
    xy = 64 * torch.rand(4, *shape, 2, generator=generator, dtype=torch.float64)
    depth = 1.0 + torch.rand(4, *shape, generator=generator, dtype=torch.float64)
    again, depth_again = cameras.project(cameras.unproject(xy, depth))
    torch.testing.assert_close(again, xy)
    torch.testing.assert_close(depth_again, depth)


def test_pixel_rays_pass_through_what_the_pixel_sees() -> None:
    cameras = random_cameras(3)
    xy = 64 * torch.rand(3, 7, 2, dtype=torch.float64)
    points = cameras.unproject(xy, torch.full((3, 7), 2.5, dtype=torch.float64))
    index = torch.arange(3)[:, None].expand(3, 7)
    origins, directions = cameras.pixel_rays(xy, index)
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(3, 7, dtype=torch.float64))
    distance = (points - origins).norm(dim=-1, keepdim=True)
    torch.testing.assert_close(origins + distance * directions, points)
    torch.testing.assert_close(origins, cameras.centers[:, None].expand(3, 7, 3))


def test_the_central_pixel_looks_straight_ahead() -> None:
    cameras = one_camera(principal_point=torch.tensor([[32.5, 24.5]]))
    _, direction = cameras.pixel_rays(torch.tensor([[32.5, 24.5]]), torch.tensor([0]))
    torch.testing.assert_close(direction, torch.tensor([[0.0, 0.0, 1.0]]))


def test_indexing_and_concatenation_keep_views_apart() -> None:
    cameras = random_cameras(5)
    again = Cameras.cat([cameras[:2], cameras[2], cameras[[3, 4]]])
    torch.testing.assert_close(again.R, cameras.R)
    torch.testing.assert_close(cameras[-1].T, cameras.T[4:])
    assert len(cameras[torch.tensor([1, 1])]) == 2


def test_rays_keep_their_precision_under_autocast() -> None:
    """A matrix product in bfloat16 would turn a ray by more than a pixel."""
    cameras = random_cameras(3).to("cpu")
    cameras = Cameras(
        **{f: getattr(cameras, f).float() for f in ("R", "T", "focal", "principal_point")},
        image_size_hw=cameras.image_size_hw,
    )
    xy, index = 64 * torch.rand(3, 50, 2), torch.arange(3)[:, None].expand(3, 50)
    exact = cameras.pixel_rays(xy, index)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        origins, directions = cameras.pixel_rays(xy, index)
        again, _ = cameras.project(origins + 2.0 * directions)
    torch.testing.assert_close(origins, exact[0], rtol=0, atol=0)
    torch.testing.assert_close(directions, exact[1], rtol=0, atol=0)
    torch.testing.assert_close(again, xy, atol=1e-3, rtol=0)
