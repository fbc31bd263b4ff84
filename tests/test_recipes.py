"""Every shipped recipe: it composes, builds and takes a step; the reference's recipes have the reference's values."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from nerf_trainer.config import build
from nerf_trainer.experiment import Experiment
from nerf_trainer.models.overfit import OverfitModel
from tests.recipe_kit import Compose, chosen

REPOSITORY = Path(__file__).resolve().parent.parent
RECIPES = sorted(path.stem for path in (REPOSITORY / "configs").glob("*.yaml"))
EVALUATED_ONLY = frozenset({"solids_dbir"})
"""Recipes of a model without parameters."""
OVERFIT_CHAIN = ("overfit_base", "overfit_singleseq_base", "overfit_singleseq_nerf_blender")
"""Each one's parent is the one before."""


def shrink_(config: DictConfig) -> None:
    """One step of a few rays, one small test view; the networks and grids stay as they are."""
    source, loop = chosen(config, "data_source"), chosen(config, "training_loop")
    if OmegaConf.is_missing(source, "dataset_map_provider_class_type"):  # what needs a dataset named to it
        source.dataset_map_provider_class_type = "BlenderDatasetMapProvider"
        chosen(source, "dataset_map_provider").update(base_dir="scene://quickstart", object_name="quickstart")
    loader, model = (
        chosen(source, "data_loader_map_provider"),
        chosen(chosen(config, "model_factory"), "model"),
    )
    loader.update(dataset_length_train=1, dataset_length_val=1, dataset_length_test=1, num_workers=0)
    if "raysampler_class_type" in model:
        rays, sampler = "n_rays_per_image_sampled_from_mask", chosen(model, "raysampler")
        sampler["n_rays_total_training" if sampler.n_rays_total_training is not None else rays] = 8
    model.update(render_image_height=6, render_image_width=6)
    loop.update(max_epochs=1, test_when_finished=True, visualize_interval=0)
    config.exp_dir = "run"


def test_there_are_recipes() -> None:
    assert {"quickstart", "nerf_blender", *OVERFIT_CHAIN} <= set(RECIPES)


@pytest.mark.parametrize("recipe", [name for name in RECIPES if not name.startswith(("repro_", "overfit_"))])
def test_each_recipe_builds_and_takes_a_step(compose: Compose, recipe: str, tmp_path: Path) -> None:
    config = compose(recipe)
    shrink_(config)
    if recipe in EVALUATED_ONLY:
        chosen(config, "training_loop").eval_only = True
    result = build(Experiment, config).run(config)
    psnr = result.last_rows["test"]["psnr_full_image"]
    assert isinstance(psnr, float) and math.isfinite(psnr)
    if recipe in EVALUATED_ONLY:
        return
    assert result.step == 1
    objective = result.last_rows["train"]["objective"]
    assert isinstance(objective, float) and math.isfinite(objective) and objective > 0.0
    assert (tmp_path / "run" / "expconfig.yaml").is_file()


@pytest.mark.parametrize("recipe", ["nerf_blender", "overfit_singleseq_nerf_blender"])
def test_the_nerf_recipes_have_two_networks_of_the_paper(compose: Compose, recipe: str) -> None:
    """595,844 parameters each: 8 layers of 256, one with the encoded position again, and the two heads."""
    position, direction, width = 63, 27, 256
    trunk = (position + 1) * width + 6 * (width + 1) * width + (width + position + 1) * width
    heads = (width + 1) + (width + 1) * width + (width + direction + 1) * 128 + (128 + 1) * 3
    model = build(Experiment, compose(recipe)).model_factory.new_model()
    assert isinstance(model, OverfitModel)
    assert sum(parameter.numel() for parameter in model.parameters()) == 2 * (trunk + heads)


def reference_values(recipe: str) -> dict[str, Any]:
    """Every option that the recipe and its parents set in the reference, with its value in `recipe`."""
    chain = OVERFIT_CHAIN[: OVERFIT_CHAIN.index(recipe) + 1]
    text = (REPOSITORY / "tests" / "data_files" / "overfit_recipes.tsv").read_text()
    rows = [line.split("\t") for line in text.splitlines() if not line.startswith("#")]
    return {option: json.loads(value) for of in chain for name, option, value in rows if name == of}


@pytest.mark.parametrize("recipe", OVERFIT_CHAIN)
def test_the_references_recipes_have_its_values(compose: Compose, recipe: str) -> None:
    config, missing = compose(recipe), object()
    expected = reference_values(recipe)
    assert len(expected) > 40

    def found(option: str) -> Any:
        node: Any = OmegaConf.to_container(config, resolve=False)
        for part in option.split("."):
            node = node.get(part, missing) if isinstance(node, dict) else missing
        return node

    differences = {option: (found(option), value) for option, value in expected.items() if found(option) != value}
    assert not differences
