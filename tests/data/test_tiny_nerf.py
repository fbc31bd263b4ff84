"""The tiny-NeRF notebooks' file: read right, and refused in one line where it is bad (faults 29 to 38)."""

import io
import os
import pickle
import signal
import struct
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from nerf_trainer.config import build
from nerf_trainer.data.source import ImplicitronDataSource
from nerf_trainer.data.tiny_nerf import TinyNerfDatasetMapProvider, count_views, read_tiny_scene
from nerf_trainer.errors import MAX_LINE, ConfigError, DataError
from tests.data.scene_formats import spoiled
from tests.data.tiny_scene import arrays, write_tiny
from tests.known_scene import check_views, ring
from tests.peak_memory import memory_grows_by_less_than

VIEWS = [replace(view, focal=(60.0, 60.0), center=(24.0, 18.0)) for view in ring(8)]
SMALL = {"n_train_views": 5, "first_test_view": 6, "n_test_views": 2}


def provider(file, **options) -> TinyNerfDatasetMapProvider:
    return TinyNerfDatasetMapProvider(data_file=str(file), **{**SMALL, **options})


def refusal(file, **options) -> str:
    with pytest.raises(DataError) as caught:
        provider(file, **options).get_dataset_map()
    line = str(caught.value)
    assert line.isprintable() and len(line) < MAX_LINE + 100 and str(file) in line
    return line


@pytest.fixture
def file(tmp_path):
    return write_tiny(tmp_path / "tiny.npz", VIEWS)


def test_defaults_are_the_notebooks():
    """images[:100] are trained on, images[101] is held out."""
    found = TinyNerfDatasetMapProvider(data_file="x")
    assert (found.n_train_views, found.first_test_view, found.n_test_views) == (100, 101, 1)


def test_views_stand_where_the_notebooks_see_them(file):
    datasets = provider(file).get_dataset_map()
    check_views(datasets.train, VIEWS[:5])
    check_views(datasets.test, VIEWS[6:8])
    assert datasets.train.frame_numbers == (0, 1, 2, 3, 4) and datasets.test.frame_numbers == (6, 7)
    assert set(datasets.train.frame_types) == {"known"} and set(datasets.test.frame_types) == {"unseen"}
    assert datasets.val is datasets.test and datasets.notices == () and datasets.dataset_from_world is None
    assert datasets.train.image_paths[3] == f"{file}/view_003"


def test_background_is_black_and_there_are_no_masks(file):
    datasets = provider(file).get_dataset_map()
    frame = datasets.train[1]
    assert frame.fg_probability is None and not datasets.train.contents.fg_probability
    assert (frame.image_rgb[0].permute(1, 2, 0)[~torch.from_numpy(VIEWS[1].mask)] == 0).all()
    assert (datasets.train.rgba(1)[..., 3] == 255).all()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64, ">f4"])
def test_colours_of_any_type_are_the_same(tmp_path, dtype, packed):
    rgb = np.stack([view.rgb for view in VIEWS])
    images = rgb if dtype is np.uint8 else (rgb / 255).astype(dtype)
    write = np.savez_compressed if packed else np.savez
    write(tmp_path / "of.npz", **{**arrays(VIEWS), "images": images})
    np.testing.assert_array_equal(read_tiny_scene(tmp_path / "of.npz", 100).rgba[..., :3].numpy(), rgb)


def test_images_are_read_block_by_block(file, monkeypatch):
    whole = read_tiny_scene(file, 100).rgba
    monkeypatch.setattr("nerf_trainer.data.tiny_nerf._AT_ONCE", 3 * 36 * 48 * 3)
    assert torch.equal(read_tiny_scene(file, 100).rgba, whole) and len(whole) == 8


def test_a_fourth_channel_is_alpha(tmp_path):
    images = np.stack([view.rgba for view in VIEWS]) / 255
    train = provider(write_tiny(tmp_path / "alpha.npz", VIEWS, images=images)).get_dataset_map().train
    assert train.contents.fg_probability
    for i in range(5):
        np.testing.assert_array_equal(train[i].fg_probability[0, 0].numpy() > 0, VIEWS[i].mask)


def test_poses_by_columns_a_focal_in_brackets_and_more_arrays(tmp_path, file):
    poses = np.asfortranarray(arrays(VIEWS)["poses"])
    other = write_tiny(tmp_path / "other.npz", VIEWS, poses=poses, focal=np.array([60]), more=np.zeros(3))
    check_views(provider(other).get_dataset_map().train, VIEWS[:5])


def test_skew_rotations_are_mended_and_said(tmp_path):
    poses = arrays(VIEWS)["poses"].astype(np.float64)
    poses[2, :3, :3] *= 1.0003
    datasets = provider(write_tiny(tmp_path / "skew.npz", VIEWS, poses=poses)).get_dataset_map()
    [notice] = datasets.notices
    assert "1 of 8 rotations were not quite orthonormal" in notice
    R = datasets.train.cameras().R.double()
    torch.testing.assert_close(R @ R.mT, torch.eye(3).double().expand(5, 3, 3), atol=1e-6, rtol=0)


def test_source_views_follow_each_test_view(file):
    test = provider(file, n_known_frames_for_test=3).get_dataset_map().test
    assert len(test) == 2 + 5
    for target, *sources in test.get_eval_batches():
        assert test.frame_types[target] == "unseen" and len(set(sources)) == 3
        assert {test.frame_types[i] for i in sources} == {"known"} and all(test.frame_numbers[i] < 5 for i in sources)
    assert provider(file).get_dataset_map().test.get_eval_batches() == [[0], [1]]


def test_division_by_the_options(file):
    datasets = provider(file, n_train_views=8, n_test_views=0).get_dataset_map()
    assert len(datasets.train) == 8 and datasets.val is None and datasets.test is None
    [notice] = provider(file, n_train_views=8, first_test_view=5, n_test_views=3).get_dataset_map().notices
    assert "3 test images are trained on too, the first is view 5" in notice
    assert count_views(file) == 8
    with pytest.raises(ConfigError, match="n_train_views: found 100, expected at most the 8 of"):
        TinyNerfDatasetMapProvider(data_file=str(file)).get_dataset_map()
    with pytest.raises(ConfigError, match="found views 7 to 8, expected at most 7, the last of"):
        provider(file, first_test_view=7).get_dataset_map()


@pytest.mark.parametrize(
    "options",
    [{"n_train_views": 0}, {"first_test_view": -1}, {"n_test_views": -1}, {"n_known_frames_for_test": -1}],
    ids=str,
)
def test_options_are_checked(options):
    [name] = options
    with pytest.raises(ConfigError, match=f"{name}: found"):
        provider("x", **options)


def test_from_a_configuration(file):
    key = "dataset_map_provider_TinyNerfDatasetMapProvider_args"
    words = {"dataset_map_provider_class_type": "TinyNerfDatasetMapProvider", key: {"data_file": str(file), **SMALL}}
    datasets, loaders = build(ImplicitronDataSource, words).get_datasets_and_dataloaders()
    assert len(datasets.train) == 5 and len(loaders.test) == 2
    with pytest.raises(ConfigError, match="on_bad_frame"):
        build(ImplicitronDataSource, {**words, "on_bad_frame": "skip"}).get_datasets_and_dataloaders()


GOOD = arrays(VIEWS)
BAD_ARRAYS = {
    "images: expected shape (N, H, W, 3)": {"images": GOOD["images"][0]},
    "images: expected shape (N, H, W, 3) or (N, H, W, 4), found (8, 3": {"images": GOOD["images"][..., :2]},
    "found (0, 36, 48, 3)": {"images": GOOD["images"][:0]},
    "images: expected floating-point numbers in [0, 1], or uint8, found int64": {"images": np.ones((8, 4, 4, 3), int)},
    "images: expected rows in order": {"images": np.asfortranarray(GOOD["images"])},
    "images[2]: expected colours in [0, 1] (divide": {"images": GOOD["images"] * np.arange(8)[:, None, None, None]},
    "images[0]: expected colours in [0, 1] (divide those up to 255 by 255), found 0 to 2": {
        "images": GOOD["images"] * 255
    },
    "found nan to nan": {"images": np.full((8, 4, 4, 3), np.nan)},
    "images: expected numbers, found pickled objects": {"images": np.array([None])[:, None, None, None].repeat(3, 3)},
    "poses: expected shape (8, 4, 4), a pose for each image, found shape (7, 4, 4)": {"poses": GOOD["poses"][:7]},
    "found shape (8, 3, 4)": {"poses": GOOD["poses"][:, :3]},
    "poses: expected numbers, found": {"poses": GOOD["poses"].astype(complex)},
    "focal: expected one number": {"focal": np.array([60.0, 60.0])},
    "focal: expected a focal length above 0, in pixels, found -60": {"focal": np.float64(-60)},
    "focal: expected a focal length above 0, in pixels, found 0": {"focal": np.float64(0)},
    "focal: expected finite numbers": {"focal": np.float64(np.nan)},
    "focal: expected finite numbers, ": {"focal": np.float64(1e300)},
    "focal: expected numbers": {"focal": np.array("60")},
}


@pytest.mark.parametrize("message", BAD_ARRAYS)
def test_29_33_arrays_that_can_not_be(tmp_path, message):
    assert message in refusal(write_tiny(tmp_path / "bad.npz", VIEWS, **BAD_ARRAYS[message]))


@pytest.mark.parametrize("name", ["images", "poses", "focal"])
def test_an_array_that_is_missing_or_twice(tmp_path, name):
    np.savez(tmp_path / "few.npz", **{key: array for key, array in GOOD.items() if key != name})
    line = refusal(tmp_path / "few.npz")
    assert f"{name}: expected one array of this name, found 0 (there are " in line
    write_tiny(tmp_path / "twice.npz", VIEWS)
    with zipfile.ZipFile(tmp_path / "twice.npz", "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(f"{name}.npy", b"x")
    assert f"{name}: expected one array of this name, found 2" in refusal(tmp_path / "twice.npz")


def test_32_poses_that_are_none(tmp_path):
    generator = np.random.default_rng(1)
    for _ in range(60):
        poses, i = GOOD["poses"].astype(np.float64), int(generator.integers(8))
        matrix = np.array(spoiled(poses[i], generator))
        if matrix.shape != (4, 4):
            continue
        poses[i] = matrix
        assert f"poses[{i}]: expected " in refusal(write_tiny(tmp_path / "bad.npz", VIEWS, poses=poses))


def test_objects_are_never_unpickled(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    for name in GOOD:
        path = tmp_path / f"{name}.npz"
        np.savez(path, **{**GOOD, name: np.array([Evil()], dtype=object)})
        refusal(path)
    bare = tmp_path / "bare.npz"
    bare.write_bytes(pickle.dumps(Evil()))
    assert "found another file, or a part of one, expected an archive as numpy.savez writes it" in refusal(bare)
    assert not (tmp_path / "made").exists()


def test_29_three_hundred_damaged_files(file, tmp_path):
    """Cut, changed, empty: refused in one line, or read, but never with other sizes."""
    generator = np.random.default_rng(0)
    views = VIEWS[:2]
    np.savez_compressed(tmp_path / "packed.npz", **arrays(views))
    originals = [write_tiny(tmp_path / "small.npz", views).read_bytes(), (tmp_path / "packed.npz").read_bytes()]
    damaged, counts = tmp_path / "damaged.npz", {"read": 0, "refused": 0}
    options = {"n_train_views": 1, "first_test_view": 1, "n_test_views": 1}
    for i in range(300):
        content = np.frombuffer(originals[i % 2], np.uint8).copy()
        way = i // 2 % 3
        if way == 0:
            content = content[: generator.integers(1, len(content))]
        elif way == 1:
            content[generator.integers(len(content), size=4)] = generator.integers(256, size=4)
        else:  # in headers and in the directory
            places = np.concatenate([np.arange(200), len(content) - 1 - np.arange(300)])
            content[generator.choice(places, 2)] = generator.integers(256, size=2)
        damaged.write_bytes(content.tobytes())
        try:
            datasets = provider(damaged, **options).get_dataset_map()
        except DataError as error:
            counts["refused"] += 1
            assert str(error).isprintable() and len(str(error)) < MAX_LINE + 100
        else:
            counts["read"] += 1
            assert datasets.train.rgba(0).shape == (36, 48, 4)
    assert counts["refused"] > 200 and counts["read"] > 5


def npy(shape: tuple[int, ...], content: bytes = b"") -> bytes:
    text = str({"descr": "|u1", "fortran_order": False, "shape": shape}).encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content


def archive(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as content:
        for name, data in members.items():
            content.writestr(name, data)
    return stream.getvalue()


def test_30_37_bombs_are_refused_before_they_unpack(tmp_path):
    """Zeros that unpack to a thousand times their size, an array that promises more than the file has, a directory of
    100,000 members, and ways of packing that ask for memory of their own."""
    path = tmp_path / "bomb.npz"
    zeros = archive({"images.npy": npy((80, 500, 500, 3), bytes(60_000_000))})
    assert len(zeros) < 100_000
    path.write_bytes(zeros)
    with memory_grows_by_less_than(50):
        line = refusal(path, max_megabytes=50.0)
    assert "images: expected at most 50 MB (max_megabytes), found 60 MB" in line
    path.write_bytes(archive({"images.npy": npy((10**6, 10**4, 100, 3), b"few")}))
    assert "images: expected 3000000000000 bytes for shape (1000000, 10000, 100, 3), found 3 bytes" in refusal(path)
    many = archive({f"{i}.npy": b"" for i in range(2000)}, zipfile.ZIP_STORED)
    path.write_bytes(many)
    assert "found a directory of " in refusal(path)
    directory = struct.unpack("<I", many[-10:-6])[0]
    record = struct.pack(
        "<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, 2000, 2000, directory, len(many) - 22 - directory
    )
    end = many[-22:-10] + struct.pack("<I", 100) + many[-6:]
    path.write_bytes(many[:-22] + record + struct.pack("<4sIQI", b"PK\x06\x07", 0, len(many) - 22, 1) + end)
    assert len(zipfile.ZipFile(path).namelist()) == 2000, "what Python believes"
    assert "found a directory in ZIP64" in refusal(path)
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        path.write_bytes(archive({"images.npy": npy((1, 1, 1, 3), b"abc")}, method))
        assert f"images: expected an array stored or deflated, as numpy.savez does, found method {method}" in refusal(
            path
        )
    path.write_bytes(bytes(3_000_000))
    assert "found 3 MB, expected at most 1; raise max_megabytes" in refusal(path, max_megabytes=1.0)


def test_37_nothing_of_the_archive_reaches_the_disk(tmp_path, monkeypatch):
    """Members with paths that leave the folder, and links, are not looked at."""
    path = write_tiny(tmp_path / "slip.npz", VIEWS)
    with zipfile.ZipFile(path, "a") as content:
        content.writestr("../../escaped.npy", b"x")
        content.writestr("/tmp/escaped.npy", b"x")
        link = zipfile.ZipInfo("images")
        link.external_attr = 0o120777 << 16
        content.writestr(link, "/etc/passwd")
    before = sorted(tmp_path.parent.rglob("*"))
    assert len(provider(path).get_dataset_map().train) == 5
    assert sorted(tmp_path.parent.rglob("*")) == before


def test_28_38_what_is_no_file(tmp_path):
    def stop(*_: object) -> None:
        raise AssertionError("hangs")

    line = refusal(tmp_path / "gone.npz")
    assert "data_file: found nothing at" in line and "make_tiny_nerf_data.py" in line
    assert "found a folder" in refusal(tmp_path)
    (tmp_path / "empty.npz").touch()
    assert "found an empty file" in refusal(tmp_path / "empty.npz")
    os.mkfifo(tmp_path / "pipe.npz")
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(2)
    try:
        assert "found a pipe" in refusal(tmp_path / "pipe.npz")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
