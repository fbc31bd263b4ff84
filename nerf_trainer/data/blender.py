"""Scenes in the format of NeRF-synthetic (Mildenhall et al., 2020), as Blender scripts write it.

A folder with `transforms_train.json`, `transforms_val.json` and `transforms_test.json`, each with the horizontal field
of view `camera_angle_x` in radians and, for every frame, its image (`file_path`, by custom without .png) and its
camera-to-world matrix `transform_matrix` (camera axes x right, y up, z back). The alpha of the images is their mask.
Frames of a moving scene may have a `time`, from 0 to 1 in D-NeRF (Pumarola et al., 2021).

A folder may have a `meta.json` with `depth_scale`: an image `r_0.png` with a file `r_0_depth.png` beside it then has
depth, 16-bit grey, steps of depth_scale world units along the view axis, 0 where nothing was hit.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.config import registry
from nerf_trainer.data.files import (
    LARGEST_NUMBER,
    JsonNode,
    ScenePaths,
    read_json,
    resolve_inside,
    scene_folder,
    shown,
)
from nerf_trainer.data.photographs import Photograph, PhotographOptions, downscaled_hw, repeats
from nerf_trainer.data.poses import camera_from_opengl, read_rigid_poses, skew_notices
from nerf_trainer.data.single_scene import SingleSceneDataset
from nerf_trainer.data.splits import KNOWN, UNSEEN, DatasetMap
from nerf_trainer.errors import DataError, require_at_least

_LENS = ("k1", "k2", "k3", "k4", "p1", "p2")
"""Coefficients of lens distortion, which this format has none of."""


class BlenderSceneOptions(PhotographOptions):
    """How scenes in Blender format are read, one or many."""

    testskip: int = 1
    """Take every testskip-th view of val and test."""
    downscale_factor: int = 1
    """Average blocks of this many pixels squared: 2 is half resolution."""
    load_depth: bool = True
    """Load the exact depth that some scenes have beside their images."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least("testskip", self.testskip, 1)
        require_at_least("downscale_factor", self.downscale_factor, 1)


@registry.register
class BlenderDatasetMapProvider(BlenderSceneOptions):
    """The splits of a NeRF-synthetic scene. Background colour is the model's business; images keep their alpha."""

    base_dir: str
    """The scene's folder, with its transforms_*.json; `scene://quickstart` is the scene that comes with the package."""
    object_name: str
    """The scene's name, for messages."""

    def get_dataset_map(self) -> DatasetMap:
        root = scene_folder(self.base_dir)
        notices: list[str] = []
        train = self._read_split(root, "train", notices)
        if train is None:
            found = ", ".join(sorted(path.name for path in root.glob("*.json"))[:5]) or "no JSON file"
            raise DataError(
                f"{shown(root / 'transforms_train.json')}: missing (the folder has {shown(found)}), expected the "
                "training cameras; fix base_dir, which is the folder of one scene"
            )
        val, test = self._read_split(root, "val", notices), self._read_split(root, "test", notices)
        notices += repeats(self.object_name, train, test)
        val, test = (
            None if split is None else split.with_known_frames(train, self.n_known_frames_for_test)
            for split in (val, test)
        )
        return DatasetMap(train=train, val=val, test=test, notices=tuple(notices))

    def _read_split(self, root: Path, split: str, notices: list[str]) -> SingleSceneDataset | None:
        """The split, if its file is there; what the user should know of it is added to `notices`."""
        name = f"transforms_{split}.json"
        file = resolve_inside(root, name, name, self.allow_external)
        if not os.path.exists(file):
            return None
        content = read_json(file)
        frames = list(content.member("frames").elements())
        if not frames:
            raise content.member("frames").wrong("at least one frame", "an empty array")
        step = 1 if split == "train" else self.testskip
        scan = self.scan(shown(file), self._photographs(root, frames)[::step])
        kept = [frames[photograph.number] for photograph in scan.photographs]
        notices += scan.notices
        poses, skews = read_rigid_poses(kept, "transform_matrix")
        notices += skew_notices(shown(file), skews)
        R, T = camera_from_opengl(poses)
        sizes = [header.size_hw for header in scan.headers]
        of_size = {size_hw: _read_lens(content, size_hw) for size_hw in dict.fromkeys(sizes)}
        lenses = [of_size[size_hw] for size_hw in sizes]
        factor = self.downscale_factor
        cameras = Cameras(
            R=R.float(),
            T=T.float(),
            focal=torch.tensor([lens.focal for lens in lenses]) / factor,
            principal_point=torch.tensor([lens.principal_point for lens in lenses]) / factor,
            image_size_hw=downscaled_hw(scan.headers, factor, shown(file)),
        )
        dataset = self.dataset(scan, cameras, factor)
        return dataset.subset(range(len(dataset)), KNOWN if split == "train" else UNSEEN)

    def _photographs(self, root: Path, frames: Sequence[JsonNode]) -> list[Photograph]:
        """The frames of a file in its order."""
        paths, times = ScenePaths(root, self.allow_external), _read_times(frames)
        images = [_image(paths, frame) for frame in frames]
        depths, depth_scale = self._depths(paths, images)
        return [
            Photograph(
                path=image,
                where=f"{frame.where}.file_path",
                number=number,
                depth_path=depths.get(image),
                depth_scale=depth_scale,
                timestamp=time,
            )
            for number, (frame, image, time) in enumerate(zip(frames, images, times, strict=True))
        ]

    def _depths(self, paths: ScenePaths, images: list[Path]) -> tuple[dict[Path, Path], float]:
        """The depth image of each image that has one, and the world units of their steps."""
        meta = paths.root / "meta.json"
        if not self.load_depth or not meta.is_file():
            return {}, 1.0
        depths = {}
        for image in images:
            name = f"{image.stem}_depth.png"
            depth = paths.find(os.path.join(os.path.dirname(image), name), shown(name), ())
            if depth is not None and os.path.isfile(depth):
                depths[image] = depth
        return depths, read_json(meta).member("depth_scale").number("a positive number", low=0) if depths else 1.0


def _image(paths: ScenePaths, frame: JsonNode) -> Path:
    """The image of a frame: the path as written, or with .png added when it has no suffix there."""
    node = frame.member("file_path")
    written, where = node.text(), node.where
    return paths.find(written, where, (".png",)) or paths.resolve(written + ".png", where)


def _read_times(frames: Sequence[JsonNode]) -> list[float | None]:
    """The `time` of each frame of a file, None where the file has none."""
    timed = ["time" in frame for frame in frames]
    if not any(timed):
        return [None] * len(frames)
    if not all(timed):
        without = frames[timed.index(False)]
        place = JsonNode(None, without.file, f"{without.path}.time")
        raise place.wrong("a number, as other frames of the file have", "nothing (the key is missing)")
    return [frame.member("time").number("a finite number (a time)") for frame in frames]


@dataclass(frozen=True)
class _Lens:
    focal: tuple[float, float]
    principal_point: tuple[float, float]


def _read_lens(content: JsonNode, size_hw: tuple[int, int]) -> _Lens:
    """Focal length and principal point (x, y) in pixels of an image of `size_hw`.

    Pinhole formula for the field of view: focal = 0.5 W / tan(0.5 camera_angle_x), pixels square, centre in the middle.
    fl_x, fl_y, cx and cy, in pixels, go before it where the file has them.
    """
    height, width = size_hw
    for key, actual in (("w", width), ("h", height)):
        if key in content and content.member(key).number() != actual:
            raise content.member(key).wrong(f"{actual}, as the images have", f"{content.member(key).number():g}")
    for key in _LENS:
        if key in content and content.member(key).number() != 0:
            raise content.member(key).wrong("0 (a pinhole; TransformsJsonDatasetMapProvider reads distorted images)")
    if "fl_x" in content:
        focal_x = content.member("fl_x").number("a positive number of pixels", low=0)
    else:
        angle = content.member("camera_angle_x").number("an angle between 0 and pi", low=0, high=math.pi)
        focal_x = 0.5 * width / math.tan(0.5 * angle)
        if focal_x > LARGEST_NUMBER:
            raise content.member("camera_angle_x").wrong("an angle between 0 and pi")
    focal_y = content.member("fl_y").number("a positive number of pixels", low=0) if "fl_y" in content else focal_x
    center_x = content.member("cx").number() if "cx" in content else width / 2
    center_y = content.member("cy").number() if "cy" in content else height / 2
    return _Lens(focal=(focal_x, focal_y), principal_point=(center_x, center_y))
