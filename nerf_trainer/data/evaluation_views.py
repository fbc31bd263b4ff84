"""The views to evaluate and the source views of each, the same in every run: results can then be compared."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch

from nerf_trainer.data.consecutive import Segments
from nerf_trainer.data.samplers import SourceViews
from nerf_trainer.data.splits import DatasetBase, is_unseen
from nerf_trainer.randomness import derive_seed


class EvaluationViews(ABC):
    """Batches to evaluate, each a target and its source views, by index."""

    @abstractmethod
    def __len__(self) -> int:
        """How many there are."""

    @abstractmethod
    def target(self, number: int) -> int:
        """The target of one batch."""

    @abstractmethod
    def batch(self, number: int) -> list[int]:
        """One batch, the target first."""

    @abstractmethod
    def fewest_source_views(self, numbers: Sequence[int]) -> int | None:
        """Fewest frames of its own sequence that a target of these batches has beside it; None of no batches."""


class LaidDownViews(EvaluationViews):
    """Batches that the dataset lays down."""

    def __init__(self, batches: Sequence[list[int]], sequences: Sequence[str]) -> None:
        self._batches = batches
        self._sequences = sequences

    def __len__(self) -> int:
        return len(self._batches)

    def target(self, number: int) -> int:
        return self._batches[number][0]

    def batch(self, number: int) -> list[int]:
        return self._batches[number]

    def fewest_source_views(self, numbers: Sequence[int]) -> int | None:
        sequences, batches = self._sequences, (self._batches[number] for number in numbers)
        return min((sum(sequences[i] == sequences[batch[0]] for i in batch[1:]) for batch in batches), default=None)


class DrawnViews(EvaluationViews):
    """Targets with source views chosen for them.

    How many and which depends on the target's sequence and number alone; a target asked for with fewer has the first of
    the same order.

    Args:
        dataset: the frames.
        targets: the frames to evaluate.
        sources: the frames that each may be seen with.
        images_per_target: how many frames a batch may have, the target included; which of these, each target draws.
        segments: take the source views that are nearest in the order of a video; None takes any.
    """

    def __init__(
        self,
        dataset: DatasetBase,
        targets: Sequence[int],
        sources: SourceViews,
        images_per_target: Sequence[int],
        segments: Segments | None = None,
    ) -> None:
        self._sequences, self._numbers = dataset.frame_sequences, dataset.frame_numbers
        self._targets = targets
        self._sources = sources
        self._images_per_target = tuple(images_per_target)
        self._segments = segments

    def __len__(self) -> int:
        return len(self._targets)

    def target(self, number: int) -> int:
        return self._targets[number]

    def batch(self, number: int) -> list[int]:
        target = self._targets[number]
        count = self._images_per_target[0]
        if len(self._images_per_target) > 1:
            drawn = torch.randint(len(self._images_per_target), (), generator=self._generator("number", target))
            count = self._images_per_target[int(drawn)]
        if count == 1:
            return [target]
        sources = self._sources.of(target)
        if self._segments is None:
            order = torch.randperm(len(sources), generator=self._generator("source views", target))
            sources = [sources[i] for i in order[: count - 1].tolist()]
        else:
            places = self._segments.positions
            sources = sorted(sources, key=lambda i: (abs(places[i] - places[target]), places[i]))[: count - 1]
        return [target, *sources]

    def _generator(self, purpose: str, target: int) -> torch.Generator:
        seed = derive_seed(0, "evaluation", purpose, self._sequences[target], self._numbers[target])
        return torch.Generator().manual_seed(seed)

    def fewest_source_views(self, numbers: Sequence[int]) -> int | None:
        at_most = min(self._images_per_target) - 1
        if at_most == 0 or not numbers:
            return 0 if numbers else None
        return min(at_most, min(self._sources.count(self._targets[number]) for number in numbers))


def evaluation_views(dataset: DatasetBase) -> EvaluationViews:
    """What the dataset lays down, or else each of its `targets` by itself."""
    batches = dataset.get_eval_batches()
    if batches is not None:
        return LaidDownViews(batches, dataset.frame_sequences)
    return DrawnViews(dataset, targets(dataset), SourceViews((), (), ()), (1,))


def targets(dataset: DatasetBase) -> list[int]:
    """The frames to evaluate where none are laid down: the unseen ones, or all where none is unseen."""
    return [i for i, kind in enumerate(dataset.frame_types) if is_unseen(kind)] or list(range(len(dataset)))
