"""Annotations of frames and sequences in an SQLite file, with the tables of PyTorch3D's SQL datasets.

`frame_annots` has a row for each frame, keyed by sequence_name and frame_number, `sequence_annots` one for each
sequence. Members of an annotation are columns named by their place (`_viewpoint_R`); arrays are blobs of 32-bit
numbers, little-endian. The file is opened for reading alone. Which frames there are is asked without their blobs;
annotations are read of the chosen frames only. Values reach a query as bound parameters, never as text; see
`Selection` and `Database.frames` for the clauses that are the exception.

SQLAlchemy (extra `sql`) is imported where it is used.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from nerf_trainer.data.co3d.annotations import (
    LARGEST_SIDE,
    DepthAnnotation,
    FrameAnnotation,
    ImageAnnotation,
    MaskAnnotation,
    PointCloudAnnotation,
    SequenceAnnotation,
    VideoAnnotation,
    ViewpointAnnotation,
)
from nerf_trainer.data.co3d.index_files import no_collection
from nerf_trainer.data.co3d.viewpoints import INTRINSICS_FORMATS
from nerf_trainer.data.files import LARGEST_NUMBER, require_regular_file, shown
from nerf_trainer.errors import ConfigError, DataError

if TYPE_CHECKING:
    import sqlalchemy as sa

Key = tuple[str, int]
"""What makes a frame one: its sequence's name and its number there."""

_MAGIC = b"SQLite format 3\x00"
_AT_ONCE = 500
"""Names bound to one query; SQLite has a limit."""

_FRAME_COLUMNS = (
    *("sequence_name", "frame_number", "frame_timestamp", "_image_path", "_image_size"),
    *("_depth_path", "_depth_scale_adjustment", "_depth_mask_path"),
    *("_mask_path", "_mask_mass", "_mask_bounding_box_xywh"),
    *("_viewpoint_R", "_viewpoint_T", "_viewpoint_focal_length", "_viewpoint_principal_point"),
    "_viewpoint_intrinsics_format",
)
_CAMERA_COLUMNS = (
    *(("_viewpoint_R", 9), ("_viewpoint_T", 3), ("_viewpoint_focal_length", 2), ("_viewpoint_principal_point", 2)),
)
_DEPTH_COLUMNS = ("_depth_path", "_depth_scale_adjustment", "_depth_mask_path")
_SEQUENCE_COLUMNS = (
    *("sequence_name", "category", "_video_path", "_video_length"),
    *("_point_cloud_path", "_point_cloud_quality_score", "_point_cloud_n_points", "viewpoint_quality_score"),
)
_TEXT_OR_NONE = {str, type(None)}
_LIST_COLUMNS = ("sequence_name", "frame_number", "image_path", "subset")


def _sqlalchemy() -> Any:
    """The module.

    Raises:
        ConfigError: it is not installed, or older than 2.0.
    """
    try:
        import sqlalchemy
    except ImportError as error:
        raise ConfigError(
            "SqlIndexDataset: found no SQLAlchemy, which reads the index; pip install 'nerf_trainer[sql]'"
        ) from error
    if int(sqlalchemy.__version__.partition(".")[0]) < 2:
        raise ConfigError(
            f"SqlIndexDataset: found SQLAlchemy {sqlalchemy.__version__}, expected 2.0 or later; "
            "pip install --upgrade 'nerf_trainer[sql]'"
        )
    return sqlalchemy


@dataclass(frozen=True)
class Selection:
    """Which sequences are wanted. All that is said must hold; clauses are SQL and trusted."""

    categories: tuple[str, ...] = ()
    """Of these categories; empty for all."""
    pick: tuple[str, ...] = ()
    """Of these names; empty for all."""
    exclude: tuple[str, ...] = ()
    """Not of these names."""
    clause: str | None = None
    """An expression over the columns of sequence_annots, given to SQLite as it is."""
    most_per_category: int = 0
    """The first so many of each category, in the order of the file; 0 for all."""
    most: int = 0
    """The first so many of those, in the order of the file; 0 for all."""


class Database:
    """An SQLite file with annotations.

    Args:
        file: the file.
        where: what it is, for messages.

    Raises:
        DataError: it is missing, or no SQLite file.
        ConfigError: SQLAlchemy is not installed.
    """

    def __init__(self, file: Path, where: str) -> None:
        self.file = file
        self._where = where
        require_regular_file(file, where)
        with open(file, "rb") as opened:
            start = opened.read(len(_MAGIC))
        if start != _MAGIC:
            raise DataError(
                f"{where}: found a file that does not begin as SQLite's do at {shown(file)}, expected an SQLite 3"
                " database; fix the path or restore it"
            )
        self._sa = _sqlalchemy()
        uri = f"file:{quote(str(file.absolute()))}?mode=ro"
        self._engine: sa.Engine = self._sa.create_engine(
            "sqlite://", creator=lambda: _connect(uri), poolclass=self._sa.pool.NullPool
        )

    def sequences(self, wanted: Selection) -> list[str]:
        """Names of the sequences that a selection leaves, in the order of the file.

        Raises:
            DataError: the file is damaged, or has not the tables.
            ConfigError: the clause is no SQL expression over the table's columns.
        """
        sa, table = self._sa, self._table("sequence_annots", _SEQUENCE_COLUMNS)
        row = sa.literal_column("sequence_annots.rowid")
        rank = sa.func.row_number().over(partition_by=table.c.category, order_by=row).label("rank")
        chosen = sa.select(table.c.sequence_name, row.label("place"), rank)
        for column, names in ((table.c.category, wanted.categories), (table.c.sequence_name, wanted.pick)):
            if names:
                chosen = chosen.where(column.in_(names))
        if wanted.exclude:
            chosen = chosen.where(table.c.sequence_name.notin_(wanted.exclude))
        if wanted.clause is not None:
            chosen = chosen.where(self._clause(wanted.clause))
        found = chosen.subquery()
        query = sa.select(found.c.sequence_name).order_by(found.c.place)
        if wanted.most_per_category > 0:
            query = query.where(found.c.rank <= wanted.most_per_category)
        if wanted.most > 0:
            query = query.limit(wanted.most)
        return [name for (name,) in self._rows(query, wanted.clause, "pick_sequences_sql_clause")]

    def categories(self) -> list[str]:
        """The categories that there are."""
        table = self._table("sequence_annots", _SEQUENCE_COLUMNS)
        return sorted(str(name) for (name,) in self._rows(self._sa.select(table.c.category).distinct()))

    def frames(self, clause: str | None = None) -> list[Key]:
        """All frames, or those of which a clause (trusted SQL) holds, by sequence and number. No blob is read."""
        table = self._table("frame_annots", _FRAME_COLUMNS)
        query = self._sa.select(table.c.sequence_name, table.c.frame_number)
        query = query.order_by(table.c.sequence_name, table.c.frame_number)
        if clause is not None:
            query = query.where(self._clause(clause))
        keys = [(name, number) for name, number in self._rows(query, clause, "pick_frames_sql_clause")]
        for key in keys:
            if not (type(key[0]) is str and type(key[1]) is int and key[1] >= 0):
                raise self._wrong(key, "sequence_name, frame_number", shown(key)[:60], "a name and a whole number")
        return keys

    def empty_frames(self) -> set[Key]:
        """The frames whose mask has a mass of 0; one that is not known is not 0."""
        table = self._table("frame_annots", _FRAME_COLUMNS)
        query = self._sa.select(table.c.sequence_name, table.c.frame_number).where(table.c["_mask_mass"] == 0)
        return {(name, number) for name, number in self._rows(query)}

    def frame_annotations(self, keys: Sequence[Key]) -> list[FrameAnnotation]:
        """The annotations of frames, in the order given; frames that are not there are left out.

        Raises:
            DataError: one of them holds what it may not; the message names it and the column.
        """
        table = self._table("frame_annots", _FRAME_COLUMNS)
        wanted = set(keys)
        query = self._sa.select(*(table.c[name] for name in _FRAME_COLUMNS))
        with no_collection():
            rows = self._of_sequences(query, table, [name for name, _ in keys])
            frames = self._frames([row for row in rows if (row[0], row[1]) in wanted])
            annotations = {(frame.sequence_name, frame.frame_number): frame for frame in frames}
        return [annotations[key] for key in keys if key in annotations]

    def sequence_annotations(self, names: Sequence[str]) -> dict[str, SequenceAnnotation]:
        """The annotations of sequences by name, in the order of the file; unknown ones are left out.

        Raises:
            DataError: one of them holds what it may not.
        """
        table = self._table("sequence_annots", _SEQUENCE_COLUMNS)
        query = self._sa.select(*(table.c[name] for name in _SEQUENCE_COLUMNS))
        rows = self._of_sequences(query.order_by(self._sa.literal_column("sequence_annots.rowid")), table, names)
        return {row[0]: self._sequence(row) for row in rows}

    def listed(self) -> list[tuple[str, int, str | None, str]]:
        """Rows of the table `set_lists`: sequence, number, image path and subset, in the order of the file."""
        table = self._table("set_lists", _LIST_COLUMNS)
        query = self._sa.select(*(table.c[name] for name in _LIST_COLUMNS))
        rows = [(name, number, path, subset) for name, number, path, subset in self._rows(query)]
        for name, number, path, subset in rows:
            texts = (name, subset) if path is None else (name, subset, path)
            if not (type(number) is int and all(type(text) is str for text in texts)):
                raise DataError(
                    f"{self._where}: found {shown((name, number, path))[:100]} in set_lists, expected a sequence's"
                    " name, a frame number and a path; restore the file"
                )
        return rows

    def _table(self, name: str, columns: Sequence[str]) -> sa.Table:
        sa = self._sa
        return sa.Table(name, sa.MetaData(), *(sa.Column(column) for column in columns))

    def _clause(self, text: str) -> sa.TextClause:
        """Trusted SQL, as it is: a colon stays one and names no parameter."""
        return self._sa.text("(" + text.replace(":", "\\:") + ")")

    def _of_sequences(self, query: sa.Select[Any], table: sa.Table, names: Sequence[str]) -> Iterator[Sequence[Any]]:
        """Rows of a query that are of these sequences, some sequences at a time."""
        distinct = list(dict.fromkeys(names))
        for i in range(0, len(distinct), _AT_ONCE):
            yield from self._rows(query.where(table.c.sequence_name.in_(distinct[i : i + _AT_ONCE])))

    def _rows(self, query: sa.Select[Any], clause: str | None = None, option: str = "") -> list[Sequence[Any]]:
        """What a query finds. An error is the clause's if there is one, or else the file's."""
        try:
            with self._engine.connect() as connection:
                cursor = connection.execute(query).cursor
                return [] if cursor is None else list(cursor.fetchall())  # plain tuples, of which there may be 100,000
        except (self._sa.exc.DBAPIError, UnicodeDecodeError) as error:
            said = shown(str(error).partition("\n")[0])[:120]
            if clause is not None:
                raise ConfigError(
                    f"{option}: found {shown(clause)[:100]}, which SQLite refuses ({said}), expected an expression over"
                    " the table's columns; fix it"
                ) from error
            raise DataError(
                f"{self._where}: SQLite says '{said}' of {shown(self.file)}, expected the tables frame_annots and"
                " sequence_annots (or set_lists, of a list); fix the path or restore the file"
            ) from error

    def _frames(self, rows: Sequence[Sequence[Any]]) -> list[FrameAnnotation]:
        if not rows:
            return []
        columns: dict[str, Sequence[Any]] = dict(zip(_FRAME_COLUMNS, zip(*rows, strict=True), strict=True))
        sizes = self._numbers(rows, columns["_image_size"], "_image_size", "<i4", 2)
        boxes = self._numbers(rows, columns["_mask_bounding_box_xywh"], "_mask_bounding_box_xywh", "<f4", 4)
        cameras = [self._numbers(rows, columns[name], name, "<f4", n) for name, n in _CAMERA_COLUMNS]
        if not _plainly_right(columns, sizes):
            for row, size in zip(rows, sizes, strict=True):
                self._check_frame(row, size)
        default, known = INTRINSICS_FORMATS[0], dict(zip(INTRINSICS_FORMATS, INTRINSICS_FORMATS, strict=True))
        formats = [known.get(name, default) for name in columns["_viewpoint_intrinsics_format"]]
        views = [
            None if R is None or T is None or focal is None or center is None else ViewpointAnnotation(*view)
            for view in zip(*cameras, formats, strict=True)
            for R, T, focal, center, _ in (view,)
        ]
        depths = [
            None if path is None else DepthAnnotation(path, scale, mask)
            for path, scale, mask in zip(*(columns[name] for name in _DEPTH_COLUMNS), strict=True)
        ]
        masks = [
            None if path is None else MaskAnnotation(path, mass, box)
            for path, mass, box in zip(columns["_mask_path"], columns["_mask_mass"], boxes, strict=True)
        ]
        keys = (columns[name] for name in ("sequence_name", "frame_number", "frame_timestamp"))
        images = map(ImageAnnotation, columns["_image_path"], sizes)
        return list(map(FrameAnnotation, *keys, images, depths, masks, views))

    def _numbers(self, rows: Sequence[Sequence[Any]], blobs: Sequence[Any], name: str, kind: str, n: int) -> list[Any]:
        """The n numbers of each row's blob, nine as a 3 x 3 matrix, or None; all at once, as there are many."""
        there = [blob for blob in blobs if blob is not None]
        if not (set(map(type, there)) <= {bytes} and set(map(len, there)) <= {4 * n}):
            for row, blob in zip(rows, blobs, strict=True):
                if blob is not None and (type(blob) is not bytes or len(blob) != 4 * n):
                    found = f"{len(blob)} bytes" if type(blob) is bytes else shown(blob)[:60]
                    raise self._wrong(row, name, found, f"{4 * n} bytes ({n} numbers of 32 bits)")
        values = np.frombuffer(b"".join(there), kind).reshape(-1, n)
        if kind == "<f4" and not (np.abs(values) < LARGEST_NUMBER).all():  # NaN compares as false
            bad = int(np.flatnonzero(~(np.abs(values) < LARGEST_NUMBER).all(axis=1))[0])
            row = [row for row, blob in zip(rows, blobs, strict=True) if blob is not None][bad]
            raise self._wrong(row, name, str(values[bad].tolist()), "finite numbers")
        numbers = _in_rows(values.ravel().tolist(), n if n < 9 else 3)
        of_those = iter(numbers if n < 9 else _in_rows(numbers, 3))
        return [None if blob is None else next(of_those) for blob in blobs]

    def _check_frame(self, row: Sequence[Any], size: Sequence[int] | None) -> None:
        """Refuse a frame whose plain columns hold what they may not: SQLite doesn't mind what a column's type says."""
        name, number, time, image, _, depth, scale, depth_mask, mask, mass, *_, intrinsics = row
        checks = (
            ("frame_number", number, type(number) is int and number >= 0, "a whole number of at least 0"),
            ("frame_timestamp", time, _finite(time), "a number of seconds"),
            ("_image_path", image, type(image) is str and image != "", "the path of a file"),
            ("_image_size", size, size is not None and all(0 < s < LARGEST_SIDE for s in size), "height and width"),
            ("_depth_path", depth, depth is None or type(depth) is str, "the path of a file"),
            ("_depth_scale_adjustment", scale, depth is None or (_finite(scale) and scale > 0), "a positive number"),
            ("_depth_mask_path", depth_mask, depth_mask is None or type(depth_mask) is str, "the path of a file"),
            ("_mask_path", mask, mask is None or type(mask) is str, "the path of a file"),
            ("_mask_mass", mass, mass is None or _finite(mass), "a number of pixels"),
            *(("_viewpoint_intrinsics_format", intrinsics, intrinsics in (None, *INTRINSICS_FORMATS), "NDC's name"),),
        )
        if type(name) is not str:
            raise self._wrong(row, "sequence_name", shown(name)[:60], "a name")
        for column, value, holds, expected in checks:
            if not holds:
                said = " or ".join(INTRINSICS_FORMATS) if column.endswith("format") else expected
                raise self._wrong(row, column, shown(value)[:60], said)

    def _wrong(self, row: Sequence[Any], column: str, found: str, expected: str) -> DataError:
        return DataError(
            f"{shown(self.file)}: {column} of frame {shown(row[1])[:20]} of {shown(row[0])[:60]}: found {found},"
            f" expected {expected}; restore the file"
        )

    def _sequence(self, row: Sequence[Any]) -> SequenceAnnotation:
        name, category, video, length, cloud, quality, n_points, score = row
        texts, numbers = (name, category), (score, length if video else None, quality if cloud else None, n_points)
        paths = (video, cloud)
        if not (
            all(type(text) is str for text in texts)
            and all(path is None or type(path) is str for path in paths)
            and all(number is None or _finite(number) for number in numbers)
        ):
            raise DataError(
                f"{shown(self.file)}: sequence {shown(name)[:60]}: found {shown(row[1:])[:120]}, expected category and"
                " paths as text and the rest as numbers; restore the file"
            )
        return SequenceAnnotation(
            sequence_name=name,
            category=category,
            video=None if video is None else VideoAnnotation(video, length or 0.0),
            point_cloud=None if cloud is None else PointCloudAnnotation(cloud, quality or 0.0, n_points),
            viewpoint_quality_score=score,
        )


def _plainly_right(columns: Mapping[str, Sequence[Any]], sizes: Sequence[Sequence[int] | None]) -> bool:
    """Whether `Database._check_frame` has surely nothing to say of any row; there are many frames, and few are odd."""
    depths, scales, masses = columns["_depth_path"], columns["_depth_scale_adjustment"], columns["_mask_mass"]
    types = {name: set(map(type, values)) for name, values in columns.items()}
    numbers = [mass for mass in masses if mass is not None]
    of_depths = [scale for path, scale in zip(depths, scales, strict=True) if path is not None]
    return (
        types["sequence_name"] == types["_image_path"] == {str}
        and types["frame_number"] == {int}
        and types["frame_timestamp"] == {float}
        and all(types[name] <= _TEXT_OR_NONE for name in ("_depth_path", "_depth_mask_path", "_mask_path"))
        and set(map(type, (*numbers, *of_depths))) <= {float}
        and min(columns["frame_number"]) >= 0
        and all(_small(values) for values in (columns["frame_timestamp"], numbers, of_depths))
        and all(scale > 0 for scale in of_depths)
        and "" not in columns["_image_path"]
        and None not in sizes
        and all(0 < h < LARGEST_SIDE and 0 < w < LARGEST_SIDE for h, w in sizes)  # type: ignore[misc]
        and set(columns["_viewpoint_intrinsics_format"]) <= {None, *INTRINSICS_FORMATS}
    )


def _small(values: Sequence[float]) -> bool:
    """Whether all are finite and not too large; a sum of magnitudes is neither if one of them isn't."""
    return not values or (max(map(abs, values)) < LARGEST_NUMBER and math.isfinite(sum(values)))


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and abs(value) < LARGEST_NUMBER


def _connect(uri: str) -> Any:
    """A connection that only reads."""
    import sqlite3

    connection = sqlite3.connect(uri, uri=True)
    with contextlib.suppress(sqlite3.DatabaseError):
        connection.execute("PRAGMA query_only = 1")
    return connection


def _in_rows(numbers: Sequence[Any], n: int) -> list[Any]:
    """Tuples of n of them each, from a flat sequence."""
    return list(zip(*(numbers[i::n] for i in range(n)), strict=True))
