"""Frames decoded into a store in the background."""

import threading

import pytest
import torch

from nerf_trainer.data.pixel_pools import DecodedFrames, PixelFilling
from nerf_trainer.errors import DataError
from nerf_trainer.frames import PixelStore
from tests.data.frames_kit import DECODED, FakeFrames

SIZES = ((4, 6), (3, 5), (7, 2), (4, 6))


@pytest.mark.parametrize("n_threads", [0, 1, 3])
def test_the_store_holds_the_frames_asked_for_in_their_order(n_threads):
    frames = FakeFrames("aaab", sizes_hw=SIZES)
    store = PixelFilling(DecodedFrames(frames), [2, 0, 1], "cpu", n_threads).result()
    expected = PixelStore.from_images([frames.rgba(i) for i in (2, 0, 1)], has_alpha=False)
    for name in ("rgba", "ends", "sizes_hw"):
        assert torch.equal(getattr(store, name), getattr(expected, name))
    assert not store.has_alpha and store.drawable is None


def test_masks_say_what_may_be_drawn():
    masks = {1: torch.zeros(3, 5, dtype=torch.bool), 2: torch.zeros(7, 2, dtype=torch.bool)}
    masks[1][2, 4] = masks[2][0, 1] = True
    store = PixelFilling(DecodedFrames(FakeFrames("aaab", sizes_hw=SIZES, masks=masks)), [1, 2, 3], "cpu").result()
    assert store.drawable.tolist() == [14, 16, *range(29, 53)]


def test_masks_that_leave_nothing_are_refused():
    empty = torch.zeros(4, 6, dtype=torch.bool)
    filling = PixelFilling(DecodedFrames(FakeFrames("ab", masks={0: empty, 1: empty})), [0, 1], "cpu")
    with pytest.raises(DataError, match=r"a/0.png: found masks that leave no pixel of it and 1 other frames"):
        filling.result()


def test_errors_of_its_threads_are_raised_and_end_the_work():
    class Broken(FakeFrames):
        def rgba(self, index: int) -> torch.Tensor:
            if index == 1:
                raise DataError("a/1.png: broken")
            return super().rgba(index)

    frames = Broken("a" * 500)
    filling = PixelFilling(DecodedFrames(frames), range(500), "cpu", 1)
    with pytest.raises(DataError, match="broken"):
        filling.result()
    assert frames.calls[DECODED] == 1


def test_cancelling_decodes_nothing_more_and_leaves_no_thread(monkeypatch):
    """The frames at work are held until it is said that no more are wanted."""
    begun, go_on = threading.Event(), threading.Event()

    class Slow(FakeFrames):
        def rgba(self, index: int) -> torch.Tensor:
            begun.set()
            assert go_on.wait(60)
            return super().rgba(index)

    frames = Slow("a" * 500)
    filling = PixelFilling(DecodedFrames(frames), range(500), "cpu", 2)
    assert begun.wait(60)
    join = filling._join

    def joining() -> None:
        go_on.set()
        join()

    monkeypatch.setattr(filling, "_join", joining)
    filling.cancel()
    assert 1 <= frames.calls[DECODED] <= 2
    assert not any(thread.is_alive() for thread in filling._threads)


def test_frames_are_decoded_once_where_they_fit_in_host_memory():
    """Images of 24 pixels take 96 bytes, and 24 more where a mask says what may be used."""
    mask = torch.zeros(4, 6, dtype=torch.bool)
    mask[1, 2] = True
    frames = FakeFrames("aaab", masks=dict.fromkeys(range(4), mask))
    decoded = DecodedFrames(frames, most_bytes=2 * 120 + 119)
    stores = [PixelFilling(decoded, [0, 1, 2, 3], "cpu", 1).result() for _ in range(3)]
    assert frames.calls[DECODED] == 4 + 2 + 2  # two fit
    for store in stores:
        assert torch.equal(store.rgba, stores[0].rgba) and store.drawable.tolist() == [8, 32, 56, 80]


def test_no_frame_is_kept_where_there_is_no_room():
    frames = FakeFrames("ab")
    decoded = DecodedFrames(frames)
    assert torch.equal(decoded.frame(1)[0], decoded.frame(1)[0]) and frames.calls[DECODED] == 2
