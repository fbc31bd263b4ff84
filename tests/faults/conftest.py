"""The `fault` fixture, and the table of what the tests of faults showed.

A test that shows a row of the acceptance table is marked `@pytest.mark.fault(row=8)` and takes the fixture `fault`.
With NERF_TRAINER_FAULT_TABLE=FILE in the environment the rows, tests and counts are written to FILE, a line a test, in
Markdown; `python -m tests.faults.table FILE` puts them into the table of docs/reliability.md.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.counts import LEVELS, Fault, level
from tests.faults.shown import Shown, write

PROPERTY = "fault"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves the long tests of faults to `make test-faults` and to CI."""
    if level() != LEVELS[0]:
        return
    skip = pytest.mark.skip(reason="a long test of faults; `make test-faults` runs it")
    for item in items:
        if any(mark.kwargs.get("long", False) for mark in item.iter_markers("fault")):
            item.add_marker(skip)


@pytest.fixture
def fault(request: pytest.FixtureRequest) -> Fault:
    """Counts what this test shows of its row."""
    mark = request.node.get_closest_marker("fault")
    assert mark is not None, "a test that takes `fault` is marked pytest.mark.fault(row=...)"
    shown = Fault(mark.kwargs["row"])
    request.node.stash[_SHOWN] = shown
    return shown


@pytest.fixture(autouse=True)
def nothing_runs_on(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a test that failed has started does not take time from the others."""
    nursery = request.getfixturevalue("nursery") if "nursery" in request.fixturenames else None
    yield
    if nursery is not None:
        nursery.kill_left()


_SHOWN = pytest.StashKey[Fault]()
_BEGAN = pytest.StashKey[float]()


def pytest_configure(config: pytest.Config) -> None:
    """The time that a run takes is counted from here."""
    config.stash[_BEGAN] = time.monotonic()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    """Sends what a test counted along with its report, which pytest-xdist carries to the main process.

    A test that counted less than it was to run has failed, whatever it asserted.
    """
    report = yield
    mark = item.get_closest_marker("fault")
    if mark is None or (report.passed and report.when != "call"):
        return report
    shown = item.stash.get(_SHOWN, None)
    if report.passed and shown is not None and shown.n_passed < max(shown.n_asked, 1):
        report.outcome = "failed"
        report.longrepr = f"takes `fault` and counted {shown.n_passed} of {shown.n_asked}"
    counted = (int(report.passed), 1) if shown is None else (shown.n_passed, shown.n_of_table or max(shown.n_passed, 1))
    report.user_properties.append((PROPERTY, [mark.kwargs["row"], *counted]))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Writes what the tests showed, where asked for."""
    file = os.environ.get("NERF_TRAINER_FAULT_TABLE")
    if not file:
        return
    found = []
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            path, _, test = report.nodeid.partition("::")
            found += [
                Shown(row, f"{path.rpartition('/')[2]}::{test}", outcome, passed, of_table)
                for name, (row, passed, of_table) in report.user_properties
                if name == PROPERTY
            ]
    write(Path(file), found, time.monotonic() - terminalreporter.config.stash[_BEGAN])
