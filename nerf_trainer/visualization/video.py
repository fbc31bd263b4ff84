"""Videos: frames streamed to ffmpeg, and files that appear only when they are whole."""

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import imageio_ffmpeg
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from nerf_trainer.errors import StorageError

_ENCODING = ("-crf", "18")


class VideoWriter:
    """One video (H.264, quality crf 18, yuv420p), and on request the same as an animated GIF.

    Frames go to ffmpeg as they come, so that memory stays flat, and into PNG files beside it, which are the user's
    should ffmpeg be missing or die, and are removed otherwise. All of it lies in a hidden folder beside the target
    until `finish`, which moves the video to its place in one step.

    Args:
        path: the video, ending in .mp4; a GIF gets the same name with .gif.
        fps: frames per second.
        size_hw: resize frames to this height and width; None leaves them as they come. Odd sizes get one more row or
            column, as the encoding wants even ones.
        gif: write a GIF too.

    Raises:
        StorageError: the folder can't be written.
    """

    def __init__(self, path: Path, fps: float = 20.0, size_hw: tuple[int, int] | None = None, gif: bool = False):
        self.path = path
        self.n_frames = 0
        self._fps = fps
        self._size_hw = size_hw
        self._gif = gif
        self._folder = path.with_name(f".{path.stem}-{os.getpid()}")
        self._encoder: Any = None
        self._failure: str | None = None
        try:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir(parents=True)
        except OSError as error:
            raise StorageError(_refused(path, error)) from error

    def append(self, frame: UInt8[np.ndarray, "H W 3"]) -> None:
        """Add a frame. What is wrong with ffmpeg is told by `finish`; frames are kept until then.

        Raises:
            StorageError: the disk refuses the frame.
        """
        frame = to_even(frame if self._size_hw is None else resized(frame, self._size_hw))
        try:
            Image.fromarray(frame).save(self._png(self.n_frames), compress_level=1)
        except OSError as error:
            raise StorageError(_refused(self.path, error)) from error
        self.n_frames += 1
        if self._failure is not None:
            return
        try:
            if self._encoder is None:
                self._encoder = self._open()
            self._encoder.append_data(frame)
        except (OSError, RuntimeError) as error:
            self._fail(error)

    def finish(self) -> tuple[Path, ...]:
        """Complete the files and move them to their places.

        Returns:
            The video, and the GIF where one was asked for.

        Raises:
            StorageError: ffmpeg is missing or failed, and the PNG frames are left instead; or the disk refuses.
        """
        if self.n_frames == 0:
            self.abandon()
            raise StorageError(f"{self.path}: there is no frame to write; expected one at least")
        if self._failure is None:
            self._close()
        if self._failure is not None:
            frames = self._leave_frames()
            raise StorageError(
                f"{self.path}: ffmpeg can't write it ({self._failure}); its {self.n_frames} frames are in {frames}; "
                "reinstall imageio-ffmpeg, or name a working ffmpeg in IMAGEIO_FFMPEG_EXE"
            )
        written = [self.path]
        try:
            if self._gif:
                write_gif(self._folder / "video.gif", self._frames(), self._fps)
                os.replace(self._folder / "video.gif", self.path.with_suffix(".gif"))
                written.append(self.path.with_suffix(".gif"))
            os.replace(self._part, self.path)
        except OSError as error:
            raise StorageError(_refused(self.path, error)) from error
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)
        return tuple(written)

    def abandon(self) -> None:
        """Drop everything; what stood at the target stays as it was."""
        if self._encoder is not None:
            self._close()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _part(self) -> Path:
        return self._folder / "video.mp4"

    def _png(self, index: int) -> Path:
        return self._folder / f"{index:05d}.png"

    def _frames(self) -> Iterator[Image.Image]:
        for i in range(self.n_frames):
            with Image.open(self._png(i)) as image:
                yield image.convert("RGB")

    def _open(self) -> Any:
        return imageio.get_writer(
            self._part,
            format="FFMPEG",
            fps=self._fps,
            codec="libx264",
            quality=None,
            pixelformat="yuv420p",
            macro_block_size=1,
            ffmpeg_log_level="error",
            output_params=list(_ENCODING),
        )

    def _close(self) -> None:
        """Let ffmpeg end, and see whether the file holds what was sent: it may have died without a word."""
        try:
            self._encoder.close()
            found, _ = imageio_ffmpeg.count_frames_and_secs(str(self._part))
            if found != self.n_frames:
                self._failure = f"the file has {found} frames of {self.n_frames}"
        except (OSError, RuntimeError) as error:
            self._fail(error)
        self._encoder = None

    def _fail(self, error: Exception) -> None:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        self._failure = (lines[0] if lines else type(error).__name__)[:100]

    def _leave_frames(self) -> Path:
        self._part.unlink(missing_ok=True)
        target, number = self.path.with_name(f"{self.path.stem}_frames"), 1
        while target.exists():
            number += 1
            target = self.path.with_name(f"{self.path.stem}_frames-{number}")
        os.rename(self._folder, target)
        return target


def write_gif(path: Path, frames: Iterator[Image.Image], fps: float) -> None:
    """An endless animated GIF; frames are read one by one. Times are multiples of 10 ms, and 20 ms at least."""
    duration = max(2, round(100.0 / fps)) * 10
    first = next(frames)
    first.save(path, save_all=True, append_images=frames, duration=duration, loop=0)


def contact_sheet(path: Path, rows: Sequence[Sequence[UInt8[np.ndarray, "_ _ 3"]]], max_tile: int = 256) -> None:
    """Pictures side by side, a row a line, each at most `max_tile` pixels wide and high, as one PNG.

    Raises:
        StorageError: the disk refuses.
    """
    tiles = [[_fitted(picture, max_tile) for picture in row] for row in rows]
    gap = 4
    widths = [max(row[i].shape[1] for row in tiles if i < len(row)) for i in range(max(len(row) for row in tiles))]
    heights = [max(tile.shape[0] for tile in row) for row in tiles]
    sheet = np.full((sum(heights) + gap * (len(heights) + 1), sum(widths) + gap * (len(widths) + 1), 3), 255, np.uint8)
    y = gap
    for row, height in zip(tiles, heights, strict=True):
        x = gap
        for tile, width in zip(row, widths, strict=False):
            sheet[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
            x += width + gap
        y += height + gap
    part = path.with_name(f".{path.stem}-{os.getpid()}.png")
    try:
        Image.fromarray(sheet).save(part)
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise StorageError(_refused(path, error)) from error


def resized(frame: UInt8[np.ndarray, "_ _ 3"], size_hw: tuple[int, int]) -> UInt8[np.ndarray, "_ _ 3"]:
    """The frame at another height and width, bicubic, without aliasing where it shrinks."""
    if frame.shape[:2] == tuple(size_hw):
        return frame
    return np.asarray(Image.fromarray(frame).resize((size_hw[1], size_hw[0]), Image.Resampling.BICUBIC))


def to_even(frame: UInt8[np.ndarray, "_ _ 3"]) -> UInt8[np.ndarray, "_ _ 3"]:
    """The frame with its last row and column repeated where their number is odd."""
    height, width = frame.shape[:2]
    return np.ascontiguousarray(np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge"))


def _fitted(picture: UInt8[np.ndarray, "_ _ 3"], side: int) -> UInt8[np.ndarray, "_ _ 3"]:
    height, width = picture.shape[:2]
    scale = min(1.0, side / max(height, width))
    return resized(picture, (max(1, round(height * scale)), max(1, round(width * scale))))


def _refused(path: Path, error: OSError) -> str:
    reason = error.strerror or str(error) or type(error).__name__
    return f"{path}: can't be written ({reason}); expected a folder with room that may be written; set output_directory"
