"""Blurred, copied, alike, burnt: each is told on images made for it."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from nerf_trainer.data.inspection.image_quality import blurred, look_alike, measure, same_pixels
from tests.known_scene import ring


def rgba(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture.convert("RGBA")))


def noise(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((64, 48), Image.Resampling.BICUBIC)


def test_the_variance_of_the_laplacian_of_a_checkerboard():
    board = np.indices((8, 8)).sum(axis=0) % 2 * 255
    picture = torch.from_numpy(np.repeat(board[..., None], 3, axis=-1).astype(np.uint8))
    found = measure(torch.cat([picture, torch.full((8, 8, 1), 255, dtype=torch.uint8)], dim=-1))
    response = 4 * 255.0  # each pixel against its four opposites: alternately plus and minus this
    assert found.sharpness == pytest.approx(response**2 * 36 / 35, rel=1e-4)
    assert found.brightness == pytest.approx(0.5, abs=1e-4)
    assert (found.burnt, found.black, found.opaque) == (0.5, 0.5, 1.0)


def test_the_blurred_frame_is_the_only_one():
    pictures = [noise(i) for i in range(12)]
    pictures[4] = pictures[4].filter(ImageFilter.GaussianBlur(3))
    assert blurred([measure(rgba(p)).sharpness for p in pictures]) == [4]
    assert blurred([100.0, 1.0, 100.0]) == []
    # A scene that slowly gets smoother has no blurred frame.
    assert blurred([1000 * 0.85**i for i in range(20)]) == []


def test_copies_and_look_alikes():
    pictures = [noise(i) for i in range(5)]
    pictures.append(pictures[1].copy())
    pictures.append(pictures[2].resize((48, 36)).resize((64, 48)))
    qualities = [measure(rgba(p)) for p in pictures]
    assert same_pixels(qualities) == [[1, 5]]
    assert look_alike(qualities) == [(2, 6)]


def test_views_of_one_scene_are_not_alike_and_flat_images_neither():
    assert look_alike([measure(torch.from_numpy(view.rgba)) for view in ring(12)]) == []
    flat = [torch.full((16, 16, 4), value, dtype=torch.uint8) for value in (100, 101)]
    assert look_alike([measure(image) for image in flat]) == []


def test_transparent_pixels_do_not_count():
    image = torch.zeros(16, 16, 4, dtype=torch.uint8)
    image[4:12, 4:12] = 255
    found = measure(image)
    assert found.burnt == 1.0
    assert found.black == 0.0
    assert found.opaque == pytest.approx(0.25)
    assert found.sharpness == 0.0
    assert measure(torch.zeros(16, 16, 4, dtype=torch.uint8)).opaque == 0.0
