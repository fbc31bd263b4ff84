"""Every frame of a dataset looked at once: decoded, measured, shrunk; one that can't be read is a line, not the end."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.cameras.plane_sweep import small_grey
from nerf_trainer.data.inspection.image_quality import ImageQuality, measure
from nerf_trainer.data.single_scene import SINGLE_SEQUENCE
from nerf_trainer.data.splits import DatasetBase, DatasetMap, is_known
from nerf_trainer.errors import DataError

THUMBNAIL_SIDE = 112
"""Longer side of the thumbnails, pixels."""
_N_DEPTHS = 12
"""Depth maps that near and far are taken from."""


@dataclass(frozen=True)
class Look:
    """What a decoded frame shows."""

    quality: ImageQuality
    """Sharpness, exposure and what tells it from others."""
    grey: Float[Tensor, "h w"]
    """Brightness, small, for comparing views."""
    thumbnail: UInt8[np.ndarray, "t u 3"]
    """The picture over white, smaller still."""


@dataclass(frozen=True)
class InspectedFrame:
    """One frame of one split."""

    split: str
    """train, val or test."""
    number: int
    """Its number within its sequence or file."""
    sequence: str
    """The sequence it belongs to."""
    path: str
    """Its image."""
    look: Look | None
    """What it shows; None where it can't be read or was not looked at (`max_images`)."""
    problem: str = ""
    """Why it can't be read."""

    @property
    def name(self) -> str:
        """Short, for messages: its file, after its sequence where that has a name."""
        file = Path(self.path).name or str(self.number)
        return file if self.sequence == SINGLE_SEQUENCE else f"{self.sequence}/{file}"


@dataclass(frozen=True)
class Inspection:
    """All frames of a dataset, each once: train, then what is held out."""

    frames: tuple[InspectedFrame, ...]
    """The frames."""
    cameras: Cameras
    """Their views."""
    depth_span: tuple[float, float] | None
    """Nearest and farthest of the depths in depth maps, 1 % left out at both ends; None without depth maps."""
    shares_held_out: bool
    """Whether val and test are the same frames (they then stand here once, as test)."""

    def of_sequence(self, name: str) -> list[int]:
        """The frames of one sequence."""
        return [i for i, frame in enumerate(self.frames) if frame.sequence == name]

    @property
    def sequences(self) -> tuple[str, ...]:
        """The sequences, in order of appearance."""
        return tuple(dict.fromkeys(frame.sequence for frame in self.frames))


def inspect(datasets: DatasetMap, max_images: int = 0) -> Inspection:
    """Look at every frame of every split, on several threads.

    Args:
        datasets: the splits. Source views of held-out frames are not looked at again.
        max_images: decode at most so many frames, spread evenly; 0 for all.
    """
    chosen, shared = _distinct(datasets)
    places = [(name, split, i) for name, (split, members) in chosen.items() for i in members]
    every = set(range(len(places)))
    if 0 < max_images < len(places):
        every = {k * len(places) // max_images for k in range(max_images)}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        looks = list(threads.map(partial(_look, every), range(len(places)), places))
    cameras = Cameras.cat([split.cameras()[members] for split, members in chosen.values()])
    frames = []
    listed = {name: (s.frame_numbers, s.frame_sequences, s.image_paths) for name, (s, _) in chosen.items()}
    for (name, _, i), found in zip(places, looks, strict=True):
        numbers, sequences, paths = listed[name]
        look, problem = (None, str(found)) if isinstance(found, DataError) else (found, "")
        frames.append(InspectedFrame(name, numbers[i], sequences[i], paths[i], look, problem))
    return Inspection(tuple(frames), cameras, _depths([split for split, _ in chosen.values()]), shared)


def targets(split: DatasetBase) -> list[int]:
    """The frames that a split is about: those to evaluate where batches are laid down, without their source views."""
    batches = split.get_eval_batches()
    return list(range(len(split))) if batches is None else sorted({batch[0] for batch in batches})


def _distinct(datasets: DatasetMap) -> tuple[dict[str, tuple[DatasetBase, list[int]]], bool]:
    """The frames of each split to look at: those that it is about, without the known frames of CO3D's val and test that
    are trained on by design, and val not again where test is the same."""
    trained = set() if datasets.train is None else set(datasets.train.image_paths)
    chosen = {}
    for name, split in datasets.items():
        paths, types = split.image_paths, split.frame_types
        by_design = datasets.train is not None and name != "train"
        members = [
            i for i in targets(split) if not (by_design and paths[i] in trained and is_known(types[i]))
        ] or targets(split)
        chosen[name] = (split, members)
    paths = {name: sorted(split.image_paths[i] for i in members) for name, (split, members) in chosen.items()}
    shared = "val" in paths and paths["val"] == paths.get("test")
    return {name: found for name, found in chosen.items() if not (shared and name == "val")}, shared


def _look(every: set[int], k: int, place: tuple[str, DatasetBase, int]) -> Look | DataError | None:
    if k not in every:
        return None
    _, split, i = place
    try:
        rgba = split.rgba(i)
    except DataError as error:
        return error
    return Look(measure(rgba), small_grey(rgba.float() / 255), _thumbnail(rgba))


def _thumbnail(rgba: UInt8[Tensor, "H W 4"]) -> UInt8[np.ndarray, "t u 3"]:
    values = rgba.float()
    alpha = values[..., 3:] / 255
    flat = (values[..., :3] * alpha + 255 * (1 - alpha)).permute(2, 0, 1)[None]
    scale = THUMBNAIL_SIDE / max(rgba.shape[:2])
    size = [max(1, round(side * scale)) for side in rgba.shape[:2]]
    mode = "area" if scale < 1 else "nearest"
    return interpolate(flat, size=size, mode=mode)[0].permute(1, 2, 0).round().to(torch.uint8).numpy()


def _depths(splits: Sequence[DatasetBase]) -> tuple[float, float] | None:
    known = list(_some_depths(splits))
    if not known:
        return None
    values = torch.cat(known)
    return torch.quantile(values, 0.01).item(), torch.quantile(values, 0.99).item()


def _some_depths(splits: Sequence[DatasetBase]) -> Iterator[Tensor]:
    for split in [split for split in splits if split.contents.depth_map][:1]:
        for i in range(0, len(split), max(1, len(split) // _N_DEPTHS)):
            try:
                depth = split[i].depth_map
            except DataError:
                continue
            if depth is not None and bool((depth > 0).any()):
                known = depth[depth > 0]
                yield known[:: max(1, len(known) // 20000)]
