"""Headers of arrays: what NumPy writes is read, foreign bytes are refused in the caller's words."""

import io

import numpy as np
import pytest

from nerf_trainer.data.npy_arrays import read_array_header
from nerf_trainer.errors import DataError


def wrong(expected: str, found: str) -> DataError:
    return DataError(f"here: expected {expected}, found {found}")


def saved(array: np.ndarray) -> io.BytesIO:
    stream = io.BytesIO()
    np.save(stream, array)
    stream.seek(0)
    return stream


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((3, 4, 5), np.float32),
        np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        np.array(2.5),
        np.zeros((0, 7), ">i2"),
    ],
    ids=["float32", "by columns", "a number", "empty"],
)
def test_what_numpy_writes(array):
    stream = saved(array)
    header = read_array_header(stream, wrong)
    assert header.shape == array.shape and header.dtype == array.dtype and header.n_bytes == array.nbytes
    assert header.by_columns == (array.ndim > 1 and array.flags.f_contiguous and not array.flags.c_contiguous)
    rest = stream.read()
    order = "F" if header.by_columns else "C"
    np.testing.assert_array_equal(np.frombuffer(rest, header.dtype).reshape(header.shape, order=order), array)


def test_a_header_takes_no_memory_for_what_it_announces():
    text = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 1000000), }"
    header = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
    assert read_array_header(io.BytesIO(header), wrong).n_bytes == 8 * 10**12


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        b"\x93NUMPY\x07\x00\x05\x00hello",
        b"no array at all, but text",
        b"\x93NUMPY\x01\x00\x1e\x00__import__('os').system('x')   ",
        saved(np.zeros((3, 4))).getvalue()[:40],
    ],
)
def test_what_is_no_header(content):
    with pytest.raises(DataError, match=r"here: expected a NumPy array \(.npy\), found none \("):
        read_array_header(io.BytesIO(content), wrong)


def test_no_more_than_a_header_is_read():
    """The second version has room for four billion bytes of header."""
    stream = io.BytesIO(b"\x93NUMPY\x02\x00" + (10**8).to_bytes(4, "little") + bytes(10**6))
    with pytest.raises(DataError, match="expected a NumPy array"):
        read_array_header(stream, wrong)
    assert stream.tell() < 20_000


def test_the_second_version_is_read():
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.arange(6.0), version=(2, 0))
    stream.seek(0)
    header = read_array_header(stream, wrong)
    assert header.shape == (6,) and np.frombuffer(stream.read())[5] == 5.0


def test_lengths_below_zero():
    text = b"{'descr': '<f8', 'fortran_order': False, 'shape': (-3, 4), }"
    header = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
    with pytest.raises(DataError, match="expected lengths of at least 0"):
        read_array_header(io.BytesIO(header), wrong)
