"""What samplers draw, counted."""

from collections import Counter

import pytest

from nerf_trainer.data.consecutive import Gaps, Segments
from nerf_trainer.data.samplers import DoublePoolBatchSampler, FrameSampler, SceneBatchSampler, SourceViews
from nerf_trainer.errors import ConfigError
from tests.data.frames_kit import DECODED, FakeFrames


def placed(sampler: FrameSampler, seed: int = 0, rank: int = 0, world_size: int = 1) -> FrameSampler:
    sampler.place(seed, rank, world_size)
    return sampler


def drawn(sampler: FrameSampler, epoch: int = 0) -> list[list[int]]:
    return [sampler.batch(epoch, step) for step in range(len(sampler))]


def sources(frames: FakeFrames, among) -> SourceViews:
    return SourceViews(frames.frame_sequences, frames.image_paths, among)


def test_source_views_are_of_the_target_s_sequence_and_not_its_image():
    frames = FakeFrames("aabbab")
    views = sources(frames, [0, 2, 3, 4])
    assert views.of(0) == [4] and views.of(1) == [0, 4] and views.of(5) == [2, 3] and views.of(2) == [3]
    same_image = SourceViews("aaa", ("x", "y", "x"), range(3))
    assert same_image.of(0) == [1] and same_image.of(1) == [0, 2]
    for target in range(6):
        assert views.count(target) == len(views.of(target))
    assert [same_image.count(i) for i in range(3)] == [1, 2, 1]
    assert SourceViews("aab", "xyz", [2]).of(0) == []


def test_double_pool_takes_targets_from_one_pool_and_the_rest_from_the_other():
    frames = FakeFrames("aaaabbbb")
    sampler = placed(DoublePoolBatchSampler([0, 1, 4], sources(frames, [2, 3, 5, 6, 7]), 3, 60))
    batches = drawn(sampler)
    assert len(batches) == 60 and frames.calls[DECODED] == 0
    for i in range(0, 60, 3):  # shuffled passes over the targets
        assert sorted(batch[0] for batch in batches[i : i + 3]) == [0, 1, 4]
    assert len({tuple(batch[0] for batch in batches[i : i + 3]) for i in range(0, 60, 3)}) == 6
    for target, *rest in batches:
        assert len(set(rest)) == 2 and set(rest) <= ({2, 3} if target < 4 else {5, 6, 7})
    seen = Counter(i for target, *rest in batches for i in rest if target == 4)
    assert set(seen) == {5, 6, 7}
    assert len(placed(DoublePoolBatchSampler([0, 1, 4], sources(frames, [2]), 3, 0))) == 3


def test_double_pool_of_one_pool_never_shows_the_target_to_itself():
    frames = FakeFrames("aaab")
    sampler = placed(DoublePoolBatchSampler(range(4), sources(frames, range(4)), 9, 40))
    for target, *rest in drawn(sampler):
        assert sorted(rest) == ([i for i in (0, 1, 2) if i != target] if target < 3 else [])
    assert sampler.fewest_source_views() == 0
    assert DoublePoolBatchSampler([0, 1], sources(frames, range(4)), 9, 40).fewest_source_views() == 2
    assert DoublePoolBatchSampler([0, 1], sources(frames, range(4)), 2, 40).fewest_source_views() == 1


def test_double_pool_ranks_take_turns():
    frames = FakeFrames("a" * 6)
    samplers = [
        placed(DoublePoolBatchSampler(range(6), sources(frames, range(6)), 2, 0), 3, rank, 2) for rank in range(2)
    ]
    assert [len(sampler) for sampler in samplers] == [3, 3]
    targets = [batch[0] for sampler in samplers for batch in drawn(sampler)]
    assert sorted(targets) == list(range(6))


@pytest.mark.parametrize("kind", ["double pool", "scene", "consecutive"])
def test_batches_depend_on_seed_rank_epoch_and_step_alone(kind):
    frames = FakeFrames("a" * 20 + "b" * 20)

    def sampler(seed: int, rank: int) -> FrameSampler:
        made = {
            "double pool": lambda: DoublePoolBatchSampler(range(40), sources(frames, range(40)), 4, 30),
            "scene": lambda: SceneBatchSampler(frames, 4, 30, (2, 4)),
            "consecutive": lambda: SceneBatchSampler(frames, 4, 30, (2, 4), Segments(frames, Gaps())),
        }[kind]()
        return placed(made, seed, rank, 2)

    first = drawn(sampler(0, 0), epoch=2)
    again = sampler(0, 0)
    assert [again.batch(2, step) for step in reversed(range(30))] == first[::-1]  # in any order
    assert len({str(drawn(sampler(seed, rank), e)) for seed in (0, 1) for rank in (0, 1) for e in (0, 1)}) == 8


def test_categories_are_drawn_alike_often():
    """Nine apples and one bear: both categories are first alike often."""
    names = [f"apple{i}" for i in range(9)] + ["bear"]
    frames = FakeFrames(
        [name for name in names for _ in range(3)],
        categories=[name.rstrip("012345678") for name in names for _ in "123"],
    )
    batches = drawn(placed(SceneBatchSampler(frames, 2, 2000, (2,))))
    first = Counter(frames.frame_categories[batch[0]] for batch in batches)
    assert abs(first["bear"] - 1000) < 5 * 500**0.5
    of_apples = Counter(frames.frame_sequences[batch[0]] for batch in batches)
    assert all(abs(of_apples[f"apple{i}"] - 1000 / 9) < 5 * (1000 / 9) ** 0.5 for i in range(9))
    without = FakeFrames([name for name in names for _ in range(3)])
    first = Counter(
        without.frame_sequences[batch[0]] for batch in drawn(placed(SceneBatchSampler(without, 2, 2000, (2,))))
    )
    assert abs(first["bear"] - 200) < 5 * 200**0.5


def test_a_batch_has_different_categories_as_long_as_there_are_any():
    categories = ["x"] * 8 + ["y"] * 4 + ["z"] * 2
    frames = FakeFrames([f"{c}{i // 2}" for i, c in enumerate(categories)], categories=categories)

    def of(batch: list[int]) -> Counter[str]:
        return Counter(categories[i] for i in batch)

    for batch in drawn(placed(SceneBatchSampler(frames, 4, 100, (2,)))):
        assert set(of(batch).values()) == {2} and len(of(batch)) == 2
    counts = Counter()
    for batch in drawn(placed(SceneBatchSampler(frames, 8, 300, (2,)))):  # four sequences, three categories
        assert len(set(batch)) == 8
        counts += of(batch)
    assert counts["x"] > counts["y"] > counts["z"] > 0  # z has one sequence, and can't be twice in a batch
    for batch in drawn(placed(SceneBatchSampler(frames, 14, 50, (2,)))):  # all there is
        assert sorted(batch) == list(range(14))


def test_consecutive_frames_stay_in_their_order():
    frames = FakeFrames("a" * 9 + "b" * 5, numbers=(0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 7, 8, 9))
    segments = Segments(frames, Gaps(1, 0.0))
    sampler = placed(SceneBatchSampler(frames, 5, 300, (3,), segments))
    for batch in drawn(sampler):
        first, second = batch[:3], batch[3:]
        assert first == list(range(first[0], first[0] + 3)) and second == list(range(second[0], second[0] + 2))
        assert (first[0] < 9) != (second[0] < 9)
    assert sampler.fewest_source_views() == 2
    longer = placed(SceneBatchSampler(frames, 8, 300, (8,), segments))
    counts = Counter(len({frames.frame_sequences[i] for i in batch}) for batch in drawn(longer))
    assert longer.fewest_source_views() == 2 and set(counts) == {1, 2}


def test_scene_batches_without_numbers_of_images_are_refused():
    with pytest.raises(ConfigError, match=r"images_per_seq_options: found \[\]"):
        SceneBatchSampler(FakeFrames("ab"), 4, 10, ())
