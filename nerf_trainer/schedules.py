"""Schedules: parts of a model that change as training goes on (grid resolutions, scaffolds, crops, warm-ups).

The training loop calls `advance` on every `Scheduled` module before each step. What an `advance` did is said by its
return value, so that the optimizer can follow and a captured step can be captured again.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class ParameterReplacement:
    """One parameter gave way to another; what the optimizer holds for the old one is carried over."""

    old: nn.Parameter
    """The parameter that left the model."""
    new: nn.Parameter
    """The parameter that took its place."""
    resample: Callable[[Tensor], Tensor]
    """Maps a tensor shaped like `old` (an Adam moment) to one shaped like `new`."""


@dataclass(frozen=True)
class Change:
    """What one `advance` changed."""

    replacements: tuple[ParameterReplacement, ...] = ()
    """Parameters that were replaced."""
    recapture: bool = False
    """Whether a captured training step is out of date (shapes, branches or buffers changed)."""

    def __bool__(self) -> bool:
        return self.recapture or bool(self.replacements)


class Scheduled:
    """Mixin of an `nn.Module` whose behaviour depends on how far training has come."""

    @abstractmethod
    def advance(self, epoch: int, step: int) -> Change:
        """Called before the training step number `step` (from 0, over all epochs) of epoch `epoch` (from 0).

        Called once a step, in order; also once after a checkpoint was loaded, with the numbers of the next step. Must
        cost next to nothing when nothing is due, and must reach the same state whether it was called at each step or
        only at the last one.
        """


def scheduled_modules(module: nn.Module) -> Iterator[Scheduled]:
    """Every `Scheduled` module within `module`, itself included."""
    return (child for child in module.modules() if isinstance(child, Scheduled))
