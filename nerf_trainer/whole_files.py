"""Files that are there in full or as they were before, whenever somebody looks."""

import os
from pathlib import Path


def replace_file(path: Path, text: str) -> None:
    """Write a file, whose folder is made where there is none; on the disk before it takes the old one's place.

    Raises:
        OSError: the disk refuses; the old file is as it was.
    """
    part = path.with_name(f".{path.name}-{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
