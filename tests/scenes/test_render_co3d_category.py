"""Rendered categories: pictures, depth, cameras and points must agree with each other in both layouts."""

import gzip
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from scenes import render_co3d_category as generator
from scenes.co3d_format import Shot
from scenes.render_co3d_category import Job

REPOSITORY = Path(generator.__file__).resolve().parents[1]


def annotations(root: Path, name: str = "frame") -> list[dict[str, Any]]:
    return json.loads(gzip.decompress((root / "solids" / f"{name}_annotations.jgz").read_bytes()))


def read_depth(root: Path, frame: dict[str, Any]) -> np.ndarray:
    """As the format says: 16 bits that are a half float, times the scale."""
    with Image.open(root / frame["depth"]["path"]) as picture:
        bits = np.asarray(picture).astype("<u2")
    return bits.view("<f2").astype(float) * frame["depth"]["scale_adjustment"]


def ndc_unit(frame: dict[str, Any]) -> np.ndarray:
    height, width = frame["image"]["size"]
    isotropic = frame["viewpoint"]["intrinsics_format"] == "ndc_isotropic"
    return np.array([min(height, width)] * 2 if isotropic else [width, height]) / 2


def project(frame: dict[str, Any], points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, 2) and depth (N) of points (N, 3), by PyTorch3D's formulas."""
    view, (height, width) = frame["viewpoint"], frame["image"]["size"]
    local = points @ np.array(view["R"]) + view["T"]
    ndc = np.array(view["focal_length"]) * local[:, :2] / local[:, 2:] + view["principal_point"]
    return np.array([width, height]) / 2 - ndc_unit(frame) * ndc, local[:, 2]


def unproject(frame: dict[str, Any], depth: np.ndarray) -> np.ndarray:
    """The places (H, W, 3) that pixel centres show, the inverse of `project`."""
    view, (height, width) = frame["viewpoint"], frame["image"]["size"]
    column, row = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    ndc = (np.array([width, height]) / 2 - np.stack([column, row], axis=-1)) / ndc_unit(frame)
    plane = (ndc - view["principal_point"]) / view["focal_length"]
    local = np.concatenate([plane, np.ones((height, width, 1))], axis=-1) * depth[..., None]
    return (local - view["T"]) @ np.array(view["R"]).T


def read_points(file: Path) -> np.ndarray:
    _, _, body = file.read_bytes().partition(b"end_header\n")
    return np.frombuffer(body, dtype=[("xyz", "<f4", 3), ("rgb", "u1", 3)])["xyz"].astype(float)


def test_layouts_have_the_files_that_the_format_names(co3d_category):
    for layout in ("v1", "v2"):
        root = co3d_category / layout
        frames, sequences = annotations(root), annotations(root, "sequence")
        assert (len(frames), len(sequences)) == (24, 3)
        for frame in frames:
            for path in (
                frame["image"]["path"],
                frame["mask"]["path"],
                *(frame["depth"][k] for k in ("path", "mask_path")),
            ):
                with Image.open(root / path) as picture:
                    assert [picture.height, picture.width] == frame["image"]["size"]
        for sequence in sequences:
            points = read_points(root / sequence["point_cloud"]["path"])
            assert len(points) == sequence["point_cloud"]["n_points"] > 100
            of_it = [frame for frame in frames if frame["sequence_name"] == sequence["sequence_name"]]
            assert [frame["frame_number"] for frame in of_it] == list(range(8))
            times = [frame["frame_timestamp"] for frame in of_it]
            assert times == sorted(times) and times[1] == pytest.approx(0.2)
    assert (co3d_category / "v2" / "metadata.sqlite").is_file()
    named = json.loads((co3d_category / "v2" / "category_to_subset_name_list.json").read_text())["solids"]
    for subset in named:
        for folder in ("set_lists", "eval_batches"):
            assert (co3d_category / "v2" / "solids" / folder / f"{folder}_{subset}.json").is_file()


def test_sizes_are_portrait_landscape_and_square(co3d_category):
    sizes = {tuple(frame["image"]["size"]) for frame in annotations(co3d_category / "v2")}
    assert sizes == {(43, 24), (24, 32), (24, 24)}


def test_masks_are_what_the_annotations_say(co3d_category):
    for frame in annotations(co3d_category / "v1"):
        with Image.open(co3d_category / "v1" / frame["mask"]["path"]) as picture:
            mask = np.asarray(picture) / 255
        assert mask.sum() == pytest.approx(frame["mask"]["mass"])
        assert 0.03 < mask.mean() < 0.5 and mask.max() == 1 and mask.min() == 0


@pytest.mark.parametrize("layout", ["v1", "v2"])
def test_points_lie_where_masks_and_depth_say(co3d_category, layout):
    """Points of the cloud fall on or beside the mask of every frame, as far as the depth of their pixel or farther.

    A point is not at its pixel's centre: edges are compared with the nearest depth of the pixels around, the rest with
    the median (half floats near depth 5 are 0.004 apart).
    """
    root = co3d_category / layout
    for frame in annotations(root):
        points = read_points(root / "solids" / frame["sequence_name"] / "pointcloud.ply")
        xy, far = project(frame, points)
        column, row = np.floor(xy).astype(int).T
        inside = (column >= 0) & (row >= 0) & (column < frame["image"]["size"][1]) & (row < frame["image"]["size"][0])
        assert inside.mean() > 0.95
        with Image.open(root / frame["mask"]["path"]) as picture:
            near_mask = ndimage.maximum_filter(np.asarray(picture), 3)[row[inside], column[inside]] > 0
        assert near_mask.mean() > 0.99
        depth = read_depth(root, frame)
        nearest = ndimage.minimum_filter(np.where(depth > 0, depth, np.inf), 3)
        assert (far[inside] > nearest[row[inside], column[inside]] - 0.05).mean() > 0.98
        behind = far[inside] - depth[row[inside], column[inside]]
        seen = np.abs(behind) < 0.1
        assert seen.mean() > 0.2
        assert abs(np.median(behind[seen])) < 0.01


@pytest.mark.parametrize("layout", ["v1", "v2"])
def test_depth_of_one_frame_is_that_of_the_next(co3d_category, layout):
    """The ground that both see, which is a plane: every pixel unprojects to z = -1."""
    root = co3d_category / layout
    for frame in annotations(root):
        with Image.open(root / frame["mask"]["path"]) as picture:
            ground = np.asarray(picture) == 0
        with Image.open(root / frame["depth"]["mask_path"]) as picture:
            ground &= np.asarray(picture)
        assert ground.sum() > 50
        assert np.abs(unproject(frame, read_depth(root, frame))[ground][:, 2] + 1).max() < 0.01


def test_colours_of_a_point_are_those_of_the_next_frame(co3d_category):
    """The ground's tiles, brought from one picture into the next by depth and cameras, look as they do there."""
    root = co3d_category / "v2"
    frames = [frame for frame in annotations(root) if frame["frame_number"] in (0, 7)]
    for first, second in zip(frames[::2], frames[1::2], strict=True):
        images = []
        for frame in (first, second):
            with Image.open(root / frame["image"]["path"]) as picture:
                images.append(np.asarray(picture.convert("RGB")).astype(float))
        depth, other = read_depth(root, first), read_depth(root, second)
        xy, far = project(second, unproject(first, depth).reshape(-1, 3))
        column, row = np.floor(xy).astype(int).T
        height, width = second["image"]["size"]
        seen = (
            (depth.ravel() > 0) & (depth.ravel() < 7) & (column >= 0) & (row >= 0) & (column < width) & (row < height)
        )
        seen[seen] &= np.abs(other[row[seen], column[seen]] - far[seen]) < 0.2
        assert seen.sum() > 60
        here, there = images[0].reshape(-1, 3)[seen], images[1][row[seen], column[seen]]
        shuffled = there[np.random.default_rng(0).permutation(len(there))]
        assert np.abs(here - there).mean() < 0.5 * np.abs(here - shuffled).mean()


def test_pixels_by_arithmetic():
    """At (4, 0, 0.5), looking along -x: the pixel of the principal point looks straight ahead, that one row below
    down by 1 / 10, and meets the ground, 1.5 below, at depth 15."""
    right, up, back = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    shot = Shot(right, up, back, np.array([4.0, 0.0, 0.5]), (5, 3), 10.0, (1.5, 2.5))
    directions = generator.rays(shot, 1).reshape(5, 3, 3)
    assert directions[2, 1].tolist() == [-1, 0, 0]
    assert directions[3, 2].tolist() == pytest.approx([-1, 0.1, -0.1])
    depth, _ = generator.behind("ground", shot.center, directions.reshape(-1, 3))
    assert depth.reshape(5, 3)[3].tolist() == pytest.approx([15, 15, 15])
    assert np.isinf(depth.reshape(5, 3)[:3]).all()
    assert np.isinf(generator.behind("gradient", shot.center, directions.reshape(-1, 3))[0]).all()


def test_two_samples_a_side_surround_the_centre():
    shot = generator.camera_path(Job(Path(), frames=3, size=6), 1)[0]
    fine = generator.rays(shot, 2).reshape(6, 2, 8, 2, 3).mean(axis=(1, 3))
    assert fine.reshape(-1, 3) == pytest.approx(generator.rays(shot, 1))


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".sqlite")
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scenes.render_co3d_category", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)


def test_the_command_and_that_processes_change_nothing(tmp_path):
    size = ("--sequences", 3, "--frames", 3, "--size", 8, "--categories", "solids", "others", "--background", "plain")
    outcome = run(tmp_path / "two", *size, "--jobs", 2)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.splitlines()[0] == f"{tmp_path / 'two' / 'v1' / 'solids'}: 3 sequences, 9 frames"
    generator.render(Job(tmp_path / "one", ("solids", "others"), 3, 3, 8, background="plain"))
    assert digest(tmp_path / "one") == digest(tmp_path / "two")
    names = {path.name for path in (tmp_path / "one" / "v2").iterdir()}
    assert names == {"solids", "others", "set_lists", "metadata.sqlite", "category_to_subset_name_list.json"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--sequences", 2), "must be at least 3"),
        (("--categories", "a", "a"), "must be different names"),
        (("--categories", "../a"), "must be different names"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, arguments, said):
    outcome = run(tmp_path / "out", *arguments)
    assert outcome.returncode == 2 and said in outcome.stderr
    assert not (tmp_path / "out").exists()
