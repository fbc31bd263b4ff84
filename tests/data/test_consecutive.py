"""Sequences cut where frames are missing."""

from collections import Counter

import pytest
import torch

from nerf_trainer.data.consecutive import Gaps, Segments
from nerf_trainer.errors import DataError
from tests.data.frames_kit import FakeFrames

NO_GAPS = Gaps(number=0, seconds=0.0)


def windows(segments: Segments, size: int, n: int = 3000, sequence: str = "a") -> Counter[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(0)
    return Counter(tuple(segments.window(sequence, size, generator)) for _ in range(n))


def test_frames_are_in_the_order_of_their_numbers():
    frames = FakeFrames("aaaa", numbers=(30, 10, 20, 40))
    segments = Segments(frames, NO_GAPS)
    assert set(windows(segments, 4)) == {(1, 2, 0, 3)}
    assert set(windows(segments, 2)) == {(1, 2), (2, 0), (0, 3)}
    assert segments.positions == [2, 0, 1, 3] and not segments.has_times


def test_frames_are_in_the_order_of_their_times_where_they_have_any():
    frames = FakeFrames("aaa", numbers=(1, 2, 3), times=(0.2, 0.0, 0.1))
    assert set(windows(Segments(frames, NO_GAPS), 3)) == {(1, 2, 0)}


@pytest.mark.parametrize(
    ("gaps", "expected"),
    [
        (NO_GAPS, [[0, 1, 2, 3, 4]]),
        (Gaps(number=1, seconds=0.0), [[0, 1], [2, 3], [4]]),
        (Gaps(number=3, seconds=0.0), [[0, 1, 2, 3], [4]]),
        (Gaps(number=0, seconds=0.1), [[0, 1, 2], [3, 4]]),
        (Gaps(number=1, seconds=0.1), [[0, 1], [2], [3], [4]]),
    ],
)
def test_a_step_above_either_gap_begins_a_segment(gaps, expected):
    """Numbers step by 1, 3, 1, 5 and times by 0.1, 0.1, 0.2, 0.1 (in eighths, which are exact)."""
    eighths = (0, 1, 2, 4, 5)
    frames = FakeFrames("aaaaa", numbers=(0, 1, 4, 5, 10), times=[0.125 * t for t in eighths])
    gaps = Gaps(gaps.number, gaps.seconds and 0.125)
    ids = Segments(frames, gaps).ids
    assert [[i for i in range(5) if ids[i] == number] for number in sorted(set(ids))] == expected


def test_without_times_seconds_do_not_count():
    assert Segments(FakeFrames("aaa", numbers=(0, 5, 50)), Gaps(0, 0.1)).longest("a") == 3


def test_every_frame_of_segments_long_enough_is_the_middle_alike_often():
    """Segments of 6 and 3 frames, windows of 3: each of the 9 frames is the middle of one draw in 9; at the ends the
    window moves inwards."""
    frames = FakeFrames("a" * 11, numbers=(0, 1, 2, 3, 4, 5, 20, 21, 22, 40, 41))
    counts = windows(Segments(frames, Gaps(1, 0.0)), 3, n=9000)
    expected = {(0, 1, 2): 2, (1, 2, 3): 1, (2, 3, 4): 1, (3, 4, 5): 2, (6, 7, 8): 3}
    assert set(counts) == set(expected)
    for window, times in expected.items():
        assert abs(counts[window] - 1000 * times) < 5 * (1000 * times) ** 0.5


def test_where_no_segment_is_long_enough_the_longest_is_taken():
    frames = FakeFrames("aaaaa", numbers=(0, 1, 10, 11, 12))
    assert set(windows(Segments(frames, Gaps(1, 0.0)), 4)) == {(2, 3, 4)}


def test_notices_count_short_sequences():
    frames = FakeFrames("aaabbc", numbers=(0, 1, 2, 0, 1, 0))
    segments = Segments(frames, Gaps(1, 0.0))
    assert segments.notices(1) == ()
    (notice,) = segments.notices(3)
    assert "2 of 3 sequences have fewer than 3 frames in a row, as 'b' (2)" in notice and len(notice) < 400
    assert "1 of 3 sequences" in segments.notices(2)[0]
    with pytest.raises(DataError, match="found no two frames in a row in any of 2 sequences"):
        Segments(FakeFrames("aab", numbers=(0, 9, 0)), Gaps(1, 0.0)).notices(2)


def test_frames_without_an_order_are_refused():
    with pytest.raises(DataError, match=r"a/1.png.*two frames of sequence 'a' with number 7") as caught:
        Segments(FakeFrames("aab", numbers=(7, 7, 7)), NO_GAPS)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert Segments(FakeFrames("aab", numbers=(7, 7, 7), times=(0.0, 1.0, 0.0)), NO_GAPS).longest("a") == 2
