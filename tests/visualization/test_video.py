"""Videos as a reader finds them, and what is left when writing them fails."""

import os
import sys

import imageio.v2 as imageio
import numpy as np
import pytest
from PIL import Image

from nerf_trainer.errors import StorageError
from nerf_trainer.visualization.video import VideoWriter, contact_sheet, resized, to_even


def ramp(index: int, height: int = 24, width: int = 32) -> np.ndarray:
    """A smooth picture whose brightness tells its index."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[..., 0] = np.linspace(0, 255, width, dtype=np.uint8)
    picture[..., 1] = 20 * index
    return picture


def write(writer: VideoWriter, n: int = 6, height: int = 24, width: int = 32):
    for i in range(n):
        writer.append(ramp(i, height, width))
    return writer.finish()


def read(path):
    with imageio.get_reader(path) as reader:
        return [np.asarray(frame) for frame in reader], reader.get_meta_data()


@pytest.mark.parametrize(
    ("height", "width", "video_size", "expected"),
    [
        (24, 32, None, (24, 32)),
        (25, 33, None, (26, 34)),
        (24, 32, (64, 80), (64, 80)),
        (24, 32, (31, 17), (32, 18)),
        (1, 1, (16, 16), (16, 16)),
    ],
)
def test_a_video_reads_back(tmp_path, height, width, video_size, expected):
    path = tmp_path / "new" / "video.mp4"
    assert write(VideoWriter(path, fps=10, size_hw=video_size), 6, height, width) == (path,)
    frames, about = read(path)
    assert len(frames) == 6
    assert {frame.shape for frame in frames} == {(*expected, 3)}
    assert about["fps"] == pytest.approx(10.0)
    assert about["codec"] == "h264"
    assert about["pix_fmt"].startswith("yuv420p")
    assert [entry.name for entry in path.parent.iterdir()] == ["video.mp4"]


def test_frames_keep_their_order_and_colours(tmp_path):
    write(VideoWriter(tmp_path / "video.mp4"))
    frames, _ = read(tmp_path / "video.mp4")
    for i, frame in enumerate(frames):
        assert np.abs(frame.astype(float) - ramp(i)).mean() < 4.0


def test_a_gif_on_request(tmp_path):
    written = write(VideoWriter(tmp_path / "video.mp4", fps=20, gif=True))
    assert [path.name for path in written] == ["video.mp4", "video.gif"]
    with Image.open(tmp_path / "video.gif") as gif:
        assert (gif.n_frames, gif.size, gif.info["duration"], gif.info["loop"]) == (6, (32, 24), 50, 0)


def test_nothing_appears_before_the_end(tmp_path):
    path = tmp_path / "video.mp4"
    path.write_bytes(b"the old one")
    writer = VideoWriter(path)
    writer.append(ramp(0))
    assert path.read_bytes() == b"the old one"
    writer.abandon()
    assert path.read_bytes() == b"the old one"
    assert [entry.name for entry in tmp_path.iterdir()] == ["video.mp4"]


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="permissions don't bind the superuser")
def test_a_folder_that_may_not_be_written(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StorageError, match="can't be written"):
            VideoWriter(tmp_path / "video.mp4")
    finally:
        tmp_path.chmod(0o700)


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="can't be written"):
        VideoWriter(tmp_path / "file" / "video.mp4")


def test_sizes():
    assert to_even(ramp(0, 3, 5)).shape == (4, 6, 3)
    assert np.array_equal(to_even(ramp(0, 3, 5))[3, :5], ramp(0, 3, 5)[2])
    assert np.array_equal(to_even(ramp(1)), ramp(1))
    assert resized(ramp(0), (7, 9)).shape == (7, 9, 3)
    flat = np.full((6, 6, 3), 77, np.uint8)
    assert np.array_equal(resized(flat, (13, 5)), np.full((13, 5, 3), 77, np.uint8))


def test_a_contact_sheet(tmp_path):
    path = tmp_path / "sheet.png"
    contact_sheet(path, [[ramp(0), ramp(1), ramp(2)], [ramp(3)]], max_tile=16)
    sheet = np.asarray(Image.open(path))
    # tiles of 12x16 with 4 pixels between and around
    assert sheet.shape == (2 * 12 + 3 * 4, 3 * 16 + 4 * 4, 3)
    assert sheet[4 + 6, 4 + 20 + 8, 1] == pytest.approx(20, abs=2)
    assert sheet[4 + 16 + 6, 4 + 8, 1] == pytest.approx(60, abs=2)
    assert (sheet[4 + 16 + 6, 4 + 20 :] == 255).all()
    assert [entry.name for entry in tmp_path.iterdir()] == ["sheet.png"]
