"""The picture of frusta is there, whole, and shows what is out of line in red."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nerf_trainer.visualization.frusta import _corners, _upright, draw_frusta
from tests.cameras.known_cameras import cameras_of
from tests.known_scene import ring


@pytest.mark.parametrize("odd", [{}, {3: "train 3"}])
def test_what_is_out_of_line_is_red(tmp_path: Path, odd: dict[int, str]):
    up = torch.tensor([0.0, 0.0, 1.0])
    draw_frusta(tmp_path / "f.png", cameras_of(ring(6)), ["train"] * 6, odd, torch.zeros(3), up, "ring")
    with Image.open(tmp_path / "f.png") as image:
        pixels = np.array(image.convert("RGB")).astype(int)
    assert pixels.shape == (740, 1500, 3)
    red = (np.abs(pixels - (192, 40, 45)).max(axis=-1) < 12).sum()
    assert (red > 200) == bool(odd)
    assert [path.name for path in tmp_path.iterdir()] == ["f.png"]


@pytest.mark.parametrize("up", [(0.0, 1.0, 0.0), (0.0, 0.0, -1.0), (0.3, -0.4, 0.5), (0.0, 0.0, 1.0)])
def test_up_is_turned_upwards(up: tuple[float, float, float]):
    turned = _upright(torch.tensor(up))
    direction = torch.nn.functional.normalize(torch.tensor(up).double(), dim=0)
    torch.testing.assert_close(turned @ direction, torch.tensor([0.0, 0.0, 1.0]).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(turned @ turned.T, torch.eye(3).double(), atol=1e-6, rtol=0)


def test_corners_lie_on_the_rays_of_the_images_corners():
    views = ring(3)
    cameras = cameras_of(views)
    corners = _corners(cameras, 0.5).float()
    xy, depth = cameras.project(corners)
    expected = torch.tensor([[0.0, 0.0], [48.0, 0.0], [48.0, 36.0], [0.0, 36.0]]).expand(3, 4, 2)
    torch.testing.assert_close(xy, expected, atol=1e-2, rtol=0)
    assert (depth > 0).all()
