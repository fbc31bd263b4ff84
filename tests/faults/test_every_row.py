"""Every row of the acceptance table has a test."""

from tests.faults.table import ROWS, tests_by_row


def test_every_row_has_a_test():
    assert set(tests_by_row()) == ROWS
