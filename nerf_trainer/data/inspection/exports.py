"""Datasets written in other formats: nerfstudio's transforms.json, and NeRF-synthetic's (Blender's) splits.

Both have camera-to-world matrices in OpenGL's axes (x right, y up, z back) and intrinsics in pixels. What a provider
did to the world is undone, unless asked otherwise. Each of several sequences gets a folder of its own. An image that is
unchanged is copied bit by bit. The folder appears by one rename when all is written.
"""

import json
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.cameras.conventions import Reading, reread
from nerf_trainer.data.images import read_rgba
from nerf_trainer.data.inspection.frames import targets
from nerf_trainer.data.splits import DatasetBase, DatasetMap
from nerf_trainer.errors import ConfigError, DataError, StorageError

_COPIED = {".png": ".png", ".jpg": ".jpg", ".jpeg": ".jpg"}


class ExportFormat(Enum):
    """What a dataset is written as."""

    transforms_json = "transforms_json"
    """nerfstudio's: one transforms.json with all frames and the names of those in each split."""
    blender = "blender"
    """NeRF-synthetic's: transforms_train.json, transforms_val.json, transforms_test.json, PNG images."""


@dataclass(frozen=True)
class ExportOptions:
    """How a dataset is written."""

    format: ExportFormat = ExportFormat.transforms_json
    """The format."""
    keep_frame: bool = False
    """Keep the dataset's own frame, with what its provider did to the world; else the files' world is restored."""
    reading: Reading = Reading.AS_READ
    """How to read the poses, where they were written in another convention than their format's."""


@dataclass(frozen=True)
class Exported:
    """What was written."""

    n_frames: int
    """Frames, each counted once."""
    folders: tuple[Path, ...]
    """The folder of each sequence; of a single one the folder that was named."""
    notices: tuple[str, ...]
    """What the format has no place for, one line each."""


@dataclass(frozen=True)
class _Frame:
    split: str
    dataset: DatasetBase
    index: int
    path: str
    """Where its image will be, relative to the folder, with its suffix."""
    copied: bool
    """Whether the image's file is copied as it is."""


def export(datasets: DatasetMap, folder: Path, options: ExportOptions) -> Exported:
    """Write a dataset into a new folder; of several sequences each into a folder of its own in there.

    Args:
        datasets: the splits; source views of held-out frames are written once, as the training frames they are.
        folder: what is made; may be there if it is empty.
        options: what is written.

    Raises:
        DataError: the format can't hold the dataset, or an image can't be read.
        ConfigError: the folder holds something already.
        StorageError: the disk refuses.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"output_directory: {folder} is not empty, expected a new folder; nothing is overwritten")
    if options.format is ExportFormat.blender:
        _require_pinholes(datasets)
    sequences = list(dict.fromkeys(name for _, dataset in datasets.items() for name in dataset.sequence_names))
    homes = dict(zip(sequences, _folder_names(sequences) if len(sequences) > 1 else [""], strict=True))
    part = folder.with_name(f".{folder.name}-{os.getpid()}")
    n_frames = 0
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        for sequence, home in homes.items():
            n_frames += _Writer(part / home, sequence, datasets, options).write()
        _sync(part)
        if folder.exists():
            folder.rmdir()
        os.rename(part, folder)
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageError(
            f"{folder}: can't be written ({reason}); expected a place with room; set output_directory"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Exported(n_frames, tuple(folder / home for home in homes.values()), tuple(_left_behind(datasets, options)))


def _folder_names(sequences: Sequence[str]) -> list[str]:
    """A name that any system takes for the folder of each sequence; all of them differ."""
    plain = [re.sub(r"[^\w.-]+", "_", name).strip("._")[:80] or "sequence" for name in sequences]
    counts = Counter(plain)
    return [name if counts[name] == 1 else f"{name}_{i}" for i, name in enumerate(plain)]


def _left_behind(datasets: DatasetMap, options: ExportOptions) -> Iterator[str]:
    """What of a dataset a format has no place for."""
    if options.format is ExportFormat.blender:
        if any(dataset.contents.mask_crop for _, dataset in datasets.items()):
            yield (
                "masks of the pixels that may be used are left behind, which Blender's format has no place for;"
                " format=transforms_json keeps them"
            )
        if datasets.points is not None:
            yield "the scene's points are left behind; format=transforms_json keeps those of a single scene"
    elif datasets.points is not None and len({n for _, d in datasets.items() for n in d.sequence_names}) > 1:
        yield "the scene's points are left behind, as they are not told apart by sequence"


def opengl_poses(cameras: Cameras) -> Float[Tensor, "N 4 4"]:
    """Camera-to-world matrices in OpenGL's axes, float64: (R^T diag(1, -1, -1) | -R^T T)."""
    R, T = cameras.R.double(), cameras.T.double()
    poses = torch.eye(4, dtype=torch.float64).repeat(len(cameras), 1, 1)
    poses[:, :3, :3] = R.mT * torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)
    poses[:, :3, 3] = -(R.mT @ T[..., None])[..., 0]
    return poses


class _Writer:
    """Writes one sequence."""

    def __init__(self, root: Path, sequence: str, datasets: DatasetMap, options: ExportOptions) -> None:
        self._root = root
        self._options = options
        self._splits = dict(datasets.items())
        self._chosen = {name: _of_sequence(dataset, sequence) for name, dataset in self._splits.items()}
        only = all(dataset.sequence_names == (sequence,) for dataset in self._splits.values())
        self._points = datasets.points if only else None
        self._undone = None if options.keep_frame else datasets.dataset_from_world
        self._scale = 1.0 if self._undone is None else self._undone.scale
        self._written: dict[str, _Frame] = {}
        self._depth_scale = self._step_of_depth() / self._scale

    def write(self) -> int:
        entries: dict[str, list[dict[str, Any]]] = {}
        lenses: list[dict[str, Any]] = []
        for name, dataset in self._splits.items():
            chosen = self._chosen[name]
            if not chosen:
                continue
            cameras = self._world_cameras(dataset.cameras()[chosen])
            poses = opengl_poses(cameras).tolist()
            entries[name] = []
            for k, index in enumerate(chosen):
                frame = self._image(name, dataset, index)
                lenses.append(_intrinsics(cameras, k))
                entries[name].append({**self._entry(frame), "transform_matrix": poses[k], "_lens": lenses[-1]})
        common = lenses[0] if all(lens == lenses[0] for lens in lenses) else None
        write = self._blender if self._options.format is ExportFormat.blender else self._transforms
        write(entries, common)
        return len(self._written)

    def _transforms(self, entries: dict[str, list[dict[str, Any]]], common: dict[str, Any] | None) -> None:
        frames: dict[str, dict[str, Any]] = {}
        names: dict[str, list[str]] = {}
        for split, members in entries.items():
            for entry in members:
                lens = entry.pop("_lens")
                frames.setdefault(entry["file_path"], {**entry, **({} if common else lens)})
            names[f"{split}_filenames"] = [entry["file_path"] for entry in members]
        content: dict[str, Any] = {**(common or {"camera_model": self._models(entries)}), **names}
        if any("depth_file_path" in frame for frame in frames.values()):
            content["depth_unit_scale_factor"] = content["integer_depth_scale"] = self._depth_scale
        if self._points is not None:
            content["ply_file_path"] = "points.ply"
            self._ply(content["ply_file_path"], self._points)
        self._json("transforms.json", {**content, "frames": list(frames.values())})

    def _models(self, entries: dict[str, list[dict[str, Any]]]) -> str:
        models = {entry.get("camera_model", "OPENCV") for members in entries.values() for entry in members}
        return "OPENCV_FISHEYE" if models == {"OPENCV_FISHEYE"} else "OPENCV"

    def _blender(self, entries: dict[str, list[dict[str, Any]]], common: dict[str, Any] | None) -> None:
        for split, members in entries.items():
            lenses = [entry.pop("_lens") for entry in members]
            if any(lens != lenses[0] for lens in lenses):
                raise DataError(
                    f"{split}: the views have different intrinsics, which Blender's format has no place for, expected"
                    " one camera; set format=transforms_json"
                )
            lens = {key: lenses[0][key] for key in ("w", "h", "fl_x", "fl_y", "cx", "cy")}
            angle = 2 * math.atan(0.5 * lens["w"] / lens["fl_x"])
            for entry in members:
                entry["file_path"] = "./" + entry["file_path"].removesuffix(".png")
                for key in ("depth_file_path", "depth_path"):
                    entry.pop(key, None)
            self._json(f"transforms_{split}.json", {"camera_angle_x": angle, **lens, "frames": members})
        if any(dataset.contents.depth_map for dataset in self._splits.values()):
            self._json("meta.json", {"depth_scale": self._depth_scale})

    def _world_cameras(self, cameras: Cameras) -> Cameras:
        """The views in the files' world, read as asked, in float64 where they are moved."""
        R, T = cameras.R.double(), cameras.T.double()
        if self._undone is not None:
            R, T = self._undone.inverse().views(R, T)
        moved = Cameras(R, T, cameras.focal, cameras.principal_point, cameras.image_size_hw, cameras.lenses)
        return reread(moved, self._options.reading)

    def _image(self, split: str, dataset: DatasetBase, index: int) -> _Frame:
        """Write a frame's image, unless another split has it already."""
        source = Path(dataset.image_paths[index])
        key = f"{source}#{dataset.frame_numbers[index]}"
        if key in self._written:
            return self._written[key]
        rgba = dataset.rgba(index)
        suffix = _COPIED.get(source.suffix.lower(), "")
        fits = suffix == ".png" or (suffix and self._options.format is ExportFormat.transforms_json)
        copied = bool(fits) and _holds(source, rgba)
        taken = {frame.path.rsplit(".", 1)[0] for frame in self._written.values()}
        stem = f"{split}/{source.stem or f'frame_{index:05d}'}"
        stem = stem if stem not in taken else f"{split}/{index:05d}_{source.stem}"
        frame = _Frame(split, dataset, index, stem + (suffix if copied else ".png"), copied)
        target = self._root / frame.path
        target.parent.mkdir(parents=True, exist_ok=True)
        if copied:
            shutil.copyfile(source, target)
        else:
            Image.fromarray(_opaque_or_not(rgba)).save(target)
        self._written[key] = frame
        return frame

    def _entry(self, frame: _Frame) -> dict[str, Any]:
        """What stands of a frame in JSON besides its pose; its mask and depth are written."""
        entry: dict[str, Any] = {"file_path": frame.path}
        times = frame.dataset.frame_timestamps
        if times is not None:
            entry["time"] = times[frame.index]
        stem = frame.path.rsplit(".", 1)[0]
        valid = frame.dataset.valid(frame.index)
        if valid is not None and self._options.format is ExportFormat.transforms_json:
            entry["mask_path"] = f"{stem}_mask.png"
            Image.fromarray(valid.to(torch.uint8).mul(255).numpy()).save(self._root / entry["mask_path"])
        depth = frame.dataset[frame.index].depth_map if frame.dataset.contents.depth_map else None
        if depth is not None:
            entry["depth_file_path"] = entry["depth_path"] = f"{stem}_depth.png"
            steps = (depth[0, 0].double() / (self._depth_scale * self._scale)).round().clamp(0, 65535)
            Image.fromarray(steps.numpy().astype(np.uint16)).save(self._root / entry["depth_file_path"])
        return entry

    def _step_of_depth(self) -> float:
        """The depth that one step of a 16-bit image stands for, in the dataset's units: the farthest is the last."""
        deepest = 0.0
        for name, dataset in self._splits.items():
            for index in self._chosen[name] if dataset.contents.depth_map else ():
                depth = dataset[index].depth_map
                deepest = max(deepest, 0.0 if depth is None else depth.max().item())
        return deepest / 65535 or 1.0

    def _ply(self, name: str, points: Float[Tensor, "P 3"]) -> None:
        """Points in the files' world, binary."""
        placed = points.double() if self._undone is None else self._undone.inverse().points(points.double())
        axes = "".join(f"property float {axis}\n" for axis in "xyz")
        header = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(points)}\n{axes}end_header\n"
        (self._root / name).write_bytes(header.encode() + placed.numpy().astype("<f4").tobytes())

    def _json(self, name: str, content: dict[str, Any]) -> None:
        self._root.mkdir(parents=True, exist_ok=True)
        (self._root / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _intrinsics(cameras: Cameras, k: int) -> dict[str, Any]:
    height, width = cameras.image_size_hw[k].tolist()
    (fl_x, fl_y), (cx, cy) = cameras.focal[k].tolist(), cameras.principal_point[k].tolist()
    lens: dict[str, Any] = {"camera_model": "OPENCV", "w": width, "h": height}
    lens |= {"fl_x": fl_x, "fl_y": fl_y, "cx": cx, "cy": cy}
    if cameras.lenses is not None:
        lens |= dict(zip(("k1", "k2", "k3", "k4"), cameras.lenses.radial[k].tolist(), strict=True))
        if bool(cameras.lenses.fisheye[k]):
            lens["camera_model"] = "OPENCV_FISHEYE"
        else:
            lens |= dict(zip(("p1", "p2"), cameras.lenses.tangential[k].tolist(), strict=True))
    return lens


def _holds(path: Path, rgba: UInt8[Tensor, "H W 4"]) -> bool:
    """Whether a file decodes to exactly these pixels."""
    try:
        return torch.equal(read_rgba(path), rgba)
    except DataError:
        return False


def _opaque_or_not(rgba: UInt8[Tensor, "H W 4"]) -> np.ndarray:
    pixels = rgba.contiguous().numpy()
    return pixels if bool((pixels[..., 3] < 255).any()) else np.ascontiguousarray(pixels[..., :3])


def _of_sequence(dataset: DatasetBase, sequence: str) -> list[int]:
    names = dataset.frame_sequences
    return [index for index in targets(dataset) if names[index] == sequence]


def _require_pinholes(datasets: DatasetMap) -> None:
    for name, dataset in datasets.items():
        if dataset.cameras().lenses is not None:
            raise DataError(
                f"{name}: found lens distortion, which Blender's format has no place for, expected pinholes; set"
                " format=transforms_json, or undistort the images first (colmap image_undistorter)"
            )


def _sync(folder: Path) -> None:
    """Wait until all files of a folder, and the folders themselves, are on the disk."""
    places: Sequence[Path] = sorted(folder.rglob("*"), key=lambda p: len(p.parts), reverse=True)
    wait: Callable[[int], None] = os.fsync
    for path in (*places, folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            wait(handle)
        finally:
            os.close(handle)
