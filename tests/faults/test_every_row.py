"""Every row of the acceptance table has a test."""

from tests.faults.table import ROWS, marked_tests


def test_every_row_has_a_test():
    assert set(marked_tests()) == ROWS
