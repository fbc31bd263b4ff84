"""Every row of the acceptance table has a test."""

import pytest

from tests.faults.table import ROWS, tests_by_row


@pytest.mark.xfail(strict=True, reason="rows are added one by one; this goes when the last is there")
def test_every_row_has_a_test():
    assert set(tests_by_row()) == ROWS
