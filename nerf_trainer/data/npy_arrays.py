"""Headers of NumPy's arrays (NEP 1, the .npy format), looked at before memory is taken for what they announce."""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.lib import format as npy

from nerf_trainer.data.files import shown
from nerf_trainer.errors import DataError

_LENGTHS = {(1, 0): 2, (2, 0): 4}
"""Bytes of the header's length in each version of the format."""
_MAX_HEADER = 10_000
"""Longest header that NumPy parses; its parser reads one of any length first."""


@runtime_checkable
class ByteStream(Protocol):
    """What bytes are read from: an open file, a member of an archive."""

    def read(self, n: int = -1, /) -> bytes:
        """The next `n` bytes, fewer at the end; all that are left with -1."""
        ...


@dataclass(frozen=True)
class ArrayHeader:
    """What an array in a file says of itself."""

    shape: tuple[int, ...]
    """Its lengths, none of them negative."""
    dtype: np.dtype
    """What its numbers are; not always numbers (`dtype.kind` tells)."""
    by_columns: bool
    """Whether the first index changes fastest (Fortran's order)."""

    @property
    def n_bytes(self) -> int:
        """What its numbers take in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_array_header(stream: ByteStream, wrong: Callable[[str, str], DataError]) -> ArrayHeader:
    """The header of an array, after which `stream` stands at its numbers; nothing is unpickled.

    Args:
        stream: a binary file, at the array's first byte.
        wrong: makes the error of what was expected and what was found.

    Raises:
        DataError: there is no such header.
    """
    try:
        version = npy.read_magic(stream)
        read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
        length = stream.read(_LENGTHS[version])
        header = stream.read(min(int.from_bytes(length, "little"), _MAX_HEADER + 1))
        shape, by_columns, dtype = read_header(io.BytesIO(length + header))
    except Exception as error:  # whatever the parser raises on foreign bytes means that the file is bad
        raise wrong("a NumPy array (.npy)", f"none ({shown(error)[:80]})") from error
    if min(shape, default=0) < 0:
        raise wrong("lengths of at least 0", f"shape {shown(shape)[:40]}")
    return ArrayHeader(tuple(shape), dtype, by_columns)
