"""krrish94's checkpoints against the published formulas."""

from pathlib import Path

import pytest
import torch

from nerf_trainer.errors import CheckpointError
from nerf_trainer.imports.krrish94 import Krrish94NeRF
from tests.imports.published import Flexible, Paper, Table, assert_renders_as_published, loaded, random_table, recipe

FILE = Path("checkpoint199999.ckpt")


def checkpoint(coarse: Table, fine: Table | None = None) -> dict[str, object]:
    tables = {"model_coarse_state_dict": coarse, "model_fine_state_dict": fine}
    return {"iter": 199999, **tables, "optimizer_state_dict": {}, "loss": torch.tensor(0.1), "psnr": 21.4}


@pytest.mark.parametrize(
    "architecture",
    [
        Flexible(),
        Flexible(n_layers=8, width=32),
        Flexible(n_layers=6, width=32, skip_every=2, n_position=3),
        Flexible(n_layers=5, width=32, skip_every=3, n_position=4, with_views=False),
        Flexible(n_layers=2, width=16, n_position=4, n_direction=3, input_position=False, input_direction=False),
        Paper(),
    ],
    ids=["4x128", "8x32", "two skips", "without views", "encodings without inputs", "PaperNeRFModel"],
)
def test_a_coarse_and_a_fine_network_render_as_published(architecture: Flexible | Paper) -> None:
    tables = [architecture.table(1), architecture.table(2)]
    found = Krrish94NeRF().translate(checkpoint(*tables), FILE, config := recipe())
    assert found.n_steps == 200_000, "iter is the number of the last step, from 0"
    assert_renders_as_published(loaded(config, found), [architecture.network(table) for table in tables])


def test_a_coarse_network_alone_is_one_pass() -> None:
    architecture = Flexible(n_layers=3, width=16)
    table = architecture.table(1)
    found = Krrish94NeRF().translate(checkpoint(table), FILE, config := recipe())
    assert_renders_as_published(loaded(config, found), [architecture.network(table)], white=False)


def test_classes_that_show_directions_to_the_density_are_refused() -> None:
    tiny = random_table({"layer1": (78, 128), "layer2": (128, 128), "layer3": (128, 4)}, seed=1)
    with pytest.raises(CheckpointError, match="expected FlexibleNeRFModel or PaperNeRFModel"):
        Krrish94NeRF().translate(checkpoint(tiny), FILE, recipe())


def test_what_fits_no_model_is_listed() -> None:
    table = Flexible(n_layers=3, width=16).table(1)
    table["layers_xyz.1.weight"] = torch.zeros(16, 20)
    del table["fc_feat.bias"]
    with pytest.raises(CheckpointError) as caught:
        Krrish94NeRF().translate(checkpoint(table), FILE, recipe())
    message = str(caught.value)
    assert "layers_xyz.1.weight is 16x20, expected 16x16; fc_feat.bias is missing, expected 16 (2 in all)" in message


def test_one_linear_layer_is_no_trunk() -> None:
    """layer1 alone has no ReLU behind it, which a trunk here always has."""
    with pytest.raises(CheckpointError, match=r"layers_xyz\.0\.weight is missing"):
        Krrish94NeRF().translate(checkpoint(Flexible(n_layers=1, width=16).table(1)), FILE, recipe())
