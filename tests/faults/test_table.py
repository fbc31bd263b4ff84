"""The table of docs/reliability.md names every row's tests as they are, with the counts of a whole run."""

from pathlib import Path

import pytest

from tests.faults import table
from tests.faults.shown import Marked, Shown, counts_of_run, write


def test_the_page_names_the_tests_as_they_are():
    page = table.PAGE.read_text()
    assert page == table.with_table(page), "run: python -m tests.faults.table"


def test_marks_are_found_wherever_they_stand(tmp_path: Path):
    (tmp_path / "test_marks.py").write_text(
        """
CASES = [pytest.param(1, marks=pytest.mark.fault(row=9)), 2]

@pytest.mark.fault(row=8)
@pytest.mark.parametrize("n", CASES)
def test_above(n): ...

@pytest.mark.parametrize("n", [pytest.param(1, marks=pytest.mark.fault(row=8, long=True))])
def test_in_parameters(n): ...

def test_unmarked(): ...
"""
    )
    found = table.marked_tests(tmp_path)
    assert found == {8: {"test_marks.py": ["test_above", "test_in_parameters"]}, 9: {"test_marks.py": ["test_above"]}}


KILLS, FLIPS = Marked(1, "test_a.py", "test_kills"), Marked(8, "test_a.py", "test_flips")
GOOD = [
    Shown(1, "test_a.py::test_kills[0]", "passed", 50, 50),
    Shown(1, "test_a.py::test_kills[a | b]", "passed", 52, 50),
    Shown(8, "test_a.py::test_flips[x/y::z]", "passed", 1, 1),
    Shown(8, "test_a.py::test_flips[root]", "skipped", 0, 1),
]


def test_the_counts_of_a_run_are_those_of_its_tests(tmp_path: Path):
    write(tmp_path / "counts.md", GOOD, seconds=90)
    run, counts = counts_of_run((tmp_path / "counts.md").read_text(), {KILLS, FLIPS})
    assert run.startswith("Counts of 20") and run.endswith(": 1.5 minutes.")
    assert counts == {KILLS: "102 of 100", FLIPS: "1 of 1, 1 skipped"}


@pytest.mark.parametrize(
    ("shown", "missing"),
    [
        ([*GOOD, Shown(1, "test_a.py::test_kills[1]", "passed", 2, 50)], r"test_kills\[1\]`: 2 of 50"),
        ([*GOOD, Shown(1, "test_a.py::test_kills[1]", "failed", 49, 50)], r"test_kills\[1\]`: FAILED after 49 of 50"),
        ([*GOOD, Shown(1, "test_a.py::test_kills[1]", "error", 50, 50)], r"test_kills\[1\]`: FAILED after 50 of 50"),
        (GOOD[:2], "test_a.py::test_flips of row 8: not run"),
    ],
)
def test_what_is_no_whole_run_gives_no_counts(tmp_path: Path, shown: list[Shown], missing: str):
    write(tmp_path / "counts.md", shown, seconds=90)
    with pytest.raises(SystemExit, match=missing):
        counts_of_run((tmp_path / "counts.md").read_text(), {KILLS, FLIPS})


def test_a_page_takes_counts_and_keeps_them():
    page = f"before {table.BEGIN}{table.END} after"
    bare = table.with_table(page)
    assert table.counts_of_page(bare) == ("", {}) and "test_no_flipped_bit_is_loaded`," in bare
    counts = {one: f"{number} of 7" for number, one in enumerate(table.every_marked())}
    full = table.with_table(bare, "Counts of a run.", counts)
    assert table.counts_of_page(full) == ("Counts of a run.", counts) and len(counts) > 150
    assert table.with_table(full) == full
    assert table.with_table(full, "", {}) == bare
