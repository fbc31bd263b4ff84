"""yenchenlin's checkpoints against the published formulas."""

from pathlib import Path

import pytest
import torch

from nerf_trainer.errors import CheckpointError
from nerf_trainer.imports.yenchenlin import YenchenlinNeRF
from tests.imports.published import Table, Yenchenlin, assert_renders_as_published, loaded, recipe

FILE = Path("200000.tar")
SMALL = Yenchenlin(depth=2, width=8, n_position=2, n_direction=1)


def checkpoint(coarse: Table, fine: Table | None = None) -> dict[str, object]:
    tables: dict[str, object] = {"global_step": 200000, "network_fn_state_dict": coarse}
    return tables | {"network_fine_state_dict": fine, "optimizer_state_dict": {"state": {}, "param_groups": []}}


@pytest.mark.parametrize(
    "architecture",
    [
        Yenchenlin(),
        Yenchenlin(width=32, with_views=False),
        Yenchenlin(depth=4, width=32, n_position=6, n_direction=2),
        Yenchenlin(depth=6, width=32, n_position=3, with_views=False, n_outputs=4),
        Yenchenlin(depth=3, width=16, n_position=0, n_direction=0),
    ],
    ids=["8x256", "8x32 without views", "4x32", "skip at the last, four outputs", "no frequencies"],
)
def test_a_coarse_and_a_fine_network_render_as_published(architecture: Yenchenlin) -> None:
    tables = [architecture.table(1), architecture.table(2)]
    found = YenchenlinNeRF().translate(checkpoint(*tables), FILE, config := recipe())
    assert found.n_steps == 200000
    networks = [architecture.network(table) for table in tables]
    assert_renders_as_published(loaded(config, found), networks)


def test_one_network_is_one_pass_and_the_two_may_differ() -> None:
    alone = SMALL.table(1)
    found = YenchenlinNeRF().translate(checkpoint(alone), FILE, config := recipe())
    assert_renders_as_published(loaded(config, found), [SMALL.network(alone)], white=False)
    wider = Yenchenlin(depth=3, width=12, n_position=2, n_direction=1)
    tables = SMALL.table(1), wider.table(2)
    found = YenchenlinNeRF().translate(checkpoint(*tables), FILE, config := recipe())
    networks = [SMALL.network(tables[0]), wider.network(tables[1])]
    assert_renders_as_published(loaded(config, found), networks)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"alpha_linear.weight": None}, "alpha_linear.weight is missing, expected 1x8"),
        ({"rgb_linear.weight": torch.zeros(3, 5)}, "rgb_linear.weight is 3x5, expected 3x4"),
        ({"transient.weight": torch.zeros(2, 2)}, "transient.weight (2x2) is not known"),
        ({"pts_linears.0.weight": torch.zeros(8, 17)}, "pts_linears.0.weight has 17 columns of an encoding"),
        ({"views_linears.0.weight": torch.zeros(4, 18)}, "views_linears.0.weight has 10 columns of an encoding"),
        ({"feature_linear.bias": torch.full((8,), torch.nan)}, "feature_linear.bias holds numbers that are not finite"),
        ({"feature_linear.bias": torch.zeros(8, dtype=torch.int64)}, "feature_linear.bias holds torch.int64"),
        ({"pts_linears.0.weight": None, "views_linears.0.weight": None}, "in all)"),
    ],
)
def test_what_fits_no_model_is_listed(change: dict[str, torch.Tensor | None], said: str) -> None:
    table = {name: tensor for name, tensor in (SMALL.table(1) | change).items() if tensor is not None}
    with pytest.raises(CheckpointError) as caught:
        YenchenlinNeRF().translate(checkpoint(table), FILE, recipe())
    message = str(caught.value)
    assert said in message and len(message) < 400 and "200000.tar:network_fn_state_dict" in message


def test_something_else_under_the_key_is_said() -> None:
    with pytest.raises(CheckpointError, match="network_fn_state_dict holds no named tensors"):
        YenchenlinNeRF().translate({"network_fn_state_dict": [1]}, FILE, recipe())
    with pytest.raises(CheckpointError, match="network_fn_state_dict and network_fine_state_dict are empty"):
        YenchenlinNeRF().translate({"network_fn_state_dict": None}, FILE, recipe())
