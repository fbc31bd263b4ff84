"""Files in CO3D's format out of pictures, depth and cameras: what `render_co3d_category` fills its folders with.

The format is Reizenstein et al.'s (2021, Common Objects in 3D), as the dataset's authors document it: annotations of
frames and sequences in gzipped JSON, or in SQLite with small arrays as blobs; depth as the bits of half-precision
floats in 16-bit PNGs; lists of the frames of each subset, and batches to evaluate whose first frame is the target.

It needs numpy and Pillow alone and nothing of the package that reads these files, so that it can bear witness.
"""

from __future__ import annotations

import gzip
import json
import sqlite3
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.float64]
Entry = tuple[str, int, str]
"""A frame in a list: its sequence, its number and the path of its image."""

N_SOURCES = (1, 3, 5, 7, 9)
"""Source views of the batches to evaluate, in turn."""
EVERY_UNSEEN = 5
"""Every fifth frame of a sequence is unseen, beginning with the third."""


@dataclass(frozen=True)
class Shot:
    """A camera: a pinhole with square pixels."""

    right: Array
    """Unit axis of the camera (3) in the world."""
    up: Array
    """Unit axis of the camera (3) in the world."""
    back: Array
    """Unit axis (3) against the viewing direction, in the world."""
    center: Array
    """Where it stands (3)."""
    hw: tuple[int, int]
    """Height and width of its picture, pixels."""
    focal: float
    """Focal length, pixels."""
    principal_point: tuple[float, float]
    """(x, y) in pixels, from the top left corner of the picture."""


@dataclass(frozen=True)
class FrameRecord:
    """What an annotation says of one frame."""

    sequence: str
    number: int
    timestamp: float
    shot: Shot
    image: str
    """Path in the dataset; so are the others."""
    mask: str
    mask_mass: float
    """Sum of the mask's probabilities."""
    depth: str
    depth_mask: str
    depth_scale: float
    """Depth is the stored float times this."""

    @property
    def entry(self) -> Entry:
        return self.sequence, self.number, self.image

    @property
    def unseen(self) -> bool:
        return self.number % EVERY_UNSEEN == 2

    @property
    def kind(self) -> str:
        return "unseen" if self.unseen else "known"


@dataclass(frozen=True)
class SequenceRecord:
    """What an annotation says of one sequence."""

    name: str
    category: str
    frames: tuple[FrameRecord, ...]
    point_cloud: str
    n_points: int
    quality: float
    """viewpoint_quality_score: larger is better."""

    @property
    def seconds(self) -> float:
        return self.frames[-1].timestamp


def write_depth(file: Path, depth: Array, scale: float) -> None:
    """Depth (H, W), 0 for none, in units of `scale`, as half floats whose 16 bits are the values of a grey PNG."""
    halves = (depth / scale).astype("<f2")
    Image.fromarray(np.ascontiguousarray(halves).view("<u2")).save(file)


def write_bits(file: Path, mask: NDArray[np.bool_]) -> None:
    """A mask (H, W) as a PNG of one bit a pixel."""
    Image.fromarray(mask).save(file)


def write_point_cloud(file: Path, points: Array, colors: NDArray[np.uint8]) -> None:
    """Points (P, 3) and their colours (P, 3) as binary PLY, little-endian."""
    header = (
        f"ply\nformat binary_little_endian 1.0\nelement vertex {len(points)}\n"
        "property float x\nproperty float y\nproperty float z\n"
        "property uchar red\nproperty uchar green\nproperty uchar blue\nend_header\n"
    )
    vertices = np.zeros(len(points), dtype=[("xyz", "<f4", 3), ("rgb", "u1", 3)])
    vertices["xyz"], vertices["rgb"] = points, colors
    file.write_bytes(header.encode() + vertices.tobytes())


def write_gzipped(file: Path, content: object) -> None:
    """JSON, gzipped, without name or time of day, so that the same content gives the same file."""
    with file.open("wb") as raw, gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as packed:
        packed.write(json.dumps(content).encode())


def viewpoint(shot: Shot, isotropic: bool) -> dict[str, Any]:
    """A camera as PyTorch3D has it.

    X_camera = X_world R + T with the camera's axes left, up, forward: they are the columns of R, and the centre C of
    the camera is at its origin, C R + T = 0. Intrinsics are in units of half the shorter side (isotropic, v2) or of
    half the side along each axis (v1); the principal point counts from the middle, to the left and up.
    """
    R = np.stack([-shot.right, shot.up, -shot.back], axis=1)
    height, width = shot.hw
    unit_x, unit_y = (min(height, width) / 2,) * 2 if isotropic else (width / 2, height / 2)
    x, y = shot.principal_point
    return {
        "R": R.tolist(),
        "T": (-shot.center @ R).tolist(),
        "focal_length": [shot.focal / unit_x, shot.focal / unit_y],
        "principal_point": [(width / 2 - x) / unit_x, (height / 2 - y) / unit_y],
        "intrinsics_format": "ndc_isotropic" if isotropic else "ndc_norm_image_bounds",
    }


def frame_annotation(frame: FrameRecord, isotropic: bool, part: str, subsets: Sequence[str]) -> dict[str, Any]:
    """FrameAnnotation of a frame of a `part` of the sequences (train, dev, test) and the `subsets` it is in."""
    return {
        "sequence_name": frame.sequence,
        "frame_number": frame.number,
        "frame_timestamp": frame.timestamp,
        "image": {"path": frame.image, "size": list(frame.shot.hw)},
        "depth": {"path": frame.depth, "scale_adjustment": frame.depth_scale, "mask_path": frame.depth_mask},
        "mask": {"path": frame.mask, "mass": frame.mask_mass},
        "viewpoint": viewpoint(frame.shot, isotropic),
        "meta": {"frame_type": f"{part}_{frame.kind}", "frame_splits": list(subsets)},
    }


def sequence_annotation(sequence: SequenceRecord) -> dict[str, Any]:
    """SequenceAnnotation. The video is named and not there, as in what is published."""
    return {
        "sequence_name": sequence.name,
        "category": sequence.category,
        "video": {"path": f"{sequence.category}/{sequence.name}/video.mp4", "length": sequence.seconds},
        "point_cloud": {
            "path": sequence.point_cloud,
            "quality_score": sequence.quality,
            "n_points": sequence.n_points,
        },
        "viewpoint_quality_score": sequence.quality,
    }


def eval_batches(
    sequences: Iterable[SequenceRecord], seed: int, with_sources: bool = True, every_number: bool = False
) -> list[list[Entry]]:
    """A batch for every unseen frame: it, and N_SOURCES in turn (or all there are) of its sequence's known frames.

    With `every_number` a batch for each of N_SOURCES, the smaller ones with the first sources of the larger.
    """
    draws = np.random.default_rng(seed)
    batches: list[list[Entry]] = []
    for sequence in sequences:
        known = [frame.entry for frame in sequence.frames if not frame.unseen]
        for target in (frame for frame in sequence.frames if frame.unseen):
            order = draws.permutation(len(known))
            in_turn = (N_SOURCES[len(batches) % len(N_SOURCES)],)
            numbers = (0,) if not with_sources else N_SOURCES if every_number else in_turn
            batches += [[target.entry, *(known[i] for i in order[:n])] for n in numbers]
    return batches


def entries(sequences: Iterable[SequenceRecord], unseen: bool | None = None) -> list[Entry]:
    """The frames of sequences; only known or only unseen ones if that is said."""
    frames = (frame for sequence in sequences for frame in sequence.frames)
    return [frame.entry for frame in frames if unseen is None or frame.unseen == unseen]


def held_out(sequences: Sequence[SequenceRecord]) -> tuple[Sequence[SequenceRecord], ...]:
    """Training, development and test sequences: a tenth each of the last two, at least one."""
    n = max(1, len(sequences) // 10)
    return sequences[: -2 * n], sequences[-2 * n : -n], sequences[-n:]


def write_v1(category: Path, sequences: Sequence[SequenceRecord], seed: int) -> None:
    """The index of a category in CO3D's first version; its tests are both held-out parts.

    Lists in `set_lists.json`: train_known, train_unseen, test_known, test_unseen. The single-sequence task evaluates
    test sequences, one at a time; the other one training sequences too.
    """
    train, *rest = held_out(sequences)
    test = [sequence for part in rest for sequence in part]
    parts: dict[str, Sequence[SequenceRecord]] = {"train": train, "test": test}
    lists = {
        f"{name}_{kind}": entries(part, kind == "unseen")
        for name, part in parts.items()
        for kind in ("known", "unseen")
    }
    write_annotations(category, parts, lists, isotropic=False)
    (category / "set_lists.json").write_text(json.dumps(lists))
    batches = {"singlesequence": eval_batches(test, seed), "multisequence": eval_batches([*test, *train], seed)}
    for task, content in batches.items():
        (category / f"eval_batches_{task}.json").write_text(json.dumps(content))


def v2_subsets(
    sequences: Sequence[SequenceRecord], seed: int, every_number: bool = False
) -> dict[str, tuple[dict[str, list[Entry]], list[Any]]]:
    """Lists and batches of each subset of a category.

    Of few views: training sequences with unseen frames of their own (train), with the development sequences (dev) or
    the test sequences (test) to evaluate on. Of many views: one sequence, its unseen frames to evaluate on without
    sources; with a single development sequence the two of them are one. What is looked at while training (val) is what
    is tested. `every_number`: see `eval_batches`; training sequences keep one number a frame.
    """
    train, dev, test = held_out(sequences)
    subsets: dict[str, tuple[dict[str, list[Entry]], list[Any]]] = {}
    for name, part in (("train", train), ("dev", dev), ("test", test)):
        frames = entries(train, False) if name == "train" else entries(train)
        lists = {"train": frames, "val": entries(part), "test": entries(part)}
        subsets[f"fewview_{name}"] = lists, eval_batches(part, seed, every_number=every_number and name != "train")
    singles = {"manyview_dev_0": dev[0], "manyview_dev_1": dev[-1], "manyview_test_0": test[0]}
    for name, sequence in singles.items():
        unseen = entries([sequence], True)
        lists = {"train": entries([sequence], False), "val": unseen, "test": unseen}
        subsets[name] = lists, eval_batches([sequence], seed, with_sources=False)
    return subsets


def write_v2(category: Path, sequences: Sequence[SequenceRecord], seed: int, every_number: bool = False) -> list[str]:
    """The index of a category in CO3D's second version; returns the names of its subsets."""
    subsets = v2_subsets(sequences, seed, every_number)
    for folder in ("set_lists", "eval_batches"):
        (category / folder).mkdir(exist_ok=True)
    for name, (lists, batches) in subsets.items():
        (category / "set_lists" / f"set_lists_{name}.json").write_text(json.dumps(lists))
        (category / "eval_batches" / f"eval_batches_{name}.json").write_text(json.dumps(batches))
    everything = {
        f"{name}_{split}": content for name, (lists, _) in subsets.items() for split, content in lists.items()
    }
    parts: dict[str, Sequence[SequenceRecord]] = dict(zip(("train", "dev", "test"), held_out(sequences), strict=True))
    write_annotations(category, parts, everything, isotropic=True)
    return list(subsets)


def write_annotations(
    category: Path, parts: dict[str, Sequence[SequenceRecord]], lists: dict[str, list[Entry]], isotropic: bool
) -> None:
    """frame_annotations.jgz and sequence_annotations.jgz of the sequences of all parts."""
    where: dict[Entry, list[str]] = {}
    for name, content in lists.items():
        for entry in content:
            where.setdefault(entry, []).append(name)
    frames = [(part, frame) for part, sequences in parts.items() for s in sequences for frame in s.frames]
    annotations = [frame_annotation(frame, isotropic, part, where.get(frame.entry, [])) for part, frame in frames]
    write_gzipped(category / "frame_annotations.jgz", annotations)
    described = [sequence_annotation(sequence) for sequences in parts.values() for sequence in sequences]
    write_gzipped(category / "sequence_annotations.jgz", described)


SCHEMA = """
CREATE TABLE frame_annots (
    sequence_name VARCHAR NOT NULL, frame_number INTEGER NOT NULL, frame_timestamp FLOAT NOT NULL,
    _image_path VARCHAR NOT NULL, _image_size BLOB NOT NULL,
    _depth_path VARCHAR, _depth_scale_adjustment FLOAT, _depth_mask_path VARCHAR,
    _mask_path VARCHAR, _mask_mass FLOAT, _mask_bounding_box_xywh BLOB,
    _viewpoint_R BLOB, _viewpoint_T BLOB, _viewpoint_focal_length BLOB, _viewpoint_principal_point BLOB,
    _viewpoint_intrinsics_format VARCHAR,
    PRIMARY KEY (sequence_name, frame_number)
);
CREATE INDEX ix_frame_annots_frame_timestamp ON frame_annots (frame_timestamp);
CREATE INDEX ix_frame_annots__mask_mass ON frame_annots (_mask_mass);
CREATE TABLE sequence_annots (
    sequence_name VARCHAR NOT NULL, category VARCHAR NOT NULL, _video_path VARCHAR, _video_length FLOAT,
    _point_cloud_path VARCHAR, _point_cloud_quality_score FLOAT, _point_cloud_n_points INTEGER,
    viewpoint_quality_score FLOAT,
    PRIMARY KEY (sequence_name)
);
CREATE INDEX ix_sequence_annots_category ON sequence_annots (category);
"""
"""The tables of PyTorch3D's SqlFrameAnnotation and SqlSequenceAnnotation. Tuples are blobs of 32-bit numbers."""


def write_sqlite(file: Path, sequences: Sequence[SequenceRecord]) -> None:
    """metadata.sqlite with the frames and sequences of all categories, viewpoints as in the second version."""
    connection = sqlite3.connect(file)
    with connection:
        connection.executescript(SCHEMA)
        rows = [frame_row(frame) for sequence in sequences for frame in sequence.frames]
        connection.executemany(f"INSERT INTO frame_annots VALUES ({', '.join('?' * 16)})", rows)
        others = [sequence_row(sequence) for sequence in sequences]
        connection.executemany("INSERT INTO sequence_annots VALUES (?, ?, ?, ?, ?, ?, ?, ?)", others)
    connection.close()


def frame_row(frame: FrameRecord) -> tuple[Any, ...]:
    """One row of frame_annots; the bounding box is left open, as most datasets do."""
    view = viewpoint(frame.shot, isotropic=True)
    pack = {key: struct.pack(f"<{np.size(view[key])}f", *np.ravel(view[key])) for key in view if key[-6:] != "format"}
    return (
        *(frame.sequence, frame.number, frame.timestamp, frame.image, struct.pack("<2i", *frame.shot.hw)),
        *(frame.depth, frame.depth_scale, frame.depth_mask, frame.mask, frame.mask_mass, None),
        *(pack["R"], pack["T"], pack["focal_length"], pack["principal_point"], view["intrinsics_format"]),
    )


def sequence_row(sequence: SequenceRecord) -> tuple[Any, ...]:
    """One row of sequence_annots."""
    video = f"{sequence.category}/{sequence.name}/video.mp4"
    cloud = (sequence.point_cloud, sequence.quality, sequence.n_points)
    return sequence.name, sequence.category, video, sequence.seconds, *cloud, sequence.quality


def write_sqlite_lists(file: Path, lists: dict[str, list[Entry]]) -> None:
    """A subset's lists as SQLite: the table set_lists."""
    connection = sqlite3.connect(file)
    with connection:
        connection.execute(
            "CREATE TABLE set_lists (sequence_name VARCHAR, frame_number INTEGER, image_path VARCHAR, subset VARCHAR)"
        )
        rows = [(*entry, subset) for subset, content in lists.items() for entry in content]
        connection.executemany("INSERT INTO set_lists VALUES (?, ?, ?, ?)", rows)
    connection.close()
