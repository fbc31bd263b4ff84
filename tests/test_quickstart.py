"""The quickstart recipe as it is, in fewer steps: how well it renders, and what growing grids do to a training."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor

from nerf_trainer.config import build
from nerf_trainer.experiment import Experiment
from nerf_trainer.training.interruption import RunStoppedError
from nerf_trainer.training.metrics_log import read_rows
from tests.recipe_kit import Compose, chosen, grids
from tests.training.run_records import StopAfter, optimizer_tensors

N_STEPS, GROWING_EPOCH, N_EPOCHS = 40, 19, 20
COARSE, FINE = [57, 57, 33], [113, 113, 65]
"""The recipe's own resolutions: 113 = 2 * 57 - 1 and 65 = 2 * 33 - 1, so every second fine node is a coarse one."""

EVERY_SECOND = slice(None, None, 2)
PLACES: list[tuple[tuple[slice, ...], Callable[[Tensor], Tensor]]] = [
    ((EVERY_SECOND, EVERY_SECOND, EVERY_SECOND), lambda coarse: coarse),
    ((slice(1, None, 2), EVERY_SECOND, EVERY_SECOND), lambda coarse: 0.5 * (coarse[:-1] + coarse[1:])),
]
"""Fine nodes, and their values by the coarse ones: those that both grids have, and those between two along x."""


def shortened(config: DictConfig) -> DictConfig:
    """800 steps instead of 1000, most of them on the coarse grids, fewer samples a ray, four of the test views."""
    chosen(config, "data_source", "data_loader_map_provider").update(
        dataset_length_train=N_STEPS, dataset_length_test=4
    )
    model = chosen(config, "model_factory", "model")
    chosen(model, "raysampler").update(n_pts_per_ray_training=56, n_pts_per_ray_evaluation=96)
    chosen(model, "implicit_function").scaffold_calculating_epochs = [3, 5, 8, 10, 15, GROWING_EPOCH]
    for grid in grids(model):
        assert [list(nodes) for nodes in grid.resolution_changes.values()] == [COARSE, FINE]
        grid.resolution_changes = {0: COARSE, GROWING_EPOCH: FINE}
    chosen(config, "training_loop").max_epochs = N_EPOCHS
    config.exp_dir = "run"
    return config


def run(config: DictConfig, **settings: object) -> float:
    """Train on, or evaluate; the PSNR of the test views, in dB."""
    config = config.copy()
    config.update(settings)
    psnr = build(Experiment, config).run(config).last_rows["test"]["psnr_full_image"]
    assert isinstance(psnr, float)
    return psnr


def run_until(config: DictConfig, monkeypatch: pytest.MonkeyPatch, n_steps: int) -> tuple[float, dict[str, Tensor]]:
    """Train for `n_steps` more steps; the PSNR of the test views then, and what the optimizer holds."""
    with monkeypatch.context() as patch:
        StopAfter(patch, n_steps)
        with pytest.raises(RunStoppedError):
            build(Experiment, config).run(config)
    return run(config, eval_only=True), optimizer_tensors(Path("run"))


def assert_moments_were_resampled(
    before: dict[str, Tensor], after: dict[str, Tensor], betas: tuple[float, float]
) -> None:
    """Adam's moments one step after the grids grew follow from those before.

    With g the step's gradient, m' = b1 m + (1 - b1) g and v' = b2 v + (1 - b2) g^2, where m and v are the resampled
    moments. g from the first equation must satisfy the second.
    """
    names = [name.removesuffix(".exp_avg") for name in before if name.endswith("nodes.exp_avg")]
    assert len(names) == 2  # the density's grid and the colour's
    for name in names:
        m, v = (before[f"{name}.{kind}"].double() for kind in ("exp_avg", "exp_avg_sq"))
        new_m, new_v = (after[f"{name}.{kind}"].double() for kind in ("exp_avg", "exp_avg_sq"))
        assert list(m.shape[:3]) == COARSE
        assert list(new_m.shape[:3]) == list(new_v.shape[:3]) == FINE
        assert after[f"{name}.step"] == before[f"{name}.step"] + 1
        for fine, of_coarse in PLACES:
            gradient = (new_m[fine] - betas[0] * of_coarse(m)) / (1.0 - betas[0])
            expected = betas[1] * of_coarse(v) + (1.0 - betas[1]) * gradient.square()
            torch.testing.assert_close(new_v[fine], expected, rtol=1e-3, atol=1e-5 * float(v.max()))
        assert (m.abs() > 1e-3 * m.abs().max()).any()
        assert new_v.min() >= 0.0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_quickstart_reaches_26_db_and_growing_grids_cost_no_quality(
    compose: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = shortened(compose("quickstart"))
    betas = chosen(config, "optimizer_factory").betas
    grown_at = N_STEPS * GROWING_EPOCH
    psnr_before, before = run_until(config, monkeypatch, grown_at)
    psnr_after, after = run_until(config, monkeypatch, 1)
    assert abs(psnr_after - psnr_before) <= 0.5
    assert_moments_were_resampled(before, after, (betas[0], betas[1]))
    assert run(config) >= 26.0
    rows = [row for row in read_rows(Path("run") / "metrics.jsonl") if row["split"] == "train"]
    last_coarse = [row["loss_rgb_mse"] for row in rows if row["epoch"] == GROWING_EPOCH - 1]
    first_fine = next(row["loss_rgb_mse"] for row in rows if row["epoch"] == GROWING_EPOCH)
    # 0.5 dB is a factor of 10^0.05 = 1.122 in the mean square.
    assert first_fine <= 10**0.05 * sum(last_coarse) / len(last_coarse)
