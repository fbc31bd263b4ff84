"""Dead starts: trainings whose density is zero everywhere, from which no gradient leads away.

A field whose density passes through a ReLU may be born with negative values wherever rays look. It then renders the
background alone, and learns nothing. The remedy is another draw of the initial weights.
"""

from collections.abc import Mapping
from typing import Any

MAX_RESTARTS = 3
"""How often a run starts anew with the next seed before it goes on as it is."""

_FIRST_STEPS = 1000
"""Steps within which a start can be found dead."""

_PATIENCE = 250
"""Steps for which opacity has to stay at nothing; fields that are meant to start out clear are visible by then."""

_NOTHING = 1e-3
"""Mean opacity below which nothing is visible."""

_SOMETHING = 1e-2
"""Mean foreground probability of the photographs above which something should be."""


class DeadStartDetector:
    """Watches mean opacity at the start of a training."""

    def __init__(self) -> None:
        self._clear_steps = 0
        self._watching = True

    def observe(self, step: int, n_steps: int, opacity: float, foreground: float | None) -> bool:
        """Whether the start is dead, given means over the last `n_steps` steps.

        Args:
            step: optimizer steps done.
            opacity: mean rendered opacity of the rays.
            foreground: mean foreground probability of the same rays' targets; None where the data has no masks, which
                then counts as foreground.
        """
        something_there = foreground is None or foreground > _SOMETHING
        self._clear_steps = self._clear_steps + n_steps if opacity < _NOTHING and something_there else 0
        return self._watching and step <= _FIRST_STEPS and self._clear_steps >= _PATIENCE

    def is_last_look(self, step: int) -> bool:
        """Whether no later step than `step` can show that the start is dead."""
        return self._watching and step == _FIRST_STEPS

    def give_up(self) -> None:
        """Find nothing any more."""
        self._watching = False

    def state(self) -> dict[str, Any]:
        """What a checkpoint saves."""
        return {"clear_steps": self._clear_steps, "watching": self._watching}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint."""
        self._clear_steps = int(state["clear_steps"])
        self._watching = bool(state["watching"])
