"""Reads COLMAP's sparse models: cameras, images and points3D, each a .bin or a .txt.

Nothing in a file is trusted: a count is compared with the bytes that are left before anything is reserved for it, and
every complaint names the file and the record or line. Files beside these (rigs, frames, project.ini) are not read.
"""

import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Float, Int

from nerf_trainer.data.colmap.model import (
    MAX_NAME,
    ColmapCamera,
    ColmapImage,
    ColmapModel,
    ColmapPoints,
    camera,
    finite_translation,
    projection,
    rotation_of,
    wrong,
)
from nerf_trainer.data.files import require_regular_file, shown
from nerf_trainer.errors import DataError

MAX_BYTES = 8 * 2**30
"""Largest file of a model that is read."""

_COUNT = struct.Struct("<Q")
_CAMERA = struct.Struct("<IiQQ")
_POSE = struct.Struct("<I7dI")
_KEYPOINT = np.dtype([("xy", "<f8", 2), ("point", "<i8")])
_POINT = np.dtype(
    [("id", "<i8"), ("xyz", "<f8", 3), ("rgb", "u1", 3), ("error", "<f8"), ("track_length", "<u8")], align=False
)
_TRACK_ENTRY_BYTES = 8
_FEWEST_IMAGE_BYTES = _POSE.size + 1 + _COUNT.size
_FEWEST_CAMERA_BYTES = _CAMERA.size + 3 * 8


@dataclass(frozen=True)
class ModelFiles:
    """The files of a sparse model, all binary or all text."""

    cameras: Path
    """cameras.bin or cameras.txt."""
    images: Path
    """images.bin or images.txt."""
    points: Path | None
    """points3D.bin or points3D.txt, where there is one."""

    @classmethod
    def of(cls, folder: Path) -> "ModelFiles | None":
        """The model in a folder, binary before text as COLMAP has it; None where there is none."""
        for suffix in (".bin", ".txt"):
            cameras, images, points = (folder / f"{stem}{suffix}" for stem in ("cameras", "images", "points3D"))
            if cameras.exists() and images.exists():
                return cls(cameras, images, points if points.exists() else None)
        return None

    def count_images(self) -> int:
        """How many images are registered, without reading more than it takes; 0 where a file can't hold what it says.

        Raises:
            DataError: the file of images is no plain file, or no text.
        """
        if self.images.suffix == ".bin":
            with _open(self.images) as file:
                head, size = file.read(_COUNT.size), os.fstat(file.fileno()).st_size
            n = _COUNT.unpack(head)[0] if len(head) == _COUNT.size else 0
            return n if n <= size // _FEWEST_IMAGE_BYTES else 0
        return sum(1 for _ in _image_lines(self.images))

    def read(self) -> ColmapModel:
        """The whole model.

        Raises:
            DataError: a file is missing, damaged or breaks the format's rules; naming the file and the place.
        """
        if self.images.suffix == ".bin":
            cameras, images = _binary_cameras(self.cameras), _binary_images(self.images)
            points = _binary_points(self.points) if self.points else ColmapPoints.none()
        else:
            cameras, images = _text_cameras(self.cameras), _text_images(self.images)
            points = _text_points(self.points) if self.points else ColmapPoints.none()
        return ColmapModel.checked(cameras, images, points, shown(self.images))


class _Binary:
    """A binary file that is read from front to back and never beyond its end."""

    def __init__(self, path: Path) -> None:
        with _open(path) as file:
            self.content = file.read()
        self.name = shown(path)
        self.offset = 0

    def need(self, n_bytes: int, what: str) -> int:
        """Step over the next bytes, if there are so many; gives where they begin."""
        start, left = self.offset, len(self.content) - self.offset
        if n_bytes > left:
            raise DataError(
                f"{self.name}: expected {n_bytes} bytes for {what} at byte {start}, found {left} left; the file is cut"
                " short or damaged: restore it or export the model again"
            )
        self.offset += n_bytes
        return start

    def take(self, layout: struct.Struct, what: str) -> tuple[int | float, ...]:
        """The next values."""
        return layout.unpack_from(self.content, self.need(layout.size, what))

    def count(self, what: str, fewest_bytes: int) -> int:
        """The number of the records that follow, if what is left of the file can hold so many."""
        n = _COUNT.unpack_from(self.content, self.need(_COUNT.size, f"the number of {what}"))[0]
        left = len(self.content) - self.offset
        if n > left // fewest_bytes:
            raise DataError(
                f"{self.name}: found a count of {n} {what}, expected at most {left // fewest_bytes} in the {left} bytes"
                " that are left; the file is cut short or damaged: restore it or export the model again"
            )
        return n

    def text(self, what: str) -> bytes:
        """The next string, which a zero byte ends."""
        end = self.content.find(b"\0", self.offset, self.offset + MAX_NAME + 1)
        if end < 0:
            raise wrong(self.name, f"the end of {what} within {MAX_NAME} bytes", "none")
        start = self.need(end - self.offset + 1, what)
        return self.content[start:end]

    def finish(self) -> None:
        """Refuse a file that goes on."""
        if self.offset != len(self.content):
            raise wrong(self.name, f"the end of the file at byte {self.offset}", f"{len(self.content)} bytes")


def _open(path: Path) -> BinaryIO:
    size = require_regular_file(path, shown(path)).st_size
    if size > MAX_BYTES:
        raise DataError(
            f"{shown(path)}: found {size / 2**30:.1f} GiB, expected at most {MAX_BYTES / 2**30:.0f}; split the scene"
        )
    try:
        return path.open("rb")
    except OSError as error:
        raise wrong(shown(path), "a file that can be read", str(error.strerror)) from error


def _binary_cameras(path: Path) -> list[ColmapCamera]:
    """uint64 count; each: uint32 CAMERA_ID, int32 model, uint64 width and height, the model's parameters as doubles."""
    file = _Binary(path)
    cameras = []
    for i in range(file.count("cameras", _FEWEST_CAMERA_BYTES)):
        where = f"{file.name}: camera {i + 1}"
        number, model_number, width, height = (int(value) for value in file.take(_CAMERA, f"camera {i + 1}"))
        model = projection(model_number, where)
        values = file.take(struct.Struct(f"<{len(model.parameters)}d"), f"the parameters of camera {i + 1}")
        cameras.append(camera(number, model, (width, height), values, f"{where} (CAMERA_ID {number})"))
    file.finish()
    return cameras


def _binary_images(path: Path) -> list[ColmapImage]:
    """uint64 count; each: uint32 IMAGE_ID, seven doubles (quaternion, translation), uint32 CAMERA_ID, a string that a
    zero ends, uint64 count of keypoints, each of them two doubles and an int64 POINT3D_ID (-1 for none).
    """
    file = _Binary(path)
    images = []
    for i in range(file.count("images", _FEWEST_IMAGE_BYTES)):
        what = f"image {i + 1}"
        number, *pose, camera_number = file.take(_POSE, what)
        written = file.text(f"the name of {what}")
        n_keypoints = file.count(f"keypoints of {what}", _KEYPOINT.itemsize)
        start = file.need(n_keypoints * _KEYPOINT.itemsize, f"the keypoints of {what}")
        keypoints = np.frombuffer(file.content, _KEYPOINT, n_keypoints, start)
        where = f"{file.name}: {what} (IMAGE_ID {number})"
        images.append(
            _image(int(number), written, where, int(camera_number), pose, keypoints["xy"], keypoints["point"])
        )
    file.finish()
    return images


def _binary_points(path: Path) -> ColmapPoints:
    """uint64 count; each: uint64 POINT3D_ID, three doubles, three bytes of colour, a double of error, uint64 length of
    the track and as many pairs of uint32.

    Records differ in length: one pass finds where each begins, numpy reads what is at the same place in all.
    """
    file = _Binary(path)
    n, fixed = file.count("points", _POINT.itemsize), _POINT.itemsize
    content, end, offset = file.content, len(file.content), file.offset
    starts = np.empty(n, np.int64)
    length_at = fixed - _COUNT.size
    for i in range(n):
        starts[i] = offset
        offset += fixed
        if offset <= end:
            track = int.from_bytes(content[offset - fixed + length_at : offset], "little")
            offset += track * _TRACK_ENTRY_BYTES
        if offset > end:
            file.offset = int(starts[i])
            file.need(offset - file.offset, f"point {i + 1} of {n} and its track")
    file.offset = offset
    file.finish()
    if not n:
        return ColmapPoints.none()
    rows = np.lib.stride_tricks.sliding_window_view(np.frombuffer(content, np.uint8), fixed)[starts]
    records = rows.view(_POINT)[:, 0]
    return ColmapPoints.checked(records["id"].astype(np.int64), records["xyz"].astype(np.float64), file.name)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file, stripped, each with its number."""
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                yield number, line.decode("utf-8").strip()
            except UnicodeDecodeError as error:
                raise wrong(f"{shown(path)}:{number}", "UTF-8", f"byte {line[error.start]:#04x}") from error


def _records(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are neither empty nor a comment."""
    return ((number, line) for number, line in _lines(path) if line and not line.startswith("#"))


def _image_lines(path: Path) -> Iterator[tuple[int, str, str]]:
    """The two lines of each image with the first one's number: the pose, and the keypoints, which may be empty or left
    out at the file's end. A comment where keypoints are due stands for none.
    """
    lines = _lines(path)
    for number, line in lines:
        if line and not line.startswith("#"):
            _, keypoints = next(lines, (0, ""))
            yield number, line, "" if keypoints.startswith("#") else keypoints


def _text_cameras(path: Path) -> list[ColmapCamera]:
    """CAMERA_ID MODEL WIDTH HEIGHT PARAMS..."""
    cameras = []
    for line_number, line in _records(path):
        where, words = f"{shown(path)}:{line_number}", line.split()
        if len(words) < 5:
            raise wrong(where, "CAMERA_ID MODEL WIDTH HEIGHT PARAMS", f"{len(words)} values")
        number, width, height = (_integer(words[i], where) for i in (0, 2, 3))
        model = projection(words[1], where)
        cameras.append(camera(number, model, (width, height), _numbers(words[4:], where), where))
    return cameras


def _text_images(path: Path) -> list[ColmapImage]:
    """Two lines each: IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME, and X Y POINT3D_ID for every keypoint."""
    images = []
    for line_number, pose_line, keypoint_line in _image_lines(path):
        where, words = f"{shown(path)}:{line_number}", pose_line.split(maxsplit=9)
        if len(words) < 10:
            raise wrong(where, "IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME", f"{len(words)} values")
        pose = _numbers(words[1:8], where)
        keypoints, below = keypoint_line.split(), f"{shown(path)}:{line_number + 1}"
        if len(keypoints) % 3:
            raise wrong(below, "X Y POINT3D_ID for each keypoint", f"{len(keypoints)} values")
        xy = np.array([_numbers(keypoints[i::3], below) for i in (0, 1)], dtype=np.float64).T
        points = np.array([_integer(word, below, least=-1) for word in keypoints[2::3]], dtype=np.int64)
        number, camera_number = _integer(words[0], where), _integer(words[8], where)
        images.append(_image(number, words[9].encode(), where, camera_number, pose, xy, points))
    return images


def _text_points(path: Path) -> ColmapPoints:
    """POINT3D_ID X Y Z R G B ERROR TRACK..."""
    ids: list[int] = []
    positions: list[tuple[float, float, float]] = []
    for number, line in _records(path):
        words = line.split(maxsplit=8)
        try:
            identity, x, y, z = int(words[0]), float(words[1]), float(words[2]), float(words[3])
        except (ValueError, IndexError) as error:
            raise wrong(f"{shown(path)}:{number}", "POINT3D_ID X Y Z R G B ERROR TRACK", shown(line)) from error
        if len(words) < 8 or not 0 <= identity < 2**63:
            raise wrong(f"{shown(path)}:{number}", "POINT3D_ID X Y Z R G B ERROR TRACK", shown(line))
        ids.append(identity)
        positions.append((x, y, z))
    return ColmapPoints.checked(
        np.array(ids, dtype=np.int64), np.array(positions, dtype=np.float64).reshape(-1, 3), shown(path)
    )


def _image(
    number: int,
    written: bytes,
    where: str,
    camera_number: int,
    pose: Sequence[float],
    xy: Float[np.ndarray, "n 2"],
    points: Int[np.ndarray, "n"],
) -> ColmapImage:
    """An image out of what its record says."""
    try:
        name = written.decode("utf-8")
    except UnicodeDecodeError as error:
        raise wrong(where, "a NAME in UTF-8", repr(written)) from error
    if not name or len(written) > MAX_NAME:
        raise wrong(where, f"a NAME of 1 to {MAX_NAME} bytes", f"{len(written)}")
    observed = points >= 0
    return ColmapImage(
        number=number,
        name=name,
        where=f"{where} {shown(name)[:80]}",
        camera=camera_number,
        rotation=rotation_of(pose[:4], where),
        translation=finite_translation(pose[4:], where),
        xy=xy[observed].astype(np.float64),
        point_ids=points[observed].astype(np.int64),
    )


def _integer(word: str, where: str, least: int = 0) -> int:
    """A whole number between `least` and 2^63 - 1."""
    try:
        value = int(word)
    except ValueError as error:
        raise wrong(where, "a whole number", shown(word)) from error
    if not least <= value < 2**63:
        raise wrong(where, f"a whole number of at least {least}", shown(word))
    return value


def _numbers(words: Sequence[str], where: str) -> list[float]:
    """Numbers as they are written; whether they are finite is asked by whom they concern."""
    try:
        return [float(word) for word in words]
    except ValueError as error:
        raise wrong(where, "numbers", shown(" ".join(words))) from error
