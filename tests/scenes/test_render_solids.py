"""Scenes of solids: rays against arithmetic, files against the provider that reads them."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nerf_trainer.data.blender import BlenderDatasetMapProvider
from nerf_trainer.data.multi_scene import MultiSceneDatasetMapProvider
from nerf_trainer.data.splits import DatasetMap
from scenes import render_solids as solids
from scenes.render_solids import Job, Solid, View

PROGRAM = Path(solids.__file__)
RED, GREY = (0.9, 0.2, 0.1), (0.5, 0.5, 0.5)


def solid(kind: str, half_sizes: tuple[float, float, float], texture: str = "plain", frequency: float = 1.0) -> Solid:
    """A solid at the origin, its axes those of the world."""
    return Solid(
        kind=kind,
        center=np.zeros(3),
        half_sizes=np.array(half_sizes),
        rotation=np.eye(3),
        texture=texture,
        colors=np.array([RED, GREY]),
        frequency=frequency,
        swing=np.zeros(3),
    )


def view_along_x() -> View:
    """A camera at (4, 0, 0) that looks along -x: y to the right, z up."""
    matrix = np.eye(4)
    matrix[:3] = np.array([[0, 0, 1, 4], [1, 0, 0, 0], [0, 1, 0, 0]])
    return View("train/r_0", matrix)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two scenes of 48 pixels, 6 training and 3 test views."""
    out = tmp_path_factory.mktemp("solids")
    for number in range(2):
        solids.render_scene(Job(out, 0, 6, 3, 48, 2, moving=False), number)
    return out


def read(root: Path) -> DatasetMap:
    return BlenderDatasetMapProvider(base_dir=str(root), object_name="solids").get_dataset_map()


@pytest.mark.parametrize(("kind", "front"), [("ellipsoid", 0.5), ("box", 0.5), ("cylinder", 0.5)])
def test_the_middle_pixel_by_arithmetic(kind, front):
    """Seen along -x, the front of each kind is at x = 0.5 with the normal (1, 0, 0), so that the light is LAMP's x."""
    seen = [solid(kind, (front, 0.4 if kind == "box" else 0.5, 0.3))]
    depth = solids.render_depth(seen, view_along_x(), 9)
    assert depth[4, 4] * solids.DEPTH_SCALE == pytest.approx(4 - front, abs=solids.DEPTH_SCALE)
    rgba = solids.render_rgba(seen, view_along_x(), 9, 1)
    light = 0.55 + 0.45 * 0.48
    assert rgba[4, 4].tolist() == [round(255 * c * light) for c in RED] + [255]
    assert rgba[0, 0].tolist() == [0, 0, 0, 0] and depth[0, 0] == 0


def test_a_ray_beside_the_axis_by_arithmetic():
    """A ray from (4, 0, 0) through (0, 0.2, 0) enters the ball of radius 0.5 where 16 (1 - t)^2 + 0.04 t^2 = 0.25."""
    t = solid("ellipsoid", (0.5, 0.5, 0.5)).hit(np.array([4.0, 0.0, 0.0]), np.array([[-4.0, 0.2, 0.0]]))
    assert t[0] == pytest.approx((32 - (32**2 - 4 * 16.04 * 15.75) ** 0.5) / (2 * 16.04))
    beside = np.array([[-4.0, 0.6, 0.0], [4.0, 0.0, 0.0]])
    assert np.isinf(solid("ellipsoid", (0.5, 0.5, 0.5)).hit(np.array([4.0, 0.0, 0.0]), beside)).all()


def test_a_cylinder_has_caps():
    can = solid("cylinder", (0.5, 0.5, 0.25))
    down = can.hit(np.array([0.1, 0.0, 3.0]), np.array([[1e-9, 0.0, -1.0], [0.41, 0.0, -1.0]]))
    assert down.tolist() == pytest.approx([2.75, np.inf])
    slanted = can.hit(np.array([2.0, 0.0, 1.0]), np.array([[-1.0, 0.0, -0.5]]))[0]
    assert slanted == pytest.approx(1.5)  # at x = 0.5 and z = 0.25, the rim
    normals = can.normals(np.array([[0.1, 0.2, 0.25], [0.3, 0.4, 0.1], [0.0, 0.1, -0.25]]))
    np.testing.assert_allclose(normals, [[0, 0, 1], [0.6, 0.8, 0], [0, 0, -1]], atol=1e-12)


def test_normals_of_an_ellipsoid_are_gradients():
    """The normal of x^2/a^2 + y^2/b^2 + z^2/c^2 = 1 is along (x/a^2, y/b^2, z/c^2)."""
    sizes = np.array([0.5, 0.3, 0.2])
    point = sizes * solids.unit(np.array([1.0, 2.0, -1.5]))
    gradient = point / sizes**2
    expected = gradient / np.linalg.norm(gradient)
    np.testing.assert_allclose(solid("ellipsoid", (0.5, 0.3, 0.2)).normals(point[None])[0], expected)


def test_a_checker_changes_colour_every_cell():
    box = solid("box", (1.0, 1.0, 1.0), "checker", frequency=2.0)
    points = np.array([[x / 2, 0.0, 1.0] for x in (-1, 0, 1, 2)])
    assert [color.tolist() == list(GREY) for color in box.paint(points)] == [True, False, True, False]


def test_edges_are_anti_aliased():
    rgba = solids.render_rgba([solid("ellipsoid", (0.5, 0.5, 0.5))], view_along_x(), 16, 4)
    assert set(np.unique(rgba[..., 3])) > {0, 255}
    covered = np.pi * np.tan(np.arcsin(0.5 / 4)) ** 2 / (2 * np.tan(0.5 * solids.CAMERA_ANGLE_X)) ** 2
    assert rgba[..., 3].mean() / 255 == pytest.approx(covered, rel=0.02)


def test_solids_stay_within_the_unit_ball_and_scenes_differ():
    for moving in (False, True):
        for number in range(20):
            scene = solids.random_scene(0, number, moving)
            assert 3 <= len(scene) <= 5
            for time in (0.0, 0.3, 0.5, 1.0):
                assert all(np.linalg.norm(s.at(time).center) + s.radius < 1 + 1e-9 for s in scene)
    centers = {tuple(solids.random_scene(seed, number)[0].center) for seed in (0, 1) for number in (0, 1)}
    assert len(centers) == 4


def test_depth_lies_on_the_solids(folder):
    """What the provider reads, unprojected by its cameras, is a point of a surface: largest own coordinate 1."""
    test, scene = read(folder / "solids_001").test, solids.random_scene(0, 1)
    for i in range(3):
        frame = test[i]
        y, x = (frame.depth_map[0, 0] > 0).nonzero(as_tuple=True)
        assert len(x) > 100
        xy = torch.stack([x, y], dim=-1)[None] + 0.5
        points = frame.cameras.unproject(xy, frame.depth_map[0, 0, y, x][None])[0].double().numpy()
        off = []
        for s in scene:
            q = (points - s.center) @ s.to_own.T
            radii = {
                "ellipsoid": np.linalg.norm(q, axis=1),
                "box": np.abs(q).max(axis=1),
                "cylinder": np.maximum(np.hypot(q[:, 0], q[:, 1]), np.abs(q[:, 2])),
            }[s.kind]
            off.append(np.abs(radii - 1))
        assert np.min(off, axis=0).max() < 2e-3


def test_a_point_has_one_colour_in_all_views(folder):
    """Points seen in a training view, projected into another: where both see them, they look alike."""
    train, pairs = read(folder / "solids_000").train, 0
    for i in range(1, 6):
        a, b = train[0], train[i]
        y, x = ((a.depth_map[0, 0] > 0) & (a.fg_probability[0, 0] == 1)).nonzero(as_tuple=True)
        xy = torch.stack([x, y], dim=-1)[None] + 0.5
        points = a.cameras.unproject(xy, a.depth_map[0, 0, y, x][None])
        there, depth = b.cameras.project(points)
        column, row = there[0].long().clamp(0, 47).unbind(-1)
        both = (b.depth_map[0, 0, row, column] - depth[0]).abs() < 0.03
        difference = (a.image_rgb[0][:, y, x] - b.image_rgb[0][:, row, column]).abs().mean(dim=0)[both]
        if len(difference) > 30:
            pairs += 1
            assert difference.median() < 0.02
    assert pairs >= 2


def test_scenes_load_as_sequences(folder):
    provider = MultiSceneDatasetMapProvider(base_dir=str(folder), n_held_out_scenes=1, n_known_frames_for_test=2)
    datasets = provider.get_dataset_map()
    assert datasets.train.sequence_names == ("solids_000",) and datasets.test.sequence_names == ("solids_001",)
    assert datasets.notices == () and datasets.train.image_sizes_hw.unique().tolist() == [48]
    distance = torch.linalg.vector_norm(datasets.train.cameras().centers, dim=-1)
    torch.testing.assert_close(distance, torch.full_like(distance, solids.CAMERA_RADIUS))


def test_a_moving_scene_has_times(tmp_path):
    solids.render_scene(Job(tmp_path, 3, 8, 4, 24, 1, moving=True), 0)
    train = read(tmp_path).train
    assert sorted(train.frame_timestamps) == pytest.approx([i / 7 for i in range(8)])
    scene = solids.random_scene(3, 0, moving=True)
    for s in scene:
        np.testing.assert_allclose(s.at(1.0).center - s.at(0.0).center, 2 * s.swing, atol=1e-12)
        np.testing.assert_allclose(s.at(0.5).rotation, s.rotation, atol=1e-12)
        assert 0.15 <= np.linalg.norm(s.swing) <= 0.3


def test_the_program_writes_the_same_files_again(tmp_path):
    for name, jobs in (("a", "1"), ("b", "2")):
        arguments = ["--scenes", "2", "--train-views", "2", "--test-views", "1", "--size", "16", "--jobs", jobs]
        subprocess.run([sys.executable, str(PROGRAM), str(tmp_path / name), *arguments], check=True, timeout=120)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) == 2 * (3 + 2 * 3)
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)
    meta = json.loads((tmp_path / "a" / "solids_001" / "meta.json").read_text())
    assert meta["depth_scale"] == solids.DEPTH_SCALE and meta["number"] == 1
    with Image.open(tmp_path / "a" / "solids_000" / "test" / "r_0_depth.png") as image:
        assert image.mode == "I;16" and image.size == (16, 16)
