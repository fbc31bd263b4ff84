"""Grids of every kind that grow, lose empty cells and are cropped within a training, stopped and continued."""

import itertools
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from safetensors.torch import load_file

from nerf_trainer.config import build
from nerf_trainer.experiment import Experiment
from nerf_trainer.training.metrics_log import read_rows
from tests.recipe_kit import Compose, chosen, grids
from tests.test_resume import N_EPOCHS, N_STEPS, shrink_, train, train_in_parts
from tests.training.run_records import final, logged, newest, optimizer_tensors

GROWN, CROPPED = N_STEPS, 2 * N_STEPS
"""Steps before which the grids grow and are cropped."""


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than these runs."""
    monkeypatch.setattr("nerf_trainer.training.stats.draw_train_stats", lambda history, folder: ())


def tiny_grids(compose: Compose, recipe: str) -> DictConfig:
    """Grids grow from 5 to 9 nodes, empty cells are looked for twice, and what is empty all around is cut off."""
    config = compose(recipe)
    shrink_(config)
    model = chosen(config, "model_factory", "model")
    chosen(model, "implicit_function").update(
        scaffold_calculating_epochs=[1, 2],
        scaffold_resolution=[6, 6, 4],
        scaffold_max_pool_kernel_size=1,
        scaffold_empty_space_threshold=4.0,  # more than any node starts with: what some steps have raised is left
        volume_cropping_epochs=[2],
    )
    for grid in grids(model):
        grid.resolution_changes = {0: [5, 5, 5], 1: [9, 9, 9]}
    chosen(config, "optimizer_factory").group_learning_rates = {"density": 0.15, "color": 0.02}
    return config


def assert_grown_and_cropped(folder: Path) -> None:
    """That a run went through what it was made for: else its being stopped would show less than it should."""
    held = load_file(newest(folder) / "model.safetensors")
    values = {name: tensor.shape for name, tensor in held.items() if "._values." in name and "basis" not in name}
    assert values and all(n == 9 for shape in values.values() for n in shape[:-1])
    moments = optimizer_tensors(folder)
    for name, shape in values.items():
        for kind in ("exp_avg", "exp_avg_sq"):
            moment = moments[f"state.{name}.{kind}"]
            assert moment.shape == shape and moment.any() and moment.isfinite().all()
        assert moments[f"state.{name}.step"] == N_EPOCHS * N_STEPS  # the count goes on over both replacements
    boxes = [tensor for name, tensor in held.items() if name.endswith("box_extents")]
    assert len(boxes) == 2 and torch.equal(*boxes)
    assert (boxes[0] < torch.tensor([2.1, 2.1, 1.2]) - 0.1).any()


@pytest.mark.parametrize(
    ("recipe", "stops"),
    [
        ("quickstart", (GROWN, CROPPED + 1)),
        ("quickstart_cp", (GROWN + 1, CROPPED)),
        ("quickstart_vm", (GROWN, CROPPED + 1)),
    ],
)
def test_stopped_and_continued_equals_uninterrupted(
    compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, stops: tuple[int, ...]
) -> None:
    config = tiny_grids(compose, recipe)
    train(config, tmp_path / "whole")
    assert_grown_and_cropped(tmp_path / "whole")
    train_in_parts(config, tmp_path / "parts", monkeypatch, stops)
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole")
    whole, parts = final(tmp_path / "whole"), final(tmp_path / "parts")
    assert whole["state"]["step"] == N_EPOCHS * N_STEPS
    for name in whole:
        assert parts[name] == whole[name], name


@pytest.mark.parametrize("recipe", ["quickstart", "quickstart_cp", "quickstart_vm"])
def test_density_tv_alone_smooths_the_density(compose: Compose, tmp_path: Path, recipe: str) -> None:
    config = compose(recipe)
    shrink_(config)
    model = chosen(config, "model_factory", "model")
    model.loss_weights = dict.fromkeys(model.loss_weights, 0.0) | {"loss_density_tv": 1.0}
    model.log_vars = ["loss_density_tv", "objective"]
    for grid in grids(model):
        grid.resolution_changes = {0: [9, 9, 9]}
    chosen(config, "optimizer_factory").group_learning_rates = {"density": 1e-4, "color": 1e-4}
    chosen(config, "training_loop").update(max_epochs=1, metric_print_interval=1, test_when_finished=False)
    config.exp_dir = str(tmp_path / "run")
    build(Experiment, config).run(config)
    rows = [row for row in read_rows(tmp_path / "run" / "metrics.jsonl") if row["split"] == "train"]
    tv = [row["loss_density_tv"] for row in rows]
    assert len(tv) == N_STEPS and [row["objective"] for row in rows] == pytest.approx(tv)
    assert tv[0] > 1e-8
    assert all(after < before for before, after in itertools.pairwise(tv))
