"""Training images in pools: which frames a pool has, and when it is there."""

import gc
import itertools
import threading
import time
import weakref
from collections import Counter

import pytest
import torch

from nerf_trainer.data import streaming
from nerf_trainer.data.pixel_pools import PixelFilling
from nerf_trainer.data.streaming import PoolPlan, StreamingFrameLoader, default_steps_per_pool
from nerf_trainer.errors import DataError
from nerf_trainer.frames import FrameData
from tests.data.frames_kit import DECODED, FakeFrames

N_FRAMES, N_STEPS = 11, 10


def loader_of(frames, n_steps=N_STEPS, per_pool=3, steps_per_pool=4, seed=0, rank=0, world_size=1, kept=0.0):
    loader = StreamingFrameLoader(frames, n_steps, per_pool, steps_per_pool, num_workers=2, most_host_bytes=kept)
    loader.place("cpu", seed, rank, world_size)
    return loader


def held(frames: FrameData) -> tuple[int, ...]:
    """The frames of a pool as its pixels say; those that the batch names have to be the same."""
    numbers = tuple(frames.pixels.rgba[frames.pixels.ends - 1, 2].tolist())
    assert numbers == frames.frame_number and len(frames.cameras) == len(numbers)
    return numbers


def shown(loader, epochs, start=0) -> list[tuple[int, ...]]:
    return [held(frames) for epoch in epochs for frames in loader.steps(epoch, start)]


@pytest.mark.parametrize(
    ("n", "most", "world"), [(11, 3, 1), (12, 3, 1), (11, 1, 2), (7, 2, 3), (2, 5, 3), (100, 9, 4)]
)
def test_a_pass_shows_every_frame_once(n, most, world):
    plans = [PoolPlan(n, most, seed=1, rank=rank, world_size=world) for rank in range(world)]
    for n_pass in range(3):
        numbers = range(n_pass * plans[0].pools_of_pass, (n_pass + 1) * plans[0].pools_of_pass)
        pools = [plan.frames(number) for plan in plans for number in numbers]
        assert all(0 < len(pool) <= most and len(set(pool)) == len(pool) for pool in pools)
        assert {len(pool) for pool in pools} == {plans[0].frames_of_pool}  # a captured step wants one shape
        counts = Counter(i for pool in pools for i in pool)
        assert set(counts) == set(range(n))
        # Where ranks don't divide the frames, or pools a rank's share, some frames are seen again.
        again = -(-n // world) * world - n + world * (len(numbers) * plans[0].frames_of_pool - -(-n // world))
        assert sum(counts.values()) == n + again
        assert world > n or max(counts.values()) <= (1 if again == 0 else 3)


def test_pools_serve_as_many_steps_as_they_should_across_epochs():
    pools = shown(loader_of(FakeFrames("a" * N_FRAMES)), epochs=range(4))
    plan = PoolPlan(N_FRAMES, 3)
    assert plan.pools_of_pass == 4 and len(pools) == 40
    assert pools == [tuple(plan.frames(step // 4)) for step in range(40)]
    assert len(set(pools)) == 10  # shuffled anew in each pass


def test_batches_depend_on_seed_rank_epoch_and_step_alone():
    frames = FakeFrames("a" * N_FRAMES)
    whole = shown(loader_of(frames), epochs=range(4))
    for epoch, start in ((0, 3), (1, 0), (2, 9), (3, 10)):
        resumed = shown(loader_of(frames), [epoch], start)
        assert resumed == whole[epoch * N_STEPS + start : (epoch + 1) * N_STEPS]
    of_second = shown(loader_of(frames, rank=1, world_size=2), epochs=range(2))
    for epoch, start in ((0, 2), (1, 5)):  # in the middle of a pool, and at the first step of one
        resumed = shown(loader_of(frames, rank=1, world_size=2), [epoch], start)
        assert resumed == of_second[epoch * N_STEPS + start : (epoch + 1) * N_STEPS]
    used = loader_of(frames)
    shown(used, [0])
    assert shown(used, [2]) == whole[20:30] and shown(used, [1]) == whole[10:20]  # in any order
    others = {str(shown(loader_of(frames, seed=s, rank=r, world_size=2), range(4))) for s in (0, 1) for r in (0, 1)}
    assert len(others) == 4


def test_draws_of_a_resumed_run_are_those_of_an_uninterrupted_one():
    frames = FakeFrames("a" * N_FRAMES)

    def colours(loader, generator, epoch, start=0, stop=N_STEPS):
        drawn = []
        for step, batch in enumerate(loader.steps(epoch, start), start):
            if step == stop:
                break
            drawn.append(batch.pixels.gather(*batch.pixels.draw(50, generator))[0])
        return drawn

    whole = colours(loader_of(frames), torch.Generator().manual_seed(3), 1)
    generator = torch.Generator().manual_seed(3)
    first = colours(loader_of(frames), generator, 1, stop=6)
    saved = generator.get_state()
    generator = torch.Generator()
    generator.set_state(saved)
    rest = colours(loader_of(frames), generator, 1, start=6)
    assert torch.equal(torch.stack(whole), torch.stack(first + rest))


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("kept", [96, 4 * 96, 1e9])
def test_frames_kept_in_host_memory_change_no_batch(rank, kept):
    """Room for one image (96 bytes), for some, and for all."""
    plain, keeping = FakeFrames("a" * N_FRAMES), FakeFrames("a" * N_FRAMES)
    expected = shown(loader_of(plain, rank=rank, world_size=2), epochs=range(4))
    assert shown(loader_of(keeping, rank=rank, world_size=2, kept=kept), epochs=range(4)) == expected
    resumed = shown(loader_of(keeping, rank=rank, world_size=2, kept=kept), [1], 5)
    assert resumed == expected[N_STEPS + 5 : 2 * N_STEPS]


def test_everything_is_decoded_once_where_all_fits_in_host_memory():
    frames = FakeFrames("a" * N_FRAMES)
    shown(loader_of(frames, kept=1e9), epochs=range(6))
    assert frames.calls[DECODED] == N_FRAMES


@pytest.mark.parametrize(
    ("n_pixels", "n_steps"), [(0, 500), (12_500_000, 500), (20_000_000, 800), (166 * 400**2, 1062), (6.7e8, 2000)]
)
def test_larger_pools_serve_more_steps(n_pixels, n_steps):
    assert default_steps_per_pool(n_pixels) == n_steps


def test_place_begins_anew():
    frames = FakeFrames("a" * N_FRAMES)
    loader = loader_of(frames)
    shown(loader, [0])
    loader.place("cpu", 5)
    assert shown(loader, [0]) == shown(loader_of(frames, seed=5), [0])
    with pytest.raises(RuntimeError, match="place"):
        next(StreamingFrameLoader(frames, 1, 1, 1).steps(0))


@pytest.mark.parametrize(("accumulated", "steps_per_pool"), [(1, 1), (1, 4), (2, 3), (2, 4), (3, 5)])
def test_two_pools_are_in_memory_at_most(monkeypatch, accumulated, steps_per_pool):
    """Of a caller who keeps a group of batches until the next is put together, as the training loop does."""
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most = 0

    class Counted(PixelFilling):
        def __init__(self, *args) -> None:
            nonlocal most
            super().__init__(*args)
            alive.add(self._rgba)
            most = max(most, len(alive))

    monkeypatch.setattr(streaming, "PixelFilling", Counted)
    loader = loader_of(FakeFrames("a" * N_FRAMES), n_steps=24, steps_per_pool=steps_per_pool)
    for epoch in range(2):
        batches = loader.steps(epoch)
        while group := list(itertools.islice(batches, accumulated)):
            assert all(batch.pixels is not None for batch in group)
    assert most == 2


def test_the_next_pool_is_decoded_while_the_last_is_in_use():
    frames = FakeFrames("a" * N_FRAMES)
    loader = loader_of(frames, n_steps=4, per_pool=3)
    steps = loader.steps(0)
    next(steps), next(steps)
    until = time.monotonic() + 60
    both = sum(len(PoolPlan(N_FRAMES, 3).frames(number)) for number in (0, 1))
    while frames.calls[DECODED] < both and time.monotonic() < until:
        time.sleep(0.01)
    assert frames.calls[DECODED] == both
    list(steps)
    pools = [held(batch) for batch in loader.steps(1)]
    assert len(set(pools)) == 1


def test_dropping_the_loader_ends_its_threads():
    """Those that decode the pool after the one in use, of which the last frame is held back until then."""
    go_on, filling = threading.Event(), set()
    ahead = set(PoolPlan(400, 3).frames(1)) - set(PoolPlan(400, 3).frames(0))

    class Slow(FakeFrames):
        def rgba(self, index: int) -> torch.Tensor:
            if index in ahead:
                filling.add(threading.current_thread())
                assert go_on.wait(60)
            return super().rgba(index)

    loader = loader_of(Slow("a" * 400), per_pool=3)
    steps = loader.steps(0)
    next(steps), next(steps)
    until = time.monotonic() + 60
    while not filling:
        assert time.monotonic() < until
        time.sleep(0.01)
    threading.Timer(0.05, go_on.set).start()  # dropping waits for the frames at work
    del steps, loader
    gc.collect()
    assert filling and not any(thread.is_alive() for thread in filling)


def test_errors_of_a_pool_reach_the_step_that_needs_it():
    class Broken(FakeFrames):
        def rgba(self, index: int) -> torch.Tensor:
            if index == broken:
                raise DataError("a/0.png: broken")
            return super().rgba(index)

    plan = PoolPlan(N_FRAMES, 3)
    broken = next(i for i in plan.frames(1) if i not in plan.frames(0))
    steps = loader_of(Broken("a" * N_FRAMES)).steps(0)
    for _ in range(4):
        next(steps)
    with pytest.raises(DataError, match="broken"):
        next(steps)


def test_contents_are_those_of_a_resident_scene():
    contents = loader_of(FakeFrames("ab")).contents
    assert contents.is_resident and contents.fewest_source_views == 0 and contents.sequence_names == ("a", "b")


def test_masks_hold_in_every_pool():
    mask = torch.zeros(4, 6, dtype=torch.bool)
    mask[1, 2] = True
    frames = FakeFrames("a" * N_FRAMES, masks=dict.fromkeys(range(N_FRAMES), mask))
    for batch in loader_of(frames).steps(0):
        _, xy = batch.pixels.draw(20, torch.Generator().manual_seed(0))
        assert (xy == torch.tensor([2.5, 1.5])).all()
