"""Pools that come to a GPU on a stream of their own hold what the frames hold."""

import pytest
import torch

from nerf_trainer.data.loaders import ResidentFrameLoader
from nerf_trainer.data.pixel_pools import DecodedFrames, PixelFilling
from nerf_trainer.data.streaming import PoolPlan, StreamingFrameLoader
from nerf_trainer.frames import PixelStore
from tests.data.frames_kit import FakeFrames

pytestmark = pytest.mark.gpu

MOST_IDLE = 3
"""Steps in which the host may have waited for the device, as it does where kernels are first called."""
N_FRAMES, SIZES = 24, [(200 + 7 * i, 300 - 5 * i) for i in range(24)]
MASKED = 3


def frames() -> FakeFrames:
    mask = torch.zeros(SIZES[MASKED], dtype=torch.bool)
    mask[::2] = True
    return FakeFrames("a" * N_FRAMES, sizes_hw=SIZES, masks={MASKED: mask})


def keep_busy(square: torch.Tensor) -> torch.Tensor:
    """Queue products that take the device tens of milliseconds."""
    for _ in range(20):
        square = torch.tanh(square @ square)
    return square


def is_busy() -> bool:
    return not torch.cuda.current_stream().query()


def test_a_store_is_not_filled_before_earlier_readers_of_its_memory_are_done():
    """The host lets go of a store while the device has still to read it: the next one may get the same memory."""
    dataset, n = FakeFrames("a" * N_FRAMES, sizes_hw=((200, 300),)), 8
    images = [dataset.rgba(i).reshape(-1, 4) for i in range(N_FRAMES)]
    expected = [torch.cat([*images, *images][k : k + n]).cuda() for k in range(N_FRAMES)]
    square, wrong = torch.rand(4096, 4096, device="cuda"), torch.zeros((), dtype=torch.int64, device="cuda")
    places, n_busy = set(), 0
    torch.cuda.synchronize()
    for k in range(N_FRAMES):
        n_busy += is_busy()
        store = PixelFilling(DecodedFrames(dataset), [(k + i) % N_FRAMES for i in range(n)], "cuda", 4).result()
        places.add(store.rgba.data_ptr())
        square = keep_busy(square)
        wrong += (store.rgba != expected[k]).sum()
        del store
    assert n_busy >= N_FRAMES - 1 - MOST_IDLE, "the device was idle: this says nothing"
    assert len(places) < N_FRAMES, "other memory each time: this says nothing"
    assert square.isfinite().all() and wrong.item() == 0


@pytest.mark.parametrize("steps_per_pool", [1, 3])
def test_pools_are_whole_while_the_device_is_busy(steps_per_pool):
    """Every pixel of the pool is read at every step, after long products: the next pool comes in meanwhile. Placing the
    loader anew drops a pool that is on its way.
    """
    dataset = frames()
    images = [dataset.rgba(i).reshape(-1, 4).cuda() for i in range(N_FRAMES)]
    loader = StreamingFrameLoader(dataset, 30, frames_per_pool=5, steps_per_pool=steps_per_pool, num_workers=3)
    generator = torch.Generator("cuda").manual_seed(0)
    square, wrong = torch.rand(4096, 4096, device="cuda"), torch.zeros((), dtype=torch.int64, device="cuda")
    for seed in (1, 2):
        loader.place("cuda", seed)
        pools = [PoolPlan(N_FRAMES, 5, seed).frames(number) for number in range(30)]
        is_masked = torch.tensor([[i == MASKED for i in (pool * 5)[:5]] for pool in pools]).cuda()
        steps, n_busy = loader.steps(0), 0
        for step in range(29):
            batch, number = next(steps), step // steps_per_pool
            store = batch.pixels
            assert store is not None and store.rgba.is_cuda and batch.cameras.device.type == "cuda"
            assert batch.frame_number == tuple(pools[number])
            square = keep_busy(square)
            wrong += (store.rgba != torch.cat([images[i] for i in pools[number]])).sum()
            camera, xy = store.draw(4096, generator)
            wrong += (is_masked[number][camera] & (xy[:, 1].long() % 2 == 1)).sum()
            n_busy += is_busy()
            del batch, store
        assert n_busy >= 29 - MOST_IDLE, "something here waits for the device, or it is idle: this says nothing"
    assert square.isfinite().all() and wrong.item() == 0


def test_a_pool_that_is_dropped_leaves_the_memory_alone():
    """Whoever gets the memory of a pool that was cancelled finds no late copy in it."""
    dataset = frames()
    n_bytes = int(dataset.image_sizes_hw.prod(dim=1).sum()) * 4
    square = torch.rand(4096, 4096, device="cuda")
    for _ in range(10):
        square = keep_busy(square)  # copies wait for it
        filling = PixelFilling(DecodedFrames(dataset), range(N_FRAMES), "cuda", 4)
        filling.cancel()
        del filling
        zeros = torch.zeros(n_bytes, dtype=torch.uint8, device="cuda")
        torch.cuda.synchronize()
        assert not zeros.any()


def test_the_resident_store_is_filled_on_the_device():
    dataset = frames()
    loader = ResidentFrameLoader(dataset, 1)
    loader.place("cuda", 0)
    store = next(loader.steps(0)).pixels
    images = [dataset.rgba(i) for i in range(N_FRAMES)]
    expected = PixelStore.from_images(images, has_alpha=False, valid=[dataset.valid(i) for i in range(N_FRAMES)])
    assert store is not None and torch.equal(store.rgba.cpu(), expected.rgba)
    assert store.drawable is not None and expected.drawable is not None
    assert torch.equal(store.drawable.cpu(), expected.drawable)
