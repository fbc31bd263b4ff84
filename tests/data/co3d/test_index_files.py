"""Index files: whole, damaged, hostile; the short path agrees with the careful one, and the work is bounded."""

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nerf_trainer.data.co3d import index_files
from nerf_trainer.data.co3d.annotations import frame_annotation
from nerf_trainer.data.co3d.index_files import read_frame_annotations, read_index_text, read_sequence_annotations
from nerf_trainer.data.files import JsonNode
from nerf_trainer.errors import DataError
from tests.data.co3d.test_annotations import FRAME, SEQUENCE, WRONG, changed

GOOD = json.dumps(FRAME).encode()


def written(folder: Path, content: object, zipped: bool = True) -> Path:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    path = folder / "frame_annotations.jgz"
    path.write_bytes(gzip.compress(text) if zipped else text)
    return path


@pytest.mark.parametrize("zipped", [True, False])
def test_files_are_read_in_their_order(tmp_path, zipped):
    frames = [{**FRAME, "frame_number": n} for n in (5, 3, 9)]
    found = read_frame_annotations(written(tmp_path, frames, zipped))
    assert found == [frame_annotation(JsonNode(frame, tmp_path)) for frame in frames]
    assert read_frame_annotations(written(tmp_path, json.dumps(frames, indent=1).encode(), zipped)) == found
    assert read_frame_annotations(written(tmp_path, b" [ \n ] ")) == []
    [sequence] = read_sequence_annotations(written(tmp_path, [SEQUENCE], zipped))
    assert sequence.point_cloud is not None and sequence.point_cloud.n_points == 9


def test_files_of_several_members(tmp_path):
    text = json.dumps([FRAME, FRAME]).encode()
    path = tmp_path / "index.jgz"
    path.write_bytes(gzip.compress(text[:100]) + gzip.compress(text[100:]) + b"\0" * 8)
    assert len(read_frame_annotations(path)) == 2


@pytest.mark.parametrize(("place", "value", "message"), WRONG)
def test_what_is_wrong_is_said_with_its_place(tmp_path, place, value, message):
    path = written(tmp_path, [FRAME, changed(FRAME, place, value)])
    with pytest.raises(DataError) as raised:
        read_frame_annotations(path)
    assert str(raised.value).startswith(f"{path}: {message.replace('[7]', '[1]')}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{}", "expected a JSON array of annotations, found"),
        (b"", "expected a JSON array of annotations, found nothing"),
        (b"[", r"\[0\]: expected JSON, found: Expecting value"),
        (b"[%s 2]" % GOOD, r"after \[0\]: expected , or \], found .*2"),
        (b"[%s" % GOOD, r"after \[0\]: expected , or \], found the end of the file"),
        (b'[{"a": NaN}]', r"\[0\]: expected JSON, found: NaN is no JSON number"),
        (b"[" * 100000, r"\[0\]: expected JSON, found: "),
        (b"[%s, ]" % GOOD, r"\[1\]: expected JSON"),
        (b"[null]", r"\[0\]: expected an object, found null"),
        (b"[[1, 2]]", r"\[0\]: expected an object, found an array"),
        (b'["\xff"]', "found bytes that are no UTF-8 at 2"),
    ],
)
def test_files_that_are_no_index(tmp_path, text, message):
    with pytest.raises(DataError, match=message) as raised:
        read_frame_annotations(written(tmp_path, text))
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 400


def test_damaged_files(tmp_path):
    path = written(tmp_path, [FRAME] * 50)
    whole = path.read_bytes()
    for damaged in (whole[:-30], whole[:12], whole[:40] + b"xxxx" + whole[44:], whole[:-6] + b"abcdef"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="found a damaged file"):
            read_index_text(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="found an empty file"):
        read_index_text(path)
    path.unlink()
    with pytest.raises(DataError, match="found nothing at"):
        read_index_text(path)


def test_bombs_are_not_blown_up(tmp_path, monkeypatch):
    bomb = gzip.compress(b" " * (80 * 2**20))
    path = tmp_path / "bomb.jgz"
    path.write_bytes(bomb)
    with pytest.raises(DataError, match=r"found more than 64 MiB of JSON in 0.08 MiB"):
        read_index_text(path)
    path.write_bytes(gzip.compress(b" " * 1000) * 100)
    monkeypatch.setattr(index_files, "MAX_INDEX_BYTES", 50_000)
    with pytest.raises(DataError, match="found more than 0 MiB of JSON"):
        read_index_text(path)
    path.write_bytes(b" " * 50_001)
    with pytest.raises(DataError, match="found more than 0 MiB of JSON"):
        read_index_text(path)
    path.write_bytes(b" " * 50_000)
    assert len(read_index_text(path)) == 50_000


def test_the_work_for_a_frame_is_bounded(tmp_path):
    """A frame takes five calls: to get at it, and for its parts that have parts; no walk of every value."""
    own = tuple(str(Path(index_files.__file__).parents[1] / name) for name in ("co3d", "files.py"))

    def n_calls(n_frames: int) -> int:
        path, calls = written(tmp_path, [FRAME] * n_frames), 0

        def count(frame: Any, event: str, argument: Any) -> None:
            nonlocal calls
            calls += event == "call" and frame.f_code.co_filename.startswith(own)

        sys.setprofile(count)
        try:
            read_frame_annotations(path)
        finally:
            sys.setprofile(None)
        return calls

    assert n_calls(200) - n_calls(100) <= 100 * 5


def test_good_frames_never_take_the_careful_path(tmp_path, monkeypatch):
    monkeypatch.setattr(index_files, "frame_annotation", None)
    assert len(read_frame_annotations(written(tmp_path, [FRAME] * 20))) == 20


PLACES = [
    *("sequence_name", "frame_number", "frame_timestamp", "image", "image.path", "image.size", "image.size.0"),
    *("depth", "depth.path", "depth.scale_adjustment", "depth.mask_path", "mask", "mask.path", "mask.mass"),
    *("mask.bounding_box_xywh", "mask.bounding_box_xywh.2", "viewpoint", "viewpoint.R", "viewpoint.R.0"),
    *("viewpoint.R.1.2", "viewpoint.T", "viewpoint.T.0", "viewpoint.focal_length", "viewpoint.focal_length.1"),
    *("viewpoint.principal_point", "viewpoint.intrinsics_format", "meta", "unknown"),
]
numbers = st.integers(-2, 2) | st.floats(allow_nan=False, allow_infinity=False) | st.just(10**400)
leaves = st.none() | st.booleans() | numbers | st.text(max_size=3) | st.sampled_from(["ndc_isotropic", "abc", "abcd"])
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2)
)


@given(st.lists(st.tuples(st.sampled_from(PLACES), values | st.just(...)), min_size=1, max_size=2))
@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_the_short_path_agrees_with_the_careful_one(tmp_path, changes):
    content = FRAME
    for place, value in changes:
        try:
            content = changed(content, place, value)
        except (KeyError, IndexError, TypeError):
            continue
    path = written(tmp_path, [content], zipped=False)
    try:
        expected = frame_annotation(JsonNode(content, path, "[0]"))
    except DataError as error:
        with pytest.raises(DataError) as raised:
            read_frame_annotations(path)
        assert str(raised.value) == str(error)
        assert "\n" not in str(error) and len(str(error)) < 400
    else:
        assert read_frame_annotations(path) == [expected]
