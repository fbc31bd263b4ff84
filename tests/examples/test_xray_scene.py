"""Line integrals through bodies, as arithmetic and as a fine sum; the folder that is written."""

import numpy as np
import pytest

from examples.xray_scene import PHANTOM, Box, Ellipsoid, radiograph, view_from, write_scene
from nerf_trainer.data.blender import BlenderDatasetMapProvider

RIGHT = np.array([[1.0, 0.0, 0.0]])


@pytest.mark.parametrize(
    ("body", "origin", "chord"),
    [
        (Ellipsoid((0.0, 0.0, 0.0), (0.5, 1.0, 1.0), 1.0), (-4.0, 0.0, 0.0), 1.0),
        (Ellipsoid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 1.0), (-4.0, 0.6, 0.0), 1.6),
        (Ellipsoid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 1.0), (-4.0, 1.2, 0.0), 0.0),
        (Box((0.0, 0.0, 0.5), (0.7, 0.1, 0.1), 1.0), (-4.0, 0.05, 0.5), 1.4),
        (Box((0.0, 0.0, 0.0), (0.7, 0.1, 0.1), 1.0), (-4.0, 0.2, 0.0), 0.0),
    ],
)
def test_a_ray_along_x_cuts_out_its_chord(
    body: Ellipsoid | Box, origin: tuple[float, float, float], chord: float
) -> None:
    np.testing.assert_allclose(body.chords(np.array([origin]), RIGHT), [chord], atol=1e-12)


def test_slanted_chords_are_what_a_fine_sum_finds() -> None:
    generator = np.random.default_rng(0)
    origins = generator.normal(size=(50, 3))
    origins *= 4.0 / np.linalg.norm(origins, axis=-1, keepdims=True)
    directions = generator.uniform(-0.7, 0.7, size=(50, 3)) - origins
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    n = 20_000
    t = (np.arange(n) + 0.5) * (8.0 / n)
    points = origins[:, None] + t[:, None] * directions[:, None]
    for body in PHANTOM:
        local = np.abs((points - body.center) / body.radii)
        inside = (local**2).sum(-1) < 1.0 if isinstance(body, Ellipsoid) else local.max(-1) < 1.0
        assert inside.any()
        np.testing.assert_allclose(body.chords(origins, directions), inside.sum(-1) * (8.0 / n), atol=2 * 8.0 / n)


def test_a_ball_in_the_middle_of_the_film() -> None:
    film = radiograph(view_from(0.3, 0.2), 65, (Ellipsoid((0.0, 0.0, 0.0), (0.5, 0.5, 0.5), 2.0),))
    assert film[32, 32] == pytest.approx(1.0 - np.exp(-2.0 * 1.0), abs=1e-6)
    assert film[0, 0] == 0.0


def test_the_camera_is_where_it_says() -> None:
    """Seen from -y, what lies at x = 1, z = 0.5 is right of the middle and above it."""
    pose = view_from(-np.pi / 2, 0.0)
    np.testing.assert_allclose(pose[:3, 3], [0.0, -4.0, 0.0], atol=1e-12)
    film = radiograph(pose, 64, (Ellipsoid((1.0, 0.0, 0.5), (0.2, 0.2, 0.2), 5.0),))
    rows, columns = np.nonzero(film)
    assert columns.min() > 32 and rows.max() < 32


def test_what_is_written_is_a_scene_in_blender_format(tmp_path) -> None:
    write_scene(tmp_path, n_train=3, n_test=2, size=16)
    datasets = BlenderDatasetMapProvider(base_dir=str(tmp_path), object_name="xray").get_dataset_map()
    assert datasets.train is not None and len(datasets.train) == 3
    assert datasets.test is not None and len(datasets.test) == 2
    assert datasets.train.image_sizes_hw.tolist() == [[16, 16]] * 3
