"""Which format a folder or file of data is in, and the options that read it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nerf_trainer.config import registry
from nerf_trainer.data.files import SCENE_SCHEME, embedded_scene, shown
from nerf_trainer.data.splits import DatasetMapProviderBase
from nerf_trainer.errors import DataError

MESH_SUFFIXES = (".obj", ".ply", ".glb", ".gltf", ".stl", ".off", ".3mf", ".dae")
"""Files that are taken for meshes."""
_KNOWN = (
    "transforms_train.json (Blender), transforms.json (nerfstudio), poses_bounds.npy (LLFF), sparse/ or cameras.bin or"
    " cameras.txt (COLMAP), metadata.sqlite, frame_annotations.jgz (CO3D), a mesh file, or folders of Blender scenes"
)


@dataclass(frozen=True)
class Recognised:
    """A format, and how it is read."""

    format: str
    """Its name, for people."""
    provider: str
    """The name of the provider that reads it."""
    options: Mapping[str, str]
    """What to set of the provider's options."""


def recognise(source: str) -> Recognised:
    """The format of what is at a path, told by the names of its files alone.

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
        return Recognised("a scene in Blender format", "BlenderDatasetMapProvider", single)
    if _has(path, "transforms.json"):
        return Recognised("a transforms.json scene", "TransformsJsonDatasetMapProvider", single)
    if _has(path, "poses_bounds.npy"):
        options = {**single, "downscale_factor": str(_llff_factor(path))}
        return Recognised("a scene in LLFF format", "LlffDatasetMapProvider", options)
    if any(_has(path, "metadata.sqlite") for path in (path, *path.glob("*/"))):
        return Recognised("a CO3D category with an SQLite index", "SqlIndexDatasetMapProvider", _sql(path))
    co3d = _co3d(path)
    if co3d is not None:
        return co3d
    if _colmap(path):
        return Recognised("a COLMAP sparse model", "ColmapDatasetMapProvider", single)
    if any(path.glob("*/transforms_train.json")):
        options = {"base_dir": str(path), "evaluate": "KNOWN_SCENES"}
        return Recognised("a folder of scenes in Blender format", "MultiSceneDatasetMapProvider", options)
    there = ", ".join(sorted(child.name for child in path.iterdir())[:6]) or "nothing"
    raise DataError(f"data_source: no known format in {shown(path)} (found {shown(there)[:80]}); expected {_KNOWN}")


def _single(base_dir: str, name: str) -> dict[str, str]:
    return {"base_dir": base_dir, "object_name": name}


def _has(folder: Path, name: str) -> bool:
    return (folder / name).is_file()


def _file(path: Path) -> Recognised:
    if path.suffix.lower() in MESH_SUFFIXES:
        return Recognised("a mesh", "RenderedMeshDatasetMapProvider", {"data_file": str(path)})
    if path.suffix == ".sqlite":
        return Recognised("CO3D frames with an SQLite index", "SqlIndexDatasetMapProvider", _sql(path.parent))
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


def _sql(folder: Path) -> dict[str, str]:
    return {"dataset_root": str(folder)}


def _co3d(folder: Path) -> Recognised | None:
    """A category's folder, or a root with one category in it."""
    inside = [folder, *sorted(child for child in folder.iterdir() if child.is_dir())]
    homes = [home for home in inside if _has(home, "frame_annotations.jgz")]
    if not homes:
        return None
    category = homes[0]
    options = {"category": category.name, "dataset_root": str(category.parent)}
    lists = sorted((category / "set_lists").glob("set_lists_*.json"))
    if not lists:
        return Recognised("a category in CO3D's first format", "JsonIndexDatasetMapProvider", options)
    subsets = [path.stem.removeprefix("set_lists_") for path in lists]
    usual = next((s for s in subsets if s.startswith("manyview_dev")), subsets[0])
    options = {**options, "subset_name": usual}
    return Recognised("a category in CO3D's second format", "JsonIndexDatasetMapProviderV2", options)
