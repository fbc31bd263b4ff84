"""Set lists and evaluation batches: what they say, and what is wrong with them."""

from pathlib import Path

import pytest

from nerf_trainer.data.co3d.annotations import FrameAnnotation, ImageAnnotation
from nerf_trainer.data.co3d.set_lists import FrameFinder, ListedFrame, read_eval_batches, read_set_lists
from nerf_trainer.errors import DataError
from tests.data.co3d.written_category import write_json


def test_lists(tmp_path):
    write_json(tmp_path / "l.json", {"train": [["a", 1, "a/1.png"], ["a", 2]], "val": [], "test": [["b", 0, None]]})
    assert read_set_lists(tmp_path / "l.json") == {
        "train": (ListedFrame("a", 1, "a/1.png"), ListedFrame("a", 2)),
        "val": (),
        "test": (ListedFrame("b", 0),),
    }


def test_batches(tmp_path):
    write_json(tmp_path / "b.json", [[["a", 1, "p"], ["a", 2, "q"]], [["b", 1]]])
    assert read_eval_batches(tmp_path / "b.json") == (
        (ListedFrame("a", 1, "p"), ListedFrame("a", 2, "q")),
        (ListedFrame("b", 1),),
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "expected an object of lists of frames, found an array"),
        ({"train": {}}, "train: expected a list of frames, found an object"),
        ({"train": [["a", 1], "a"]}, r"train\[1\]: expected \[sequence_name, frame_number, image_path\], found .a"),
        ({"train": [["a"]]}, r"train\[0\]: expected \[sequence_name, .* found 1 values"),
        ({"train": [["a", 1, "p", 2]]}, r"train\[0\]: .* found 4 values"),
        ({"train": [["a", "1"]]}, r"train\[0\]\[1\]: expected a frame number .* found .1"),
        ({"train": [["a", True]]}, r"train\[0\]\[1\]: expected a frame number .* found true"),
        ({"train": [["a", -1]]}, r"train\[0\]\[1\]: expected a frame number .* found -1"),
        ({"train": [[1, 1]]}, r"train\[0\]\[0\]: expected a string, found 1"),
        ({"train": [["a", 1, 5]]}, r"train\[0\]\[2\]: expected a string, found 5"),
        ({"train": [["a", 1, ""]]}, r"train\[0\]\[2\]: expected a string, found an empty"),
    ],
)
def test_wrong_lists(tmp_path, content, message):
    write_json(tmp_path / "l.json", content)
    with pytest.raises(DataError, match=message):
        read_set_lists(tmp_path / "l.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "expected an array, found an object"),
        ([[["a", 1]], []], r"\[1\]: found an empty batch"),
        ([["a", 1]], r"\[0\]\[0\]: expected \[sequence_name"),
        ([5], r"\[0\]: expected a list of frames, found 5"),
    ],
)
def test_wrong_batches(tmp_path, content, message):
    write_json(tmp_path / "b.json", content)
    with pytest.raises(DataError, match=message):
        read_eval_batches(tmp_path / "b.json")


def frame(name: str, number: int) -> FrameAnnotation:
    return FrameAnnotation(name, number, 0.0, ImageAnnotation(f"c/{name}/{number}.jpg", (2, 2)))


def test_frames_are_found():
    finder = FrameFinder([frame("a", 1), frame("b", 1), frame("a", 0)], "index")
    listed = [ListedFrame("a", 0, "c/a/0.jpg"), ListedFrame("b", 1, "c/./b//1.jpg"), ListedFrame("a", 0)]
    assert finder.require(listed, Path("l"), "train") == [2, 1, 2]
    assert finder.place(ListedFrame("b", 0)) is None


def test_frames_that_are_not_there_are_counted():
    finder = FrameFinder([frame("a", 1)], "index")
    with pytest.raises(DataError, match="train: found 2 of 3 frames that are not annotated, the first is frame 2 of a"):
        finder.require([ListedFrame("a", 1), ListedFrame("a", 2), ListedFrame("b", 1)], Path("l"), "train")
    with pytest.raises(DataError, match=r"train: found 1 of 1 frames with another image .* expected c/a/1.jpg"):
        finder.require([ListedFrame("a", 1, "c/a/2.jpg")], Path("l"), "train")


def test_frames_annotated_twice():
    with pytest.raises(DataError, match=r"index: found frame 1 of a twice, expected each once \(1 are too many\)"):
        FrameFinder([frame("a", 1), frame("a", 2), frame("a", 1)], "index")
