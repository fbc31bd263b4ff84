"""`metrics.jsonl`: every logged value of a run, one JSON object a line.

A line has step (optimizer steps done), epoch, split (train, val or test), sec_per_step, rays_per_s, peak_memory_gib,
lr, and each metric by name. Values that are not finite are written as "inf", "-inf" and "nan", which JSON itself has no
numbers for.
"""

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from nerf_trainer.errors import StorageError

FILE_NAME = "metrics.jsonl"
_BLOCK_BYTES = 4096

Row = Mapping[str, Any]
"""One line of the file."""


def to_json_value(value: Any) -> Any:
    """`value`, or its name where it is a float that is not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value


def from_json_value(value: Any) -> Any:
    """The inverse of `to_json_value`."""
    return float(value) if value in ("nan", "inf", "-inf") else value


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The file's rows in order; nothing where there is no file. A line that is no JSON object (torn by a kill or a full
    disk) is left out."""
    if not path.exists():
        return
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                yield {name: from_json_value(value) for name, value in row.items()}


class MetricsLog:
    """Appends rows.

    Args:
        folder: the run's folder; None writes nothing (ranks other than the first).
        offset: bytes to keep: what was there when the checkpoint that the run resumes from was saved.
    """

    def __init__(self, folder: Path | None, offset: int = 0) -> None:
        self.path = folder / FILE_NAME if folder is not None else None
        self._failed = False
        if self.path is not None:
            self.rewind(offset)

    def rewind(self, offset: int) -> None:
        """Forget what was written after the first `offset` bytes, and a last line that is torn: a power failure or a
        copy may have left less than a checkpoint knew, and the next line would be part of the torn one.

        Raises:
            StorageError: the file can't be opened or cut.
        """
        if self.path is None:
            return
        try:
            with open(self.path, "a+b") as file:
                file.truncate(_end_of_lines(file, min(offset, file.tell())))
        except OSError as error:
            raise StorageError(
                f"{self.path}: can't be written ({error.strerror}); mend its permissions or set another exp_dir"
            ) from error

    def append(self, row: Row) -> str | None:
        """Write one row.

        Returns:
            A notice when the disk refuses for the first time: training goes on without the log's newest lines.
        """
        if self.path is None:
            return None
        line = json.dumps({name: to_json_value(value) for name, value in row.items()}, allow_nan=False) + "\n"
        try:
            append_whole(self.path, line)
        except OSError as error:
            first, self._failed = not self._failed, True
            return f"{self.path} could not be written ({error.strerror}); training goes on" if first else None
        return None

    def offset(self) -> int:
        """Bytes written so far, brought to the disk where it lets them; a checkpoint saves it.

        What the disk refuses still counts: a run that resumes would cut away the whole log otherwise.
        """
        if self.path is None:
            return 0
        with contextlib.suppress(OSError), open(self.path, "ab") as file:
            os.fsync(file.fileno())
        try:
            return self.path.stat().st_size
        except OSError:  # there is no checkpoint either where the folder is gone
            return 0


def append_whole(path: Path, text: str) -> None:
    """Add text to the end of a file, or nothing of it.

    Raises:
        OSError: the disk refuses.
    """
    # Unbuffered: a buffer would try again to write what failed, be it in `truncate` or in `close`.
    with open(path, "ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        try:
            rest = text.encode()
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(end)
            raise


def _end_of_lines(file: BinaryIO, end: int) -> int:
    """Where the last whole line before `end` ends; 0 where there is none."""
    while end > 0:
        start = max(0, end - _BLOCK_BYTES)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
