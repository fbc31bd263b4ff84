"""What a run of the tests of faults showed: the file that NERF_TRAINER_FAULT_TABLE names, written and read.

It is Markdown: a line about the run, and a table with a line for each test, `| row | test | passed | of |`. A test that
repeats says how often; for another, each case counts once.
"""

import os
import platform
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import torch

from tests.faults.counts import level

REPOSITORY = Path(__file__).resolve().parents[2]
HEAD = ["| row | test | passed | of |", "|---|---|---|---|"]


class Marked(NamedTuple):
    """A function whose tests show a row."""

    row: int
    file: str
    """Its name, without the folder."""
    name: str


class Shown(NamedTuple):
    """What one test showed."""

    row: int
    test: str
    """File, function and parameters, as pytest writes them."""
    outcome: str
    """As pytest names it."""
    passed: int
    of: int
    """How many times the acceptance table asks for."""


def write(file: Path, shown: Iterable[Shown], seconds: float) -> None:
    """The lines of a run that took so long."""
    said = {"passed": "{}", "skipped": "skipped"}
    rows = [
        f"| {one.row} | `{one.test}` | {said.get(one.outcome, 'FAILED after {}').format(one.passed)} | {one.of} |"
        for one in sorted(shown)
    ]
    file.write_text("\n".join([_run(seconds), "", *HEAD, *rows]) + "\n")


def _run(seconds: float) -> str:
    """Of what, when and where the counts are."""
    said = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=REPOSITORY, capture_output=True, text=True)
    commit = said.stdout.strip() or "unknown"
    software = f"Python {platform.python_version()}, torch {torch.__version__}"
    when = f"{datetime.now(UTC):%Y-%m-%d}"
    amount = f"{os.cpu_count()} processors, NERF_TRAINER_FAULTS={level()}: {seconds / 60:.1f} minutes"
    return f"Counts of {when}, commit {commit}, {software}, {amount}."


def counts_of_run(text: str, marked: set[Marked]) -> tuple[str, dict[Marked, str]]:
    """The line about the run, and for each function and row how often it passed, `200 of 200`.

    Args:
        marked: the functions that there are, with their rows.

    Raises:
        SystemExit: a test failed, ran less often than the table asks, or is missing.
    """
    run, _, lines = text.partition("\n")
    passed: dict[Marked, list[int]] = {}
    skipped: dict[Marked, int] = {}
    wrong = []
    for line in lines.splitlines():
        if not line.startswith("| ") or line in HEAD:
            continue
        row, test, n, of = (cell.strip() for cell in _cells(line))
        file, _, name = test.strip("`").partition("::")
        one = Marked(int(row), file, name.partition("[")[0])
        if n == "skipped":
            skipped[one] = skipped.get(one, 0) + 1
        elif not n.isdigit() or int(n) < int(of):
            wrong.append(f"{test}: {n} of {of}")
        else:
            so_far = passed.setdefault(one, [0, 0])
            passed[one] = [so_far[0] + int(n), so_far[1] + int(of)]
    wrong += [f"{one.file}::{one.name} of row {one.row}: not run" for one in sorted(marked - {*passed, *skipped})]
    if wrong:
        raise SystemExit("not a whole run in which all passed:\n" + "\n".join(wrong))
    counts = {one: f"{n} of {of}" for one, (n, of) in passed.items()}
    for one, n in skipped.items():
        counts[one] = f"{counts[one]}, {n} skipped" if one in counts else "skipped"
    return run, counts


def _cells(line: str) -> tuple[str, str, str, str]:
    """Of a line of the table; a test's parameters may have bars too."""
    row, rest = line.strip("| ").split("|", 1)
    test, n, of = rest.rsplit("|", 2)
    return row, test, n, of
