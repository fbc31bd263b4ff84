"""Index files of datasets in CO3D's format: gzipped JSON, with an annotation for each frame or sequence.

An index can have hundreds of thousands of frames. Its elements are therefore parsed one at a time and made into
annotations by a short path that only asks whether all is as it should be. What fails there goes through the careful
path in `annotations`, which finds the place and says what is wrong. Whether a frame is accepted is the careful path's
decision; the short one accepts less or as much.
"""

import gc
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from sys import intern
from typing import Any

from nerf_trainer.data.co3d.annotations import (
    LARGEST_SIDE,
    DepthAnnotation,
    FrameAnnotation,
    ImageAnnotation,
    MaskAnnotation,
    SequenceAnnotation,
    ViewpointAnnotation,
    frame_annotation,
    sequence_annotation,
)
from nerf_trainer.data.co3d.viewpoints import INTRINSICS_FORMATS, NDC_NORM_IMAGE_BOUNDS
from nerf_trainer.data.files import LARGEST_NUMBER, JsonNode, require_regular_file, shown
from nerf_trainer.errors import DataError

MAX_INDEX_BYTES = 2**30
"""Largest index that is read, decompressed; 100,000 frames have about 100 MB."""

MAX_RATIO = 200
"""An index beyond `SMALL_INDEX_BYTES` may be this many times larger than its file; indices compress 5 to 20 times."""

SMALL_INDEX_BYTES = 64 * 2**20
"""Indices up to this size may be compressed as strongly as they like."""

_GZIP_MAGIC = b"\x1f\x8b"
_START = re.compile(r"[ \t\n\r]*\[[ \t\n\r]*(\]?)")
_MARK = re.compile(r"[ \t\n\r]*([],])[ \t\n\r]*")
_NUMBERS = frozenset((int, float))
_FORMATS = frozenset(INTRINSICS_FORMATS)


def read_frame_annotations(file: Path) -> list[FrameAnnotation]:
    """The frames of an index file, in its order.

    Args:
        file: JSON, gzipped or plain.

    Raises:
        DataError: the file is missing, damaged, too large or says something else than annotations; the message has the
            place, such as `[123].viewpoint.R`.
    """
    found = []
    with no_collection():
        for i, raw in enumerate(_elements(file)):
            try:
                found.append(_fast_frame(raw))
            except (KeyError, TypeError, ValueError, AttributeError):
                found.append(frame_annotation(JsonNode(raw, file, f"[{i}]")))
    return found


def read_sequence_annotations(file: Path) -> list[SequenceAnnotation]:
    """The sequences of an index file, in its order.

    Args and Raises: as `read_frame_annotations`.
    """
    return [sequence_annotation(JsonNode(raw, file, f"[{i}]")) for i, raw in enumerate(_elements(file))]


@contextmanager
def no_collection() -> Iterator[None]:
    """Without looking for reference cycles, of which JSON has none: half of the time goes there otherwise."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def read_index_text(file: Path) -> str:
    """The text of a JSON file that may be gzipped, which its first bytes say and not its name.

    Raises:
        DataError: the file is missing, no regular file, damaged, not UTF-8, or too large when decompressed
            (`MAX_INDEX_BYTES`, `MAX_RATIO`).
    """
    n_stored = require_regular_file(file, shown(file)).st_size
    limit = min(MAX_INDEX_BYTES, max(SMALL_INDEX_BYTES, MAX_RATIO * n_stored))
    try:
        with open(file, "rb") as plain:
            content = plain.read(limit + 1)
        if content.startswith(_GZIP_MAGIC):
            content = _unzipped(content, limit)
    except (OSError, EOFError, zlib.error) as error:
        found = f"a damaged file ({shown(error)[:120]})"
        raise DataError(f"{shown(file)}: found {found}, expected JSON, gzipped or plain; download it again") from error
    if len(content) > limit:
        raise DataError(
            f"{shown(file)}: found more than {limit / 2**20:.0f} MiB of JSON in {n_stored / 2**20:.2f} MiB, expected at"
            " most that; the file is damaged or not an index"
        )
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{shown(file)}: found bytes that are no UTF-8 at {error.start}, expected JSON, gzipped or plain;"
            " download it again"
        ) from error


def _unzipped(content: bytes, limit: int) -> bytes:
    """What gzip's members hold, one after the other; not more than `limit` and one byte."""
    parts, n_left = [], limit + 1
    while content and n_left > 0:
        member = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        parts.append(member.decompress(content, n_left))
        n_left -= len(parts[-1])
        if not member.eof and n_left > 0:
            raise EOFError("it ends within compressed data")
        content = member.unused_data.lstrip(b"\0")
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _elements(file: Path) -> Iterator[Any]:
    """The elements of the array that a file holds, parsed one by one, so that one element's objects live at a time."""
    text = read_index_text(file)
    decode, mark = json.JSONDecoder(parse_constant=_refuse_constant).raw_decode, _MARK.match
    start = _START.match(text)
    if start is None:
        found = shown(json.dumps(text[:20])) if text else "nothing"
        raise DataError(f"{shown(file)}: expected a JSON array of annotations, found {found}; download it again")
    i, at = 0, start.end()
    if start[1]:
        return
    while True:
        try:
            value, at = decode(text, at)
        except (ValueError, RecursionError) as error:
            problem = shown(str(error).split(": line")[0])[:120]
            raise DataError(
                f"{shown(file)}: [{i}]: expected JSON, found: {problem}; download the file again"
            ) from error
        yield value
        after = mark(text, at)
        if after is None:
            found = shown(json.dumps(text[at : at + 10])) if text[at:].strip() else "the end of the file"
            raise DataError(f"{shown(file)}: after [{i}]: expected , or ], found {found}; download the file again")
        if after[1] == "]":
            return
        i, at = i + 1, after.end()


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


# The short path: whatever is not plainly right raises one of KeyError, TypeError, ValueError and AttributeError.


def _fast_frame(raw: dict[str, Any]) -> FrameAnnotation:
    get = raw.get
    image, depth, mask, viewpoint, meta = raw["image"], get("depth"), get("mask"), get("viewpoint"), get("meta")
    name, number, timestamp = raw["sequence_name"], raw["frame_number"], raw["frame_timestamp"]
    if not (type(name) is str and name and type(number) is int and number >= 0 and type(timestamp) in _NUMBERS):
        raise ValueError
    if not (abs(timestamp) <= LARGEST_NUMBER and (meta is None or type(meta) is dict)):
        raise ValueError
    path = image["path"]
    height, width = image["size"]
    if not (type(path) is str and path and type(height) is int and type(width) is int):
        raise ValueError
    if not (0 < height < LARGEST_SIDE and 0 < width < LARGEST_SIDE):
        raise ValueError
    return FrameAnnotation(
        intern(name),
        number,
        timestamp,
        ImageAnnotation(path, (height, width)),
        None if depth is None else _fast_depth(depth),
        None if mask is None else _fast_mask(mask),
        None if viewpoint is None else _fast_viewpoint(viewpoint),
        meta,
    )


def _fast_depth(raw: dict[str, Any]) -> DepthAnnotation:
    path, scale, mask_path = raw["path"], raw["scale_adjustment"], raw.get("mask_path")
    if not (type(path) is str and path and type(scale) in _NUMBERS and 0 < scale <= LARGEST_NUMBER):
        raise ValueError
    if not (mask_path is None or (type(mask_path) is str and mask_path)):
        raise ValueError
    return DepthAnnotation(path, scale, mask_path)


def _fast_mask(raw: dict[str, Any]) -> MaskAnnotation:
    path, mass, box = raw["path"], raw.get("mass"), raw.get("bounding_box_xywh")
    if not (type(path) is str and path):
        raise ValueError
    if not (mass is None or (type(mass) in _NUMBERS and abs(mass) <= LARGEST_NUMBER)):
        raise ValueError
    if box is not None:
        left, top, width, height = box
        if not (_NUMBERS.issuperset(map(type, box)) and sum(map(abs, box)) <= LARGEST_NUMBER):
            raise ValueError
        box = (left, top, width, height)
    return MaskAnnotation(path, mass, box)


def _fast_viewpoint(raw: dict[str, Any]) -> ViewpointAnnotation:
    (a, b, c), (d, e, f), (g, h, i) = raw["R"]
    x, y, z = raw["T"]
    focal_x, focal_y = raw["focal_length"]
    center_x, center_y = raw["principal_point"]
    intrinsics_format = raw.get("intrinsics_format", NDC_NORM_IMAGE_BOUNDS)
    numbers = (a, b, c, d, e, f, g, h, i, x, y, z, focal_x, focal_y, center_x, center_y)
    if not (_NUMBERS.issuperset(map(type, numbers)) and sum(map(abs, numbers)) <= LARGEST_NUMBER):
        raise ValueError
    if not (focal_x > 0 and focal_y > 0 and intrinsics_format in _FORMATS):
        raise ValueError
    return ViewpointAnnotation(
        ((a, b, c), (d, e, f), (g, h, i)),
        (x, y, z),
        (focal_x, focal_y),
        (center_x, center_y),
        intern(intrinsics_format),
    )
