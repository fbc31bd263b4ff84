"""Loaders: the batches of an epoch, in an order that depends on seed, rank and epoch alone.

No loader has a state: step s of epoch e is the same batch in every run of the same seed and number of processes,
whether the run got there in one go or was resumed, and however many threads decode.
"""

from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from nerf_trainer.data.evaluation_views import EvaluationViews, evaluation_views
from nerf_trainer.data.pixel_pools import DecodedFrames, PixelFilling
from nerf_trainer.data.samplers import FrameSampler
from nerf_trainer.data.splits import DatasetBase
from nerf_trainer.errors import ConfigError, DataError
from nerf_trainer.frames import FrameContents, FrameData
from nerf_trainer.randomness import derive_seed


class FrameLoader(ABC):
    """The batches of a split, epoch by epoch."""

    @abstractmethod
    def __len__(self) -> int:
        """Steps of an epoch, on this rank."""

    @abstractmethod
    def place(self, device: torch.device | str, seed: int, rank: int = 0, world_size: int = 1) -> None:
        """Say once, before the first step, where batches go and whose they are.

        Args:
            device: where the tensors of every batch will be.
            seed: the run's seed.
            rank: which of the `world_size` processes this is.
        """

    @abstractmethod
    def steps(self, epoch: int, start: int = 0) -> Iterator[FrameData]:
        """The batches of epoch `epoch` from step `start` on, on the device."""

    @property
    def contents(self) -> FrameContents:
        """What the batches may hold; known before `place`."""
        return FrameContents()


class ResidentFrameLoader(FrameLoader):
    """A scene that stays on the device: each step is all of its pixels and cameras, and the ray sampler draws.

    Args:
        dataset: the frames.
        n_steps: steps of an epoch.
    """

    def __init__(self, dataset: DatasetBase, n_steps: int) -> None:
        self._dataset = dataset
        self._n_steps = n_steps
        self._scene: FrameData | None = None

    def __len__(self) -> int:
        return self._n_steps

    def place(self, device: torch.device | str, seed: int, rank: int = 0, world_size: int = 1) -> None:
        pixels = PixelFilling(DecodedFrames(self._dataset), range(len(self._dataset)), device).result()
        self._scene = replace(self._dataset.as_batch().to(device), pixels=pixels)

    @property
    def contents(self) -> FrameContents:
        return replace(self._dataset.contents, depth_map=False, is_resident=True, fewest_source_views=0)

    def steps(self, epoch: int, start: int = 0) -> Iterator[FrameData]:
        if self._scene is None:
            raise RuntimeError("place() comes before steps()")
        for _ in range(start, self._n_steps):
            yield self._scene


class DecodingLoader(FrameLoader):
    """What loaders that decode frames by index share: where they are placed, and threads that decode ahead."""

    def __init__(self, dataset: DatasetBase, num_workers: int) -> None:
        self._dataset = dataset
        self._num_workers = num_workers
        self._device: torch.device | str = "cpu"
        self._seed, self._rank, self._world_size = 0, 0, 1

    def place(self, device: torch.device | str, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self._device, self._seed, self._rank, self._world_size = device, seed, rank, world_size

    @property
    def contents(self) -> FrameContents:
        return replace(self._dataset.contents, fewest_source_views=self._fewest_source_views())

    @abstractmethod
    def _fewest_source_views(self) -> int | None:
        """Fewest frames of its own sequence that a batch's first frame has beside it, whatever is drawn; None where
        there are no batches.
        """

    @abstractmethod
    def _batch(self, epoch: int, step: int) -> list[int]:
        """The frames of one batch, by index."""

    def steps(self, epoch: int, start: int = 0) -> Iterator[FrameData]:
        batches = (self._batch(epoch, step) for step in range(start, len(self)))
        for frames in _decode_ahead(self._dataset, batches, self._num_workers):
            yield frames.to(self._device)


class ShuffledFrameLoader(DecodingLoader):
    """Batches of whole images, drawn in shuffled passes over the dataset.

    A pass goes through all frames once, divided among the ranks; what is left at its end and fills no batch for every
    rank is left out (a pass is shuffled anew, so that no frame is left out for ever).

    Args:
        dataset: the frames.
        batch_size: images a batch.
        n_steps: steps of an epoch; 0 for one pass.
        num_workers: threads that decode ahead; 0 decodes when a batch is asked for.
    """

    def __init__(self, dataset: DatasetBase, batch_size: int, n_steps: int, num_workers: int) -> None:
        super().__init__(dataset, num_workers)
        self._batch_size = batch_size
        self._n_steps = n_steps
        self._pass: tuple[tuple[int, int, int], list[int]] = ((0, 0, -1), [])
        self._check_fits()

    def __len__(self) -> int:
        return self._n_steps or self._steps_of_pass

    def place(self, device: torch.device | str, seed: int, rank: int = 0, world_size: int = 1) -> None:
        super().place(device, seed, rank, world_size)
        self._check_fits()

    @property
    def _steps_of_pass(self) -> int:
        return len(self._dataset) // (self._batch_size * self._world_size)

    def _check_fits(self) -> None:
        if self._steps_of_pass == 0:
            raise ConfigError(
                f"batch_size: found {self._batch_size} (times {self._world_size} processes), expected no more than "
                f"the {len(self._dataset)} frames of the split; lower batch_size, or start fewer processes"
            )

    def _fewest_source_views(self) -> int | None:
        """Of a short sequence, when all frames of others are in its batch."""
        shortest = min(Counter(self._dataset.frame_sequences).values())
        return max(0, self._batch_size - 1 - (len(self._dataset) - shortest))

    def _batch(self, epoch: int, step: int) -> list[int]:
        n_pass, within = divmod(step, self._steps_of_pass)
        first = (within * self._world_size + self._rank) * self._batch_size
        return self._order(epoch, n_pass)[first : first + self._batch_size]

    def _order(self, epoch: int, n_pass: int) -> list[int]:
        """A shuffled pass; the last one is kept, for the steps after."""
        key = (self._seed, epoch, n_pass)
        if self._pass[0] != key:
            generator = torch.Generator().manual_seed(derive_seed(self._seed, "shuffle", epoch, n_pass))
            self._pass = key, torch.randperm(len(self._dataset), generator=generator).tolist()
        return self._pass[1]


class SampledFrameLoader(DecodingLoader):
    """Batches of whole images as a sampler draws them.

    Args:
        dataset: the frames.
        sampler: draws them.
        num_workers: threads that decode ahead; 0 decodes when a batch is asked for.
    """

    def __init__(self, dataset: DatasetBase, sampler: FrameSampler, num_workers: int) -> None:
        super().__init__(dataset, num_workers)
        self._sampler = sampler

    def __len__(self) -> int:
        return len(self._sampler)

    def place(self, device: torch.device | str, seed: int, rank: int = 0, world_size: int = 1) -> None:
        super().place(device, seed, rank, world_size)
        self._sampler.place(seed, rank, world_size)

    def _fewest_source_views(self) -> int | None:
        return self._sampler.fewest_source_views()

    def _batch(self, epoch: int, step: int) -> list[int]:
        return self._sampler.batch(epoch, step)


class EvaluationFrameLoader(DecodingLoader):
    """The views to evaluate, in order, each with its source views after it; ranks take turns.

    Args:
        dataset: the frames.
        n_steps: how many views, spread evenly over all and the same ones at every epoch; 0 for all.
        num_workers: threads that decode ahead.
        views: which views, with what source views; None takes what `evaluation_views` says.
    """

    def __init__(
        self, dataset: DatasetBase, n_steps: int, num_workers: int, views: EvaluationViews | None = None
    ) -> None:
        super().__init__(dataset, num_workers)
        self._views = views or evaluation_views(dataset)
        n = min(n_steps, len(self._views)) or len(self._views)
        self._numbers = [i * len(self._views) // n for i in range(n)]

    def __len__(self) -> int:
        return len(self._numbers[self._rank :: self._world_size])

    @property
    def contents(self) -> FrameContents:
        return replace(super().contents, sequence_names=self._sequence_names)

    @cached_property
    def _sequence_names(self) -> tuple[str, ...]:
        sequences = self._dataset.frame_sequences
        return tuple(sorted({sequences[self._views.target(number)] for number in self._numbers}))

    def _fewest_source_views(self) -> int | None:
        return self._views.fewest_source_views(self._numbers)

    def _batch(self, epoch: int, step: int) -> list[int]:
        return self._views.batch(self._numbers[self._rank + step * self._world_size])


def _decode_ahead(dataset: DatasetBase, batches: Iterator[list[int]], n_threads: int) -> Iterator[FrameData]:
    """The batches in their order, the next two for each thread being decoded in the background."""
    if n_threads == 0:
        yield from (_decode_batch(dataset, batch) for batch in batches)
        return
    threads = ThreadPoolExecutor(n_threads, thread_name_prefix="decode")
    pending: deque[Future[FrameData]] = deque()
    try:
        for batch in batches:
            pending.append(threads.submit(_decode_batch, dataset, batch))
            if len(pending) > 2 * n_threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        threads.shutdown(wait=True, cancel_futures=True)


def _decode_batch(dataset: DatasetBase, batch: Sequence[int]) -> FrameData:
    sizes = {tuple(size) for size in dataset.image_sizes_hw[list(batch)].tolist()}
    if len(sizes) > 1:
        found = " and ".join(f"{height}x{width}" for height, width in sorted(sizes)[:2])
        raise DataError(
            f"{dataset.image_paths[batch[0]]}: found images of {found} pixels (height x width) in its batch, expected "
            "one size; set batch_size=1 (or images_per_seq_options=[1]), or use ResidentDataLoaderMapProvider"
        )
    return FrameData.collate([dataset[i] for i in batch])


@dataclass(frozen=True)
class DataLoaderMap:
    """A loader for each split; None where the dataset has none."""

    train: FrameLoader | None = None
    val: FrameLoader | None = None
    test: FrameLoader | None = None
    notices: tuple[str, ...] = ()
    """What a user should know of how frames are drawn, one line each."""
