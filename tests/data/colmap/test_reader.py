"""The files of sparse models: both ways of writing say the same, and no file is believed."""

import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from nerf_trainer.data.colmap import reader as colmap_reader
from nerf_trainer.data.colmap.model import ColmapModel
from nerf_trainer.data.colmap.reader import ModelFiles
from nerf_trainer.errors import DataError
from tests.data.colmap_scene import Observations, name_of, pose, write_binary, write_text
from tests.known_scene import ring

VIEWS = ring(3)


def read(folder: Path) -> ColmapModel:
    files = ModelFiles.of(folder)
    assert files is not None
    return files.read()


@pytest.fixture
def text(tmp_path) -> Path:
    write_text(tmp_path / "text", VIEWS, "OPENCV")
    return tmp_path / "text"


@pytest.fixture
def binary(tmp_path) -> Path:
    write_binary(tmp_path / "binary", VIEWS, "OPENCV")
    return tmp_path / "binary"


@pytest.mark.parametrize("kind", ["binary", "text"])
def test_what_was_written_is_read(kind, request):
    model, observed = read(request.getfixturevalue(kind)), Observations.of(VIEWS)
    assert [image.name for image in model.images] == [name_of(i) for i in range(3)]
    assert [image.number for image in model.images] == [10, 11, 12]
    assert [image.camera for image in model.images] == [1, 3, 5] and sorted(model.cameras) == [1, 3, 5]
    np.testing.assert_array_equal(model.points.positions, observed.points)
    np.testing.assert_array_equal(model.points.ids, 7 * np.arange(len(observed.points)) + 3)
    for i, (image, view) in enumerate(zip(model.images, VIEWS, strict=True)):
        np.testing.assert_allclose(image.rotation, view.R, atol=1e-14)
        np.testing.assert_array_equal(image.translation, view.T)
        rows = [row for row in observed.keypoints(i, view) if row[2] >= 0]
        np.testing.assert_array_equal(image.xy, [row[:2] for row in rows])
        assert image.point_ids.tolist() == [row[2] for row in rows]
        np.testing.assert_allclose(view.pixels(model.points.positions[model.points.find(image.point_ids)])[0], image.xy)
    camera = model.cameras[3]
    assert camera.size_hw == (36, 48) and camera.focal == (60.0, 57.0) and camera.principal_point == (23.0, 19.0)


def test_binary_goes_before_text(tmp_path):
    write_text(tmp_path, VIEWS)
    assert ModelFiles.of(tmp_path).images.suffix == ".txt"
    write_binary(tmp_path, VIEWS[:2])
    assert ModelFiles.of(tmp_path).images.suffix == ".bin" and len(read(tmp_path).images) == 2
    for stem in ("cameras", "points3D"):
        (tmp_path / f"{stem}.bin").unlink()
    assert len(read(tmp_path).images) == 3, "half a binary model is none"
    (tmp_path / "images.txt").unlink()
    assert ModelFiles.of(tmp_path) is None and ModelFiles.of(tmp_path / "nowhere") is None


def test_newer_models_have_more_files(binary):
    for name in ("rigs.bin", "frames.bin", "project.ini"):
        (binary / name).write_bytes(b"\xff" * 100)
    assert len(read(binary).images) == 3


@pytest.mark.parametrize("kind", ["binary", "text"])
def test_images_are_counted(kind, request):
    files = ModelFiles.of(request.getfixturevalue(kind))
    assert files.count_images() == 3
    if kind == "binary":
        files.images.write_bytes(struct.pack("<Q", 2**50) + files.images.read_bytes()[8:])
        assert files.count_images() == 0
        files.images.write_bytes(b"\3\0")
        assert files.count_images() == 0


@pytest.fixture
def small(tmp_path) -> Path:
    """One image and 15 points, so that each byte can be tried."""
    write_binary(tmp_path / "small", VIEWS[:1], "OPENCV")
    return tmp_path / "small"


@pytest.mark.parametrize("name", ["cameras.bin", "images.bin", "points3D.bin"])
def test_every_cut_is_noticed(small, name):
    whole = (small / name).read_bytes()
    for n in range(len(whole)):
        (small / name).write_bytes(whole[:n])
        with pytest.raises(DataError) as caught:
            read(small)
        line = str(caught.value)
        assert name in line and line.isprintable()
    (small / name).write_bytes(whole + b"\0")
    with pytest.raises(DataError, match=rf"{name}: expected the end of the file at byte {len(whole)}"):
        read(small)


@pytest.mark.parametrize("suffix", [".bin", ".txt"])
@pytest.mark.parametrize("stem", ["cameras", "images", "points3D"])
def test_damage_is_refused_or_harmless(tmp_path, stem, suffix):
    """Flipped bytes give a model or a message, and never memory for what the file does not hold."""
    (write_binary if suffix == ".bin" else write_text)(tmp_path, VIEWS[:1], "OPENCV")
    path = tmp_path / f"{stem}{suffix}"
    whole, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    tracemalloc.start()
    for _ in range(150):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), rng.integers(1, 4)):
            damaged[place] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            model = read(tmp_path)
        except DataError as error:
            refused += 1
            line = str(error).removeprefix(str(tmp_path))
            assert len(line) < 400 and line.isprintable()
        else:
            assert np.isfinite(model.points.positions).all()
            assert all(np.isfinite(image.rotation).all() for image in model.images)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused > 10 and peak < 4e6


@pytest.mark.parametrize(("name", "what"), [("cameras", "cameras"), ("images", "images"), ("points3D", "points")])
def test_counts_are_compared_with_what_is_left(binary, name, what):
    path = binary / f"{name}.bin"
    for n in (2**40, 2**64 - 1):
        path.write_bytes(struct.pack("<Q", n) + path.read_bytes()[8:])
        with pytest.raises(
            DataError, match=rf"{name}.bin: found a count of {n} {what}, expected at most \d+ in the \d+ b"
        ):
            read(binary)


def test_long_tracks_and_keypoints_are_compared_with_what_is_left(binary):
    path = binary / "points3D.bin"
    content = bytearray(path.read_bytes())
    content[8 + 43 : 8 + 51] = struct.pack("<Q", 2**61)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"points3D.bin: expected \d+ bytes for point 1 of 45 and its track at byte 8"):
        read(binary)
    path = binary / "images.bin"
    content = bytearray(path.read_bytes())
    place = 8 + 64 + len(name_of(0)) + 1
    content[place : place + 8] = struct.pack("<Q", 2**62)
    path.write_bytes(content)
    with pytest.raises(
        DataError, match=rf"images.bin: found a count of {2**62} keypoints of image 1, expected at most"
    ):
        read(binary)


def test_a_name_without_an_end(binary):
    path = binary / "images.bin"
    head = struct.pack("<QI7dI", 1, 10, *pose(VIEWS[0]), 1)
    path.write_bytes(head + b"a" * 9000)
    with pytest.raises(DataError, match="expected the end of the name of image 1 within 4096 bytes, found none"):
        read(binary)
    for name, message in ((b"", "a NAME of 1 to 4096 bytes, found 0"), (b"\xff\xfe", "a NAME in UTF-8")):
        path.write_bytes(head + name + b"\0" + struct.pack("<Q", 0))
        with pytest.raises(DataError, match=rf"images.bin: image 1 \(IMAGE_ID 10\): expected {message}"):
            read(binary)
    path.write_bytes(head + "früh.png".encode() + b"\0" + struct.pack("<Q", 0))
    assert read(binary).images[0].name == "früh.png"


def test_no_plain_files(binary, monkeypatch):
    path = binary / "images.bin"
    whole = path.read_bytes()
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match=r"images.bin: found a pipe"):
        read(binary)
    path.unlink()
    path.write_bytes(whole)
    monkeypatch.setattr(colmap_reader, "MAX_BYTES", 100)
    with pytest.raises(DataError, match=r"cameras.bin: found 0.0 GiB, expected at most"):
        read(binary)


def test_a_lens_that_is_not_read(binary, text):
    path = binary / "cameras.bin"
    content = bytearray(path.read_bytes())
    content[12:16] = struct.pack("<i", 7)
    path.write_bytes(content)
    with pytest.raises(
        DataError, match=r"cameras.bin: camera 1: found the camera model FOV, expected one of SIMPLE_PIN"
    ):
        read(binary)
    path = text / "cameras.txt"
    path.write_text(path.read_text().replace("5 OPENCV", "5 FULL_OPENCV"))
    with pytest.raises(
        DataError, match=r"cameras.txt:5: found the camera model FULL_OPENCV, expected one of SIMPLE_PIN"
    ):
        read(text)


def _change(path: Path, number: int, line: str) -> None:
    lines = path.read_text().splitlines()
    lines[number - 1] = line
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("name", "number", "line", "message"),
    [
        ("cameras", 3, "1 OPENCV 48 36", "expected CAMERA_ID MODEL WIDTH HEIGHT PARAMS, found 4 values"),
        ("cameras", 3, "x PINHOLE 48 36 60 60 24 18", "expected a whole number, found x"),
        ("cameras", 3, "-1 PINHOLE 48 36 60 60 24 18", "expected a whole number of at least 0, found -1"),
        ("cameras", 3, "1 PINHOLE 48.5 36 60 60 24 18", "expected a whole number, found 48.5"),
        ("cameras", 3, "1 PINHOLE 48 36 60 60 24 y", "expected numbers, found 60 60 24 y"),
        ("cameras", 3, "1 PINHOLE 48 36 60 60 24", "expected the 4 parameters of PINHOLE"),
        ("cameras", 3, "1 PINHOLE 48 36 60 60 nan 18", "expected cx: a finite number, found nan"),
        ("images", 3, "10 1 0 0 0 0 0 0 1", "expected IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME, found 9 values"),
        ("images", 3, "10 1 0 0 zero 0 0 0 1 a.png", "expected numbers, found 1 0 0 zero 0 0 0"),
        ("images", 3, "10 1 1 0 0 0 0 0 1 a.png", "expected a rotation"),
        ("images", 3, "10 1 0 0 0 0 inf 0 1 a.png", "expected a finite translation"),
        ("images", 3, f"{10**30} 1 0 0 0 0 0 0 1 a.png", "expected a whole number of at least 0, found 1000"),
        ("images", 4, "1.5 2.5 7 3", "expected X Y POINT3D_ID for each keypoint, found 4 values"),
        ("images", 4, "1.5 2.5 7.5", "expected a whole number, found 7.5"),
        ("images", 4, "1.5 2.5 -2", "expected a whole number of at least -1, found -2"),
        ("images", 4, "1.5 b 7", "expected numbers, found b"),
        ("points3D", 2, "3 1 2 3 4 5 6", "expected POINT3D_ID X Y Z R G B ERROR TRACK, found 3 1 2 3 4 5 6"),
        ("points3D", 2, "3 1 2 c 4 5 6 0.1 10 1", "expected POINT3D_ID X Y Z R G B ERROR TRACK, found 3 1 2 c"),
        ("points3D", 2, f"{2**63} 1 2 3 4 5 6 0.1", "expected POINT3D_ID X Y Z R G B ERROR TRACK, found 9223"),
        ("points3D", 2, "7" * 5000 + " 1 2 3 4 5 6 0.1", "expected POINT3D_ID X Y Z R G B ERROR TRACK, found 7777"),
    ],
)
def test_bad_lines_are_named(text, name, number, line, message):
    _change(text / f"{name}.txt", number, line)
    with pytest.raises(DataError) as caught:
        read(text)
    found = str(caught.value)
    assert f"{name}.txt:{number}: {message}" in found and found.isprintable()
    assert len(found.removeprefix(str(text))) < 400


def test_lines_that_are_no_text(text):
    (text / "points3D.txt").write_bytes(b"# points\n1 2 \xff 3\n")
    with pytest.raises(DataError, match=r"points3D.txt:2: expected UTF-8, found byte 0xff"):
        read(text)


def test_images_without_keypoints(text):
    """As COLMAP's FAQ has models of known poses: every second line is empty, or a comment; the last may be missing."""
    rows = ["10 1 0 0 0 0 0 0 1 a.png", "# every other line is left empty", "11 1 0 0 0 0 0 0 3 b.png", ""]
    (text / "images.txt").write_text("\n".join([*rows, "12 1 0 0 0 1.5 0 0 5 c d.png"]))
    (text / "points3D.txt").write_text("# nothing\n\n")
    model = read(text)
    assert [image.name for image in model.images] == ["a.png", "b.png", "c d.png"] and len(model.points) == 0
    assert model.images[2].translation.tolist() == [1.5, 0, 0] and model.images[2].point_ids.tolist() == []


def test_windows_line_ends(text):
    expected = read(text)
    for path in text.iterdir():
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    model = read(text)
    assert [image.name for image in model.images] == [name_of(i) for i in range(3)]
    np.testing.assert_array_equal(model.points.positions, expected.points.positions)


def test_many_points(tmp_path):
    """Records of many lengths, each read from its own place."""
    write_binary(tmp_path, VIEWS)
    n, rng = 20_000, np.random.default_rng(1)
    positions, lengths = rng.normal(size=(n, 3)), rng.integers(0, 9, n)
    records = [struct.pack("<Q", n)]
    for i in range(n):
        records.append(struct.pack("<Q3d3BdQ", i, *positions[i], 1, 2, 3, 0.5, lengths[i]) + bytes(8 * lengths[i]))
    (tmp_path / "points3D.bin").write_bytes(b"".join(records))
    points = read(tmp_path).points
    np.testing.assert_array_equal(points.positions, positions)
    np.testing.assert_array_equal(points.ids, np.arange(n))
