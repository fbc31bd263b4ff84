"""Files in CO3D's format: numbers and bytes by hand, lists and batches by their rules."""

import gzip
import json
import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scenes import co3d_format as co3d
from scenes.co3d_format import FrameRecord, SequenceRecord, Shot

SHOT = Shot(
    right=np.array([0.0, 1.0, 0.0]),
    up=np.array([0.0, 0.0, 1.0]),
    back=np.array([1.0, 0.0, 0.0]),
    center=np.array([4.0, 0.0, 0.0]),
    hw=(40, 80),
    focal=60.0,
    principal_point=(44.0, 18.0),
)
"""At (4, 0, 0), looking along -x: y to the right, z up."""


def frame(sequence: str = "a", number: int = 0) -> FrameRecord:
    paths = {kind: f"cups/{sequence}/{kind}/{number}.png" for kind in ("image", "mask", "depth", "depth_mask")}
    return FrameRecord(sequence, number, 0.2 * number, SHOT, mask_mass=12.5, depth_scale=0.5, **paths)


def sequence(name: str, n_frames: int = 12) -> SequenceRecord:
    frames = tuple(frame(name, number) for number in range(n_frames))
    return SequenceRecord(name, "cups", frames, f"cups/{name}/pointcloud.ply", 7, 1.5)


def test_a_viewpoint_by_arithmetic():
    """The point (1, 0.5, 0.3) is 3 before the camera, 0.5 to the right and 0.3 up: (-0.5, 0.3, 3) in PyTorch3D's axes.

    Its pixel is x = 44 + 60 0.5 / 3 = 54 and y = 18 - 60 0.3 / 3 = 12: in half heights of 20 from the middle (40, 20)
    it is at -14 / 20 to the left and 8 / 20 up; in half sides -14 / 40 and 8 / 20.
    """
    for isotropic, expected in ((True, (-0.7, 0.4)), (False, (-0.35, 0.4))):
        view = co3d.viewpoint(SHOT, isotropic)
        local = np.array([1.0, 0.5, 0.3]) @ np.array(view["R"]) + view["T"]
        assert local == pytest.approx([-0.5, 0.3, 3.0])
        seen = np.array(view["focal_length"]) * local[:2] / local[2] + view["principal_point"]
        assert seen == pytest.approx(expected)
        assert np.linalg.det(view["R"]) == pytest.approx(1)


def test_intrinsics_of_both_versions():
    """60 pixels are 3 half heights of 20 and 1.5 half widths of 40; (44, 18) is 4 right of the middle and 2 above."""
    new, old = co3d.viewpoint(SHOT, True), co3d.viewpoint(SHOT, False)
    assert (new["focal_length"], old["focal_length"]) == ([3, 3], [1.5, 3])
    assert (new["principal_point"], old["principal_point"]) == ([-0.2, 0.1], [-0.1, 0.1])
    assert (new["intrinsics_format"], old["intrinsics_format"]) == ("ndc_isotropic", "ndc_norm_image_bounds")


def test_depth_is_the_bits_of_half_floats(tmp_path):
    """0.75 / 0.5 is 1.5, in binary 1.1 2^0: exponent 15, fraction 1000000000, which is 0x3e00."""
    co3d.write_depth(tmp_path / "d.png", np.array([[0.75, 0.0]]), 0.5)
    with Image.open(tmp_path / "d.png") as picture:
        assert np.asarray(picture).astype(int).tolist() == [[0x3E00, 0]]
        assert picture.mode.startswith("I")


def test_a_mask_of_one_bit(tmp_path):
    co3d.write_bits(tmp_path / "m.png", np.array([[True, False], [False, True]]))
    with Image.open(tmp_path / "m.png") as picture:
        assert picture.mode == "1"
        assert np.asarray(picture).tolist() == [[True, False], [False, True]]


def test_points_in_binary(tmp_path):
    colors = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.uint8)
    co3d.write_point_cloud(tmp_path / "p.ply", np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), colors)
    header, _, body = (tmp_path / "p.ply").read_bytes().partition(b"end_header\n")
    assert b"element vertex 2\n" in header and header.startswith(b"ply\nformat binary_little_endian 1.0\n")
    assert len(body) == 2 * 15
    assert np.frombuffer(body[15:27], "<f4").tolist() == [4, 5, 6]
    assert list(body[12:15]) == [1, 2, 3]


def test_gzipped_json_has_no_time_of_day(tmp_path):
    for name in ("a", "b"):
        co3d.write_gzipped(tmp_path / name, {"x": [1, 2]})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_bytes()[4:8] == bytes(4)
    assert json.loads(gzip.decompress((tmp_path / "a").read_bytes())) == {"x": [1, 2]}


def test_batches_are_a_target_and_known_views_of_its_sequence():
    batches = co3d.eval_batches([sequence("a"), sequence("b", 40)], seed=0)
    assert [batch[0][:2] for batch in batches[:3]] == [("a", 2), ("a", 7), ("b", 2)]
    for number, batch in enumerate(batches):
        (name, _, _), *sources = batch
        assert len(sources) == (1, 3, 5, 7, 9)[number % 5]
        assert {source[0] for source in sources} == {name}
        assert all(source[1] % 5 != 2 for source in sources)
        assert len(set(batch)) == len(batch)
    alone = co3d.eval_batches([sequence("a")], seed=0, with_sources=False)
    assert [len(batch) for batch in alone] == [1, 1]


def test_a_target_can_be_seen_with_every_number_of_sources():
    batches = co3d.eval_batches([sequence("b", 40)], seed=0, every_number=True)
    by_target = {batch[0]: [other[1:] for other in batches if other[0] == batch[0]] for batch in batches}
    assert len(by_target) == 8
    for sources in by_target.values():
        assert [len(some) for some in sources] == [1, 3, 5, 7, 9]
        assert all(sources[-1][: len(some)] == some for some in sources)


@pytest.mark.parametrize(("n", "parts"), [(3, (1, 1, 1)), (19, (17, 1, 1)), (40, (32, 4, 4))])
def test_a_tenth_each_is_held_out(n, parts):
    sequences = [sequence(str(i)) for i in range(n)]
    found = co3d.held_out(sequences)
    assert tuple(len(part) for part in found) == parts
    assert [s.name for part in found for s in part] == [s.name for s in sequences]


def test_subsets_of_the_second_version():
    subsets = co3d.v2_subsets([sequence(str(i)) for i in range(20)], seed=0)
    assert set(subsets) == {
        *("fewview_train", "fewview_dev", "fewview_test", "manyview_dev_0", "manyview_dev_1", "manyview_test_0")
    }
    for name, (lists, batches) in subsets.items():
        assert set(lists) == {"train", "val", "test"} and lists["train"] and batches
        assert not {batch[0] for batch in batches} & set(lists["train"])
        assert {entry for batch in batches for entry in batch} <= set(lists["test"]), name
    names = {subset: {entry[0] for entry in lists["test"]} for subset, (lists, _) in subsets.items()}
    assert names["fewview_dev"] == {"16", "17"} and names["fewview_test"] == {"18", "19"}
    assert (names["manyview_dev_0"], names["manyview_dev_1"], names["manyview_test_0"]) == ({"16"}, {"17"}, {"18"})


def test_lists_of_the_first_version(tmp_path):
    co3d.write_v1(tmp_path, [sequence(name) for name in "abcd"], seed=0)
    lists = json.loads((tmp_path / "set_lists.json").read_text())
    assert {name: len(content) for name, content in lists.items()} == {
        **{"train_known": 20, "train_unseen": 4, "test_known": 20, "test_unseen": 4}
    }
    single, multi = (
        json.loads((tmp_path / f"eval_batches_{task}.json").read_text()) for task in ("singlesequence", "multisequence")
    )
    assert [batch[0][0] for batch in single] == ["c", "c", "d", "d"]
    assert {batch[0][0] for batch in multi} == set("abcd")
    frames = json.loads(gzip.decompress((tmp_path / "frame_annotations.jgz").read_bytes()))
    types = {(f["sequence_name"], f["frame_number"]): f["meta"]["frame_type"] for f in frames}
    assert (types["a", 0], types["a", 2], types["d", 0], types["d", 7]) == (
        *("train_known", "train_unseen", "test_known", "test_unseen"),
    )


def test_rows_of_the_database(tmp_path):
    co3d.write_sqlite(tmp_path / "m.sqlite", [replace(sequence("a"), quality=0.25)])
    connection = sqlite3.connect(tmp_path / "m.sqlite")
    connection.row_factory = sqlite3.Row
    row = connection.execute("SELECT * FROM frame_annots WHERE frame_number = 7").fetchone()
    assert np.frombuffer(row["_image_size"], "<i4").tolist() == [40, 80]
    assert np.frombuffer(row["_viewpoint_focal_length"], "<f4").tolist() == [3, 3]
    assert np.frombuffer(row["_viewpoint_R"], "<f4").tolist() == [0, 0, -1, -1, 0, 0, 0, 1, 0]
    assert (row["_mask_mass"], row["_depth_scale_adjustment"], row["frame_timestamp"]) == (12.5, 0.5, 0.2 * 7)
    assert connection.execute("SELECT category, viewpoint_quality_score FROM sequence_annots").fetchall()[0][:] == (
        *("cups", 0.25),
    )
    co3d.write_sqlite_lists(Path(tmp_path / "lists.sqlite"), {"train": [("a", 1, "x")], "test": [("a", 2, "y")]})
    rows = sqlite3.connect(tmp_path / "lists.sqlite").execute("SELECT * FROM set_lists").fetchall()
    assert rows == [("a", 1, "x", "train"), ("a", 2, "y", "test")]
