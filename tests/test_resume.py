"""Stopping and continuing with the recipes' own parts: nothing that training makes may tell that it was stopped."""

import itertools
from pathlib import Path

import pytest
from omegaconf import DictConfig

from nerf_trainer.config import build
from nerf_trainer.experiment import Experiment
from nerf_trainer.training.checkpoint import CheckpointStore
from nerf_trainer.training.interruption import RunStoppedError
from nerf_trainer.training.metrics_log import read_rows
from tests.recipe_kit import Compose, chosen, grids
from tests.training.run_records import StopAfter, final, logged, optimizer_tensors

N_EPOCHS, N_STEPS = 3, 4
"""Grids grow before the fifth step."""
LOOP = {"max_epochs": N_EPOCHS, "metric_print_interval": 3, "visualize_interval": 0, "checkpoint_seconds": 0.0}


def shrink_(config: DictConfig) -> None:
    """A few short epochs on a few rays, and a test view of a few pixels after the last."""
    chosen(config, "data_source", "data_loader_map_provider").update(
        dataset_length_train=N_STEPS, dataset_length_val=1, dataset_length_test=1
    )
    model = chosen(config, "model_factory", "model")
    model.update(render_image_height=6, render_image_width=6)
    chosen(model, "raysampler").update(n_rays_total_training=32, n_pts_per_ray_training=12, n_pts_per_ray_evaluation=12)
    chosen(config, "training_loop").update(LOOP)


def tiny_quickstart(compose: Compose) -> DictConfig:
    """Grids grow from 5 to 9 nodes, empty cells are looked for twice, the rate falls at each step."""
    config = compose("quickstart")
    shrink_(config)
    model = chosen(config, "model_factory", "model")
    chosen(model, "implicit_function").update(scaffold_calculating_epochs=[1, 2], scaffold_resolution=[6, 6, 4])
    for grid in grids(model):
        grid.resolution_changes = {0: [5, 5, 5], 1: [9, 9, 9]}
    return config


def tiny_nerf(compose: Compose) -> DictConfig:
    """A coarse and a fine network, 8 wide, random crops at first, and a rate that falls at a milestone."""
    config = compose("nerf_blender")
    shrink_(config)
    model = chosen(config, "model_factory", "model")
    chosen(model, "raysampler").precrop_steps = N_STEPS + 2
    chosen(model, "renderer").update(n_pts_per_ray_fine_training=12, n_pts_per_ray_fine_evaluation=12)
    for name in ("implicit_function", "coarse_implicit_function"):
        chosen(model, name).update(n_hidden_neurons_xyz=8, n_hidden_neurons_dir=8, n_layers_xyz=3, append_xyz=[1])
    chosen(config, "optimizer_factory").update(lr_policy="MultiStepLR", multistep_lr_milestones=[1])
    chosen(config, "training_loop").validation_interval = 1
    return config


def tiny_codes(compose: Compose) -> DictConfig:
    """A network that is told a learned code, which a loss of its own keeps small."""
    config = tiny_nerf(compose)
    model = chosen(config, "model_factory", "model")
    model.global_encoder_class_type = "SequenceAutodecoder"
    chosen(model, "global_encoder").autodecoder_args.update(encoding_dim=3, n_instances=2)
    model.loss_weights["loss_autodecoder_norm"] = 0.1
    return config


def tiny_ngp(compose: Compose) -> DictConfig:
    """An occupancy grid that is renewed every other step, after four of them at places drawn from what is occupied."""
    config = compose("ngp_blender")
    shrink_(config)
    model = chosen(config, "model_factory", "model")
    renderer = chosen(model, "renderer")
    renderer.update(sample_budget_training=512, candidate_budget_training=1024)
    renderer.occupancy_grid_args.update(resolution=16, step_size=0.1, update_interval=2, warmup_steps=4)
    chosen(model, "implicit_function").update(n_levels=3, log2_hashmap_size=8, finest_resolution=32)
    return config


CONFIGS = {"quickstart": tiny_quickstart, "nerf_blender": tiny_nerf, "codes": tiny_codes, "ngp_blender": tiny_ngp}


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than these runs."""
    monkeypatch.setattr("nerf_trainer.training.stats.draw_train_stats", lambda history, folder: ())


def assert_growth_and_falling_rates(recipe: str, folder: Path) -> None:
    """That a run went through what it was made for: else its being stopped would show less than it should."""
    rates = [row["lr"] for row in read_rows(folder / "metrics.jsonl") if row["split"] == "train"]
    if recipe in ("nerf_blender", "codes"):
        assert len(set(rates)) == 2
        return
    assert all(after < before for before, after in itertools.pairwise(rates))
    if recipe == "ngp_blender":
        return
    moments = optimizer_tensors(folder)
    assert {tuple(m.shape[:3]) for name, m in moments.items() if name.endswith("nodes.exp_avg")} == {(9, 9, 9)}


def train(config: DictConfig, folder: Path) -> None:
    config = config.copy()
    config.exp_dir = str(folder)
    build(Experiment, config).run(config)


def train_in_parts(config: DictConfig, folder: Path, monkeypatch: pytest.MonkeyPatch, stops: tuple[int, ...]) -> None:
    """Stop after each of `stops` steps of the whole run, and go on to the end."""
    done = 0
    for stop in stops:
        with monkeypatch.context() as patch:
            StopAfter(patch, stop - done)
            with pytest.raises(RunStoppedError):
                train(config, folder)
        checkpoint = CheckpointStore(folder).latest()
        assert checkpoint is not None and checkpoint.state.step == stop
        done = stop
    train(config, folder)


@pytest.mark.parametrize(
    ("recipe", "stops"),
    [
        ("quickstart", (N_STEPS - 1, N_STEPS + 1)),  # a step before the end of the epoch; after the grids grew
        ("quickstart", (N_STEPS,)),  # just before they grow
        ("quickstart", (N_STEPS + 2, 2 * N_STEPS)),  # within an epoch; at the end of one
        ("nerf_blender", (N_STEPS - 1, N_STEPS)),
        ("nerf_blender", (N_STEPS + 2, 2 * N_STEPS + 1)),  # at the last crop; within the last epoch
        ("codes", (N_STEPS + 1,)),
        ("ngp_blender", (N_STEPS - 1, N_STEPS + 2)),  # between updates of the grid; before one at drawn places
    ],
)
def test_stopped_and_continued_equals_uninterrupted(
    compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, stops: tuple[int, ...]
) -> None:
    config = CONFIGS[recipe](compose)
    train(config, tmp_path / "whole")
    assert_growth_and_falling_rates(recipe, tmp_path / "whole")
    train_in_parts(config, tmp_path / "parts", monkeypatch, stops)
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole")
    whole, parts = final(tmp_path / "whole"), final(tmp_path / "parts")
    assert whole["state"]["step"] == N_EPOCHS * N_STEPS
    for name in whole:
        assert parts[name] == whole[name], name
