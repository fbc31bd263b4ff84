"""Every format at once: the same point in space on the same pixel, and one contract for every dataset.

One scene is written in each format by that format's formulas; the views have square pixels and centred principal
points, which all formats can say.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from nerf_trainer.config import Factory
from nerf_trainer.data.co3d.index import JsonIndexDataset
from nerf_trainer.data.co3d.sql import SqlIndexDataset, SqlIndexDatasetMapProvider
from nerf_trainer.data.co3d.v1 import JsonIndexDatasetMapProvider
from nerf_trainer.data.co3d.v2 import JsonIndexDatasetMapProviderV2
from nerf_trainer.data.colmap.provider import ColmapDatasetMapProvider
from nerf_trainer.data.llff import LlffDatasetMapProvider
from nerf_trainer.data.multi_scene import EvaluatedScenes, MultiSceneDatasetMapProvider
from nerf_trainer.data.rendered_mesh.provider import RenderedMeshDatasetMapProvider
from nerf_trainer.data.splits import DatasetBase, DatasetMap, is_known
from nerf_trainer.data.tiny_nerf import TinyNerfDatasetMapProvider
from nerf_trainer.data.transforms_json.provider import TransformsJsonDatasetMapProvider
from nerf_trainer.geometry.similarity import Similarity
from tests.data.co3d.written_category import Written, write_frame, write_v1, write_v2
from tests.data.colmap_scene import write_scene
from tests.data.known_dataset import read_blender, write_blender
from tests.data.llff_scene import write_llff
from tests.data.tiny_scene import write_tiny
from tests.data.transforms_scene import nerfstudio, save
from tests.known_scene import check_views, landmarks, ring

VIEWS = [replace(view, focal=(60.0, 60.0), center=(24.0, 18.0)) for view in ring(8)]
WHOLE = {"box_crop": False, "image_height": None, "image_width": None}


def blender(folder: Path) -> DatasetMap:
    write_blender(folder, VIEWS)
    lens = '"fl_x": 60.0, "fl_y": 57.0, "cx": 23.0, "cy": 19.0'
    file = folder / "transforms_train.json"
    text = file.read_text()
    assert lens in text
    file.write_text(text.replace(lens, '"fl_x": 60.0, "fl_y": 60.0, "cx": 24.0, "cy": 18.0'))
    return read_blender(folder)


def multi_scene(folder: Path) -> DatasetMap:
    blender(folder / "known")
    (folder / "known" / "transforms_test.json").write_text((folder / "known" / "transforms_train.json").read_text())
    return MultiSceneDatasetMapProvider(base_dir=str(folder), evaluate=EvaluatedScenes.KNOWN_SCENES).get_dataset_map()


def llff(folder: Path) -> DatasetMap:
    write_llff(folder, VIEWS)
    options = {"downscale_factor": 1, "hold_out_every": 0, "recenter": False, "spherify": True}
    return LlffDatasetMapProvider(base_dir=str(folder), object_name="known", **options).get_dataset_map()


def transforms_json(folder: Path) -> DatasetMap:
    folder.mkdir()
    save(folder, nerfstudio(folder, VIEWS))
    return TransformsJsonDatasetMapProvider(base_dir=str(folder), hold_out_every=0).get_dataset_map()


def colmap(folder: Path) -> DatasetMap:
    write_scene(folder, VIEWS)
    return ColmapDatasetMapProvider(base_dir=str(folder), hold_out_every=0).get_dataset_map()


def tiny_nerf(folder: Path) -> DatasetMap:
    folder.mkdir()
    options = {"n_train_views": len(VIEWS), "n_test_views": 0}
    return TinyNerfDatasetMapProvider(
        data_file=str(write_tiny(folder / "tiny.npz", VIEWS)), **options
    ).get_dataset_map()


def category(folder: Path, isotropic: bool) -> Written:
    frames = [write_frame(folder, "solids", "first", i, view, isotropic) for i, view in enumerate(VIEWS)]
    sequence = {"sequence_name": "first", "category": "solids", "viewpoint_quality_score": 1.0}
    written = Written(folder, {("first", i): view for i, view in enumerate(VIEWS)}, frames, [sequence])
    written.annotate()
    return written


def co3d_v1(folder: Path) -> DatasetMap:
    written, everything = category(folder, isotropic=False), list(range(len(VIEWS)))
    lists = {"train_known": everything, "train_unseen": [], "test_known": [], "test_unseen": []}
    write_v1(written, lists, [[0, 1, 2]], "multisequence")
    return JsonIndexDatasetMapProvider(
        category="solids",
        dataset_root=str(folder),
        task_str="multisequence",
        dataset=Factory.of(JsonIndexDataset, **WHOLE),
    ).get_dataset_map()


def co3d_v2(folder: Path) -> DatasetMap:
    written, everything = category(folder, isotropic=True), list(range(len(VIEWS)))
    write_v2(written, {"train": everything, "val": [0], "test": [1, 2]}, [[1, 2]])
    return JsonIndexDatasetMapProviderV2(
        category="solids",
        subset_name="fewview_dev",
        dataset_root=str(folder),
        dataset=Factory.of(JsonIndexDataset, **WHOLE),
    ).get_dataset_map()


FORMATS: dict[str, Callable[[Path], DatasetMap]] = {
    "blender": blender,
    "multi_scene": multi_scene,
    "llff": llff,
    "transforms_json": transforms_json,
    "colmap": colmap,
    "tiny_nerf": tiny_nerf,
    "co3d_v1": co3d_v1,
    "co3d_v2": co3d_v2,
}


@dataclass(frozen=True)
class Read:
    """The scene as one format gives it."""

    train: DatasetBase
    moved: Similarity


@pytest.fixture(scope="module")
def formats(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Read]:
    """The scene from every format; not to be changed."""
    found = {}
    for name, read in FORMATS.items():
        datasets = read(tmp_path_factory.mktemp(name) / "scene")
        assert datasets.train is not None
        found[name] = Read(datasets.train, datasets.dataset_from_world or Similarity.identity())
    return found


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_point_is_on_the_same_pixel(formats: dict[str, Read], name: str) -> None:
    check_views(formats[name].train, VIEWS, formats[name].moved)


def test_formats_agree_with_each_other(formats: dict[str, Read]) -> None:
    """Points of the world through each format's own frame, all against Blender's."""
    points = torch.from_numpy(landmarks(VIEWS[0]))
    pixels = {
        name: read.train.cameras().project(read.moved.points(points).float().expand(len(VIEWS), -1, 3))[0]
        for name, read in formats.items()
    }
    for name, xy in pixels.items():
        assert_close(xy, pixels["blender"], atol=2e-3, rtol=0, msg=lambda text, name=name: f"{name}: {text}")
    assert any(not read.moved.is_identity for read in formats.values())


def sql_dataset(root: Path) -> DatasetBase:
    pytest.importorskip("sqlalchemy")
    provider = SqlIndexDatasetMapProvider(
        dataset_root=str(root / "v2"),
        subset_list_name="fewview_dev",
        category="solids",
        dataset=Factory.of(SqlIndexDataset, image_height=20, image_width=24),
    )
    dataset = provider.get_dataset_map().train
    assert dataset is not None
    return dataset


@pytest.fixture(scope="module")
def datasets(formats: dict[str, Read], co3d_category: Path) -> dict[str, DatasetBase]:
    """Every kind of dataset that a provider gives."""
    mesh = RenderedMeshDatasetMapProvider(num_views=5, resolution=16, n_known_frames_for_test=2).get_dataset_map()
    cropped = JsonIndexDatasetMapProviderV2(
        category="solids",
        subset_name="fewview_dev",
        dataset_root=str(co3d_category / "v2"),
        dataset=Factory.of(JsonIndexDataset, image_height=20, image_width=24),
    ).get_dataset_map()
    assert mesh.test is not None and cropped.train is not None and cropped.test is not None
    return {
        **{name: read.train for name, read in formats.items()},
        "mesh": mesh.test,
        "co3d_cropped": cropped.train,
        "co3d_test": cropped.test,
        "sql": sql_dataset(co3d_category),
    }


DATASETS = [*FORMATS, "mesh", "co3d_cropped", "co3d_test", "sql"]


@pytest.mark.parametrize("name", DATASETS)
def test_what_is_known_without_pixels_is_true_of_them(datasets: dict[str, DatasetBase], name: str) -> None:
    dataset = datasets[name]
    n, contents = len(dataset), dataset.contents
    for known in (dataset.frame_sequences, dataset.frame_numbers, dataset.frame_types, dataset.image_paths):
        assert len(known) == n > 0
    assert torch.equal(dataset.cameras().image_size_hw, dataset.image_sizes_hw)
    assert dataset.n_pixels == sum(height * width for height, width in dataset.image_sizes_hw.tolist())
    assert all(kind.endswith(("known", "unseen")) for kind in dataset.frame_types)
    assert contents.sequence_names == tuple(sorted(set(dataset.frame_sequences)))
    held = {"fg_probability": False, "depth_map": False, "mask_crop": False}
    for i in range(n):
        frame, rgba, valid = dataset[i], dataset.rgba(i), dataset.valid(i)
        height, width = dataset.image_sizes_hw[i].tolist()
        assert rgba.shape == (height, width, 4) and rgba.dtype == torch.uint8
        assert frame.image_rgb is not None and frame.image_rgb.shape == (1, 3, height, width)
        assert_close(frame.image_rgb[0].permute(1, 2, 0), rgba[..., :3].float() / 255, atol=0.5 / 255, rtol=0)
        alpha = torch.ones(height, width) if frame.fg_probability is None else frame.fg_probability[0, 0]
        assert_close(alpha, rgba[..., 3].float() / 255, atol=0.5 / 255, rtol=0)
        whole = torch.ones(height, width, dtype=torch.bool)
        crop = whole if frame.mask_crop is None else frame.mask_crop[0, 0] > 0
        assert torch.equal(crop, whole if valid is None else valid)
        assert (frame.depth_map is None) == (frame.depth_mask is None)
        for field in held:
            held[field] |= vars(frame)[field] is not None
    assert {field: vars(contents)[field] for field in held} == held


@pytest.mark.parametrize("name", DATASETS)
def test_a_batch_of_all_frames_says_what_each_frame_says(datasets: dict[str, DatasetBase], name: str) -> None:
    dataset = datasets[name]
    batch, cameras = dataset.as_batch(), dataset.cameras()
    assert len(batch) == len(dataset)
    for i in range(len(dataset)):
        frame, listed = dataset[i], batch[i : i + 1]
        for field in ("sequence_name", "sequence_category", "frame_number", "frame_type", "image_path"):
            assert vars(frame)[field] == vars(listed)[field], field
        assert_same(frame.frame_timestamp, listed.frame_timestamp)
        for field in ("R", "T", "focal", "principal_point", "bounds", "image_size_hw"):
            assert_same(vars(frame.cameras)[field], vars(cameras[i])[field])
            assert_same(vars(frame.cameras)[field], vars(listed.cameras)[field])
        assert (frame.cameras.lenses is None) == (cameras.lenses is None)


def assert_same(a: torch.Tensor | None, b: torch.Tensor | None) -> None:
    assert (a is None) == (b is None)
    if a is not None and b is not None:
        assert_close(a, b)


@pytest.mark.parametrize("name", DATASETS)
def test_evaluation_batches_are_a_target_and_known_views_of_its_sequence(
    datasets: dict[str, DatasetBase], name: str
) -> None:
    dataset = datasets[name]
    for target, *sources in dataset.get_eval_batches() or []:
        assert min([target, *sources]) >= 0 and max([target, *sources]) < len(dataset)
        assert target not in sources
        assert all(dataset.frame_sequences[i] == dataset.frame_sequences[target] for i in sources)
        assert name == "co3d_v1" or all(is_known(dataset.frame_types[i]) for i in sources)


@pytest.mark.parametrize("name", DATASETS)
def test_threads_see_what_one_sees(datasets: dict[str, DatasetBase], name: str) -> None:
    dataset = datasets[name]
    alone = [dataset[i] for i in range(len(dataset))]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(dataset.__getitem__, 2 * list(range(len(dataset)))))
    for i, frame in enumerate(together):
        assert_same(frame.image_rgb, alone[i % len(dataset)].image_rgb)
        assert_same(frame.depth_map, alone[i % len(dataset)].depth_map)


@pytest.mark.parametrize("name", ["blender", "multi_scene", "co3d_v1", "co3d_v2"])
def test_depth_is_along_the_axis_in_the_cameras_unit(formats: dict[str, Read], name: str) -> None:
    """CO3D's depth is in half precision."""
    read = formats[name]
    for i, view in enumerate(VIEWS):
        depth = read.train[i].depth_map
        assert depth is not None
        np.testing.assert_allclose(depth[0, 0].numpy(), view.depth * read.moved.scale, rtol=1e-3, atol=1e-4)
