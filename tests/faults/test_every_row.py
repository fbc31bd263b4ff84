"""Every row of the acceptance table has a test."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROWS = frozenset(range(1, 64)) - {37}
"""37 is about archives, which no command unpacks."""


def marked_rows(file: Path) -> Iterator[int]:
    """The rows that a file's tests are marked with."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.fault":
            yield from (k.value.value for k in node.keywords if k.arg == "row" and isinstance(k.value, ast.Constant))


@pytest.mark.xfail(strict=True, reason="rows are added one by one; this goes when the last is there")
def test_every_row_has_a_test():
    found = {row for file in Path(__file__).parent.glob("test_*.py") for row in marked_rows(file)}
    assert found == ROWS
