"""Which layout a file is of."""

from pathlib import Path

import pytest
import torch

from nerf_trainer.errors import CheckpointError
from nerf_trainer.imports.layouts import LAYOUTS, recognise

EXAMPLES = {
    "yenchenlin's nerf-pytorch": {"global_step": 1, "network_fn_state_dict": {}},
    "krrish94's nerf-pytorch": {"iter": 1, "model_coarse_state_dict": {}},
    "nerf_pl": {"state_dict": {"nerf_coarse.xyz_encoding_1.0.weight": torch.zeros(1, 1)}},
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_one_layout_alone_recognises_a_file(name: str) -> None:
    content = EXAMPLES[name]
    assert recognise(content, Path("x")).name == name
    assert sum(layout.recognises(content) for layout in LAYOUTS) == 1


def test_other_files_are_refused_with_their_keys() -> None:
    with pytest.raises(CheckpointError) as caught:
        recognise({"encoder.weight": torch.zeros(1)}, Path("x.pth"))
    assert "x.pth: the layout is not known (found the keys encoder.weight)" in str(caught.value)
    assert "nerf_pl" in str(caught.value)
