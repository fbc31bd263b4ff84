"""nerf_pl's checkpoints against the published formulas."""

from argparse import Namespace
from pathlib import Path

import pytest
import torch

from nerf_trainer.errors import CheckpointError
from nerf_trainer.imports.nerf_pl import NerfPl
from tests.imports.published import NerfPlNetwork, Table, assert_renders_as_published, loaded, recipe

FILE = Path("epoch=15.ckpt")
SMALL = NerfPlNetwork(depth=3, width=8, skips=(1, 2), n_position=2, n_direction=1)
SAMPLER = "raysampler_NearFarRaySampler_args"
RENDERER = "renderer_MultiPassEmissionAbsorptionRenderer_args"


def weights(coarse: Table, fine: Table | None = None) -> Table:
    named = {f"nerf_coarse.{name}": tensor for name, tensor in coarse.items()}
    return named | {f"nerf_fine.{name}": tensor for name, tensor in (fine or {}).items()}


def checkpoint(table: Table, **hparams: object) -> dict[str, object]:
    return {"epoch": 16, "global_step": 156250, "state_dict": table, "hparams": Namespace(**hparams)}


@pytest.mark.parametrize(
    "architecture",
    [NerfPlNetwork(), NerfPlNetwork(depth=4, width=32, skips=(), n_position=6), SMALL],
    ids=["8x256", "4x32", "two skips"],
)
def test_a_coarse_and_a_fine_network_render_as_published(architecture: NerfPlNetwork) -> None:
    tables = [architecture.table(1), architecture.table(2)]
    found = NerfPl().translate(checkpoint(weights(*tables)), FILE, config := recipe())
    assert found.n_steps == 156250
    assert_renders_as_published(loaded(config, found), [architecture.network(table) for table in tables])


def test_the_weights_alone_and_one_network() -> None:
    table = SMALL.table(1)
    assert NerfPl().recognises(weights(table))
    found = NerfPl().translate(weights(table), FILE, config := recipe())
    assert found.n_steps == 0
    assert_renders_as_published(loaded(config, found), [SMALL.network(table)], white=False)


@pytest.mark.parametrize("key", ["hparams", "hyper_parameters"])
def test_sampling_is_that_of_the_options_in_the_file(key: str) -> None:
    tables = SMALL.table(1), SMALL.table(2)
    options = {"N_samples": 48, "N_importance": 96, "use_disp": True, "dataset_name": "blender"}
    content = checkpoint(weights(*tables)) | {"hparams": None, key: options}
    found = NerfPl().translate(content, FILE, recipe())
    assert {name: found.options[name] for name in found.options if "n_pts" in name or "disparity" in name} == {
        f"{SAMPLER}.n_pts_per_ray_training": 48,
        f"{SAMPLER}.n_pts_per_ray_evaluation": 48,
        f"{SAMPLER}.linear_in_disparity": True,
        f"{RENDERER}.n_pts_per_ray_fine_training": 96,
        f"{RENDERER}.n_pts_per_ray_fine_evaluation": 96,
    }
    bare = NerfPl().translate(checkpoint(weights(*tables), N_samples="many", use_disp=1), FILE, recipe())
    assert not any("n_pts" in name or "disparity" in name for name in bare.options), "the recipe's, then"


def test_models_that_saw_directions_in_ndc_are_refused() -> None:
    table = weights(SMALL.table(1))
    with pytest.raises(CheckpointError, match="directions in NDC"):
        NerfPl().translate(checkpoint(table, dataset_name="llff", spheric_poses=False), FILE, recipe())
    NerfPl().translate(checkpoint(table, dataset_name="llff", spheric_poses=True), FILE, recipe())


def test_what_fits_no_model_is_listed() -> None:
    table = weights(SMALL.table(1)) | {"embedding_a.weight": torch.zeros(1500, 48)}
    with pytest.raises(CheckpointError, match=r"embedding_a\.weight \(1500x48\) is not known"):
        NerfPl().translate(checkpoint(table), FILE, recipe())
    table = weights(SMALL.table(1))
    table["nerf_coarse.sigma.weight"] = torch.zeros(2, 8)
    with pytest.raises(CheckpointError, match=r"nerf_coarse.*sigma\.weight is 2x8, expected 1x8"):
        NerfPl().translate(checkpoint(table), FILE, recipe())
