"""Index files of datasets in CO3D's format: gzipped JSON, with an annotation for each frame or sequence.

An index can have hundreds of thousands of frames. Msgspec decodes it into the types of `annotations`, which it knows
how to check. Where it finds something wrong, all goes through the careful path in `annotations`, which finds the place
and says what was expected. Whether a frame is accepted is the careful path's decision; the other accepts less or as
much.
"""

import gc
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from nerf_trainer.data.co3d.annotations import (
    FrameAnnotation,
    SequenceAnnotation,
    frame_annotation,
    sequence_annotation,
)
from nerf_trainer.data.files import JsonNode, require_regular_file, shown
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
_FRAMES = msgspec.json.Decoder(list[FrameAnnotation])


def read_frame_annotations(file: Path) -> list[FrameAnnotation]:
    """The frames of an index file, in its order.

    Args:
        file: JSON, gzipped or plain.

    Raises:
        DataError: the file is missing, damaged, too large or says something else than annotations; the message has the
            place, such as `[123].viewpoint.R`.
    """
    text = read_index_text(file)
    with no_collection():
        try:
            return _FRAMES.decode(text)
        except (msgspec.MsgspecError, RecursionError, UnicodeError):
            return [frame_annotation(JsonNode(raw, file, f"[{i}]")) for i, raw in enumerate(_elements(text, file))]


def read_sequence_annotations(file: Path) -> list[SequenceAnnotation]:
    """The sequences of an index file, in its order.

    Args and Raises: as `read_frame_annotations`.
    """
    return [
        sequence_annotation(JsonNode(raw, file, f"[{i}]"))
        for i, raw in enumerate(_elements(read_index_text(file), file))
    ]


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


def _elements(text: str, file: Path) -> Iterator[Any]:
    """The elements of the array that a file's text holds, parsed one by one."""
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
