"""Datasets over an index of annotated frames, wherever the index comes from."""

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Self

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.config import ReplaceableBase
from nerf_trainer.data.co3d.annotations import FrameAnnotation, SequenceAnnotation
from nerf_trainer.data.co3d.frames import FrameReader, FrameShaping, ShapedFrame
from nerf_trainer.data.co3d.point_clouds import read_point_cloud
from nerf_trainer.data.co3d.shaping import Window, seen_through
from nerf_trainer.data.co3d.viewpoints import cameras_from_viewpoints, stack_viewpoints
from nerf_trainer.data.files import resolve_inside, shown
from nerf_trainer.data.poses import skew_notices
from nerf_trainer.data.splits import DatasetBase
from nerf_trainer.errors import DataError
from nerf_trainer.frames import FrameContents, FrameData, PointCloud

CACHE_BYTES = 2 * 2**30
"""Decoded frames are kept if all frames of a dataset take no more than this."""

_KEPT_BYTES = 9
"""Most that a pixel of a decoded frame takes: colours and mask, depth, and whether it is trusted."""

STRAY_PREFIX = "/large_experiments/p3/replay/datasets/co3d/co3d45k_220512/export_v23/"
"""A path of the machine that exported CO3D v2, which stands before some point clouds' own."""

_N_THREADS = 8


@dataclass(frozen=True)
class FrameIndex:
    """Frames of a dataset and their sequences, as annotated."""

    root: Path
    """The folder that the annotations' paths are relative to."""
    file: str
    """Where the annotations stand, for messages."""
    frames: tuple[FrameAnnotation, ...]
    """The frames, in order."""
    frame_types: tuple[str, ...]
    """What each frame is for: known or unseen, or a word that ends so."""
    sequences: Mapping[str, SequenceAnnotation]
    """The sequences by name; those of the frames are among them."""
    eval_batches: tuple[tuple[int, ...], ...] | None = None
    """Indices of the frames of each batch to evaluate, the target first; None if not laid down."""

    def chosen(self, places: Sequence[int]) -> "FrameIndex":
        """Some of the frames, in the order given; what evaluation batches there were are dropped."""
        return replace(
            self,
            frames=tuple(self.frames[i] for i in places),
            frame_types=tuple(self.frame_types[i] for i in places),
            eval_batches=None,
        )

    def without_others(self, places: Sequence[int]) -> "FrameIndex":
        """As `chosen`, but what is left of the evaluation batches stays: those whose target does."""
        now = {before: i for i, before in enumerate(places)}
        batches = None
        if self.eval_batches is not None:
            kept = (batch for batch in self.eval_batches if batch[0] in now)
            batches = tuple(tuple(now[i] for i in batch if i in now) for batch in kept)
        return replace(self.chosen(places), eval_batches=batches)

    @staticmethod
    def joined(parts: Sequence["FrameIndex"]) -> "FrameIndex":
        """The frames of several categories in a row; the batches of each after those of the one before.

        Raises:
            DataError: two categories have sequences of the same name, or only some have evaluation batches.
        """
        first = parts[0]
        if len(parts) == 1:
            return first
        sequences: dict[str, SequenceAnnotation] = {}
        batches: list[tuple[int, ...]] = []
        start = 0
        for part in parts:
            twice = sorted(sequences.keys() & part.sequences.keys())
            if twice:
                raise DataError(
                    f"{shown(part.file)}: found sequence {shown(twice[0])} of another category too, expected each name"
                    " once; load the categories by themselves"
                )
            if (part.eval_batches is None) != (first.eval_batches is None):
                raise DataError(
                    f"{shown(part.file)}: found evaluation batches in some categories only, expected them in all or"
                    " none; set load_eval_batches=false"
                )
            sequences.update(part.sequences)
            batches += [tuple(start + i for i in batch) for batch in part.eval_batches or ()]
            start += len(part.frames)
        return FrameIndex(
            root=first.root,
            file=", ".join(dict.fromkeys(part.file for part in parts)),
            frames=tuple(frame for part in parts for frame in part.frames),
            frame_types=tuple(kind for part in parts for kind in part.frame_types),
            sequences=sequences,
            eval_batches=None if first.eval_batches is None else tuple(batches),
        )


class ShapedFrames:
    """The frames of an index as files hold them; what was found out of them is kept.

    Args:
        index: the frames.
        shaping: what is read of them, and how it is cropped and resized.
    """

    def __init__(self, index: FrameIndex, shaping: FrameShaping) -> None:
        self.index = index
        self.reader = FrameReader(shaping, index.root, index.file)
        self._shaping = shaping
        self._windows: dict[int, Window] = {}
        self._kept: dict[int, tuple[ShapedFrame, Window]] = {}
        self._clouds: dict[str, PointCloud | None] = {}
        sizes = (shaping.frame_hw or frame.image.size for frame in index.frames)
        self._keeps = sum(height * width for height, width in sizes) * _KEPT_BYTES <= CACHE_BYTES

    @cached_property
    def full_views(self) -> tuple[Cameras, list[float]]:
        """The views of the whole images, and how skew each rotation was as written.

        Raises:
            DataError: a frame has no camera, or one that can't be.
        """
        frames = self.index.frames
        views = [frame.viewpoint for frame in frames if frame.viewpoint is not None]
        if len(views) < len(frames):
            without = next(frame for frame in frames if frame.viewpoint is None)
            raise DataError(
                f"{self.reader.where(without, 'viewpoint')}: found none, as in {len(frames) - len(views)} of"
                f" {len(frames)} frames, expected a camera; take these frames out of the index"
            )
        stacked = stack_viewpoints(
            [view.R for view in views],
            [view.T for view in views],
            [view.focal_length for view in views],
            [view.principal_point for view in views],
            [view.intrinsics_format for view in views],
        )
        sizes = torch.tensor([frame.image.size for frame in frames]).reshape(-1, 2)
        return cameras_from_viewpoints(stacked, sizes, lambda i: self.reader.where(frames[i], "viewpoint"))

    @cached_property
    def timestamps(self) -> tuple[float, ...] | None:
        """The time of each frame; None where one has none, which the format writes as a negative time."""
        times = tuple(frame.frame_timestamp for frame in self.index.frames)
        return times if all(time >= 0 for time in times) else None

    @cached_property
    def cameras(self) -> Cameras:
        """The views of the frames, cropped and resized; decodes the masks of frames whose box is not annotated."""
        places = range(len(self.index.frames))
        if any(self.reader.needs_mask(frame) for frame in self.index.frames):
            with ThreadPoolExecutor(_N_THREADS) as threads:
                windows = list(threads.map(self.window, places))
        else:
            windows = [self.window(i) for i in places]
        return seen_through(self.full_views[0], windows)

    def camera(self, i: int, through: Window) -> Cameras:
        """The view of one frame."""
        return seen_through(self.full_views[0][i], [through])

    def window(self, i: int) -> Window:
        """Which part of its image a frame shows."""
        if i not in self._windows:
            self._windows[i] = self.reader.window(self.index.frames[i])
        return self._windows[i]

    def read(self, i: int) -> tuple[ShapedFrame, Window]:
        """One frame, decoded or from memory."""
        kept = self._kept.get(i)
        if kept is not None:
            return kept
        shaped, self._windows[i] = self.reader.read(self.index.frames[i])
        if self._keeps:
            self._kept[i] = shaped, self._windows[i]
        return shaped, self._windows[i]

    def point_cloud(self, sequence: str) -> PointCloud | None:
        """The points of a sequence; None where it has none."""
        annotation = self.index.sequences[sequence].point_cloud
        if annotation is None:
            return None
        if sequence not in self._clouds:
            where = f"{shown(self.index.file)}: point cloud of {shown(sequence)[:60]}"
            relative = annotation.path.removeprefix(STRAY_PREFIX)
            path = resolve_inside(self.index.root, relative, where, self._shaping.allow_external)
            self._clouds[sequence] = read_point_cloud(path, where, self._shaping.max_points, sequence)
        return self._clouds[sequence]


class IndexDatasetBase(FrameShaping, ReplaceableBase, DatasetBase):
    """Posed frames of sequences that an index annotates, decoded when asked for.

    An implementation calls `hold` when it knows its frames.
    """

    def hold(self, index: FrameIndex) -> None:
        """Take these frames as the dataset's own. Nothing is opened."""
        self._held = ShapedFrames(index, self)

    def holding(self, index: FrameIndex) -> Self:
        """A dataset with the same options and other frames."""
        other = copy.copy(self)
        other.hold(index)
        return other

    @property
    def index(self) -> FrameIndex:
        """The frames and their sequences, as annotated."""
        return self._held.index

    def check(self) -> tuple[str, ...]:
        """Look at the cameras and for the images of all frames; returns what a user should know. Nothing is decoded.

        Raises:
            DataError: a camera can't be, a path leaves the root, or images are missing, with their number.
        """
        index, reader = self.index, self._held.reader
        for frame in index.frames:
            for kind, path in _paths(frame):
                if path.startswith("/") or ".." in path:
                    reader.path(frame, path, kind)
        gone = self._without_image() if self.load_images else []
        if gone:
            raise DataError(
                f"{shown(index.file)}: found no image of {len(gone)} of {len(index.frames)} frames, the first is"
                f" {shown(gone[0].image.path)[:100]} in {shown(index.root)[:100]}; download them, fix dataset_root or"
                " set on_bad_frame=skip"
            )
        return tuple(skew_notices(index.file, self._held.full_views[1]))

    def _without_image(self) -> list[FrameAnnotation]:
        """Frames whose image is not there. Folders are listed, one look for all of their images; nothing is opened."""
        places = [os.path.split(frame.image.path) for frame in self.index.frames]
        wanted: dict[str, set[str]] = {}
        for folder, name in places:
            wanted.setdefault(folder, set()).add(name)
        with ThreadPoolExecutor(_N_THREADS) as threads:
            found = threads.map(lambda folder: _files_in(self.index.root / folder), wanted)
            lost = {folder: names - there for (folder, names), there in zip(wanted.items(), found, strict=True)}
        return [frame for frame, (folder, name) in zip(self.index.frames, places, strict=True) if name in lost[folder]]

    def sound(self) -> tuple[list[int], list[DataError]]:
        """Which frames can be read, each being decoded, and what is wrong with the others."""
        with ThreadPoolExecutor(_N_THREADS) as threads:
            problems = list(threads.map(self._problem, range(len(self))))
        return [i for i, problem in enumerate(problems) if problem is None], [p for p in problems if p is not None]

    def _problem(self, i: int) -> DataError | None:
        try:
            self._held.reader.read(self.index.frames[i])
            _ = ShapedFrames(self.index.chosen([i]), self).full_views
        except DataError as error:
            return error
        return None

    def __len__(self) -> int:
        return len(self.index.frames)

    def __getitem__(self, index: int) -> FrameData:
        frame, (shaped, through) = self.index.frames[index], self._held.read(index)
        times, name = self.frame_timestamps, frame.sequence_name
        return FrameData(
            cameras=self._held.camera(index, through),
            image_rgb=None if shaped.rgb is None else shaped.rgb[None].float() / 255,
            fg_probability=None if shaped.foreground is None else shaped.foreground[None, None].float() / 255,
            mask_crop=None if self.frame_hw is None else through.valid[None, None].float(),
            depth_map=None if shaped.depth is None else shaped.depth[None, None],
            depth_mask=None if shaped.depth_mask is None else shaped.depth_mask[None, None].float(),
            sequence_name=(name,),
            frame_number=(frame.frame_number,),
            frame_type=(self.index.frame_types[index],),
            frame_timestamp=None if times is None else torch.tensor([times[index]], dtype=torch.float32),
            image_path=(self._image_path(frame),),
            sequence_category=(self.index.sequences[name].category,),
            point_cloud=(self._held.point_cloud(name),) if self.load_point_clouds else (),
        )

    def rgba(self, index: int) -> UInt8[Tensor, "H W 4"]:
        shaped, through = self._held.read(index)
        rgb = torch.zeros(3, *through.frame_hw, dtype=torch.uint8) if shaped.rgb is None else shaped.rgb
        alpha = torch.full_like(rgb[0], 255) if shaped.foreground is None else shaped.foreground
        return torch.cat([rgb, alpha[None]]).permute(1, 2, 0).contiguous()

    def valid(self, index: int) -> Bool[Tensor, "H W"] | None:
        return None if self.frame_hw is None else self._held.window(index).valid

    def cameras(self) -> Cameras:
        return self._held.cameras

    @property
    def image_sizes_hw(self) -> Int[Tensor, "N 2"]:
        size = self.frame_hw
        return self.cameras().image_size_hw if size is None else torch.tensor([size]).expand(len(self), 2)

    @property
    def frame_sequences(self) -> tuple[str, ...]:
        return tuple(frame.sequence_name for frame in self.index.frames)

    @property
    def frame_numbers(self) -> tuple[int, ...]:
        return tuple(frame.frame_number for frame in self.index.frames)

    @property
    def frame_types(self) -> tuple[str, ...]:
        return self.index.frame_types

    @property
    def frame_categories(self) -> tuple[str, ...] | None:
        return tuple(self.index.sequences[frame.sequence_name].category for frame in self.index.frames)

    @property
    def frame_timestamps(self) -> tuple[float, ...] | None:
        return self._held.timestamps

    @property
    def image_paths(self) -> tuple[str, ...]:
        return tuple(self._image_path(frame) for frame in self.index.frames)

    def _image_path(self, frame: FrameAnnotation) -> str:
        return str(self.index.root / frame.image.path)

    def get_eval_batches(self) -> list[list[int]] | None:
        batches = self.index.eval_batches
        return None if batches is None else [list(batch) for batch in batches]

    @property
    def contents(self) -> FrameContents:
        frames = self.index.frames
        masked = any(frame.mask is not None for frame in frames)
        return FrameContents(
            image_rgb=self.load_images,
            fg_probability=self.load_masks and (masked or any(map(self._held.reader.has_alpha, frames[:1]))),
            depth_map=self.load_depths and any(frame.depth is not None for frame in frames),
            mask_crop=self.frame_hw is not None,
            sequence_names=tuple(sorted(self.sequence_names)),
        )

    def points(self) -> Float[Tensor, "P 3"] | None:
        """The points of the frames' sequence, where point clouds are loaded and there is one sequence."""
        names = self.sequence_names
        cloud = self._held.point_cloud(names[0]) if self.load_point_clouds and len(names) == 1 else None
        return None if cloud is None else cloud.points


def _files_in(folder: Path) -> set[str]:
    """The names of a folder's files; none where there is no folder."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except OSError:
        return set()


def _paths(frame: FrameAnnotation) -> Iterator[tuple[str, str]]:
    """The files that a frame names, each with what it is."""
    yield "image", frame.image.path
    if frame.mask is not None:
        yield "mask", frame.mask.path
    if frame.depth is not None:
        yield "depth", frame.depth.path
        if frame.depth.mask_path is not None:
            yield "depth mask", frame.depth.mask_path
