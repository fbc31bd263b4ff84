"""Every row of the acceptance table has a test, and one that is not left out of `make test`."""

import ast

from tests.faults.table import FOLDER, ROWS, marked_tests


def test_every_row_has_a_test():
    assert set(marked_tests()) == ROWS


def test_every_row_has_a_test_that_is_not_long():
    decorators = (
        ast.unparse(decorator)
        for file in FOLDER.glob("test_*.py")
        for test in ast.parse(file.read_text()).body
        if isinstance(test, ast.FunctionDef)
        for decorator in test.decorator_list
    )
    assert {f"pytest.mark.fault(row={row})" for row in ROWS} <= set(decorators)
