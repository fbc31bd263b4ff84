"""Which frames a batch has, by index: what is drawn depends on the seed, the rank, the epoch and the step alone.

Samplers know a dataset's frames by name, number and type; they decode nothing.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain

import torch

from nerf_trainer.data.consecutive import Segments
from nerf_trainer.data.splits import DatasetBase
from nerf_trainer.errors import ConfigError
from nerf_trainer.randomness import derive_seed


class FrameSampler(ABC):
    """The batches of an epoch, as frame indices of a dataset."""

    def __init__(self) -> None:
        self._seed, self._rank, self._world_size = 0, 0, 1

    def place(self, seed: int, rank: int = 0, world_size: int = 1) -> None:
        """Say whose batches they are, before the first is asked for."""
        self._seed, self._rank, self._world_size = seed, rank, world_size

    @abstractmethod
    def __len__(self) -> int:
        """Batches of an epoch, on this rank."""

    @abstractmethod
    def batch(self, epoch: int, step: int) -> list[int]:
        """The frames of one batch; the first is the target."""

    @abstractmethod
    def fewest_source_views(self) -> int | None:
        """Fewest frames of its own sequence that a batch's first frame has beside it, whatever is drawn; None where
        there are no batches.
        """

    def _generator(self, purpose: str, *parts: int) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(self._seed, purpose, *parts))


class SourceViews:
    """The frames that a target may be seen with: those of its group among some, itself (the same image) left out.

    Args:
        groups: the group of each frame of a dataset: its sequence, or its segment of one.
        paths: the image of each frame.
        among: which frames may be source views.
    """

    def __init__(self, groups: Sequence[str] | Sequence[int], paths: Sequence[str], among: Iterable[int]) -> None:
        self._groups = groups
        self._paths = paths
        self._of_group: dict[str | int, list[int]] = {}
        for i in among:
            self._of_group.setdefault(groups[i], []).append(i)

    @cached_property
    def _n_of_image(self) -> Counter[tuple[str | int, str]]:
        """How often each image stands in its group."""
        frames = chain.from_iterable(self._of_group.values())
        return Counter((self._groups[i], self._paths[i]) for i in frames)

    def of(self, target: int) -> list[int]:
        """All of a target's, in the order of the dataset."""
        path = self._paths[target]
        return [i for i in self._of_group.get(self._groups[target], ()) if self._paths[i] != path]

    def count(self, target: int) -> int:
        """How many a target has."""
        group = self._groups[target]
        return len(self._of_group.get(group, ())) - self._n_of_image[group, self._paths[target]]


class DoublePoolBatchSampler(FrameSampler):
    """A frame of one pool as target, then frames of its sequence from another pool.

    Targets come in shuffled passes over their pool, in which ranks take turns; source views are drawn anew for each
    batch, fewer where a sequence has not so many.

    Args:
        first: the frames that are targets.
        rest: where source views come from.
        batch_size: frames of a batch.
        n_batches: batches of an epoch; 0 for one pass over the targets.
    """

    def __init__(self, first: Sequence[int], rest: SourceViews, batch_size: int, n_batches: int) -> None:
        super().__init__()
        if not first:
            raise ValueError("no frame to be a target")
        self._first = list(first)
        self._rest = rest
        self._batch_size = batch_size
        self._n_batches = n_batches
        self._pass: tuple[tuple[int, int, int], list[int]] = ((0, 0, -1), [])

    def __len__(self) -> int:
        return self._n_batches or max(1, len(self._first) // self._world_size)

    def batch(self, epoch: int, step: int) -> list[int]:
        n_pass, within = divmod(step * self._world_size + self._rank, len(self._first))
        target = self._first[self._order(epoch, n_pass)[within]]
        sources = self._rest.of(target)
        generator = self._generator("source views", self._rank, epoch, step)
        order = torch.randperm(len(sources), generator=generator)[: self._batch_size - 1]
        return [target, *(sources[i] for i in order.tolist())]

    def _order(self, epoch: int, n_pass: int) -> list[int]:
        """A shuffled pass; the last one is kept, for the steps after."""
        key = (self._seed, epoch, n_pass)
        if self._pass[0] != key:
            generator = self._generator("double pool", epoch, n_pass)
            self._pass = key, torch.randperm(len(self._first), generator=generator).tolist()
        return self._pass[1]

    def fewest_source_views(self) -> int | None:
        return min(self._batch_size - 1, min(map(self._rest.count, self._first)))


class SceneBatchSampler(FrameSampler):
    """Some frames of each of a few sequences; batches are drawn independently, and by each rank its own.

    A batch of B frames has k of each of B / k sequences, k being drawn anew from a list for every batch; where k
    does not divide B, the last sequence has fewer. Of several categories, those of a batch are drawn first, alike
    often however many sequences each has: different ones, as long as there are as many as sequences in the batch.

    Args:
        dataset: the frames.
        batch_size: B; batches have fewer frames where the sequences have not so many.
        n_batches: batches of an epoch; 0 for as many as there are frames.
        images_per_seq: what k is drawn from.
        segments: take frames that follow each other, in their order; None takes any.

    Raises:
        ConfigError: images_per_seq is empty or has a number below 1.
    """

    def __init__(
        self,
        dataset: DatasetBase,
        batch_size: int,
        n_batches: int,
        images_per_seq: Sequence[int],
        segments: Segments | None = None,
    ) -> None:
        super().__init__()
        if not images_per_seq or min(images_per_seq) < 1:
            raise ConfigError(
                f"images_per_seq_options: found {list(images_per_seq)}, expected whole numbers of at least 1"
            )
        self._batch_size = batch_size
        self._n_batches = n_batches or len(dataset)
        self._images_per_seq = tuple(images_per_seq)
        self._segments = segments
        by_name: dict[str, list[int]] = {}
        for i, name in enumerate(dataset.frame_sequences):
            by_name.setdefault(name, []).append(i)
        self._names = list(by_name)
        self._sequences = list(by_name.values())
        self._categories = _by_category(dataset.frame_categories, self._sequences)

    def __len__(self) -> int:
        return self._n_batches

    def batch(self, epoch: int, step: int) -> list[int]:
        generator = self._generator("scene batches", self._rank, epoch, step)
        option = torch.randint(len(self._images_per_seq), (), generator=generator)
        k = min(self._images_per_seq[int(option)], self._batch_size)
        chosen: list[int] = []
        for number in self._drawn_sequences(-(-self._batch_size // k), generator):
            chosen += self._drawn_frames(number, k, self._batch_size - len(chosen), generator)
            if len(chosen) == self._batch_size:
                break
        return chosen

    def _drawn_sequences(self, n: int, generator: torch.Generator) -> Iterator[int]:
        """All sequences in a random order, the first n of them alike often from each category."""
        if len(self._categories) == 1:
            yield from torch.randperm(len(self._sequences), generator=generator).tolist()
            return
        left: dict[int, list[int]] = {}
        if n <= len(self._categories):
            drawn = torch.randperm(len(self._categories), generator=generator)[:n].tolist()
        else:
            drawn = torch.randint(len(self._categories), (n,), generator=generator).tolist()
        for category in [*drawn, *torch.randperm(len(self._categories), generator=generator).tolist()]:
            members = self._categories[category]
            if category not in left:
                left[category] = torch.randperm(len(members), generator=generator).tolist()
            if left[category]:
                yield members[left[category].pop()]
        for category, order in left.items():  # where categories ran short, whatever there is
            yield from (self._categories[category][i] for i in order)

    def _drawn_frames(self, number: int, k: int, room: int, generator: torch.Generator) -> list[int]:
        if self._segments is not None:
            return self._segments.window(self._names[number], k, generator)[:room]
        frames = self._sequences[number]
        order = torch.randperm(len(frames), generator=generator)[: min(k, room, len(frames))]
        return [frames[i] for i in order.tolist()]

    def fewest_source_views(self) -> int | None:
        in_a_row = None if self._segments is None else [self._segments.longest(name) for name in self._names]
        return min(self._batch_size, *self._images_per_seq, *(in_a_row or map(len, self._sequences))) - 1


def _by_category(categories: Sequence[str] | None, sequences: Sequence[Sequence[int]]) -> list[list[int]]:
    """The numbers of the sequences of each category; one category where nothing is known of them."""
    if categories is None:
        return [list(range(len(sequences)))]
    members: dict[str, list[int]] = {}
    for number, frames in enumerate(sequences):
        members.setdefault(categories[frames[0]], []).append(number)
    return list(members.values())
