"""A scene that is too large for the device: its training images come in pools, one in use while the next is decoded.

Pool p of a run has the same frames in every run of the same seed and number of processes, and serves steps
p * steps_per_pool to (p + 1) * steps_per_pool - 1 counted from the run's first. How fast frames are decoded decides how
long a step waits, and nothing else.
"""

import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from nerf_trainer.data.loaders import FrameLoader
from nerf_trainer.data.pixel_pools import DecodedFrames, PixelFilling
from nerf_trainer.data.splits import DatasetBase
from nerf_trainer.frames import FrameContents, FrameData
from nerf_trainer.randomness import derive_seed

PIXELS_A_STEP = 25_000
"""Pixels to decode for a step: in a millisecond, that is what two or three processors decode of PNG files."""


@dataclass(frozen=True)
class PoolPlan:
    """Which frames each pool has: shuffled passes over all frames, dealt to the ranks, each share cut into pools.

    All pools have the same number of frames, so that steps on images of one size have one shape and can be captured.
    """

    n_frames: int
    """Frames of the dataset."""
    most_frames: int
    """Frames that fit in a pool."""
    seed: int = 0
    """The run's seed."""
    rank: int = 0
    """Which of the processes this is."""
    world_size: int = 1
    """How many processes share a pass."""

    @property
    def n_frames_of_pass(self) -> int:
        """Frames that each rank sees in a pass; where ranks don't divide the frames, some see one that others see."""
        return -(-self.n_frames // self.world_size)

    @property
    def pools_of_pass(self) -> int:
        """Pools that a pass takes."""
        return -(-self.n_frames_of_pass // self.most_frames)

    @property
    def frames_of_pool(self) -> int:
        """Frames that each pool has; where pools don't divide a pass, neighbours have a frame in common."""
        return -(-self.n_frames_of_pass // self.pools_of_pass)

    def frames(self, number: int) -> list[int]:
        """The frames of pool `number`, counted from the run's first; no frame twice."""
        n_pass, within = divmod(number, self.pools_of_pass)
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "pools", n_pass))
        order = torch.randperm(self.n_frames, generator=generator)
        share = (torch.arange(self.n_frames_of_pass) * self.world_size + self.rank) % self.n_frames
        first = within * self.n_frames_of_pass // self.pools_of_pass
        return order[share[first : first + self.frames_of_pool]].tolist()


def default_steps_per_pool(n_pixels: float) -> int:
    """Steps that a pool serves where nothing else is said: one for every `PIXELS_A_STEP` pixels of it, within bounds.

    The time to decode the next pool grows with its pixels, whatever a step does meanwhile; so the larger a pool, the
    more steps it serves. It is at least 500, and at most 2000, so that trainings of usual length see every image.

    Args:
        n_pixels: pixels of a pool.
    """
    return int(min(max(n_pixels / PIXELS_A_STEP, 500), 2000))


class StreamingFrameLoader(FrameLoader):
    """Each step is all pixels and cameras of a pool of frames, and the ray sampler draws.

    Two pools are on the device: the one in use, and the next, which threads fill in the background. The next is begun
    when a step is asked for and nobody has the pool before the one in use any more: after a change, mostly the second
    step of a pool. A caller who keeps no more than steps_per_pool batches (two groups of accumulated ones, the
    last and the one that is put together) never has a third pool there.

    Args:
        dataset: the frames.
        n_steps: steps of an epoch.
        frames_per_pool: frames that a pool has at most.
        steps_per_pool: steps that a pool serves.
        num_workers: threads that decode; 0 for as many as there are processors, at most 8.
        most_host_bytes: what decoded frames that are kept in host memory may take.
    """

    def __init__(
        self,
        dataset: DatasetBase,
        n_steps: int,
        frames_per_pool: int,
        steps_per_pool: int,
        num_workers: int = 0,
        most_host_bytes: float = 0.0,
    ) -> None:
        self._dataset = dataset
        self._decoded = DecodedFrames(dataset, most_host_bytes)
        self._n_steps = n_steps
        self._steps_per_pool = steps_per_pool
        self._num_workers = num_workers
        self._plan = PoolPlan(len(dataset), frames_per_pool)
        self._device: torch.device | str | None = None
        self._frames: FrameData | None = None
        self._current: tuple[int, FrameData] | None = None
        self._before: weakref.ref[torch.Tensor] | None = None
        self._next: tuple[int, PixelFilling] | None = None
        self._at_end: weakref.finalize[[], StreamingFrameLoader] | None = None

    def __len__(self) -> int:
        return self._n_steps

    def place(self, device: torch.device | str, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self._drop_next()
        self._leave_current()
        self._device = device
        self._frames = self._dataset.as_batch()
        self._plan = replace(self._plan, seed=seed, rank=rank, world_size=world_size)

    @property
    def contents(self) -> FrameContents:
        return replace(self._dataset.contents, depth_map=False, is_resident=True, fewest_source_views=0)

    def steps(self, epoch: int, start: int = 0) -> Iterator[FrameData]:
        for step in range(start, self._n_steps):
            number = (epoch * self._n_steps + step) // self._steps_per_pool
            yield self._pool(number)
            if self._device is not None and (self._before is None or self._before() is None):
                self._begin(number + 1, self._device)

    def _pool(self, number: int) -> FrameData:
        """A pool, waited for where it isn't there."""
        if self._frames is None or self._device is None:
            raise RuntimeError("place() comes before steps()")
        if self._current is None or self._current[0] != number:
            self._leave_current()
            pixels = self._begin(number, self._device).result()
            self._release_next()
            frames = self._frames.select(self._plan.frames(number)).to(self._device)
            self._current = number, replace(frames, pixels=pixels)
        return self._current[1]

    def _leave_current(self) -> None:
        """Hold the pool in use no longer, but know whether somebody else does."""
        if self._current is not None and self._current[1].pixels is not None:
            self._before = weakref.ref(self._current[1].pixels.rgba)
        self._current = None

    def _begin(self, number: int, device: torch.device | str) -> PixelFilling:
        """A pool being filled in the background, begun where it wasn't; another one that was begun is dropped."""
        if self._next is not None and self._next[0] == number:
            return self._next[1]
        self._drop_next()
        filling = PixelFilling(self._decoded, self._plan.frames(number), device, self._num_workers)
        self._next = number, filling
        self._at_end = weakref.finalize(self, filling.cancel)
        return filling

    def _drop_next(self) -> None:
        if self._next is not None:
            self._next[1].cancel()
            self._release_next()

    def _release_next(self) -> None:
        self._next = None
        if self._at_end is not None:
            self._at_end.detach()
            self._at_end = None
