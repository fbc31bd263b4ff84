"""Pixels, colours and rays from kernels: the same as plain torch's."""

from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from nerf_trainer.ops.pixel_rays import gather, locate, through_pixels
from nerf_trainer.ops.reference import pixel_rays as reference
from tests.ops.kernel_kit import device_for_kernels, torch_twins, triton_kernels

DEVICE = device_for_kernels()
SIZES = [(3, 5), (1, 7), (4, 2), (6, 6)]


def store(sizes: list[tuple[int, int]]) -> tuple[Tensor, Tensor, Tensor]:
    sizes_hw = torch.tensor(sizes)
    ends = sizes_hw.prod(dim=1).cumsum(dim=0)
    rgba = torch.randint(0, 256, (int(ends[-1]), 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return rgba.to(DEVICE), ends.to(DEVICE), sizes_hw.to(DEVICE)


def no_torch(name: str):
    return patch.object(reference, name, side_effect=AssertionError("plain torch ran"))


@pytest.mark.parametrize("n_images", [1, 2, 3, 4])
@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_every_pixel_is_found_where_the_twin_finds_it(n_images: int, fraction: float) -> None:
    rgba, ends, sizes_hw = store(SIZES[:n_images])
    index = torch.arange(len(rgba), device=DEVICE).flip(0)
    with torch_twins():
        camera, xy = locate(index, ends, sizes_hw, fraction)
    with triton_kernels(), no_torch("locate"):
        found_camera, found_xy = locate(index, ends, sizes_hw, fraction)
    assert torch.equal(found_camera, camera) and torch.equal(found_xy, xy)


def test_located_pixels_have_the_colours_of_their_places() -> None:
    rgba, ends, sizes_hw = store(SIZES)
    index = torch.randperm(len(rgba), generator=torch.Generator().manual_seed(1)).to(DEVICE)
    with triton_kernels(), no_torch("gather"):
        camera, xy = locate(index, ends, sizes_hw)
        rgb, alpha = gather(rgba, ends, sizes_hw, camera[None], xy[None])
    expected = rgba[index].float() / 255
    torch.testing.assert_close(rgb[0], expected[:, :3], rtol=1e-7, atol=0.0)
    torch.testing.assert_close(alpha[0], expected[:, 3:], rtol=1e-7, atol=0.0)
    assert rgb.shape == (1, len(rgba), 3) and alpha.shape == (1, len(rgba), 1)


def cameras(n: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    R = torch.linalg.qr(torch.randn(n, 3, 3, generator=generator)).Q
    given = {
        "R": R,
        "T": torch.randn(n, 3, generator=generator),
        "focal": 50.0 + torch.rand(n, 2, generator=generator),
        "principal_point": torch.tensor([3.0, 4.0]).expand(n, 2),
    }
    return {name: value.to(DEVICE) for name, value in given.items()}


def check_rays(shape: tuple[int, ...], n_cameras: int) -> None:
    generator = torch.Generator().manual_seed(3)
    xy = 100.0 * torch.rand(*shape, 2, generator=generator).to(DEVICE)
    camera_index = torch.randint(n_cameras, shape, generator=generator).to(DEVICE)
    with torch_twins():
        expected = through_pixels(xy, camera_index, **cameras(n_cameras))
    with triton_kernels(), no_torch("through_pixels"):
        found = through_pixels(xy, camera_index, **cameras(n_cameras))
    for part, twin in zip(found, expected, strict=True):
        assert part.shape == twin.shape
        torch.testing.assert_close(part, twin, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 5), (2, 3, 4), (130,), (1, 0)])
def test_rays_as_the_twin_casts_them(shape: tuple[int, ...]) -> None:
    check_rays(shape, 3)


def test_cameras_that_need_gradients_get_them() -> None:
    given = cameras(2)
    given["T"].requires_grad_()
    with triton_kernels():
        origins, _ = through_pixels(torch.ones(3, 2, device=DEVICE), torch.tensor([0, 1, 1], device=DEVICE), **given)
    assert origins.requires_grad


@pytest.mark.gpu
def test_on_a_gpu_at_the_sizes_of_training() -> None:
    check_rays((1, 65536), 100)
    rgba, ends, sizes_hw = store([(400 + i, 300 - i) for i in range(100)])
    draws = torch.Generator(DEVICE).manual_seed(0)
    index = torch.randint(len(rgba), (65536,), generator=draws, device=DEVICE)
    with torch_twins():
        expected = locate(index, ends, sizes_hw)
    with triton_kernels():
        camera, xy = locate(index, ends, sizes_hw)
        rgb, _ = gather(rgba, ends, sizes_hw, camera, xy)
    assert torch.equal(camera, expected[0]) and torch.equal(xy, expected[1])
    torch.testing.assert_close(rgb, rgba[index, :3].float() / 255, rtol=1e-6, atol=0.0)
