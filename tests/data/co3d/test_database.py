"""Annotations out of SQLite: values by hand, and files and rows that hold what they may not."""

import sqlite3
import struct
from pathlib import Path
from typing import Any

import pytest

from nerf_trainer.data.co3d.database import Database, Selection
from nerf_trainer.errors import DataError
from scenes.co3d_format import FrameRecord, SequenceRecord, write_sqlite
from tests.scenes.test_co3d_format import frame, sequence

pytest.importorskip("sqlalchemy", minversion="2.0")


@pytest.fixture
def file(tmp_path) -> Path:
    """Three sequences of cups with 12 frames each."""
    path = tmp_path / "metadata.sqlite"
    write_sqlite(path, [sequence(name) for name in ("b", "a", "c")])
    return path


def change(file: Path, statement: str, *values: Any) -> Database:
    with sqlite3.connect(file) as connection:
        connection.execute(statement, values)
    connection.close()
    return Database(file, "metadata_basename")


def test_a_frame_by_hand(file):
    """The camera of the format's tests: 60 pixels in half heights of 20, right and left turned."""
    (found,) = Database(file, "x").frame_annotations([("a", 7)])
    assert (found.sequence_name, found.frame_number, found.frame_timestamp) == ("a", 7, pytest.approx(1.4))
    assert (found.image.path, found.image.size) == ("cups/a/image/7.png", (40, 80))
    assert found.depth is not None and (found.depth.path, found.depth.scale_adjustment) == ("cups/a/depth/7.png", 0.5)
    assert found.depth.mask_path == "cups/a/depth_mask/7.png"
    assert found.mask is not None and (found.mask.path, found.mask.mass) == ("cups/a/mask/7.png", 12.5)
    assert found.mask.bounding_box_xywh is None and found.meta is None
    view = found.viewpoint
    assert view is not None and view.intrinsics_format == "ndc_isotropic"
    assert view.R == ((0, 0, -1), (-1, 0, 0), (0, 1, 0)) and view.T == (0, 0, 4)
    assert view.focal_length == (3, 3) and view.principal_point == pytest.approx((-0.2, 0.1))


def test_frames_and_sequences_in_order(file):
    database = Database(file, "x")
    assert database.frames()[:13] == [("a", number) for number in range(12)] + [("b", 0)]
    order = [("c", 3), ("a", 1), ("b", 0), ("z", 0), ("a", 99)]
    found = database.frame_annotations(order)
    assert [(frame.sequence_name, frame.frame_number) for frame in found] == order[:3]
    assert database.sequences(Selection()) == ["b", "a", "c"]
    assert database.sequences(Selection(most=2)) == ["b", "a"]
    assert list(database.sequence_annotations(["c", "a", "z"])) == ["a", "c"]
    assert database.categories() == ["cups"]


def test_a_sequence_by_hand(file):
    found = Database(file, "x").sequence_annotations(["a"])["a"]
    assert found.video is not None and (found.video.path, found.video.length) == (
        "cups/a/video.mp4",
        pytest.approx(2.2),
    )
    assert found.point_cloud is not None and found.point_cloud.n_points == 7
    assert (found.category, found.viewpoint_quality_score) == ("cups", 1.5)


def test_what_is_optional(file):
    columns = ("_depth_path", "_mask_path", "_mask_mass", "_viewpoint_R", "_viewpoint_T")
    database = change(file, f"UPDATE frame_annots SET {', '.join(f'{name} = NULL' for name in columns)}")
    change(file, "UPDATE frame_annots SET _viewpoint_intrinsics_format = NULL")
    change(
        file, "UPDATE sequence_annots SET _video_path = NULL, _point_cloud_path = NULL, viewpoint_quality_score = NULL"
    )
    (found,) = database.frame_annotations([("a", 0)])
    assert found.depth is None and found.mask is None and found.viewpoint is None
    sequence = database.sequence_annotations(["a"])["a"]
    assert sequence.video is None and sequence.point_cloud is None and sequence.viewpoint_quality_score is None


def test_a_box_around_the_mask(file):
    database = change(file, "UPDATE frame_annots SET _mask_bounding_box_xywh = ?", struct.pack("<4f", 1, 2, 30, 40.5))
    (found,) = database.frame_annotations([("a", 0)])
    assert found.mask is not None and found.mask.bounding_box_xywh == (1, 2, 30, 40.5)


def test_more_sequences_than_a_query_takes(tmp_path):
    names = [f"s{i:04d}" for i in range(1203)]
    records = []
    for name in names:
        frames: tuple[FrameRecord, ...] = (frame(name, 4),)
        records.append(SequenceRecord(name, "cups", frames, "p.ply", 1, 1.0))
    write_sqlite(tmp_path / "m.sqlite", records)
    database = Database(tmp_path / "m.sqlite", "x")
    assert [found.sequence_name for found in database.frame_annotations([(name, 4) for name in names])] == names
    assert list(database.sequence_annotations(names)) == names


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("_image_path", None, "found None, expected the path of a file"),
        ("_image_path", "", "expected the path of a file"),
        ("_image_size", b"1234", "found 4 bytes, expected 8 bytes"),
        ("_image_size", struct.pack("<2i", 0, 5), "expected height and width"),
        ("_image_size", None, "expected height and width"),
        ("_viewpoint_R", "text", "found text, expected 36 bytes"),
        ("_viewpoint_T", struct.pack("<3f", 1, float("nan"), 1), "expected finite numbers"),
        ("_viewpoint_focal_length", struct.pack("<2f", 1, float("inf")), "expected finite numbers"),
        ("_viewpoint_intrinsics_format", "screen", "expected ndc_norm_image_bounds or ndc_isotropic"),
        ("_depth_scale_adjustment", 0.0, "expected a positive number"),
        ("_depth_scale_adjustment", None, "expected a positive number"),
        ("_mask_mass", "many", "expected a number of pixels"),
        ("frame_timestamp", "noon", "expected a number of seconds"),
        ("_mask_path", b"\\x00", "expected the path of a file"),
    ],
)
def test_a_value_that_may_not_be_is_named(file, column, value, said):
    with sqlite3.connect(file) as connection:  # SQLite's own NOT NULL out of the way
        connection.execute("PRAGMA writable_schema = 1")
        connection.execute("UPDATE sqlite_master SET sql = replace(sql, ' NOT NULL', '') WHERE name = 'frame_annots'")
    connection.close()
    database = change(
        file, f"UPDATE frame_annots SET {column} = ? WHERE sequence_name = 'b' AND frame_number = 5", value
    )
    with pytest.raises(DataError, match=f"metadata.sqlite: {column} of frame 5 of b: .*{said}") as error:
        database.frame_annotations(database.frames())
    assert len(str(error.value)) < 400


def test_no_database(tmp_path, file):
    with pytest.raises(DataError, match=r"^metadata_basename: found nothing at"):
        Database(tmp_path / "nothing.sqlite", "metadata_basename")
    (tmp_path / "text.sqlite").write_text("{}" * 100)
    with pytest.raises(DataError, match=r"^metadata_basename: found a file that does not begin as SQLite's do"):
        Database(tmp_path / "text.sqlite", "metadata_basename")
    with pytest.raises(DataError, match="no such table: set_lists"):
        Database(file, "subset_lists_path").listed()
    with pytest.raises(DataError, match="no such column"):
        change(file, "ALTER TABLE frame_annots RENAME COLUMN _mask_mass TO mass").empty_frames()


def test_a_damaged_file(file):
    content = file.read_bytes()
    file.write_bytes(content[:2000] + bytes(len(content) - 2000))
    with pytest.raises(DataError, match=r"SQLite says '.*malformed.*restore the file") as error:
        Database(file, "metadata_basename").frames()
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_it_only_reads(file):
    database = Database(file, "x")
    with pytest.raises(DataError, match="readonly"):
        database._rows(database._sa.text("DELETE FROM frame_annots"))
