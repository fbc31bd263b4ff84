"""Point clouds in PLY files (Turk 1994), text and binary: the positions of the vertices, nothing else.

A header in text names the elements in their order with their counts and properties; the vertices come first, as every
program that writes points has them. Sizes are checked against the file's before memory is reserved.
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nerf_trainer.data.files import LARGEST_NUMBER, require_regular_file, shown
from nerf_trainer.errors import DataError

MAX_PLY_BYTES = 2**31
"""Largest file that is read; ten million points with colours and normals have about 270 MB."""
_MAX_HEADER = 64 * 1024
_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">"}
_TYPES = {
    **{"char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2"},
    **{"ushort": "u2", "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4"},
    **{"float": "f4", "float32": "f4", "double": "f8", "float64": "f8"},
}


def read_ply_points(path: Path, where: str) -> Float[Tensor, "P 3"]:
    """The vertices' positions, float64.

    Args:
        path: the file.
        where: the place in the dataset that names it, for messages.

    Raises:
        DataError: no plain file, no PLY, damaged, or without points.
    """
    size = require_regular_file(path, where).st_size
    if size > MAX_PLY_BYTES:
        raise _wrong(where, path, f"{size / 2**20:.0f} MiB", f"at most {MAX_PLY_BYTES / 2**20:.0f}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _wrong(where, path, shown(error)[:80], "a file that can be read") from error
    end = content.find(b"end_header", 0, _MAX_HEADER)
    start = content.find(b"\n", end) + 1
    if not content.startswith(b"ply") or end < 0 or start == 0:
        raise _wrong(where, path, "no PLY header", "a point cloud in PLY format")
    lines = content[:end].decode("ascii", errors="replace").splitlines()
    encoding, n, properties = _header([line.split() for line in lines], where, path)
    if encoding == "ascii":
        points = _from_text(content[start:], n, properties, where, path)
    else:
        kind = np.dtype([(name, _ORDERS[encoding] + _TYPES[type_name]) for name, type_name in properties])
        if n * kind.itemsize > len(content) - start:
            raise _wrong(where, path, f"{len(content) - start} bytes", f"{n * kind.itemsize} for {n} vertices")
        vertices = np.frombuffer(content, dtype=kind, count=n, offset=start)
        points = np.stack([vertices[axis] for axis in "xyz"], axis=-1).astype(np.float64)
    if not (np.abs(points) <= LARGEST_NUMBER).all():
        raise _wrong(where, path, "a position that is not finite", "finite numbers")
    return torch.from_numpy(points)


def _header(lines: list[list[str]], where: str, path: Path) -> tuple[str, int, list[tuple[str, str]]]:
    """The encoding, the number of vertices, and the name and type of each of their properties."""
    words = [line for line in lines[1:] if line and line[0] not in ("comment", "obj_info")]
    formats = [line[1] for line in words if line[0] == "format" and len(line) > 1]
    elements = [i for i, line in enumerate(words) if line[0] == "element"]
    if len(formats) != 1 or formats[0] not in ("ascii", *_ORDERS):
        raise _wrong(where, path, "no known format in the header", f"ascii or {' or '.join(_ORDERS)}")
    first = words[elements[0]] if elements else []
    if len(first) != 3 or first[1] != "vertex" or not first[2].isdecimal() or int(first[2][:12]) == 0:
        raise _wrong(where, path, " ".join(first)[:40] or "no element", "vertices as the first element, at least one")
    end = elements[1] if len(elements) > 1 else len(words)
    described = [line for line in words[elements[0] + 1 : end] if line[0] == "property"]
    if any(len(line) != 3 or line[1] not in _TYPES for line in described):
        raise _wrong(where, path, "a property that is no number", "numbers for each vertex")
    properties = [(line[2], line[1]) for line in described]
    names = [name for name, _ in properties]
    if len(set(names)) != len(names) or not {"x", "y", "z"} <= set(names):
        raise _wrong(where, path, f"vertices with {', '.join(names)[:60] or 'nothing'}", "x, y, z once each")
    return formats[0], int(first[2][:12]), properties


def _from_text(
    content: bytes, n: int, properties: list[tuple[str, str]], where: str, path: Path
) -> Float[np.ndarray, "P 3"]:
    """The positions in the first n lines."""
    names, rows = [name for name, _ in properties], content.split(b"\n", min(n, len(content)))[:n]
    columns = [names.index(axis) for axis in "xyz"]
    try:
        values = [[float(entry) for entry in row.split()] for row in rows]
        if len(values) != n or any(len(row) != len(names) for row in values):
            raise ValueError(f"{len(values)} rows")
    except ValueError as error:
        raise _wrong(where, path, shown(error)[:80], f"{n} rows of {len(names)} numbers") from error
    return np.array(values, dtype=np.float64)[:, columns]


def _wrong(where: str, path: Path, found: str, expected: str) -> DataError:
    return DataError(
        f"{where}: found {shown(found)} in {shown(path)}, expected {expected}; export it again, or set"
        " load_points=false"
    )
