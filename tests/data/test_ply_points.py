"""Positions from PLY files, text and binary, and damaged ones refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nerf_trainer.data.ply_points import read_ply_points
from nerf_trainer.errors import DataError

POINTS = np.array([[1.5, -2.0, 0.25], [1e-3, 4.0, -7.0]])
PROPERTIES = "property uchar red\nproperty double x\nproperty float y\nproperty float z\n"


def text(n: int = 2, body: str | None = None, form: str = "ascii 1.0", properties: str = PROPERTIES) -> bytes:
    rows = "".join(f"7 {x} {y} {z}\n" for x, y, z in POINTS) if body is None else body
    header = f"ply\nformat {form}\ncomment by hand\nelement vertex {n}\n{properties}element face 1\n"
    return (header + "property list uchar int vertex_indices\nend_header\n" + rows + "3 0 1 0\n").encode()


def binary(order: str = "<") -> bytes:
    rows = np.zeros(2, dtype=[("red", "u1"), ("x", order + "f8"), ("y", order + "f4"), ("z", order + "f4")])
    rows["x"], rows["y"], rows["z"] = POINTS.T
    name = "binary_little_endian 1.0" if order == "<" else "binary_big_endian 1.0"
    return text(form=name, body="").replace(b"3 0 1 0\n", b"") + rows.tobytes()


def read(tmp_path, content: bytes) -> torch.Tensor:
    (tmp_path / "points.ply").write_bytes(content)
    return read_ply_points(tmp_path / "points.ply", "ply_file_path")


@pytest.mark.parametrize("content", [text(), binary("<"), binary(">"), text().replace(b"\n", b"\r\n")])
def test_points(tmp_path, content):
    np.testing.assert_allclose(read(tmp_path, content).numpy(), POINTS, rtol=1e-6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a ply", "no PLY header"),
        (b"ply\nformat ascii 1.0\n", "no PLY header"),
        (text(form="ascii_two 1.0"), "no known format"),
        (text(n=4), "4 rows of 4 numbers"),
        (text(n=0), "element vertex 0"),
        (text(n=10**11), "rows of 4 numbers"),
        (text(n=-1), "element vertex -1"),
        (text(body="7 1 2\n7 1 2 3\n"), "2 rows of 4 numbers"),
        (text(body="7 1 2 x\n7 1 2 3\n"), "2 rows of 4 numbers"),
        (text(body="7 1 2 nan\n7 1 2 3\n"), "not finite"),
        (text(properties="property float x\nproperty float y\n"), "x, y, z once each"),
        (text(properties=PROPERTIES + "property float x\n"), "x, y, z once each"),
        (text(properties="property list uchar int x\n"), "a property that is no number"),
        (binary()[:-1], "33 bytes"),
        (binary().replace(b"vertex 2", b"vertex 999999999999"), "vertices"),
    ],
)
def test_damaged_files(tmp_path, content, message):
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path, content)
    assert "load_points=false" in str(caught.value)


def test_missing_files(tmp_path):
    with pytest.raises(DataError, match="found nothing at"):
        read_ply_points(tmp_path / "none.ply", "ply_file_path")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ply")


@settings(max_examples=300, deadline=None)
@given(
    content=st.sampled_from([text(), binary()]),
    changes=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=4),
    length=st.integers(0, 250),
)
def test_mutated_files_never_surprise(folder, content, changes, length):
    mutated = bytearray(content)
    for place, byte in changes:
        mutated[place % len(mutated)] = byte
    try:
        points = read(folder, bytes(mutated[:length]) if length < 200 else bytes(mutated))
    except DataError:
        return
    assert points.shape[1] == 3 and points.isfinite().all()
