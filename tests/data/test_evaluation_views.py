"""Targets and their source views, the same in every run."""

from collections import Counter

from nerf_trainer.data.consecutive import Gaps, Segments
from nerf_trainer.data.evaluation_views import DrawnViews, LaidDownViews, evaluation_views, targets
from nerf_trainer.data.samplers import SourceViews
from tests.data.frames_kit import DECODED, FakeFrames

TYPES = ("test_known", "test_unseen", "test_known", "train_unseen", "train_known", "test_known")


def drawn(frames: FakeFrames, images_per_target=(3,), among=None, segments=None) -> DrawnViews:
    groups = frames.frame_sequences if segments is None else segments.ids
    among = range(len(frames)) if among is None else among
    sources = SourceViews(groups, frames.image_paths, among)
    return DrawnViews(frames, targets(frames), sources, images_per_target, segments)


def batches(views) -> list[list[int]]:
    return [views.batch(i) for i in range(len(views))]


def test_targets_are_the_unseen_frames_in_any_of_co3d_s_words():
    frames = FakeFrames("aaabba", types=TYPES)
    assert targets(frames) == [1, 3] and frames.calls[DECODED] == 0
    assert targets(FakeFrames("aab", types=("train_known", "known", "known"))) == [0, 1, 2]


def test_what_is_laid_down_goes_before_all_else():
    frames = FakeFrames("aaabba", types=TYPES, eval_batches=[[5, 0, 3], [4, 3]])
    views = evaluation_views(frames)
    assert isinstance(views, LaidDownViews) and batches(views) == [[5, 0, 3], [4, 3]]
    assert views.target(1) == 4 and views.fewest_source_views([0]) == 1 and views.fewest_source_views([]) is None
    assert batches(evaluation_views(FakeFrames("aaabba", types=TYPES))) == [[1], [3]]


def test_source_views_are_drawn_from_those_allowed():
    frames = FakeFrames("a" * 12, types=["unseen"] * 4 + ["known"] * 8)
    views = drawn(frames, (4,), among=range(4, 12))
    of = batches(views)
    assert [batch[0] for batch in of] == [0, 1, 2, 3]
    assert all(len(set(batch[1:])) == 3 and min(batch[1:]) >= 4 for batch in of)
    assert len({tuple(batch[1:]) for batch in of}) > 1  # not the same for all
    assert views.fewest_source_views(range(4)) == 3


def test_choice_depends_on_the_target_alone_and_fewer_are_the_first_of_the_same():
    types = ["unseen"] * 3 + ["known"] * 8
    frames, more = FakeFrames("a" * 11, types=types), FakeFrames("a" * 11 + "b" * 3, types=types + ["unseen"] * 3)
    assert batches(drawn(frames)) == batches(drawn(frames)) == batches(drawn(more))[:3]
    for few, many in zip(batches(drawn(frames, (3,))), batches(drawn(frames, (6,))), strict=True):
        assert many[:3] == few and len(many) == 6


def test_numbers_of_images_are_drawn_for_each_target():
    frames = FakeFrames("a" * 200)
    counts = Counter(len(batch) for batch in batches(drawn(frames, (1, 3, 6))))
    assert set(counts) == {1, 3, 6} and min(counts.values()) > 40
    assert drawn(frames, (1, 3, 6)).fewest_source_views(range(200)) == 0


def test_in_a_video_source_views_are_the_nearest_of_the_target_s_segment():
    frames = FakeFrames("a" * 9, numbers=(0, 1, 2, 3, 4, 10, 11, 12, 20))
    views = drawn(frames, (3,), segments=Segments(frames, Gaps(1, 0.0)))
    assert batches(views) == [
        [0, 1, 2],
        [1, 0, 2],
        [2, 1, 3],
        [3, 2, 4],
        [4, 3, 2],
        [5, 6, 7],
        [6, 5, 7],
        [7, 6, 5],
        [8],
    ]
    assert views.fewest_source_views(range(8)) == 2 and views.fewest_source_views(range(9)) == 0
