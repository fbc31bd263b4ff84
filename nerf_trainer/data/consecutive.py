"""Frames that follow each other in a video: a sequence cut into segments where frames are missing.

The rule of Implicitron's SceneBatchSampler: frames are in the order of their times, where they have any, else of their
numbers; a step above the largest gap begins a new segment; of segments long enough, a frame is drawn, which the frames
around it join, so that short segments and the ends of long ones are not seen less than others.
"""

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch

from nerf_trainer.data.splits import DatasetBase
from nerf_trainer.errors import DataError, shown


@dataclass(frozen=True)
class Gaps:
    """The largest steps between frames that follow each other; 0 for no limit."""

    number: int = 0
    """In frame numbers."""
    seconds: float = 0.1
    """In time, where frames have times."""


class Segments:
    """The segments of every sequence of a dataset.

    Args:
        dataset: the frames.
        gaps: what separates segments.

    Raises:
        DataError: two frames of a sequence have the same time and number, so that there is no order.
    """

    def __init__(self, dataset: DatasetBase, gaps: Gaps) -> None:
        names, paths = dataset.frame_sequences, dataset.image_paths
        self.has_times = dataset.frame_timestamps is not None
        sequence_names = dict.fromkeys(names)
        ranks = {name: rank for rank, name in enumerate(sequence_names)}
        sequences = np.array([ranks[name] for name in names])
        numbers = np.array(dataset.frame_numbers)
        times = np.array(dataset.frame_timestamps or np.zeros(len(dataset)), dtype=np.float64)
        order = np.lexsort((numbers, times, sequences))
        same_sequence = np.diff(sequences[order]) == 0
        step, seconds = np.diff(numbers[order]), np.diff(times[order])
        for place in np.flatnonzero(same_sequence & (step == 0) & (seconds == 0)):
            before, i = order[place], order[place + 1]
            if paths[i] != paths[before]:
                raise DataError(
                    f"{shown(paths[i])}: found two frames of sequence {shown(names[i])} with number {numbers[i]} and no"
                    " time to tell them apart, expected an order; set sample_consecutive_frames=false"
                )
        apart = ((step > gaps.number) & (gaps.number > 0)) | ((seconds > gaps.seconds) & (gaps.seconds > 0))
        begins = np.concatenate([[True], ~same_sequence | apart])
        ids, positions = np.empty_like(order), np.empty_like(order)
        ids[order] = np.cumsum(begins) - 1
        positions[order] = np.arange(len(order))
        self.ids: list[int] = ids.tolist()
        """The segment of each frame."""
        self.positions: list[int] = positions.tolist()
        """The place of each frame in the order of all; that of a sequence is a part of it."""
        self._of_sequence: dict[str, list[list[int]]] = {name: [] for name in sequence_names}
        for segment in np.split(order, np.flatnonzero(begins)[1:]):
            self._of_sequence[names[segment[0]]].append(segment.tolist())
        self._longest = {name: max(map(len, segments)) for name, segments in self._of_sequence.items()}

    def longest(self, sequence: str) -> int:
        """Frames of the longest segment of a sequence."""
        return self._longest[sequence]

    def window(self, sequence: str, size: int, generator: torch.Generator) -> list[int]:
        """`size` frames in a row of one sequence; its longest segment where that has no more."""
        segments = self._of_sequence[sequence]
        long_enough = [s for s in segments if len(s) >= size] or [max(segments, key=len)]
        ends = list(accumulate(map(len, long_enough)))
        drawn = int(torch.randint(ends[-1], (), generator=generator))
        number = bisect_right(ends, drawn)
        segment = long_enough[number]
        middle = drawn - (ends[number] - len(segment))
        first = min(max(middle - size // 2, 0), max(0, len(segment) - size))
        return segment[first : first + size]

    def notices(self, size: int) -> tuple[str, ...]:
        """What a user should know who asks for `size` frames in a row, one line each.

        Raises:
            DataError: no two frames follow each other, and more than one are asked for.
        """
        if size < 2:
            return ()
        names = list(self._longest)
        if max(self._longest.values()) < 2:
            raise DataError(
                f"sample_consecutive_frames: found no two frames in a row in any of {len(names)} sequences; raise"
                " consecutive_frames_max_gap and consecutive_frames_max_gap_seconds (0 for no limit), or set it to"
                " false"
            )
        short = [name for name in names if self._longest[name] < size]
        if not short:
            return ()
        return (
            f"sample_consecutive_frames: {len(short)} of {len(names)} sequences have fewer than {size} frames in a row,"
            f" as {shown(short[0])} ({self._longest[short[0]]}): batches have what there is; raise"
            " consecutive_frames_max_gap and consecutive_frames_max_gap_seconds, or lower images_per_seq_options",
        )
