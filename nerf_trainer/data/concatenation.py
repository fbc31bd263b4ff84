"""Datasets in a row, as one."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, chain
from typing import TypeVar

from jaxtyping import Bool, UInt8
from torch import Tensor

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.data.splits import DatasetBase
from nerf_trainer.frames import FrameContents, FrameData

_Value = TypeVar("_Value")


class ConcatenatedDataset(DatasetBase):
    """The frames of several datasets, one dataset after the other, with all that they say of them; times and
    categories only where every dataset has them.

    Evaluation batches are not taken over.
    """

    def __init__(self, parts: Sequence[DatasetBase]) -> None:
        if not parts:
            raise ValueError("no datasets to join")
        self._parts = tuple(parts)
        self._ends = list(accumulate(map(len, self._parts)))
        self._cameras = Cameras.cat([part.cameras() for part in self._parts])
        self._sequences = tuple(chain.from_iterable(part.frame_sequences for part in self._parts))
        self._numbers = tuple(chain.from_iterable(part.frame_numbers for part in self._parts))
        self._types = tuple(chain.from_iterable(part.frame_types for part in self._parts))
        self._paths = tuple(chain.from_iterable(part.image_paths for part in self._parts))
        self._times = _all_or_none([part.frame_timestamps for part in self._parts])
        self._categories = _all_or_none([part.frame_categories for part in self._parts])

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> FrameData:
        part, i = self._place(index)
        frame = part[i]
        if self._times is None:
            frame = replace(frame, frame_timestamp=None)
        return frame if self._categories is not None else replace(frame, sequence_category=())

    def rgba(self, index: int) -> UInt8[Tensor, "H W 4"]:
        part, i = self._place(index)
        return part.rgba(i)

    def valid(self, index: int) -> Bool[Tensor, "H W"] | None:
        part, i = self._place(index)
        return part.valid(i)

    def _place(self, index: int) -> tuple[DatasetBase, int]:
        """The part that has a frame, and the frame's index there."""
        if not 0 <= index < len(self):
            raise IndexError(f"frame {index} of {len(self)}")
        number = bisect_right(self._ends, index)
        return self._parts[number], index - (self._ends[number] - len(self._parts[number]))

    def cameras(self) -> Cameras:
        return self._cameras

    @property
    def frame_sequences(self) -> tuple[str, ...]:
        return self._sequences

    @property
    def frame_numbers(self) -> tuple[int, ...]:
        return self._numbers

    @property
    def frame_types(self) -> tuple[str, ...]:
        return self._types

    @property
    def image_paths(self) -> tuple[str, ...]:
        return self._paths

    @property
    def frame_timestamps(self) -> tuple[float, ...] | None:
        return self._times

    @property
    def frame_categories(self) -> tuple[str, ...] | None:
        return self._categories

    @property
    def contents(self) -> FrameContents:
        held = [part.contents for part in self._parts]
        return FrameContents(
            image_rgb=any(c.image_rgb for c in held),
            fg_probability=any(c.fg_probability for c in held),
            depth_map=any(c.depth_map for c in held),
            mask_crop=any(c.mask_crop for c in held),
            sequence_names=tuple(sorted(self.sequence_names)),
        )


def _all_or_none(parts: Sequence[tuple[_Value, ...] | None]) -> tuple[_Value, ...] | None:
    """All in a row; None where a part has none."""
    there = [part for part in parts if part is not None]
    return tuple(chain.from_iterable(there)) if len(there) == len(parts) else None
