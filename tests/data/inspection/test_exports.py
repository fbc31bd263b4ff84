"""Written and read again: the same points land on the same pixels, and files that need no change are not changed."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nerf_trainer.cameras.conventions import Reading
from nerf_trainer.cameras.lenses import Lenses
from nerf_trainer.data.inspection.exports import ExportFormat, ExportOptions, export
from nerf_trainer.data.single_scene import SceneFrame, SingleSceneDataset
from nerf_trainer.data.splits import DatasetMap
from nerf_trainer.data.transforms_json.provider import TransformsJsonDatasetMapProvider
from nerf_trainer.errors import ConfigError, DataError
from nerf_trainer.geometry.similarity import Similarity
from tests.cameras.known_cameras import cameras_of, corrupted
from tests.data.known_dataset import read_blender, write_blender
from tests.known_scene import check_views, ring

BLENDER = ExportOptions(ExportFormat.blender)


def read_transforms(root: Path) -> DatasetMap:
    return TransformsJsonDatasetMapProvider(base_dir=str(root)).get_dataset_map()


@pytest.fixture
def known(tmp_path: Path) -> Path:
    return write_blender(tmp_path / "known", ring(6), ring(4, height=0.6))


def check_depths(dataset, views) -> None:
    for i, view in enumerate(views):
        depth = dataset[i].depth_map
        assert depth is not None
        np.testing.assert_allclose(depth[0, 0].numpy(), view.depth, atol=2e-4)


@pytest.mark.parametrize("options", [BLENDER, ExportOptions()], ids=["blender", "transforms_json"])
def test_round_trips(known: Path, tmp_path: Path, options: ExportOptions):
    assert export(read_blender(known), tmp_path / "out", options).n_frames == 10
    read = read_blender if options.format is ExportFormat.blender else read_transforms
    datasets = read(tmp_path / "out")
    assert datasets.train is not None
    assert datasets.test is not None
    check_views(datasets.train, ring(6), datasets.dataset_from_world)
    check_views(datasets.test, ring(4, height=0.6), datasets.dataset_from_world)
    check_depths(datasets.train, ring(6))
    for i in range(6):
        name = f"train/r_{i}.png"
        assert (tmp_path / "out" / name).read_bytes() == (known / name).read_bytes()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_changed_images_are_written_anew(known: Path, tmp_path: Path):
    export(read_blender(known, downscale_factor=2), tmp_path / "half", BLENDER)
    half, again = read_blender(known, downscale_factor=2).train, read_blender(tmp_path / "half").train
    assert half is not None
    assert again is not None
    for i in range(6):
        assert torch.equal(half.rgba(i), again.rgba(i))
    check_views(again, ring(6), scale=0.5, pixels=False)


@pytest.mark.parametrize("keep_frame", [False, True])
def test_the_files_world_is_restored_unless_asked_otherwise(known: Path, tmp_path: Path, keep_frame: bool):
    c, s = np.cos(0.7), np.sin(0.7)
    turn = torch.tensor([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    moved = Similarity(0.25, turn, torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    datasets = read_blender(known)
    assert datasets.train is not None
    cameras = datasets.train.cameras()
    R, T = moved.views(cameras.R, cameras.T)
    frames = [SceneFrame(Path(path), i, True) for i, path in enumerate(datasets.train.image_paths)]
    there = SingleSceneDataset(frames, replace(cameras, R=R, T=T))
    export(DatasetMap(train=there, dataset_from_world=moved), tmp_path / "out", replace(BLENDER, keep_frame=keep_frame))
    again = read_blender(tmp_path / "out").train
    assert again is not None
    check_views(again, ring(6), moved if keep_frame else None)


def test_poses_are_mended(tmp_path: Path):
    root = write_blender(tmp_path / "wrong", ring(5))
    content = json.loads((root / "transforms_train.json").read_text())
    for frame, view in zip(content["frames"], ring(5), strict=True):
        frame["transform_matrix"] = (corrupted(view, "opencv") @ np.diag([1.0, -1.0, -1.0, 1.0])).tolist()
    (root / "transforms_train.json").write_text(json.dumps(content))
    export(read_blender(root), tmp_path / "right", replace(BLENDER, reading=Reading.BACK_Y_Z))
    again = read_blender(tmp_path / "right").train
    assert again is not None
    check_views(again, ring(5))


def scene_of(root: Path, cameras) -> DatasetMap:
    frames = [SceneFrame(root / "train" / f"r_{i}.png", i, True) for i in range(len(cameras))]
    return DatasetMap(train=SingleSceneDataset(frames, cameras))


def test_lenses_that_differ_stand_with_their_frames(known: Path, tmp_path: Path):
    cameras = cameras_of(ring(6))
    lenses = Lenses.pinholes(6)
    lenses = replace(
        lenses, radial=lenses.radial + torch.linspace(-0.1, 0.1, 6)[:, None] * torch.tensor([1.0, 0, 0, 0])
    )
    distorted = replace(cameras, lenses=lenses, focal=cameras.focal + torch.arange(6)[:, None])
    with pytest.raises(DataError, match="lens distortion, which Blender's format has no place for"):
        export(scene_of(known, distorted), tmp_path / "out", BLENDER)
    with pytest.raises(DataError, match="different intrinsics"):
        export(scene_of(known, replace(distorted, lenses=None)), tmp_path / "out", BLENDER)
    assert not (tmp_path / "out").exists()
    export(scene_of(known, distorted), tmp_path / "out", ExportOptions())
    content = json.loads((tmp_path / "out" / "transforms.json").read_text())
    assert [frame["fl_x"] for frame in content["frames"]] == pytest.approx([60, 61, 62, 63, 64, 65])
    assert [frame["k1"] for frame in content["frames"]] == pytest.approx([-0.1, -0.06, -0.02, 0.02, 0.06, 0.1])
    assert "fl_x" not in content
    train = read_transforms(tmp_path / "out").train
    assert train is not None
    torch.testing.assert_close(train.cameras().focal, distorted.focal)
    assert train.cameras().lenses is not None
    torch.testing.assert_close(train.cameras().lenses.radial, lenses.radial)


def test_nothing_is_overwritten_and_nothing_left_half(known: Path, tmp_path: Path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty, expected a new folder"):
        export(read_blender(known), tmp_path / "full", BLENDER)
    datasets = read_blender(known)
    (known / "test" / "r_3.png").write_bytes(b"no image")
    with pytest.raises(DataError):
        export(datasets, tmp_path / "out", BLENDER)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "known"]
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"


def test_jpegs_are_copied_where_the_format_takes_them(known: Path, tmp_path: Path):
    view = ring(1)[0]
    Image.fromarray(view.rgb).save(known / "train" / "r_0.jpg", quality=80)
    frames = [SceneFrame(known / "train" / "r_0.jpg", 0, False)]
    datasets = DatasetMap(train=SingleSceneDataset(frames, cameras_of([view])))
    export(datasets, tmp_path / "json", ExportOptions())
    assert (tmp_path / "json/train/r_0.jpg").read_bytes() == (known / "train/r_0.jpg").read_bytes()
    export(datasets, tmp_path / "blender", BLENDER)
    with Image.open(tmp_path / "blender/train/r_0.png") as written, Image.open(known / "train/r_0.jpg") as original:
        np.testing.assert_array_equal(np.array(written), np.array(original))
