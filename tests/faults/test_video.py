"""Row 63: where ffmpeg is missing, refuses, dies or is killed the PNG frames remain and a line says so; odd sizes and
no frames at all are no surprise; at the place of the video there is never a part of one."""

import itertools
import os
import signal
import time
from pathlib import Path

import imageio.v2 as imageio
import imageio_ffmpeg
import numpy as np
import pytest
from jaxtyping import UInt8
from PIL import Image

from nerf_trainer.errors import MAX_LINE, StorageError
from nerf_trainer.visualization.video import VideoWriter
from tests.faults.counts import Fault
from tests.faults.nursery import Nursery
from tests.faults.run_kit import train

OLD = b"the old one"
SMALL = ("render_size=[5,7]", "n_eval_cameras=3")


def noise(n: int, height: int = 24, width: int = 32) -> UInt8[np.ndarray, "n H W 3"]:
    return np.random.default_rng(n).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def read(path: Path) -> list[UInt8[np.ndarray, "_ _ 3"]]:
    with imageio.get_reader(path) as reader:
        return [np.asarray(frame) for frame in reader]


def script(path: Path, body: str) -> Path:
    """An ffmpeg that answers what it is asked for its version, and does `body` where it is to encode."""
    path.write_text(f'#!/bin/sh\ncase "$*" in *-version*) echo "ffmpeg version 7"; exit 0;; esac\n{body}\n')
    path.chmod(0o755)
    return path


REAL = imageio_ffmpeg.get_ffmpeg_exe()
BROKEN = {
    "missing": None,
    "refuses": "exit 1",
    "dies at once": "kill -9 $$",
    "dies in the middle": "head -c 3000 >/dev/null; kill -9 $$",
    "writes nothing": "cat >/dev/null; exit 0",
    "writes half of it": f'head -c 6000 | "{REAL}" "$@"; kill -9 $$',
    "is stopped at its end": "cat >/dev/null; kill -15 $$",
}


@pytest.mark.fault(row=63)
@pytest.mark.parametrize("how", BROKEN)
def test_without_a_working_ffmpeg_the_frames_are_left(
    fault: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
):
    body = BROKEN[how]
    ffmpeg = tmp_path / "ffmpeg" if body is None else script(tmp_path / "ffmpeg", body)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(ffmpeg))
    path = tmp_path / "out" / "video.mp4"
    path.parent.mkdir()
    path.write_bytes(OLD)
    pictures = noise(5)
    writer = VideoWriter(path)
    with pytest.raises(StorageError) as caught:
        for picture in pictures:
            writer.append(picture)
        writer.finish()
    message = str(caught.value)
    assert "\n" not in message and len(message) < MAX_LINE + 3 * len(str(tmp_path))
    assert "video_frames" in message and "IMAGEIO_FFMPEG_EXE" in message
    assert path.read_bytes() == OLD
    frames = sorted((path.parent / "video_frames").iterdir())
    assert [frame.name for frame in frames] == [f"{i:05d}.png" for i in range(5)]
    assert all(np.array_equal(Image.open(file), picture) for file, picture in zip(frames, pictures, strict=True))
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["video.mp4", "video_frames"]
    fault.passed()


def encoders_of(pid: int) -> list[int]:
    """The processes that a process has started and that are ffmpeg."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, rest = status.read_text().rsplit(")", 1)
        except (FileNotFoundError, ProcessLookupError):
            continue
        if "ffmpeg" in name and int(rest.split()[1]) == pid:
            found.append(int(status.parent.name))
    return found


@pytest.mark.fault(row=63)
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("after", [1, 4])
def test_an_ffmpeg_that_is_killed_leaves_the_frames(fault: Fault, tmp_path: Path, after: int):
    path = tmp_path / "video.mp4"
    pictures = noise(6)
    writer = VideoWriter(path)
    with pytest.raises(StorageError, match="video_frames"):
        for i, picture in enumerate(pictures):
            writer.append(picture)
            if i + 1 == after:
                (encoder,) = encoders_of(os.getpid())
                os.kill(encoder, signal.SIGKILL)
        writer.finish()
    assert sorted(file.name for file in tmp_path.glob("*/*")) == [f"{i:05d}.png" for i in range(6)]
    assert [entry.name for entry in tmp_path.iterdir()] == ["video_frames"]
    fault.passed()


@pytest.mark.fault(row=63)
def test_odd_sizes_are_made_even(fault: Fault, tmp_path: Path):
    sizes = [*itertools.product((15, 16, 17), (15, 16, 17)), (1, 1), (1, 16), (3, 2)]
    for height, width in sizes:
        writer = VideoWriter(tmp_path / "video.mp4")
        for picture in noise(2, height, width):
            writer.append(picture)
        assert writer.finish() == (tmp_path / "video.mp4",)
        expected = (height + height % 2, width + width % 2, 3)
        assert [frame.shape for frame in read(tmp_path / "video.mp4")] == [expected] * 2
        fault.passed()


@pytest.mark.fault(row=63)
def test_a_video_of_no_frames_is_refused(fault: Fault, tmp_path: Path):
    path = tmp_path / "video.mp4"
    path.write_bytes(OLD)
    with pytest.raises(StorageError, match="no frame"):
        VideoWriter(path, gif=True).finish()
    assert path.read_bytes() == OLD and [entry.name for entry in tmp_path.iterdir()] == ["video.mp4"]
    fault.passed()


# --- the command --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run to film; not to be changed."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert train(nursery, folder, "max_epochs=1").code == 0
    return folder


@pytest.mark.fault(row=63)
def test_the_command_leaves_the_frames_of_every_video(fault: Fault, nursery: Nursery, trained: Path, tmp_path: Path):
    words = (f"exp_dir={trained}", f"output_directory={tmp_path / 'out'}", *SMALL)
    child = nursery.run(
        *words, command="nerf_visualizer", timeout=180.0, IMAGEIO_FFMPEG_EXE=str(tmp_path / "no" / "ffmpeg")
    )
    assert child.code == 6
    assert child.err.startswith("error: ") and child.err.count("\n") == 1 and "Traceback" not in child.err
    left = sorted((tmp_path / "out").iterdir())
    assert len(left) == 4 and all(folder.name.endswith("_frames") for folder in left), "images, masks, two depths"
    assert all([file.name for file in sorted(f.iterdir())] == ["00000.png", "00001.png", "00002.png"] for f in left)
    fault.passed()


@pytest.mark.fault(row=63)
@pytest.mark.parametrize("word", ["n_eval_cameras=0", "n_eval_cameras=-3"])
def test_the_command_refuses_to_film_nothing(fault: Fault, nursery: Nursery, trained: Path, tmp_path: Path, word: str):
    words = (f"exp_dir={trained}", f"output_directory={tmp_path / 'out'}", word)
    child = nursery.run(*words, command="nerf_visualizer", timeout=180.0)
    assert child.code == 2 and "n_eval_cameras" in child.err and child.err.count("\n") == 1
    assert not (tmp_path / "out").exists()
    fault.passed()


@pytest.mark.fault(row=63)
def test_a_command_that_is_killed_leaves_no_part_of_a_video(
    fault: Fault, nursery: Nursery, trained: Path, tmp_path: Path
):
    """And one that is run again after it leaves whole ones."""
    out = tmp_path / "out"
    words = (f"exp_dir={trained}", f"output_directory={out}", "render_size=[5,7]")
    child = nursery.start(*words, "n_eval_cameras=2000", command="nerf_visualizer")
    until = time.monotonic() + 180.0
    while len(list(out.glob(".video*/*.png"))) < 20:
        assert not child.ended() and time.monotonic() < until, child.err
        time.sleep(0.01)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    assert not list(out.glob("*.mp4")) and not list(out.glob("*.png"))
    assert len(list(out.glob(".video*/*.png"))) >= 20, "the frames are there"
    again = nursery.run(*words, "n_eval_cameras=3", command="nerf_visualizer", timeout=180.0)
    assert again.code == 0, again.err
    assert {len(read(path)) for path in out.glob("*.mp4")} == {3} and len(list(out.glob("*.mp4"))) == 4
    fault.passed()
