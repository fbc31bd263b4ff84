"""How often the tests of faults repeat, and what they showed.

`NERF_TRAINER_FAULTS` chooses how many of the acceptance table's counts run: `quick` (what `make test` has time for, and
the default), `tenth` (CI) or `full` (`make test-faults`).
"""

import os
from dataclasses import dataclass

from hypothesis import HealthCheck, settings

LEVELS = ("quick", "tenth", "full")


def level() -> str:
    """Which of the levels was chosen."""
    chosen = os.environ.get("NERF_TRAINER_FAULTS", LEVELS[0])
    if chosen not in LEVELS:
        raise ValueError(f"NERF_TRAINER_FAULTS: found {chosen!r}, expected one of {', '.join(LEVELS)}")
    return chosen


@dataclass
class Fault:
    """A row of the acceptance table, as one test shows it."""

    row: int
    """The row's number."""
    n_of_table: int = 0
    """How many times the table asks for; 0 as long as the test has not said."""
    n_asked: int = 0
    """How many times to run, of what the table asks for."""
    n_passed: int = 0
    """How many passed so far."""

    def times(self, of_table: int, quick: int, tenth: int = 0) -> int:
        """How many times to run: `of_table` at full, `quick` in `make test`; in CI a tenth, no less than the others."""
        self.n_of_table = of_table
        self.n_asked = {"quick": quick, "tenth": max(quick, tenth, -(-of_table // 10)), "full": of_table}[level()]
        return self.n_asked

    def passed(self, n: int = 1) -> None:
        """Count what passed; called after the assertions that show it."""
        self.n_passed += n


def examples(n: int) -> settings:
    """Settings of Hypothesis for a test of faults: `n` examples, the same ones each time."""
    checks = list(HealthCheck)
    return settings(max_examples=n, deadline=None, suppress_health_check=checks, derandomize=True, database=None)
