"""The known scene in Blender format, by its documented formulas, for tests of what reads and writes datasets."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from nerf_trainer.data.blender import BlenderDatasetMapProvider
from nerf_trainer.data.splits import DatasetMap
from tests.known_scene import KnownView

LENS = {"fl_x": 60.0, "fl_y": 57.0, "cx": 23.0, "cy": 19.0}


def write_blender(root: Path, train: Sequence[KnownView], test: Sequence[KnownView] = ()) -> Path:
    for split, views in (("train", train), ("test", test)):
        frames = []
        (root / split).mkdir(parents=True, exist_ok=True)
        for i, view in enumerate(views):
            Image.fromarray(view.rgba).save(root / split / f"r_{i}.png")
            pose = view.opengl_camera_to_world.tolist()
            frames.append({"file_path": f"./{split}/r_{i}", "transform_matrix": pose})
            write_depth(root / split / f"r_{i}_depth.png", view)
        if views:
            (root / f"transforms_{split}.json").write_text(json.dumps({**LENS, "frames": frames}))
    (root / "meta.json").write_text(json.dumps({"depth_scale": 1e-4}))
    return root


def write_depth(path: Path, view: KnownView) -> None:
    Image.fromarray(np.round(view.depth / 1e-4).astype(np.uint16)).save(path)


def read_blender(root: Path, **options: object) -> DatasetMap:
    provider = BlenderDatasetMapProvider(base_dir=str(root), object_name="known", **options)  # type: ignore[arg-type]
    return provider.get_dataset_map()
