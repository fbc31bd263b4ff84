"""The table of docs/reliability.md names every row's tests as they are."""

from pathlib import Path

from tests.faults import table


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
    assert found == {8: ["`test_marks.py`: `test_above`, `test_in_parameters`"], 9: ["`test_marks.py`: `test_above`"]}
