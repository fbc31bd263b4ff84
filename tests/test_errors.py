"""Lines that end commands: one line, short enough, and what to do is in it."""

import pytest

from nerf_trainer.errors import MAX_LINE, keyed_line, shown


def test_a_short_message_stays_as_it_is() -> None:
    assert keyed_line("seed", "found 'x',\n  expected a number") == "seed: found 'x', expected a number"
    assert keyed_line("", "nothing to do") == "nothing to do"


@pytest.mark.parametrize("n_key", [10, 200, 300])
def test_of_a_long_message_the_fix_stays(n_key: int) -> None:
    line = keyed_line("k" * n_key, f"'sede' is not a key; expected one of {'name, ' * 60}; did you mean 'seed'?")
    assert len(f"error: {line}") == MAX_LINE
    assert line.startswith("k" * n_key + ": 'sede' is not a key") and line.endswith(" ...; did you mean 'seed'?")


def test_an_end_that_is_as_long_as_all_is_cut_too() -> None:
    line = keyed_line("key", f"found 1; {'word ' * 100}")
    assert len(f"error: {line}") == MAX_LINE and line.startswith("key: found 1; word") and line.endswith(" ...")


def test_a_long_value_is_cut() -> None:
    assert shown("x" * 100) == "'" + "x" * 55 + " ..."
    assert shown("x" * 100, 200) == repr("x" * 100)
