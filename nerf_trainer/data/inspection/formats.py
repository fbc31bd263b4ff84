"""Which format a folder or file of data is in, and the options that read it.

Names of files tell the format. Only a transforms_train.json is opened (NeRF-synthetic's scenes have one, and so, with
lenses and masks, may nerfstudio's), and the header of a tiny_nerf_data.npz, for how many views there are to divide.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nerf_trainer.command_line import assignment
from nerf_trainer.config import registry
from nerf_trainer.data.files import SCENE_SCHEME, JsonNode, embedded_scene, read_json, shown
from nerf_trainer.data.rendered_mesh.files import FORMATS as MESH_FORMATS
from nerf_trainer.data.splits import DatasetMapProviderBase
from nerf_trainer.data.tiny_nerf import TinyNerfDatasetMapProvider, count_views
from nerf_trainer.errors import DataError

_SQL_INDEX = "metadata.sqlite"
_OF_A_FOLDER = (
    *("transforms.json", "transforms_train.json", "transforms_val.json", "transforms_test.json"),
    *("set_lists.json", "meta.json"),
)
"""JSON files that belong to a folder whose other files say what it is."""
_DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")
_OF_FRAMES = (*_DISTORTION, "camera_model", "fl_x", "mask_path", "depth_file_path")
_PHOTOGRAPHS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp", ".heic")
_KNOWN = (
    "transforms_train.json (Blender), transforms.json (nerfstudio), poses_bounds.npy (LLFF), sparse/ or cameras.bin or"
    " cameras.txt (COLMAP), metadata.sqlite, frame_annotations.jgz (CO3D), a tiny_nerf_data.npz, a mesh file, or"
    " folders of Blender scenes"
)


@dataclass(frozen=True)
class Recognised:
    """A format, and how it is read."""

    format: str
    """Its name, for people."""
    provider: str
    """The name of the provider that reads it."""
    options: Mapping[str, str | int | bool]
    """What to set of the provider's options."""

    def words(self, provider_key: str) -> list[str]:
        """The overrides that choose the provider and set its options.

        Args:
            provider_key: the place of the provider in the configuration, without `_class_type`.
        """
        options = f"{provider_key}_{self.provider}_args"
        return [
            f"{provider_key}_class_type={self.provider}",
            *(
                assignment(f"{options}.{key}", value) if isinstance(value, str) else f"{options}.{key}={value}"
                for key, value in self.options.items()
            ),
        ]


def recognise(source: str) -> Recognised:
    """The format of what is at a path, told by its files.

    Args:
        source: a folder, a mesh file, an SQLite file, or `scene://NAME` for a scene that comes with the package.

    Raises:
        DataError: nothing is there, no format is known by these files, or nothing that is registered reads it.
    """
    found = _recognised(source)
    known = [cls.__name__ for cls in registry.get_all(DatasetMapProviderBase)]
    if found.provider not in known:
        raise DataError(
            f"data_source: {shown(source)} is {found.format}, which {found.provider} reads, but no such provider is"
            f" registered; expected one of {', '.join(known)}; update nerf_trainer, or name a plug-in in plugins"
        )
    return found


def _recognised(source: str) -> Recognised:
    if source.startswith(SCENE_SCHEME):
        embedded_scene(source.removeprefix(SCENE_SCHEME))
        name = source.removeprefix(SCENE_SCHEME)
        return Recognised("a scene of the package", "BlenderDatasetMapProvider", _single(source, name))
    path = Path(os.path.expanduser(source))
    if not path.exists():
        raise DataError(f"data_source: found nothing at {shown(source)}, expected a folder of data; fix the path")
    path = Path(os.path.abspath(path))
    if path.is_file():
        return _file(path)
    name = path.name or "scene"
    single = _single(str(path), name)
    if _has(path, "transforms_train.json"):
        if _is_nerfstudios(path / "transforms_train.json"):
            return Recognised("a scene in transforms_train.json", "TransformsJsonDatasetMapProvider", single)
        return Recognised("a scene in Blender format", "BlenderDatasetMapProvider", single)
    if _has(path, "transforms.json"):
        return Recognised("a transforms.json scene", "TransformsJsonDatasetMapProvider", single)
    if _has(path, "poses_bounds.npy"):
        options = {**single, "downscale_factor": _llff_factor(path)}
        return Recognised("a scene in LLFF format", "LlffDatasetMapProvider", options)
    if _has(path, _SQL_INDEX):
        return Recognised("CO3D frames with an SQLite index", "SqlIndexDatasetMapProvider", _sql(path / _SQL_INDEX))
    co3d = _co3d(path)
    if co3d is not None:
        return co3d
    if _colmap(path):
        return Recognised("a COLMAP sparse model", "ColmapDatasetMapProvider", single)
    if _has(path, "tiny_nerf_data.npz"):
        return _file(path / "tiny_nerf_data.npz")
    if any(path.glob("*/transforms_train.json")):
        options = {"base_dir": str(path), "evaluate": "KNOWN_SCENES"}
        return Recognised("a folder of scenes in Blender format", "MultiSceneDatasetMapProvider", options)
    raise DataError(_without_format(path))


def _without_format(folder: Path) -> str:
    """What to say of a folder that holds no known format; of one with photographs, what to do about it."""
    names = sorted(child.name for child in folder.iterdir())
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    there = shown(", ".join(names[:3])) + more if names else "nothing"
    photographs = [name for name in names if Path(name).suffix.lower() in _PHOTOGRAPHS]
    where = f"data_source: {shown(folder)} holds photographs"
    if photographs and _is_scene(folder.parent):
        return f"{where} alone; name the folder of the scene, {shown(folder.parent)}"
    if photographs:
        return (
            f"{where} (found {there}) and nothing that says where they were taken from; let COLMAP find that out"
            " (docs/data/colmap.md) and name the folder with its sparse/"
        )
    return f"data_source: no known format in {shown(folder)} (found {there}); expected {_KNOWN}"


def _is_scene(folder: Path) -> bool:
    files = ("transforms.json", "transforms_train.json", "poses_bounds.npy")
    return _colmap(folder) or any(_has(folder, name) for name in files)


def _single(base_dir: str, name: str) -> dict[str, str | int | bool]:
    return {"base_dir": base_dir, "object_name": name}


def _is_nerfstudios(file: Path) -> bool:
    """Whether a transforms_train.json has what Blender's format has no place for: lenses, masks, or intrinsics of each
    frame. What is wrong with the file is for its provider to say."""
    try:
        content = read_json(file)
        if _beyond_blender(content, (*_DISTORTION, "camera_model")):
            return True
        return any(_beyond_blender(frame, _OF_FRAMES) for frame in content.member("frames").elements())
    except DataError:
        return False


def _beyond_blender(node: JsonNode, keys: Sequence[str]) -> bool:
    return any(key in node and node.member(key).value != 0 for key in keys)


def _has(folder: Path, name: str) -> bool:
    return (folder / name).is_file()


def _file(path: Path) -> Recognised:
    if path.suffix[1:].lower() in MESH_FORMATS:
        return Recognised("a mesh", "RenderedMeshDatasetMapProvider", {"data_file": str(path)})
    if path.suffix == ".npz":
        return Recognised("a scene of the tiny-NeRF notebooks", TinyNerfDatasetMapProvider.__name__, _tiny(path))
    if path.suffix == ".sqlite":
        return Recognised("CO3D frames with an SQLite index", "SqlIndexDatasetMapProvider", _sql(path))
    if path.suffix == ".json" and path.name not in _OF_A_FOLDER:
        options = {**_single(str(path.parent), path.stem), "file": path.name}
        return Recognised(f"a scene in {path.name}", "TransformsJsonDatasetMapProvider", options)
    if path.suffix in (".json", ".npy"):
        return _recognised(str(path.parent))
    raise DataError(f"data_source: {shown(path)} is a file of no known format; expected {_KNOWN}")


def _colmap(folder: Path) -> bool:
    model = ("cameras.bin", "cameras.txt")
    homes = (folder, folder / "sparse", folder / "colmap" / "sparse", *(folder / "sparse").glob("*/"))
    return any(_has(home, name) for home in homes for name in model)


def _llff_factor(folder: Path) -> int:
    """The downscaling of a folder images_N beside the images: the one nearest to LLFF's usual 8; 1 without."""
    factors = [int(f.name.split("_")[1]) for f in folder.glob("images_*") if f.name.split("_")[1].isdigit()]
    return min(factors, key=lambda factor: abs(factor - 8)) if factors else 1


def _tiny(file: Path) -> dict[str, str | int | bool]:
    """Divided as the notebooks do where there are views enough; else the last is held out. What is wrong with the file
    is for its provider to say."""
    options: dict[str, str | int | bool] = {"data_file": str(file)}
    try:
        n_views = count_views(file)
    except DataError:
        return options
    if n_views > TinyNerfDatasetMapProvider.first_test_view or n_views < 2:
        return options
    return {**options, "n_train_views": n_views - 1, "first_test_view": n_views - 1}


def _sql(index: Path) -> dict[str, str | int | bool]:
    """An SQLite index, divided by the first of the lists beside it; all frames for every split without."""
    options: dict[str, str | int | bool] = {"dataset_root": str(index.parent)}
    if index.name != _SQL_INDEX:
        options["metadata_basename"] = index.name
    lists = sorted((index.parent / "set_lists").glob("set_lists_*"))
    named = [path.relative_to(index.parent) for path in lists if path.suffix in (".sqlite", ".json")]
    return {**options, "subset_lists_path": str(named[0])} if named else {**options, "ignore_subsets": True}


def _co3d(folder: Path) -> Recognised | None:
    """A category's folder, or a root with categories in it: all of CO3D's second format, the first of the first."""
    inside = [folder, *sorted(child for child in folder.iterdir() if child.is_dir())]
    homes = [home for home in inside if _has(home, "frame_annotations.jgz")]
    if not homes:
        return None
    root = {"dataset_root": str(homes[0].parent)}
    subsets = [{path.stem for path in (home / "set_lists").glob("set_lists_*.json")} for home in homes]
    if not subsets[0]:
        category = homes[0].name
        multi = _has(homes[0], "eval_batches_multisequence.json")
        task = {"task_str": "multisequence"} if multi else {"test_restrict_sequence_id": 0}
        options = {"category": category, **root, **task}
        return Recognised("a category in CO3D's first format", "JsonIndexDatasetMapProvider", options)
    alike = [home for home, of_home in zip(homes, subsets, strict=True) if of_home & subsets[0]]
    shared = sorted(set.intersection(*(of_home for of_home in subsets if of_home & subsets[0])) or subsets[0])
    # A manyview list is of a single sequence: quick to look at, and what single scenes are trained on.
    usual = next((name for name in shared if name.startswith("set_lists_manyview_dev")), shared[0])
    options = {"category": ",".join(home.name for home in alike), **root}
    options["subset_name"] = usual.removeprefix("set_lists_")
    return Recognised("categories in CO3D's second format", "JsonIndexDatasetMapProviderV2", options)
