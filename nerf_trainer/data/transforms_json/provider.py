"""Scenes as nerfstudio (Tancik et al. 2023) and instant-ngp (Mueller et al. 2022) write them: `transforms.json`.

A JSON object with `frames`, each with its image `file_path` and its camera-to-world `transform_matrix` (camera axes x
right, y up, z back), and with intrinsics that stand in the frames or for all of them in the file (`json_intrinsics`).
Beside that, where there is any:

- `mask_path` of a frame: black pixels are not used; `depth_file_path`: a 16-bit image of depth along the view axis;
- `train_filenames`, `val_filenames`, `test_filenames`: the splits;
- `applied_transform`, `applied_scale`: what the converter did to the capture's world; `ply_file_path`: points;
- of instant-ngp `aabb_scale`, `scale`, `offset`, `aabb`: a cube around the scene (`world`); `depth_path` with
  `integer_depth_scale`; `from_na`: camera axes x right, y down, z forward.

Keys that are in neither list are passed over. Those that would change the rays and are not modelled (a rolling shutter,
other lens models) are refused.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.config import registry
from nerf_trainer.data.files import LARGEST_NUMBER, JsonNode, ScenePaths, read_json, resolve_inside, scene_folder, shown
from nerf_trainer.data.held_out import HeldOutPhotographs
from nerf_trainer.data.images import ImageHeader
from nerf_trainer.data.lens_checks import require_invertible
from nerf_trainer.data.photographs import Photograph, Scan, as_read
from nerf_trainer.data.ply_points import read_ply_points
from nerf_trainer.data.poses import camera_from_opengl, read_rigid_poses, skew_notices
from nerf_trainer.data.single_scene import MaskRole
from nerf_trainer.data.splits import DatasetMap
from nerf_trainer.data.transforms_json.files import FrameFiles, NamedFiles, dynamic_mask_notices
from nerf_trainer.data.transforms_json.intrinsics import Intrinsics, IntrinsicsReader, lenses_of, size_mismatch
from nerf_trainer.data.transforms_json.world import applied_similarity, scene_box
from nerf_trainer.data.world import WorldFrame, settled
from nerf_trainer.errors import ConfigError, DataError
from nerf_trainer.geometry.similarity import Similarity

SPLITS = ("train", "val", "test")
_UNUSED = {
    "fisheye_crop_radius": "pixels outside of the image circle are used; mask them by mask_path",
    "white_transparent": "white pixels are opaque; give the images an alpha channel",
    "black_transparent": "black pixels are opaque; give the images an alpha channel",
    "n_frames": "all frames are read",
    "sharpness_discard_threshold": "blurred frames are kept",
}
"""Keys that are passed over with a word, as other programs would do something with them."""


@registry.register
class TransformsJsonDatasetMapProvider(HeldOutPhotographs):
    """The splits of a scene in transforms.json, or in transforms_train.json and its val and test."""

    base_dir: str
    """The scene's folder; every file must lie inside."""
    object_name: str = ""
    """The scene's name, for messages; empty takes the folder's."""
    file: str = "transforms.json"
    """The JSON file, relative to base_dir. Without a transforms.json, transforms_train.json and its val and test are
    read."""
    masks: MaskRole = MaskRole.VALID
    """What the masks of mask_path say: nerfstudio's are of pixels that may be used."""
    load_depth: bool = True
    """Read depth images."""
    depth_unit: float = 0.001
    """One step of a depth image of depth_file_path in units of the capture: 0.001 for millimetres."""
    load_points: bool = True
    """Read the points of ply_file_path."""
    world: WorldFrame = WorldFrame.AS_IS
    """Where the origin lies, how the axes point and how long the unit is."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.depth_unit < LARGEST_NUMBER:
            raise ConfigError(f"depth_unit: found {self.depth_unit}, expected a number above 0")

    def get_dataset_map(self) -> DatasetMap:
        root = scene_folder(self.base_dir)
        name = self.object_name or root.resolve().name
        files = [self._read(split, file) for split, file in self._files(root)]
        notices = [notice for file in files for notice in file.notices]
        applied = _common(files)
        posed, by = settled(Cameras.cat([file.posed for file in files]), self.world)
        named = [self._named(file, applied.scale * by.scale, by.scale) for file in files]
        paths = ScenePaths(root, self.allow_external)
        finders = [FrameFiles(paths, file.content.file.parent) for file in files]
        shrunk_by = self._shrunk_by(finders, named, notices)
        photographs = [
            finder.photograph(frame, shrunk_by)
            for finder, frames in zip(finders, named, strict=True)
            for frame in frames
        ]
        notices += dynamic_mask_notices(photographs)
        scan = self.scan(name, photographs)
        frames = [(file, frame) for file in files for frame in file.frames]
        cameras = self._cameras(name, posed, frames, scan, shrunk_by)
        factor = self.downscale_factor // shrunk_by
        dataset = self.dataset(scan, cameras, factor, self.masks)
        of_split = _named_splits(files, named)
        if of_split is None:
            by_name = sorted(range(len(photographs)), key=lambda i: named[0][i].image)
            datasets = self.with_held_out(name, dataset, scan, by_name)
        else:
            places = {original: place for place, original in enumerate(scan.kept)}
            train, val, test = ([places[i] for i in of_split[split] if i in places] for split in SPLITS)
            datasets = self.divided(name, dataset, train, val, test)
        whole = by.after(applied)
        return replace(
            datasets,
            notices=(*notices, *scan.notices, *datasets.notices),
            dataset_from_world=None if whole.is_identity else whole,
            points=self._points(root, files, by),
        )

    def _files(self, root: Path) -> list[tuple[str, Path]]:
        """The files to read and the split of each; an empty one for all splits."""
        file = resolve_inside(root, self.file, "file", self.allow_external)
        if os.path.exists(file):
            return [("", file)]
        default = self.file == "transforms.json"
        names = [(split, f"transforms_{split}.json") for split in SPLITS] if default else []
        there = [
            (split, resolve_inside(root, name, name, self.allow_external))
            for split, name in names
            if os.path.exists(root / name)
        ]
        if "train" in dict(there):
            return there
        found = ", ".join(sorted(path.name for path in root.glob("*.json"))[:5]) or "no JSON file"
        expected = "a transforms.json or transforms_train.json" if default else "the scene's JSON file"
        raise DataError(
            f"file: found no {shown(self.file)} in {shown(root)} (the folder has {shown(found)[:100]}), expected"
            f" {expected}; fix file or base_dir, or use the provider of another format"
        )

    def _read(self, split: str, file: Path) -> "_TransformsFile":
        """One file with its poses, in its own world."""
        content = read_json(file)
        frames = list(content.member("frames").elements())
        if not frames:
            raise content.member("frames").wrong("at least one frame", "an empty array")
        _refuse_other_axes(content)
        for frame in frames:
            for key in ("transform_matrix_start", "transform_matrix_end"):
                if key in frame:
                    raise frame.member(key).wrong("a transform_matrix alone (the camera must be still)")
        poses, skews = read_rigid_poses(frames, "transform_matrix")
        if _flag(content, "from_na"):
            poses = poses * poses.new_tensor([1.0, -1.0, -1.0, 1.0])
        R, T = camera_from_opengl(poses)
        n = len(frames)
        posed = Cameras(
            R=R,
            T=T,
            focal=R.new_ones(n, 2),
            principal_point=R.new_zeros(n, 2),
            image_size_hw=torch.ones(n, 2, dtype=torch.int64),
        )
        notices = skew_notices(shown(file), skews)
        notices += [f"{shown(file)}: {key} is not used: {why}" for key, why in _UNUSED.items() if key in content]
        box = scene_box(content)
        if box is not None:
            posed = replace(posed, bounds=box.bounds(posed))
            unseen = box.unseen(posed)
            if unseen:
                notices.append(
                    f"{shown(file)}: {len(unseen)} of {n} views have nothing of the box of aabb_scale before them, the"
                    f" first is frames[{unseen[0]}]; raise aabb_scale, or look at the poses"
                )
        return _TransformsFile(split, content, frames, posed, applied_similarity(content), tuple(notices))

    def _named(self, file: "_TransformsFile", of_capture: float, of_file: float) -> list[NamedFiles]:
        """The files of the frames, with depth in units of the dataset.

        Args:
            of_capture: length of a unit of the capture in the dataset.
            of_file: length of a unit of the file in the dataset.
        """
        content, depth = file.content, None
        if self.load_depth:
            depth = ("depth_file_path", self.depth_unit * of_capture)
            wanted = _flag(content, "enable_depth_loading", default=True)
            if wanted and "integer_depth_scale" in content:
                step = content.member("integer_depth_scale").number()
                depth = ("depth_path", step * of_file) if step > 0.0 else depth
        with_mask = self.masks is not MaskRole.IGNORE
        return [NamedFiles.of(frame, number, depth, with_mask) for number, frame in enumerate(file.frames)]

    def _shrunk_by(self, finders: list[FrameFiles], named: list[list[NamedFiles]], notices: list[str]) -> int:
        """By how much the copies that are read are smaller: the factor, or 1 where there are none."""
        factor = self.downscale_factor
        if factor == 1:
            return 1
        missing = [
            folder
            for finder, frames in zip(finders, named, strict=True)
            for folder in finder.missing_shrunk(frames, factor)
        ]
        if not missing:
            return factor
        notices.append(
            f"downscale_factor: no folder {shown(missing[0])[:80]}, blocks of {factor}x{factor} pixels of the whole"
            " images are averaged"
        )
        return 1

    def _cameras(
        self,
        scene: str,
        posed: Cameras,
        frames: list[tuple["_TransformsFile", JsonNode]],
        scan: Scan,
        shrunk_by: int,
    ) -> Cameras:
        """The views of the scanned frames, with the intrinsics of the images as they are read."""
        kept, factor = list(scan.kept), self.downscale_factor // shrunk_by
        readers = {id(file): IntrinsicsReader(file.content) for file, _ in frames}
        views = []
        for i, header, photograph in zip(kept, scan.headers, scan.photographs, strict=True):
            file, frame = frames[i]
            views.append(_intrinsics(readers[id(file)], frame, header, photograph, shrunk_by))
        views_of_files = replace(
            posed[kept],
            focal=torch.tensor([view.focal for view in views], dtype=torch.float64),
            principal_point=torch.tensor([view.principal_point for view in views], dtype=torch.float64),
            lenses=lenses_of(views),
        )
        written = torch.tensor([view.size_hw for view in views], dtype=torch.float64)
        cameras = as_read(views_of_files, written, scan.headers, factor, scene)
        require_invertible(cameras, lambda i: frames[kept[i]][1].where)
        return cameras

    def _points(self, root: Path, files: list["_TransformsFile"], by: Similarity) -> Float[Tensor, "P 3"] | None:
        """The points that the (first) file names, in the dataset's frame."""
        content = files[0].content
        if not self.load_points or "ply_file_path" not in content:
            return None
        node = content.member("ply_file_path")
        path = resolve_inside(root, str(content.file.parent / node.text()), node.where, self.allow_external)
        return by.points(read_ply_points(path, node.where)).float()


@dataclass(frozen=True)
class _TransformsFile:
    """One JSON file with its poses."""

    split: str
    """The split that all of its frames belong to; empty where they are divided."""
    content: JsonNode
    frames: list[JsonNode]
    posed: Cameras
    """The views in the world of the file, float64, without intrinsics."""
    applied: Similarity
    """What leads from the world of the capture to that of the file."""
    notices: tuple[str, ...]


def _common(files: list[_TransformsFile]) -> Similarity:
    """What leads from the world of the capture to that of the files, which all must agree on."""
    for file in files[1:]:
        if not torch.equal(file.applied.matrix(), files[0].applied.matrix()):
            raise file.content.wrong(
                f"applied_transform and applied_scale as in {shown(files[0].content.file.name)}", "others"
            )
    return files[0].applied


def _intrinsics(
    reader: IntrinsicsReader, frame: JsonNode, header: ImageHeader, photograph: Photograph, shrunk_by: int
) -> Intrinsics:
    """The intrinsics of a frame, whose image must be of the size that they are for (shrunk copies may be cut)."""
    height, width = header.size_hw
    view = reader.of(frame, (height * shrunk_by, width * shrunk_by))
    off = [abs(found * shrunk_by - said) for found, said in zip(header.size_hw, view.size_hw, strict=True)]
    if max(off) >= max(shrunk_by, 0.5):
        copy = f" (a copy {shrunk_by} times smaller)" if shrunk_by > 1 else ""
        raise size_mismatch(reader, frame, header.size_hw, shown(photograph.path.name) + copy)
    return view


def _named_splits(files: list[_TransformsFile], named: list[list[NamedFiles]]) -> dict[str, list[int]] | None:
    """The frames of each split, by their place among those of all files; None where nothing says which they are."""
    if files[0].split:
        starts = torch.tensor([0, *(len(file.frames) for file in files)]).cumsum(0).tolist()
        ranges = {file.split: list(range(starts[i], starts[i] + len(file.frames))) for i, file in enumerate(files)}
        return {split: ranges.get(split, []) for split in SPLITS}
    [file], [frames] = files, named
    written = [split for split in SPLITS if f"{split}_filenames" in file.content]
    return _listed_splits(file.content, frames, written) if written else None


def _listed_splits(content: JsonNode, frames: list[NamedFiles], written: list[str]) -> dict[str, list[int]]:
    """The frames that the lists of file names give to each split; without a list, train has those of no other."""
    places: dict[str, list[int]] = {}
    for place, frame in enumerate(frames):
        places.setdefault(_collapsed(frame.image), []).append(place)
    splits: dict[str, list[int]] = {split: [] for split in SPLITS}
    for split in written:
        for entry in content.member(f"{split}_filenames").elements():
            path = _collapsed(entry.text().replace("\\", "/"))
            if path not in places:
                raise entry.wrong("the file_path of a frame")
            splits[split] += places[path]
    if "train" not in written:
        held_out = {*splits["val"], *splits["test"]}
        splits["train"] = [i for i in range(len(frames)) if i not in held_out]
    return splits


def _collapsed(path: str) -> str:
    """A path without what says nothing: ./ and doubled slashes."""
    plain = "/".join(part for part in path.split("/") if part not in ("", "."))
    return f"/{plain}" if path.startswith("/") else plain


def _refuse_other_axes(content: JsonNode) -> None:
    """Refuse Mitsuba's axes, which instant-ngp reads otherwise."""
    if "normal_mts_args" in content:
        raise content.member("normal_mts_args").wrong(
            "none (a scene of Mitsuba; write poses with axes right, up, back)"
        )


def _flag(content: JsonNode, key: str, default: bool = False) -> bool:
    if key not in content:
        return default
    node = content.member(key)
    if not isinstance(node.value, bool):
        raise node.wrong("true or false")
    return node.value
