"""Loaders: the batches of an epoch, in an order that depends on seed, rank and epoch alone.

No loader has a state: step s of epoch e is the same batch in every run of the same seed and number of processes,
whether the run got there in one go or was resumed, and however many threads decode.
"""

import os
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from jaxtyping import UInt8
from torch import Tensor

from nerf_trainer.data.splits import UNSEEN, DatasetBase
from nerf_trainer.errors import ConfigError, DataError
from nerf_trainer.frames import FrameContents, FrameData, PixelStore
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
        images = decode_all(self._dataset)
        pixels = PixelStore.from_images(images, device, has_alpha=self.contents.fg_probability)
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
    """Batches of whole images for training, drawn in shuffled passes over the dataset.

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
                f"the {len(self._dataset)} training frames; lower batch_size"
            )

    def _fewest_source_views(self) -> int | None:
        """Of a short sequence, when all frames of others are in its batch."""
        shortest = min(Counter(self._dataset.frame_sequences).values())
        return max(0, self._batch_size - 1 - (len(self._dataset) - shortest))

    def _batch(self, epoch: int, step: int) -> list[int]:
        n_pass, within = divmod(step, self._steps_of_pass)
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "shuffle", epoch, n_pass))
        order = torch.randperm(len(self._dataset), generator=generator)
        first = (within * self._world_size + self._rank) * self._batch_size
        return order[first : first + self._batch_size].tolist()


class EvaluationFrameLoader(DecodingLoader):
    """The views to evaluate, in order, each with its source views after it; ranks take turns.

    Args:
        dataset: the frames. Its evaluation batches are used, or else each frame by itself.
        n_steps: how many batches, spread evenly over all and the same ones at every epoch; 0 for all.
        num_workers: threads that decode ahead.
    """

    def __init__(self, dataset: DatasetBase, n_steps: int, num_workers: int) -> None:
        super().__init__(dataset, num_workers)
        batches = dataset.get_eval_batches()
        if batches is None:
            unseen = [i for i, kind in enumerate(dataset.frame_types) if kind == UNSEEN]
            batches = [[i] for i in unseen or range(len(dataset))]
        n = min(n_steps, len(batches)) or len(batches)
        self._batches = [batches[i * len(batches) // n] for i in range(n)]

    def __len__(self) -> int:
        return len(self._batches[self._rank :: self._world_size])

    @property
    def contents(self) -> FrameContents:
        sequences = self._dataset.frame_sequences
        return replace(super().contents, sequence_names=tuple(sorted({sequences[batch[0]] for batch in self._batches})))

    def _fewest_source_views(self) -> int | None:
        sequences = self._dataset.frame_sequences
        counts = (sum(sequences[i] == sequences[batch[0]] for i in batch[1:]) for batch in self._batches)
        return min(counts, default=None)

    def _batch(self, epoch: int, step: int) -> list[int]:
        return self._batches[self._rank + step * self._world_size]


def decode_all(dataset: DatasetBase) -> list[UInt8[Tensor, "_ _ 4"]]:
    """Every frame's pixels, decoded on as many threads as there are processors (at most 8)."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        return list(threads.map(dataset.rgba, range(len(dataset))))


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
            "one size; set batch_size=1, or use ResidentDataLoaderMapProvider"
        )
    return FrameData.collate([dataset[i] for i in batch])


@dataclass(frozen=True)
class DataLoaderMap:
    """A loader for each split; None where the dataset has none."""

    train: FrameLoader | None = None
    val: FrameLoader | None = None
    test: FrameLoader | None = None
