"""JsonIndexDataset: each option that chooses frames."""

from pathlib import Path

import pytest

from nerf_trainer.data.co3d.annotations import FrameAnnotation, ImageAnnotation, MaskAnnotation, SequenceAnnotation
from nerf_trainer.data.co3d.dataset import FrameIndex
from nerf_trainer.data.co3d.index import JsonIndexDataset, draw_frames
from nerf_trainer.errors import ConfigError, DataError


def frame(sequence: str, number: int, mass: float | None = 9.0, time: float = 0.0) -> FrameAnnotation:
    path = f"{sequence}/{number}"
    mask = MaskAnnotation(path, mass)
    return FrameAnnotation(sequence, number, time, ImageAnnotation(path, (4, 5)), mask=mask)


def index_of(*frames: FrameAnnotation) -> FrameIndex:
    names = {"b": "pear", "a": "apple", "c": "apple"}
    sequences = {name: SequenceAnnotation(name, category) for name, category in names.items()}
    return FrameIndex(Path("root"), "index", frames, ("known",) * len(frames), sequences)


FRAMES = [frame(name, n, time=-n) for name in ("b", "a", "c") for n in range(3)]


def chosen(index: FrameIndex | None = None, most: int = -1, **options) -> list[tuple[str, int]]:
    index = index or index_of(*FRAMES)
    dataset = JsonIndexDataset(annotated=index, most_per_sequence=most, **options)
    return list(zip(dataset.frame_sequences, dataset.frame_numbers, strict=True))


def of(*names: str) -> list[tuple[str, int]]:
    return [(name, n) for name in names for n in range(3)]


def test_all_frames_by_default():
    assert chosen() == of("b", "a", "c")


def test_first_frames():
    assert chosen(limit_to=4) == of("b", "a")[:4]
    assert chosen(limit_to=99) == of("b", "a", "c")


def test_sequences_by_name():
    assert chosen(pick_sequence=("a", "b")) == of("b", "a")
    assert chosen(exclude_sequence=("a", "b")) == of("c")
    assert chosen(pick_sequence=("a", "b"), exclude_sequence=("a",)) == of("b")


def test_categories():
    assert chosen(limit_category_to=("apple",)) == of("a", "c")


def test_first_sequences_are_those_that_have_frames():
    assert chosen(limit_sequences_to=2) == of("b", "a")
    assert chosen(limit_sequences_to=1, exclude_sequence=("b",)) == of("a")
    assert chosen(index_of(*FRAMES[6:]), limit_sequences_to=1) == of("c")


def test_only_sequences_of_frames_stay():
    dataset = JsonIndexDataset(annotated=index_of(*FRAMES), most_per_sequence=-1, pick_sequence=("a",))
    assert set(dataset.index.sequences) == {"a"}
    assert dataset.sequence_names == ("a",)


def test_frames_sorted():
    assert chosen(sort_frames=True) == [(name, n) for name in "abc" for n in (2, 1, 0)]


def test_empty_masks():
    bare = FrameAnnotation("a", 7, 0.0, ImageAnnotation("a/7", (4, 5)))
    index = index_of(frame("a", 0, 1.0), frame("a", 1, 1.1), frame("a", 2, 0.0), bare)
    assert chosen(index) == [("a", 1)]
    assert len(chosen(index, remove_empty_masks=False)) == 4
    unknown = index_of(frame("a", 3, None))
    with pytest.raises(DataError, match=r"found no mask.mass for frame 3 of a"):
        chosen(unknown)
    assert chosen(unknown, remove_empty_masks=False) == [("a", 3)]


def test_frames_drawn_of_each_sequence():
    drawn = chosen(n_frames_per_sequence=2)
    assert len(drawn) == 6 and drawn == sorted(drawn, key=of("b", "a", "c").index)
    assert chosen(n_frames_per_sequence=2) == drawn
    assert any(chosen(n_frames_per_sequence=2, seed=seed) != drawn for seed in range(1, 5))
    assert chosen(most=2) == drawn
    assert len(chosen(most=1, n_frames_per_sequence=2)) == len(chosen(most=2, n_frames_per_sequence=1)) == 3
    assert set(chosen(pick_sequence=("a",), n_frames_per_sequence=2)) == {key for key in drawn if key[0] == "a"}


@pytest.mark.parametrize(
    ("name", "seed", "expected"),
    [("110_13051_23361", 0, [0, 2, 3]), ("110_13051_23361", 1, [0, 4, 7]), ("a", 0, [5, 6, 7])],
)
def test_the_draw_is_the_same_for_ever(name, seed, expected):
    # The first three of random.Random(int(sha1(name).hexdigest(), 16) + seed).sample(range(8), 8), sorted.
    assert draw_frames([name] * 8, 3, seed) == expected
    assert draw_frames(["0", *[name] * 8, "z"], 3, seed) == [0, *(1 + i for i in expected), 9]


def test_limits_come_after_draws():
    assert len(chosen(n_frames_per_sequence=2, limit_to=5)) == 5


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"pick_sequence": ("x",)}, "pick_sequence"),
        ({"exclude_sequence": ("a", "b", "c")}, "exclude_sequence"),
        ({"limit_category_to": ("plum",)}, "limit_category_to"),
    ],
)
def test_nothing_left(options, option):
    with pytest.raises(DataError, match=f"found 9 frames before {option} and none after it"):
        chosen(**options)


def test_no_masks_at_all():
    bare = [FrameAnnotation("a", n, 0.0, ImageAnnotation(f"a/{n}", (4, 5))) for n in range(2)]
    with pytest.raises(DataError, match="found 2 frames before remove_empty_masks and none after it"):
        chosen(index_of(*bare))


@pytest.mark.parametrize("name", ["limit_to", "limit_sequences_to"])
def test_wrong_limits(name):
    with pytest.raises(ConfigError, match=f"{name}: found -1"):
        chosen(**{name: -1})
