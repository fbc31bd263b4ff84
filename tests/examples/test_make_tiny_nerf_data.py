"""A file made of a scene in Blender format holds the scene's views: same cameras, blocks averaged, on black."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from examples.make_tiny_nerf_data import make
from nerf_trainer.data.tiny_nerf import TinyNerfDatasetMapProvider, read_tiny_scene
from tests.data.known_dataset import write_blender
from tests.known_scene import KnownView, check_views, ring

SQUARE = [replace(view, focal=(60.0, 60.0), center=(24.0, 18.0)) for view in ring(7)]


def scene(root: Path, views: list[KnownView]) -> Path:
    """Five views to train on and the others for test, with the lens of the first."""
    write_blender(root, views[:5], views[5:])
    (fx, fy), (cx, cy) = views[0].focal, views[0].center
    for file in root.glob("transforms_*.json"):
        text = file.read_text()
        assert '"fl_x": 60.0, "fl_y": 57.0, "cx": 23.0, "cy": 19.0' in text
        lens = f'"fl_x": {fx}, "fl_y": {fy}, "cx": {cx}, "cy": {cy}'
        file.write_text(text.replace('"fl_x": 60.0, "fl_y": 57.0, "cx": 23.0, "cy": 19.0', lens))
    return root


def test_views_are_those_of_the_scene(tmp_path: Path) -> None:
    folder, file = scene(tmp_path / "scene", SQUARE), tmp_path / "tiny.npz"
    assert make(folder, file, size=48) == 7
    datasets = TinyNerfDatasetMapProvider(
        data_file=str(file), n_train_views=5, first_test_view=5, n_test_views=2
    ).get_dataset_map()
    assert datasets.train is not None and datasets.test is not None
    check_views(datasets.train, SQUARE[:5])
    check_views(datasets.test, SQUARE[5:])


def test_blocks_are_averaged_on_black(tmp_path: Path) -> None:
    """48 pixels to 24 where 20 are asked for: the next width that whole blocks give, and half the focal length."""
    folder, file = scene(tmp_path / "scene", SQUARE), tmp_path / "tiny.npz"
    assert make(folder, file, n_views=6, size=20) == 6
    found = read_tiny_scene(file, 10)
    assert found.rgba.shape == (6, 18, 24, 4) and found.cameras.focal.unique().item() == 30
    on_black = SQUARE[1].rgb.astype(float) * SQUARE[1].mask[..., None]
    averaged = on_black.reshape(18, 2, 24, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(found.rgba[1, ..., :3].numpy(), averaged, atol=1.5)


def test_lenses_that_the_file_has_no_place_for_are_refused(tmp_path: Path) -> None:
    views = [replace(view, focal=(60.0, 57.0)) for view in SQUARE]
    with pytest.raises(SystemExit, match="found 2 focal lengths, expected one"):
        make(scene(tmp_path / "scene", views), tmp_path / "tiny.npz")
