"""The embedded scene: its files, its geometry against its pictures, and that trivial models do badly on it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.float64]

SCENES = Path(__file__).parents[2] / "scenes"
SCENE = SCENES / "quickstart"
N_VIEWS = {"train": 60, "test": 20}
MAX_BYTES = 6 * 2**20
TRIVIAL_PSNR = 20.0
"""No trivial model may exceed this: 6 dB below the 26 dB that the quickstart must reach."""


@dataclass(frozen=True)
class TestView:
    """A test view: pose (4, 4) camera-to-world, rgba (H, W, 4) in [0, 1], z-depth (H, W), coded normals (H, W, 3)."""

    __test__ = False
    pose: Array
    rgba: Array
    depth: Array
    normals: Array


def load_meta() -> dict[str, Any]:
    return json.loads((SCENE / "meta.json").read_text())


def load_transforms(split: str) -> dict[str, Any]:
    return json.loads((SCENE / f"transforms_{split}.json").read_text())


def load_poses(split: str) -> Array:
    """Camera-to-world matrices (N, 4, 4)."""
    return np.array([frame["transform_matrix"] for frame in load_transforms(split)["frames"]])


def load_images(split: str) -> Array:
    """All pictures of a split (N, H, W, 4) in [0, 1]."""
    paths = [SCENE / f"{frame['file_path']}.png" for frame in load_transforms(split)["frames"]]
    return np.stack([np.asarray(Image.open(path)) for path in paths]) / 255.0


def on_white(rgba: Array) -> Array:
    """Straight-alpha pictures (..., 4) over white (..., 3)."""
    return rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:]


def mean_psnr(prediction: Array, target: Array) -> float:
    """The mean over views of each view's PSNR, for pictures (N, H, W, 3) in [0, 1]."""
    mse = ((prediction - target) ** 2).mean(axis=(1, 2, 3))
    return float((-10 * np.log10(mse)).mean())


def pixel_directions(size: int) -> Array:
    """Camera-space directions (H, W, 3) through the pixel centres, of z-depth 1; x right, y up, z backward."""
    focal = 0.5 * size / np.tan(0.5 * load_transforms("test")["camera_angle_x"])
    centre = np.arange(size) + 0.5 - 0.5 * size
    y, x = np.meshgrid(-centre / focal, centre / focal, indexing="ij")
    return np.stack([x, y, -np.ones_like(x)], -1)


@pytest.fixture(scope="module")
def views() -> list[TestView]:
    scale = load_meta()["depth_scale"]
    result = []
    for pose, frame in zip(load_poses("test"), load_transforms("test")["frames"], strict=True):
        stem = SCENE / frame["file_path"]
        depth = np.asarray(Image.open(f"{stem}_depth.png")).astype(np.float64) * scale
        normals = np.asarray(Image.open(f"{stem}_normal.png")).astype(np.float64)
        result.append(TestView(pose, np.asarray(Image.open(f"{stem}.png")) / 255.0, depth, normals))
    return result


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_frame_is_a_128x128_rgba_png(split: str) -> None:
    frames = load_transforms(split)["frames"]
    assert [frame["file_path"] for frame in frames] == [f"./{split}/r_{i}" for i in range(N_VIEWS[split])]
    for frame in frames:
        with Image.open(SCENE / f"{frame['file_path']}.png") as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGBA", (128, 128))
    on_disk = {p.stem for p in (SCENE / split).glob("*.png") if re.fullmatch(r"r_\d+", p.stem)}
    assert on_disk == {Path(frame["file_path"]).name for frame in frames}


def test_the_scene_takes_at_most_6_mib() -> None:
    assert sum(path.stat().st_size for path in SCENE.rglob("*") if path.is_file()) <= MAX_BYTES


def test_meta_says_how_the_scene_was_made() -> None:
    meta = load_meta()
    assert meta["n_train"] == N_VIEWS["train"]
    assert meta["n_test"] == N_VIEWS["test"]
    assert meta["resolution_hw"] == [128, 128]
    assert meta["samples_per_pixel"] >= 64
    assert "seed" in meta
    assert meta["renderer"].startswith("mitsuba 3.")
    assert np.abs(meta["bounding_box"]).max() <= 1.0
    assert meta["near"] <= meta["camera_radius"] - meta["bounding_radius"]
    assert meta["far"] >= meta["camera_radius"] + meta["bounding_radius"]


@pytest.mark.parametrize("split", ["train", "test"])
def test_cameras_are_rigid_look_at_the_origin_and_stand_upright(split: str) -> None:
    poses, radius = load_poses(split), load_meta()["camera_radius"]
    turn, position = poses[:, :3, :3], poses[:, :3, 3]
    assert np.allclose(turn.swapaxes(1, 2) @ turn, np.eye(3), atol=1e-9)
    assert np.allclose(np.linalg.det(turn), 1.0)
    assert np.allclose(poses[:, 3], [0, 0, 0, 1])
    assert np.allclose(np.linalg.norm(position, axis=1), radius)
    assert np.allclose(turn[:, :, 2], position / radius)  # z points backward, from the origin to the camera
    assert np.allclose(turn[:, 2, 0], 0, atol=1e-9)  # the x axis is level: no roll
    assert (turn[:, 2, 1] > 0).all()


def test_the_two_splits_share_no_viewpoint() -> None:
    train, test = (load_poses(split)[:, :3, 3] / load_meta()["camera_radius"] for split in ("train", "test"))
    angle = np.rad2deg(np.arccos(np.clip(test @ train.T, -1, 1)))
    assert angle.min() > 2.0
    assert angle.min(axis=1).max() < 20.0  # and each held-out view is within reach of a training view


def test_alpha_is_anti_aliased_and_transparent_pixels_are_black(views: list[TestView]) -> None:
    for view in views:
        alpha = view.rgba[..., 3]
        assert alpha.min() == 0
        assert alpha.max() == 1
        assert ((alpha > 0) & (alpha < 1)).sum() > 100
        assert (view.rgba[alpha == 0] == 0).all()


def test_the_object_touches_no_border_and_fills_the_frame() -> None:
    alpha = np.concatenate([load_images("train"), load_images("test")])[..., 3]
    border = np.concatenate([alpha[:, 0], alpha[:, -1], alpha[:, :, 0], alpha[:, :, -1]], axis=1)
    assert (border == 0).all()
    assert 0.3 < alpha.mean() < 0.8


def test_depth_and_alpha_agree(views: list[TestView]) -> None:
    hit = np.stack([view.depth > 0 for view in views])
    opaque = np.stack([view.rgba[..., 3] > 0.5 for view in views])
    assert (hit & opaque).sum() / (hit | opaque).sum() > 0.98
    for view in views:
        assert (view.depth[view.rgba[..., 3] == 1] > 0).all()
        assert (view.depth[view.rgba[..., 3] == 0] == 0).all()


def test_depth_unprojects_into_the_bounding_box(views: list[TestView]) -> None:
    low, high = np.array(load_meta()["bounding_box"])
    meta = load_meta()
    for view in views:
        hit = view.depth > 0
        points = (view.depth[..., None] * pixel_directions(128))[hit] @ view.pose[:3, :3].T + view.pose[:3, 3]
        assert (points >= low - 1e-3).all()
        assert (points <= high + 1e-3).all()
        assert view.depth[hit].min() >= meta["near"]
        assert view.depth[hit].max() <= meta["far"]


def test_normals_are_unit_and_face_the_camera(views: list[TestView]) -> None:
    for view in views:
        hit = view.depth > 0
        assert (view.normals[~hit] == 0).all()
        normal = (view.normals[hit] - 127.5) / 127.5
        assert np.abs(np.linalg.norm(normal, axis=-1) - 1).max() < 0.01  # three codes, each off by at most 0.5 / 127.5
        assert (np.sum(normal * (pixel_directions(128)[hit] @ view.pose[:3, :3].T), -1) < 0.01).all()


def test_normals_agree_with_the_depth_of_neighbouring_pixels(views: list[TestView]) -> None:
    """On smooth surface the cross product of two depth differences is the normal, in world space."""
    for view in views:
        points = view.depth[..., None] * pixel_directions(128) @ view.pose[:3, :3].T + view.pose[:3, 3]
        across, down = points[1:-1, 2:] - points[1:-1, :-2], points[2:, 1:-1] - points[:-2, 1:-1]
        expected = np.cross(down, across)
        expected /= np.maximum(np.linalg.norm(expected, axis=-1, keepdims=True), 1e-12)
        whole = (view.depth[1:-1, 1:-1] > 0) & (view.depth[1:-1, 2:] > 0) & (view.depth[1:-1, :-2] > 0)
        whole &= (view.depth[2:, 1:-1] > 0) & (view.depth[:-2, 1:-1] > 0)
        cosine = np.sum(expected * (view.normals[1:-1, 1:-1] - 127.5) / 127.5, -1)[whole]
        assert np.median(cosine) > 0.98


@pytest.mark.parametrize(("source", "target"), [(4, 12), (9, 17), (1, 6), (13, 18)])
def test_depth_reprojects_into_another_view(views: list[TestView], source: int, target: int) -> None:
    """A point seen in one view is, in another, either seen at its own depth or hidden behind something nearer."""
    a, b = views[source], views[target]
    hit = a.depth > 0
    world = (a.depth[..., None] * pixel_directions(128))[hit] @ a.pose[:3, :3].T + a.pose[:3, 3]
    local = (world - b.pose[:3, 3]) @ b.pose[:3, :3]  # the inverse of a rotation is its transpose
    focal = 64 / np.tan(0.5 * load_transforms("test")["camera_angle_x"])
    z = -local[:, 2]
    column = np.floor(64 + focal * local[:, 0] / z).astype(int)
    row = np.floor(64 - focal * local[:, 1] / z).astype(int)
    assert (np.stack([row, column]) >= 0).all()
    assert (np.stack([row, column]) < 128).all()
    seen = b.depth[row, column]
    inside = seen > 0
    assert inside.mean() > 0.97  # the rest are silhouette pixels whose centre just misses
    gap = z[inside] - seen[inside]
    tolerance = 0.03  # a pixel is 0.019 wide at the origin; slanted surface changes depth within it
    assert (np.abs(gap) < tolerance).mean() > 0.4
    assert (gap > -4 * tolerance).mean() > 0.97


def test_one_colour_with_the_true_alpha_is_a_bad_model() -> None:
    """The best constant-colour field cannot do better: it is given the exact silhouettes of the test views."""
    train, test = load_images("train"), load_images("test")
    alpha, residual = train[..., 3:], on_white(train) - (1 - train[..., 3:])
    colour = (alpha * residual).sum(axis=(0, 1, 2)) / (alpha**2).sum()  # least squares on the training pixels
    psnr = mean_psnr(test[..., 3:] * colour + 1 - test[..., 3:], on_white(test))
    assert psnr < TRIVIAL_PSNR


def sphere_texels(
    poses: Array, radius: float, size: int, n_latitudes: int
) -> tuple[NDArray[np.bool_], NDArray[np.intp]]:
    """Which pixels (N, H, W) see a sphere about the origin, and the index of the texel that each of those sees."""
    directions = pixel_directions(size) @ poses[:, None, :3, :3].swapaxes(-1, -2)
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    origins = poses[:, None, None, :3, 3]
    along = -(directions * origins).sum(-1)
    missed_by = (origins**2).sum(-1) - along**2  # squared distance of the ray from the centre
    hit = missed_by < radius**2
    points = (origins + (along - np.sqrt(np.maximum(radius**2 - missed_by, 0)))[..., None] * directions)[hit] / radius
    latitude = np.arccos(np.clip(points[:, 2], -1, 1)) / np.pi * n_latitudes
    longitude = (np.arctan2(points[:, 1], points[:, 0]) / (2 * np.pi) + 0.5) * 2 * n_latitudes
    row = np.minimum(latitude.astype(int), n_latitudes - 1)
    return hit, row * 2 * n_latitudes + np.minimum(longitude.astype(int), 2 * n_latitudes - 1)


@pytest.mark.parametrize("n_latitudes", [16, 48])
def test_one_textured_sphere_is_a_bad_model(n_latitudes: int) -> None:
    """Each texel takes the mean of the training pixels that see it; the best radius is chosen on the test views."""
    train, test = on_white(load_images("train")), on_white(load_images("test"))
    best = 0.0
    for radius in np.arange(0.3, 1.11, 0.1):
        hit, texel = sphere_texels(load_poses("train"), radius, 128, n_latitudes)
        n_texels = 2 * n_latitudes**2
        count = np.maximum(np.bincount(texel, minlength=n_texels), 1)
        colour = np.stack([np.bincount(texel, train[hit][:, c], n_texels) / count for c in range(3)], -1)
        hit, texel = sphere_texels(load_poses("test"), radius, 128, n_latitudes)
        prediction = np.ones_like(test)
        prediction[hit] = colour[texel]
        best = max(best, mean_psnr(prediction, test))
    assert 0 < best < TRIVIAL_PSNR


def test_the_script_and_its_seed_reproduce_a_test_view(tmp_path: Path) -> None:
    """View 0 of the test split, rendered anew by the script's own functions in a process of its own."""
    if not all(find_spec(package) for package in ("mitsuba", "trimesh", "embreex", "scipy")):
        pytest.skip("rendering the scene needs mitsuba, trimesh, embreex and scipy: pip install 'nerf_trainer[scenes]'")
    meta = load_meta()
    if f"mitsuba {version('mitsuba')} scalar_rgb" != meta["renderer"]:
        pytest.skip(f"the scene was rendered by {meta['renderer']}; another version draws other samples")
    n_pixels = f"--resolution={meta['resolution_hw'][0]}"
    command = [sys.executable, str(SCENES / "render_quickstart.py"), f"--out={tmp_path}", n_pixels, "--jobs=1"]
    command += [f"--seed={meta['seed']}", f"--samples={meta['samples_per_pixel']}", "--only=test/r_0"]
    subprocess.run(command, check=True, capture_output=True)
    for name in ("transforms_train.json", "transforms_test.json", "meta.json"):
        ours, theirs = (json.loads((folder / name).read_text()) for folder in (SCENE, tmp_path))
        assert ours.keys() == theirs.keys()
    assert json.loads((tmp_path / "meta.json").read_text())["bounding_box"] == meta["bounding_box"]
    for suffix, tolerance in (("", 2), ("_depth", 2), ("_normal", 1)):  # other processors round otherwise
        old, new = (
            np.asarray(Image.open(folder / f"test/r_0{suffix}.png")).astype(int) for folder in (SCENE, tmp_path)
        )
        assert np.mean(np.abs(old - new) <= tolerance) > 0.995
