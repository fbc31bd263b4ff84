"""Datasets: posed frames that are decoded when asked for, and their division into train, val and test."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.config import ReplaceableBase
from nerf_trainer.data.files import shown
from nerf_trainer.errors import ConfigError, DataError
from nerf_trainer.frames import FrameContents, FrameData
from nerf_trainer.geometry.similarity import Similarity

KNOWN, UNSEEN = "known", "unseen"
"""Frame types: what may be trained on, and what is held out. CO3D says of which subset too, as test_unseen."""

MOST_BAD_FRAMES = 0.05
"""Largest part of a scene's frames that on_bad_frame=skip leaves out."""


def is_known(frame_type: str) -> bool:
    """Whether a frame type is one of those that models may be shown: known, train_known, test_known, ..."""
    return frame_type.endswith(KNOWN)


def is_unseen(frame_type: str) -> bool:
    """Whether a frame type is one of those that are held out: unseen, train_unseen, test_unseen, ..."""
    return frame_type.endswith(UNSEEN)


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

    def valid(self, index: int) -> Bool[Tensor, "H W"] | None:
        """Which of one frame's pixels may be used; None for all. Safe to call from several threads."""
        return None

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
        """Each frame's number, unique within its split's file (in a dataset of sequences, within its sequence).

        In test splits with source views, a target and a source may bear the same number; the image path tells them
        apart.
        """

    @property
    @abstractmethod
    def frame_types(self) -> tuple[str, ...]:
        """`known` or `unseen` for each frame, or a word that ends so."""

    @property
    @abstractmethod
    def image_paths(self) -> tuple[str, ...]:
        """Where each frame's image is, for messages and reports."""

    @property
    def frame_timestamps(self) -> tuple[float, ...] | None:
        """Each frame's time since its sequence began, in the dataset's unit; None unless all have one."""
        return None

    @property
    def frame_categories(self) -> tuple[str, ...] | None:
        """The category (apple, teddybear) of each frame's sequence; None where the dataset has none."""
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
            sequence_category=self.frame_categories or (),
            frame_number=self.frame_numbers,
            frame_type=self.frame_types,
            frame_timestamp=None if times is None else torch.tensor(times, dtype=torch.float32),
            image_path=self.image_paths,
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
    dataset_from_world: Similarity | None = None
    """What the provider did to the world of the files; None where it left the world as it was."""
    points: Float[Tensor, "P 3"] | None = None
    """Points of the scene's surfaces that the format brings (COLMAP, CO3D), in the dataset's own frame."""

    def items(self) -> Iterator[tuple[str, DatasetBase]]:
        """The splits that there are, by name."""
        splits = (("train", self.train), ("val", self.val), ("test", self.test))
        return ((name, dataset) for name, dataset in splits if dataset is not None)


def left_out(scene: str, problems: Sequence[DataError], n_frames: int, most: float) -> tuple[str, ...]:
    """A notice for each frame that on_bad_frame=skip leaves out.

    Args:
        scene: the scene's name or file, for messages.
        problems: what is wrong with each of them.
        n_frames: frames in all.
        most: the largest part of them that may be left out.

    Raises:
        DataError: too many are bad, or all.
    """
    if len(problems) > most * n_frames or len(problems) == n_frames > 0:
        raise DataError(
            f"{shown(scene)}: on_bad_frame=skip leaves out at most {most:.0%} of the frames, found {len(problems)} of"
            f" {n_frames} bad; the first: {problems[0]}"
        )
    return tuple(f"left out ({len(problems)} of {n_frames} frames): {problem}" for problem in problems)


class DatasetMapProviderBase(ReplaceableBase):
    """Makes a `DatasetMap` from files."""

    @abstractmethod
    def get_dataset_map(self) -> DatasetMap:
        """The splits of the dataset, nothing decoded.

        Raises:
            DataError: the dataset is missing, damaged or breaks its format's rules.
        """

    def leave_out_bad_frames(self, most: float = MOST_BAD_FRAMES) -> None:
        """Told before `get_dataset_map` by a data source with on_bad_frame=skip: leave out frames that can't be read.

        Args:
            most: the largest part of a scene's frames that is left out, from 0 to 1; with more of them bad
                `get_dataset_map` raises a `DataError`.

        Raises:
            ConfigError: this provider can't.
        """
        raise ConfigError(
            f"on_bad_frame: found skip, but {type(self).__name__} can't leave frames out; set on_bad_frame=error"
        )
