"""JsonIndexDataset: frames of a dataset in CO3D's format, chosen by options from what its JSON index files list."""

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby

from nerf_trainer.config import registry, runtime
from nerf_trainer.data.co3d.annotations import FrameAnnotation
from nerf_trainer.data.co3d.dataset import FrameIndex, IndexDatasetBase
from nerf_trainer.data.files import shown
from nerf_trainer.errors import ConfigError, DataError

SMALLEST_MASS = 1.0
"""A mask of no more than so many pixels is empty."""


@registry.register
class JsonIndexDataset(IndexDatasetBase):
    """Frames that JSON index files annotate, fewer of them as the options say. Options apply in this order:
    sort_frames, remove_empty_masks, limit_category_to, pick_sequence, exclude_sequence, limit_sequences_to,
    n_frames_per_sequence, limit_to.
    """

    annotated: FrameIndex = runtime()
    """The frames to choose from."""
    most_per_sequence: int = runtime()
    """At most so many frames of each sequence, as the provider says for the split; below 1 for no limit."""
    limit_to: int = 0
    """Take the first so many frames; 0 for all."""
    limit_sequences_to: int = 0
    """Take the first so many sequences that have frames, in the order of their annotations; 0 for all."""
    pick_sequence: tuple[str, ...] = ()
    """Names of sequences to take; empty for all."""
    exclude_sequence: tuple[str, ...] = ()
    """Names of sequences to leave out."""
    limit_category_to: tuple[str, ...] = ()
    """Categories whose sequences to take; empty for all."""
    remove_empty_masks: bool = True
    """Leave out frames without a mask, or whose mask has a mass of at most one pixel."""
    n_frames_per_sequence: int = -1
    """Draw at most so many frames of each sequence, at random; below 1 for all."""
    seed: int = 0
    """Which frames n_frames_per_sequence draws; each sequence's draw depends on its name too."""
    sort_frames: bool = False
    """Group frames by sequence, in the order of names, and sort those of each by time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("limit_to", self.limit_to), ("limit_sequences_to", self.limit_sequences_to)):
            if value < 0:
                raise ConfigError(f"{name}: found {value}, expected a whole number, or 0 for no limit")
        self.hold(self._chosen())

    def _chosen(self) -> FrameIndex:
        index = self.annotated
        steps: tuple[tuple[str, Callable[[FrameIndex], list[int]]], ...] = (
            ("sort_frames", self._sorted),
            ("remove_empty_masks", self._with_mask),
            ("limit_category_to", self._of_categories),
            ("pick_sequence", self._picked),
            ("exclude_sequence", self._not_excluded),
            ("limit_sequences_to", self._of_first_sequences),
            ("n_frames_per_sequence", self._drawn),
            ("limit_to", self._first),
        )
        for option, choose in steps:
            before, places = len(index.frames), choose(index)
            if not places:
                raise DataError(
                    f"{shown(index.file)}: found {before} frames before {option} and none after it, expected at least"
                    f" one; change {option}"
                )
            index = index.chosen(places)
        used = {frame.sequence_name for frame in index.frames}
        return replace(index, sequences={name: value for name, value in index.sequences.items() if name in used})

    def _sorted(self, index: FrameIndex) -> list[int]:
        places = list(range(len(index.frames)))
        if not self.sort_frames:
            return places
        return sorted(places, key=lambda i: (index.frames[i].sequence_name, index.frames[i].frame_timestamp))

    def _with_mask(self, index: FrameIndex) -> list[int]:
        if not self.remove_empty_masks:
            return list(range(len(index.frames)))
        places = []
        for i, frame in enumerate(index.frames):
            if frame.mask is None:
                continue
            if frame.mask.mass is None:
                raise DataError(
                    f"{shown(index.file)}: found no mask.mass for frame {frame.frame_number} of"
                    f" {shown(frame.sequence_name)[:60]}, expected one to tell empty masks; set"
                    " remove_empty_masks=false"
                )
            if frame.mask.mass > SMALLEST_MASS:
                places.append(i)
        return places

    def _of_categories(self, index: FrameIndex) -> list[int]:
        wanted = set(self.limit_category_to)
        return _where(index, lambda frame: not wanted or index.sequences[frame.sequence_name].category in wanted)

    def _picked(self, index: FrameIndex) -> list[int]:
        return _where(index, lambda frame: not self.pick_sequence or frame.sequence_name in self.pick_sequence)

    def _not_excluded(self, index: FrameIndex) -> list[int]:
        return _where(index, lambda frame: frame.sequence_name not in self.exclude_sequence)

    def _of_first_sequences(self, index: FrameIndex) -> list[int]:
        there = {frame.sequence_name for frame in index.frames}
        in_order = [name for name in index.sequences if name in there]
        wanted = set(in_order[: self.limit_sequences_to or None])
        return _where(index, lambda frame: frame.sequence_name in wanted)

    def _drawn(self, index: FrameIndex) -> list[int]:
        limits = [n for n in (self.n_frames_per_sequence, self.most_per_sequence) if n > 0]
        return draw_frames([f.sequence_name for f in index.frames], min(limits), self.seed) if limits else _all(index)

    def _first(self, index: FrameIndex) -> list[int]:
        return _all(index)[: self.limit_to or None]


def draw_frames(sequences: Sequence[str], n: int, seed: int) -> list[int]:
    """Places of at most n frames of each sequence, drawn at random, in their order.

    The draw of a sequence is Python's `random.Random` seeded by the SHA-1 of its name plus `seed`, which takes the same
    frames as the dataset's reference loader.

    Args:
        sequences: the sequence of each frame.
    """
    places = sorted(range(len(sequences)), key=lambda i: sequences[i])
    drawn: list[int] = []
    for name, of_sequence in groupby(places, key=lambda i: sequences[i]):
        own = list(of_sequence)
        generator = random.Random(int(hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest(), 16) + seed)
        drawn += generator.sample(own, len(own))[:n]
    return sorted(drawn)


def _where(index: FrameIndex, holds: Callable[[FrameAnnotation], bool]) -> list[int]:
    return [i for i, frame in enumerate(index.frames) if holds(frame)]


def _all(index: FrameIndex) -> list[int]:
    return list(range(len(index.frames)))
