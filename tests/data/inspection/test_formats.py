"""A format is told by its files, and what reads it is registered."""

from dataclasses import replace
from pathlib import Path

import pytest

import nerf_trainer.data  # noqa: F401  (registers the providers)
from nerf_trainer.config import registry
from nerf_trainer.data.inspection import formats
from nerf_trainer.data.inspection.formats import recognise
from nerf_trainer.data.splits import DatasetMapProviderBase
from nerf_trainer.data.tiny_nerf import TinyNerfDatasetMapProvider
from nerf_trainer.errors import MAX_LINE, DataError
from tests.data.tiny_scene import write_tiny
from tests.known_scene import ring

FILES = {
    "BlenderDatasetMapProvider": ["transforms_train.json", "transforms.json"],
    "TransformsJsonDatasetMapProvider": ["transforms.json", "sparse/0/cameras.bin"],
    "LlffDatasetMapProvider": ["poses_bounds.npy", "images_4/a.png", "sparse/0/cameras.bin"],
    "ColmapDatasetMapProvider": ["sparse/0/cameras.bin", "images/a.png"],
    "MultiSceneDatasetMapProvider": ["one/transforms_train.json", "two/transforms_train.json"],
    "TinyNerfDatasetMapProvider": ["tiny_nerf_data.npz", "notes.txt"],
    "SqlIndexDatasetMapProvider": ["metadata.sqlite"],
    "JsonIndexDatasetMapProvider": ["apple/frame_annotations.jgz"],
    "JsonIndexDatasetMapProviderV2": ["apple/frame_annotations.jgz", "apple/set_lists/set_lists_manyview_dev_0.json"],
}


def fill(root: Path, names: list[str]) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.mark.parametrize("provider", FILES)
def test_each_format(tmp_path: Path, provider: str, monkeypatch: pytest.MonkeyPatch):
    fill(tmp_path, FILES[provider])
    found = formats._recognised(str(tmp_path))
    assert found.provider == provider
    known = {cls.__name__: cls for cls in registry.get_all(DatasetMapProviderBase)}
    if provider in known:
        assert recognise(str(tmp_path)) == found
        options = {field for cls in known[provider].__mro__ for field in vars(cls).get("__annotations__", {})}
        assert set(found.options) <= options


def test_options_of_some_formats(tmp_path: Path):
    fill(tmp_path, FILES["LlffDatasetMapProvider"])
    assert formats._recognised(str(tmp_path)).options["downscale_factor"] == 4
    fill(tmp_path / "co", FILES["JsonIndexDatasetMapProviderV2"])
    options = formats._recognised(str(tmp_path / "co")).options
    assert options == {"category": "apple", "dataset_root": str(tmp_path / "co"), "subset_name": "manyview_dev_0"}
    fill(tmp_path, ["bunny.obj"])
    assert formats._recognised(str(tmp_path / "bunny.obj")).options == {"data_file": str(tmp_path / "bunny.obj")}
    assert recognise("scene://quickstart").options["base_dir"] == "scene://quickstart"


def test_photographs_without_cameras(tmp_path: Path):
    fill(tmp_path, ["photos/a.JPG", "photos/b.jpg", "photos/c.jpg", "photos/d.jpg"])
    with pytest.raises(
        DataError, match=r"photographs \(found a.JPG, b.jpg, c.jpg and 1 more\).*let COLMAP find that out"
    ):
        recognise(str(tmp_path / "photos"))


@pytest.mark.parametrize("scene", ["transforms.json", "sparse/0/cameras.bin", "poses_bounds.npy"])
def test_the_folder_of_photographs_within_a_scene(tmp_path: Path, scene: str):
    fill(tmp_path, ["images/a.jpg", scene])
    with pytest.raises(DataError, match=rf"images holds photographs alone; name the folder of the scene, {tmp_path}$"):
        recognise(str(tmp_path / "images"))


def test_what_is_no_dataset(tmp_path: Path):
    fill(tmp_path, ["notes.txt"])
    with pytest.raises(DataError, match=r"no known format in .* \(found notes.txt\); expected transforms_train.json"):
        recognise(str(tmp_path))
    with pytest.raises(DataError, match="found nothing at"):
        recognise(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="is a file of no known format"):
        recognise(str(tmp_path / "notes.txt"))
    for source in (str(tmp_path), "scene://nowhere"):
        with pytest.raises(DataError) as caught:
            recognise(source)
        assert len(str(caught.value)) < MAX_LINE


def test_a_format_that_nothing_reads_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fill(tmp_path, ["transforms_train.json"])
    monkeypatch.setattr(formats.registry, "get_all", lambda base: [])
    with pytest.raises(DataError, match="BlenderDatasetMapProvider reads, but no such provider is registered"):
        recognise(str(tmp_path))


def test_a_file_that_is_named_is_the_one_that_is_read(tmp_path: Path):
    """One of several in a folder; those that belong to a folder stand for it."""
    fill(tmp_path, ["transforms.json", "transforms_few.json", "transforms_test.json"])
    few, whole = recognise(str(tmp_path / "transforms_few.json")), recognise(str(tmp_path))
    assert few.provider == whole.provider == "TransformsJsonDatasetMapProvider"
    assert few.options == {"base_dir": str(tmp_path), "object_name": "transforms_few", "file": "transforms_few.json"}
    assert recognise(str(tmp_path / "transforms_test.json")) == whole


def test_a_tiny_scene_is_divided_by_how_many_views_it_has(tmp_path: Path):
    """As the notebooks do, where there is a view 101; else the last one is held out."""
    views = [replace(view, focal=(9.0, 9.0), center=(4.0, 3.0), hw=(6, 8)) for view in ring(102)]
    for n, divided in ((102, {}), (101, {"n_train_views": 100, "first_test_view": 100})):
        file = write_tiny(tmp_path / f"{n}.npz", views[:n])
        found = recognise(str(file))
        assert found.provider == "TinyNerfDatasetMapProvider" and found.options == {"data_file": str(file), **divided}
        datasets = TinyNerfDatasetMapProvider(**found.options).get_dataset_map()
        assert len(datasets.train) == 100 and len(datasets.test) == 1
    bad = tmp_path / "bad.npz"
    bad.write_bytes(b"no archive")
    assert recognise(str(bad)).options == {"data_file": str(bad)}, "what is wrong with it is for its provider to say"
