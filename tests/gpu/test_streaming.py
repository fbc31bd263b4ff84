"""Pools that come to a GPU on a stream of their own hold what the frames hold."""

import pytest
import torch

from nerf_trainer.data.loaders import ResidentFrameLoader
from nerf_trainer.data.streaming import PoolPlan, StreamingFrameLoader
from nerf_trainer.frames import PixelStore
from tests.data.frames_kit import FakeFrames

pytestmark = pytest.mark.gpu

N_FRAMES, SIZE = 24, (200, 300)


def frames() -> FakeFrames:
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[::2] = True
    return FakeFrames("a" * N_FRAMES, sizes_hw=(SIZE,), masks={3: mask})


def test_pools_are_whole_while_the_device_is_busy():
    """A long product is queued at every step: pools are exchanged while earlier steps still read the old ones."""
    dataset = frames()
    loader = StreamingFrameLoader(dataset, n_steps=60, frames_per_pool=5, steps_per_pool=3, num_workers=3)
    loader.place("cuda", seed=1)
    generator = torch.Generator("cuda").manual_seed(0)
    square, wrong = torch.rand(2048, 2048, device="cuda"), torch.zeros((), dtype=torch.int64, device="cuda")
    for step, batch in enumerate(loader.steps(0)):
        square = torch.tanh(square @ square)
        store = batch.pixels
        assert store is not None and store.rgba.is_cuda and batch.cameras.device.type == "cuda"
        assert batch.frame_number == tuple(PoolPlan(N_FRAMES, 5, seed=1).frames(step // 3))
        camera, xy = store.draw(4096, generator)
        rgb, _ = store.gather(camera, xy)
        numbers = torch.tensor(batch.frame_number, device="cuda")[camera]
        expected = torch.stack([xy[:, 1].floor() % 256, xy[:, 0].floor() % 256, numbers.float()], dim=-1)
        wrong += ((rgb * 255).round() != expected).sum()
        wrong += ((numbers == 3) & (xy[:, 1].long() % 2 == 1)).sum()
    assert square.isfinite().all() and wrong.item() == 0


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
