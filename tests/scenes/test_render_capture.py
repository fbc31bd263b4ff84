"""The capture from all round: what its photographs show stands where its transforms.json says."""

from pathlib import Path

import numpy as np
import pytest
import torch

from nerf_trainer.data.splits import DatasetMap
from nerf_trainer.data.transforms_json.provider import TransformsJsonDatasetMapProvider
from scenes import render_capture as capture

N_VIEWS, HEIGHT, WIDTH = 9, 36, 64


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> DatasetMap:
    folder: Path = tmp_path_factory.mktemp("capture")
    capture.render(folder, N_VIEWS, HEIGHT, WIDTH)
    provider = TransformsJsonDatasetMapProvider(base_dir=str(folder), hold_out_every=8)
    return provider.get_dataset_map()


def test_views_are_read_with_their_cameras(datasets: DatasetMap) -> None:
    assert datasets.train is not None and datasets.test is not None
    cameras = datasets.train.cameras()
    assert len(cameras) + len(datasets.test) == N_VIEWS
    assert (cameras.image_size_hw == torch.tensor([HEIGHT, WIDTH])).all()
    torch.testing.assert_close(cameras.focal, torch.full((len(cameras), 2), capture.FOCAL * WIDTH))


def test_balls_are_seen_where_they_are(datasets: DatasetMap) -> None:
    """The red one in the middle of every view; the blue one, aside and low, in the view from its side."""
    assert datasets.train is not None
    cameras, train = datasets.train.cameras(), datasets.train

    def color_at(ball: int, view: int) -> list[int]:
        pixels, _ = cameras.project(torch.tensor(capture.BALLS[ball][0]).expand(len(cameras), 1, 3))
        x, y = pixels[view, 0].int().tolist()
        return train.rgba(view)[y, x].tolist()

    for view in range(len(cameras)):
        red, green, blue, _ = color_at(0, view)
        assert red > 1.5 * max(green, blue), view
    nearest = int((cameras.centers - torch.tensor(capture.BALLS[1][0])).norm(dim=-1).argmin())
    red, green, blue, _ = color_at(1, nearest)
    assert blue > green > 2 * red


def test_a_ray_meets_the_ground_before_the_sky_and_balls_before_both() -> None:
    origin = np.array([1.6, 0.0, 0.5])
    toward = np.array([[-1.6, 0.0, -0.6], [0.0, 0.0, -1.0], [0.0, 0.0, 1.0]])
    toward /= np.linalg.norm(toward, axis=-1, keepdims=True)
    ball, ground, above = capture.seen(origin, toward)
    assert ball[0] > 1.5 * ball[1:].max()
    np.testing.assert_allclose(above, capture.sky(toward[2]).clip(0.0, 1.0))
    below = np.array([1.6, 0.0, capture.GROUND])
    np.testing.assert_allclose(ground[0], capture.waves(0.6 * below, 1.0))
