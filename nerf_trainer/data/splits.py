"""Datasets: posed frames that are decoded when asked for, and their division into train, val and test."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.config import ReplaceableBase
from nerf_trainer.data.images import MAX_MEGAPIXELS, downscale_depth, downscale_rgba, read_depth, read_rgba
from nerf_trainer.errors import DataError
from nerf_trainer.frames import FrameContents, FrameData
from nerf_trainer.randomness import derive_seed

KNOWN, UNSEEN = "known", "unseen"
"""Frame types: what may be trained on, and what is held out."""

SINGLE_SEQUENCE = "one_sequence"
"""The sequence name of every frame of a single scene."""


class DatasetBase(ABC):
    """N posed frames of one or more sequences. What needs no pixels is known without decoding any."""

    @abstractmethod
    def __len__(self) -> int:
        """N, the number of frames."""

    @abstractmethod
    def __getitem__(self, index: int) -> FrameData:
        """One frame as a batch of one, decoded, in host memory. Safe to call from several threads."""

    @abstractmethod
    def rgba(self, index: int) -> UInt8[Tensor, "H W 4"]:
        """One frame's pixels, straight alpha, 255 where the frame has none. Safe to call from several threads."""

    @abstractmethod
    def cameras(self) -> Cameras:
        """The views of all frames, in host memory."""

    @property
    @abstractmethod
    def frame_sequences(self) -> tuple[str, ...]:
        """The sequence that each frame belongs to."""

    @property
    @abstractmethod
    def frame_numbers(self) -> tuple[int, ...]:
        """Each frame's number within its sequence or file."""

    @property
    @abstractmethod
    def frame_types(self) -> tuple[str, ...]:
        """`known` or `unseen`, for each frame."""

    @property
    @abstractmethod
    def image_paths(self) -> tuple[str, ...]:
        """Where each frame's image is, for messages and reports."""

    @property
    def frame_timestamps(self) -> tuple[float, ...] | None:
        """Each frame's time since its sequence began, in the dataset's unit; None unless all have one."""
        return None

    def get_eval_batches(self) -> list[list[int]] | None:
        """Frame indices of each batch to evaluate, the target first and source views after; None if not laid down."""
        return None

    @property
    def contents(self) -> FrameContents:
        """What the frames hold besides cameras, as far as it is known without decoding any."""
        return FrameContents(sequence_names=tuple(sorted(self.sequence_names)))

    @property
    def image_sizes_hw(self) -> Int[Tensor, "N 2"]:
        """The frames' sizes (height, width) in pixels, as decoded."""
        return self.cameras().image_size_hw

    @property
    def sequence_names(self) -> tuple[str, ...]:
        """The distinct sequences, in order of appearance."""
        return tuple(dict.fromkeys(self.frame_sequences))

    @property
    def n_pixels(self) -> int:
        """Pixels of all frames together."""
        return int(self.image_sizes_hw.prod(dim=1).sum())

    def as_batch(self) -> FrameData:
        """All frames as one batch with everything but pixels."""
        times = self.frame_timestamps
        return FrameData(
            cameras=self.cameras(),
            sequence_name=self.frame_sequences,
            frame_number=self.frame_numbers,
            frame_type=self.frame_types,
            frame_timestamp=None if times is None else torch.tensor(times, dtype=torch.float32),
            image_path=self.image_paths,
        )


@dataclass(frozen=True)
class SceneFrame:
    """Where the pixels of one frame of a single scene are."""

    path: Path
    """The image file."""
    number: int
    """The frame's number within its split's file."""
    has_alpha: bool
    """Whether the file's alpha says what is foreground."""
    frame_type: str = KNOWN
    """`known` or `unseen`."""
    depth_path: Path | None = None
    """A 16-bit depth image of the same size, where there is one."""
    depth_scale: float = 1.0
    """World units of one step of the depth image."""
    timestamp: float | None = None
    """Time since the sequence began, in the dataset's unit, where it is known."""


class SingleSceneDataset(DatasetBase):
    """Frames of one scene, decoded when asked for and then kept, where they all fit a budget.

    Args:
        frames: where the pixels are.
        cameras: the views of the same frames, for the size after downscaling.
        downscale_factor: average blocks of this many pixels squared.
        eval_batches: what `get_eval_batches` gives.
        max_megapixels: largest image file that is decoded, in millions of pixels.
        cache_bytes: decoded images are kept if all of them take no more than this.
    """

    def __init__(
        self,
        frames: Sequence[SceneFrame],
        cameras: Cameras,
        downscale_factor: int = 1,
        eval_batches: list[list[int]] | None = None,
        max_megapixels: float = MAX_MEGAPIXELS,
        cache_bytes: int = 2 * 2**30,
    ) -> None:
        if len(frames) != len(cameras):
            raise ValueError(f"{len(frames)} frames but {len(cameras)} cameras")
        self._frames = tuple(frames)
        self._cameras = cameras
        self._downscale_factor = downscale_factor
        self._eval_batches = eval_batches
        self._max_megapixels = max_megapixels
        self._cache_bytes = cache_bytes
        has_depth = any(frame.depth_path is not None for frame in frames)
        self._keep = (8 if has_depth else 4) * self.n_pixels <= cache_bytes
        self._kept: dict[int, UInt8[Tensor, "H W 4"]] = {}
        self._kept_depths: dict[int, Float[Tensor, "H W"]] = {}

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> FrameData:
        frame, camera = self._frames[index], self._cameras[index]
        rgba = self.rgba(index)
        depth = self._depth(index)
        if self._keep:
            self._kept[index] = rgba
            if depth is not None:
                self._kept_depths[index] = depth
        channels = rgba.permute(2, 0, 1)[None].float() / 255
        return FrameData(
            cameras=camera,
            image_rgb=channels[:, :3],
            fg_probability=channels[:, 3:] if frame.has_alpha else None,
            depth_map=None if depth is None else depth[None, None],
            depth_mask=None if depth is None else (depth[None, None] > 0).float(),
            sequence_name=(SINGLE_SEQUENCE,),
            frame_number=(frame.number,),
            frame_type=(frame.frame_type,),
            frame_timestamp=None if frame.timestamp is None else torch.tensor([frame.timestamp], dtype=torch.float32),
            image_path=(str(frame.path),),
        )

    def rgba(self, index: int) -> UInt8[Tensor, "H W 4"]:
        if index in self._kept:
            return self._kept[index]
        frame = self._frames[index]
        image = read_rgba(frame.path, f"frame {frame.number}", self._max_megapixels)
        image = downscale_rgba(image, self._downscale_factor)
        self._check_size(index, image, frame.path)
        return image

    def _depth(self, index: int) -> Float[Tensor, "H W"] | None:
        if index in self._kept_depths:
            return self._kept_depths[index]
        frame = self._frames[index]
        if frame.depth_path is None:
            return None
        where = f"depth of frame {frame.number}"
        depth = read_depth(frame.depth_path, frame.depth_scale, where, self._max_megapixels)
        depth = downscale_depth(depth, self._downscale_factor)
        self._check_size(index, depth, frame.depth_path)
        return depth

    def _check_size(self, index: int, image: Tensor, path: Path) -> None:
        """Refuse an image that is not of its camera's size."""
        height, width = self._cameras.image_size_hw[index].tolist()
        if tuple(image.shape[:2]) != (height, width):
            raise DataError(
                f"{path}: found {image.shape[1]}x{image.shape[0]} pixels (width x height), expected {width}x{height}; "
                "do not change a dataset while it is read, and render depth at the images' size"
            )

    def cameras(self) -> Cameras:
        return self._cameras

    @property
    def frame_sequences(self) -> tuple[str, ...]:
        return (SINGLE_SEQUENCE,) * len(self)

    @property
    def frame_numbers(self) -> tuple[int, ...]:
        return tuple(frame.number for frame in self._frames)

    @property
    def frame_types(self) -> tuple[str, ...]:
        return tuple(frame.frame_type for frame in self._frames)

    @property
    def image_paths(self) -> tuple[str, ...]:
        return tuple(str(frame.path) for frame in self._frames)

    @property
    def frame_timestamps(self) -> tuple[float, ...] | None:
        times = tuple(frame.timestamp for frame in self._frames if frame.timestamp is not None)
        return times if len(times) == len(self) else None

    @property
    def contents(self) -> FrameContents:
        return FrameContents(
            fg_probability=any(frame.has_alpha for frame in self._frames),
            depth_map=any(frame.depth_path is not None for frame in self._frames),
            sequence_names=tuple(sorted(self.sequence_names)),
        )

    def get_eval_batches(self) -> list[list[int]] | None:
        return self._eval_batches

    def with_known_frames(self, known: "SingleSceneDataset", n_known: int | None) -> "SingleSceneDataset":
        """These frames as evaluation targets, with `n_known` frames of `known` as source views of each.

        Which ones depends on the target's number alone, and a smaller `n_known` takes the first of the same order.
        With None each target is evaluated by itself.
        """
        if n_known is None:
            return self._with(self._frames, self._cameras, [[i] for i in range(len(self))])
        batches = []
        for i, frame in enumerate(self._frames):
            generator = torch.Generator().manual_seed(derive_seed(0, "known frames", frame.number))
            order = torch.randperm(len(known), generator=generator)[:n_known]
            batches.append([i, *(order + len(self)).tolist()])
        sources = [replace(frame, frame_type=KNOWN) for frame in known._frames]
        return self._with([*self._frames, *sources], Cameras.cat([self._cameras, known._cameras]), batches)

    def _with(
        self, frames: Sequence[SceneFrame], cameras: Cameras, eval_batches: list[list[int]]
    ) -> "SingleSceneDataset":
        return SingleSceneDataset(
            frames, cameras, self._downscale_factor, eval_batches, self._max_megapixels, self._cache_bytes
        )


@dataclass(frozen=True)
class DatasetMap:
    """The splits of a dataset; None for one that it has not."""

    train: DatasetBase | None = None
    """What is trained on."""
    val: DatasetBase | None = None
    """What is looked at while training."""
    test: DatasetBase | None = None
    """What results are reported on."""
    notices: tuple[str, ...] = ()
    """What a user should know of the data and need not mend, one line each."""

    def items(self) -> Iterator[tuple[str, DatasetBase]]:
        """The splits that there are, by name."""
        splits = (("train", self.train), ("val", self.val), ("test", self.test))
        return ((name, dataset) for name, dataset in splits if dataset is not None)


class DatasetMapProviderBase(ReplaceableBase):
    """Makes a `DatasetMap` from files."""

    @abstractmethod
    def get_dataset_map(self) -> DatasetMap:
        """The splits of the dataset, nothing decoded.

        Raises:
            DataError: the dataset is missing, damaged or breaks its format's rules.
        """
