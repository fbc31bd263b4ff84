"""Messages about what does not fit, and tables in files."""

from pathlib import Path

import pytest
import torch

from nerf_trainer.errors import CheckpointError
from nerf_trainer.imports.base import ImportedModel, misfit, shape_text, tensors_of


def test_the_first_problems_are_listed_with_their_number() -> None:
    message = str(misfit(Path("x"), "nerf_pl", [f"layer{i}.weight is missing, expected 256x256" for i in range(50)]))
    assert "layer0.weight is missing, expected 256x256; layer1" in message
    assert message.endswith("(50 in all)") and len(message) < 400
    assert str(misfit(Path("x"), "nerf_pl", ["a (2) is not known"])).endswith("known here: a (2) is not known")


def test_shapes_are_written_with_crosses() -> None:
    assert [shape_text(torch.zeros(shape)) for shape in ((2, 3), (4,), ())] == ["2x3", "4", "scalar"]


@pytest.mark.parametrize("table", [None, [torch.zeros(1)], {"a": 1}])
def test_what_is_no_table_of_tensors_is_refused(table: object) -> None:
    with pytest.raises(CheckpointError, match="x: weights holds no named tensors"):
        tensors_of({"weights": table}, Path("x"), "weights")


def test_options_are_added() -> None:
    found = ImportedModel({"a": 1}, {}, 0, "").with_options({"b": 2})
    assert found.options == {"a": 1, "b": 2}
