"""The table of methods in the documentation says what was measured."""

import pytest

from benchmarks import methods_table
from benchmarks.methods import METHODS


def test_the_page_has_what_the_records_have() -> None:
    assert methods_table.written() == methods_table.tables(), "run python -m benchmarks.methods_table"


@pytest.mark.parametrize("scene", sorted(METHODS))
def test_every_measured_method_has_a_row(scene: str) -> None:
    assert {row[1] for row in methods_table.ROWS[scene]} == {method.name for method in METHODS[scene]}


def test_conditioned_models_look_at_their_source_views() -> None:
    """With another scene's images in place of the source views they must be worse, by a lot."""
    rows = [line for line in methods_table.tables().splitlines() if "| unseen |" in line]
    assert len(rows) == 4
    for line in rows:
        psnr, shuffled = (float(line.split("|")[i]) for i in (6, 9))
        assert ("solids_base" in line and psnr == shuffled) or psnr > shuffled + 3.0, line
