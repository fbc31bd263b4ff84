"""Projection by hand, and its inverse."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.cameras.lenses import Lenses


def one_camera(**changes: torch.Tensor | Lenses) -> Cameras:
    values: dict[str, Any] = {
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


def mixed_lenses(dtype: torch.dtype = torch.float64) -> Lenses:
    """A barrel with a tangential part, a fisheye, and one that distorts nothing."""
    return Lenses.of(
        radial=torch.tensor([[-0.2, 0.05, 0.0, 0.0], [0.05, -0.02, 0.004, 0.0], [0.0] * 4], dtype=dtype),
        tangential=torch.tensor([[2e-3, -1e-3], [0.0, 0.0], [0.0, 0.0]], dtype=dtype),
        fisheye=torch.tensor([False, True, False]),
    )


def test_project_through_a_lens_by_hand() -> None:
    """(0.5, -0.25) has r^2 = 0.3125: with k1 = -0.4 it is drawn in by 0.875, to x = 100 * 0.4375 + 32."""
    barrel = Lenses.of(torch.tensor([[-0.4, 0.0, 0.0, 0.0]]), torch.zeros(1, 2), torch.tensor([False]))
    camera = one_camera(lenses=barrel)
    xy, depth = camera.project(torch.tensor([[[2.0, -1.0, 4.0]]]))
    torch.testing.assert_close(xy, torch.tensor([[[75.75, 13.0625]]]))
    torch.testing.assert_close(depth, torch.tensor([[4.0]]))
    torch.testing.assert_close(camera.plane_to_pixels(torch.tensor([[[0.5, -0.25]]])), xy)


def test_a_fisheyes_ray_comes_from_its_angle() -> None:
    """With 100 pixels a radian, 100 pi / 2 to the right of the middle looks along +x, twice that behind."""
    lens = Lenses.of(torch.zeros(1, 4), torch.zeros(1, 2), torch.tensor([True]))
    camera = one_camera(focal=torch.tensor([[100.0, 100.0]]), lenses=lens)
    xy = torch.tensor([[32.0 + 50 * math.pi, 24.0], [32.0, 24.0 - 75 * math.pi]])
    _, directions = camera.pixel_rays(xy, torch.tensor([0, 0]))
    half = math.sqrt(0.5)
    torch.testing.assert_close(directions, torch.tensor([[1.0, 0.0, 0.0], [0.0, -half, -half]]))
    again, depth = camera.project(5.0 * directions[None])
    torch.testing.assert_close(again[0], xy)
    assert depth[0, 1] < 0


def test_lenses_of_all_kinds_in_one_batch_invert() -> None:
    cameras = replace(random_cameras(3), lenses=mixed_lenses())
    xy = 64 * torch.rand(3, 2, 7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    xy[:, 0, :2] = torch.tensor([[0.0, 0.0], [64.0, 60.0]], dtype=torch.float64)
    depth = torch.full((3, 2, 7), 2.5, dtype=torch.float64)
    points = cameras.unproject(xy, depth)
    again, depth_again = cameras.project(points)
    torch.testing.assert_close(again, xy)
    torch.testing.assert_close(depth_again, depth)
    index = torch.arange(3)[:, None, None].expand(3, 2, 7)
    origins, directions = cameras.pixel_rays(xy, index)
    along = (points - origins).norm(dim=-1, keepdim=True)
    torch.testing.assert_close(origins + along * directions, points)
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones_like(depth))


def test_undistorted_views_of_a_mixed_batch_are_pinholes_bit_by_bit() -> None:
    pinholes = random_cameras(3)
    mixed = replace(pinholes, lenses=mixed_lenses())
    points = pinholes.unproject(64 * torch.rand(3, 9, 2, dtype=torch.float64), torch.full((3, 9), 2.0).double())
    xy, index = 64 * torch.rand(9, 2, dtype=torch.float64), torch.full((9,), 2)
    assert torch.equal(mixed.project(points)[0][2], pinholes.project(points)[0][2])
    assert torch.equal(mixed.pixel_rays(xy, index)[1], pinholes.pixel_rays(xy, index)[1])
    assert not torch.equal(mixed.project(points)[0][0], pinholes.project(points)[0][0])


def test_lenses_and_bounds_stay_with_their_views() -> None:
    bounds = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], dtype=torch.float64)
    cameras = replace(random_cameras(3), lenses=mixed_lenses(), bounds=bounds)
    xy = torch.tensor([[1.0, 2.0], [50.0, 40.0], [60.0, 3.0]], dtype=torch.float64)
    expected = cameras.pixel_rays(xy, torch.arange(3))[1]
    shuffled = Cameras.cat([cameras[2], cameras[[0, 1]]]).to("cpu")
    torch.testing.assert_close(shuffled.pixel_rays(xy, torch.tensor([1, 2, 0]))[1], expected, rtol=0, atol=0)
    assert shuffled.bounds is not None
    assert torch.equal(shuffled.bounds, bounds[[2, 0, 1]])
    with_pinholes = Cameras.cat([random_cameras(2), cameras])
    assert with_pinholes.bounds is None and with_pinholes.lenses is not None
    assert with_pinholes.lenses.fisheye.tolist() == [False, False, False, True, False]
    torch.testing.assert_close(with_pinholes.pixel_rays(xy, torch.arange(2, 5))[1], expected, rtol=0, atol=0)


def test_pixel_extents_by_hand() -> None:
    """On the axis a pixel is 1 / focal wide and high; a barrel of slope g' = 0.55 there makes it 1 / g' as wide."""
    straight = one_camera()
    xy = torch.tensor([[32.0, 24.0], [132.0, 24.0]])
    index = torch.tensor([0, 0])
    expected = torch.tensor([[0.01, 0.02], [0.01 / 2**0.5, 0.02 / 2**0.5]])
    torch.testing.assert_close(straight.pixel_extents(xy, index), expected)
    torch.testing.assert_close(
        one_camera(lenses=Lenses.pinholes(1)).pixel_extents(xy, index), expected, rtol=1e-3, atol=0
    )
    # (0.5, 0) is shown at 0.5 * (1 - 0.6 * 0.25) = 0.425; the slope along x is 1 - 3 * 0.6 * 0.25, across it 0.85.
    barrel = Lenses.of(torch.tensor([[-0.6, 0.0, 0.0, 0.0]]), torch.zeros(1, 2), torch.tensor([False]))
    wide = one_camera(lenses=barrel).pixel_extents(torch.tensor([[74.5, 24.0]]), torch.tensor([0]))
    expected = torch.tensor([[0.01 / 0.55, 0.02 / 0.85]]) / 1.25**0.5
    torch.testing.assert_close(wide, expected, rtol=2e-3, atol=0)


def test_a_fisheyes_pixel_extents_by_hand() -> None:
    """Pixels of an equidistant fisheye are all 1 / focal wide along the radius; across it sin t / t of that."""
    lens = Lenses.of(torch.zeros(1, 4), torch.zeros(1, 2), torch.tensor([True]))
    camera = one_camera(focal=torch.tensor([[100.0, 100.0]]), lenses=lens)
    xy = torch.tensor([[32.0 + 50 * math.pi, 24.0]])
    expected = torch.tensor([[0.01, 0.01 * 2 / math.pi]])
    torch.testing.assert_close(camera.pixel_extents(xy, torch.tensor([0])), expected, rtol=1e-3, atol=0)
