"""Frames decoded into a `PixelStore` on a device by threads in the background.

Memory on the host is bounded by an image a thread (and the masks, where there are any), besides what `DecodedFrames`
may keep. On CUDA every image goes over
through pinned memory, on a stream of its own: copies overlap with what the device computes. A thread waits for each of
its copies, so that once all threads have ended nothing is under way: whoever then uses the memory, on any stream, or
gives it back, need not know of the copies.
"""

import os
import threading
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from nerf_trainer.data.splits import DatasetBase
from nerf_trainer.errors import DataError
from nerf_trainer.frames import PixelStore, drawable_pixels


def default_threads() -> int:
    """As many threads as there are processors, at most 8."""
    return min(8, os.cpu_count() or 1)


class DecodedFrames:
    """Frames of a dataset, decoded when asked for and kept in host memory, as many as fit there; for any thread.

    A frame that did not fit when it was decoded is decoded again each time: what is kept changes how long a frame
    takes, and nothing else.

    Args:
        dataset: where frames are decoded.
        most_bytes: what those that are kept may take; with 0 none is.
    """

    def __init__(self, dataset: DatasetBase, most_bytes: float = 0.0) -> None:
        self.dataset = dataset
        self._room = most_bytes
        self._kept: dict[int, tuple[UInt8[Tensor, "_ _ 4"], Bool[Tensor, "_ _"] | None]] = {}
        self._lock = threading.Lock()

    def frame(self, index: int) -> tuple[UInt8[Tensor, "H W 4"], Bool[Tensor, "H W"] | None]:
        """The pixels of a frame, and which of them may be used; None for all."""
        kept = self._kept.get(index)
        if kept is not None:
            return kept
        rgba, valid = self.dataset.rgba(index), self.dataset.valid(index)
        n_bytes = rgba.nbytes + (0 if valid is None else valid.nbytes)
        with self._lock:
            if index not in self._kept and n_bytes <= self._room:
                self._room -= n_bytes
                self._kept[index] = rgba, valid
        return rgba, valid


class PixelFilling:
    """A `PixelStore` in the making; threads begin to decode at once.

    Args:
        frames: where frames are decoded.
        indices: which of its frames, in the order of the store's images.
        device: where the pixels go.
        n_threads: how many frames are decoded at the same time; 0 for `default_threads`.
    """

    def __init__(
        self, frames: DecodedFrames, indices: Sequence[int], device: torch.device | str, n_threads: int = 0
    ) -> None:
        self._frames, self._dataset = frames, frames.dataset
        self._indices = list(indices)
        self._sizes_hw = self._dataset.image_sizes_hw[self._indices]
        self._ends = self._sizes_hw.prod(dim=1).cumsum(dim=0)
        n_pixels = int(self._ends[-1]) if self._indices else 0
        self._rgba = torch.empty(n_pixels, 4, dtype=torch.uint8, device=device)
        self._valid: list[Bool[Tensor, "_ _"] | None] = [None] * len(self._indices)
        self._stream = torch.cuda.Stream(self._rgba.device) if self._rgba.is_cuda else None
        if self._stream is not None:  # the memory may be in use until what is queued now is done
            self._stream.wait_stream(torch.cuda.current_stream(self._rgba.device))
        self._spans = iter(list(enumerate(pairwise([0, *self._ends.tolist()]))))
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._error: BaseException | None = None
        n_threads = min(n_threads or default_threads(), len(self._indices))
        self._threads = [threading.Thread(target=self._work, name="fill pixels", daemon=True) for _ in range(n_threads)]
        for thread in self._threads:
            thread.start()

    def result(self) -> PixelStore:
        """The store, waited for.

        Raises:
            DataError: a frame can't be decoded, or masks leave no pixel of any frame.
        """
        self._join()
        if self._error is not None:
            raise self._error
        return PixelStore(
            rgba=self._rgba,
            ends=self._ends.to(self._rgba.device),
            sizes_hw=self._sizes_hw.to(self._rgba.device),
            has_alpha=self._dataset.contents.fg_probability,
            drawable=self._drawable(),
        )

    def cancel(self) -> None:
        """Decode no further frame; returns when those at work are done."""
        self._ended.set()
        self._join()

    def _join(self) -> None:
        for thread in self._threads:
            if thread is not threading.current_thread():  # which may be the one that collects garbage
                thread.join()

    def _work(self) -> None:
        try:
            if self._stream is not None:  # a thread begins on the first device, where others may be at work
                torch.cuda.set_device(self._rgba.device)
            for i, (start, end) in self._next_spans():
                image, self._valid[i] = self._frames.frame(self._indices[i])
                self._copy(image.reshape(-1, 4), start, end)
        except BaseException as error:  # raised again for whoever waits for the result
            self._error = error
            self._ended.set()

    def _next_spans(self) -> Iterator[tuple[int, tuple[int, int]]]:
        """The frames that this thread decodes, and where their pixels go."""
        while not self._ended.is_set():
            with self._lock:
                span = next(self._spans, None)
            if span is None:
                return
            yield span

    def _copy(self, pixels: Tensor, start: int, end: int) -> None:
        if self._stream is None:
            self._rgba[start:end] = pixels
            return
        done = torch.cuda.Event(blocking=True)  # the processor is free for others while this thread waits
        with torch.cuda.stream(self._stream):
            self._rgba[start:end].copy_(pixels.contiguous().pin_memory(), non_blocking=True)
            done.record()
        done.synchronize()

    def _drawable(self) -> Tensor | None:
        try:
            drawable = drawable_pixels(self._valid, self._ends)
        except ValueError:
            first = self._dataset.image_paths[self._indices[0]]
            raise DataError(
                f"{first}: found masks that leave no pixel of it and {len(self._indices) - 1} other frames, expected"
                " white where pixels may be used; invert the masks, or don't read them"
            ) from None
        return None if drawable is None else drawable.to(self._rgba.device)
