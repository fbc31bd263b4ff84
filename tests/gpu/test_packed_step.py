"""A training step of the fast path on a device: captured, kernel against twin, its grid renewed between steps."""

import pytest
import torch
from torch import Tensor

from nerf_trainer.config import Factory
from nerf_trainer.fields.base import BoundField, FieldInputs
from nerf_trainer.fields.hash_grid import HashGridImplicitFunction
from nerf_trainer.occupancy import OccupancyGrid
from nerf_trainer.ops.backend import Kernels
from nerf_trainer.rays.samplers import NearFarRaySampler
from nerf_trainer.renderers.base import EvaluationMode
from nerf_trainer.renderers.occupancy import OccupancyGridRenderer
from nerf_trainer.training.captured import FIRST_WARM_UP
from nerf_trainer.training.runtime import Precision
from tests.gpu.test_captured_step import Run, scene
from tests.ops.kernel_kit import kernels
from tests.scene_kit import orbit

pytestmark = pytest.mark.gpu

N_STEPS = 24
"""More than an update of the grid apart."""


def fast(
    capture: bool, precision: Precision = Precision.fp32, n_rays: int = 4096, budget: int = 2**18, candidates: int = 0
) -> Run:
    box = (2.4, 2.4, 2.4)
    return Run(
        capture,
        precision,
        clip_grad=0.0,
        raysampler=NearFarRaySampler(min_depth=2.0, max_depth=6.0, n_rays_total_training=n_rays),
        renderer=Factory.of(
            OccupancyGridRenderer,
            sample_budget_training=budget,
            candidate_budget_training=candidates,
            occupancy_grid=OccupancyGrid(resolution=64, extents=box, update_interval=8, warmup_steps=16),
        ),
        implicit_function=Factory.of(HashGridImplicitFunction, extents=box, log2_hashmap_size=15),
        coarse_implicit_function=None,
        loss_weights={"loss_rgb_mse": 1.0, "loss_distortion": 0.01},
        log_vars=("loss_rgb_mse", "loss_distortion", "n_samples", "valid_rays", "occupied"),
    )


def taken(run: Run, n_steps: int) -> Tensor:
    frames = scene()
    for n in range(n_steps):
        run.model.before_step(n)
        run.take(frames)
    return torch.stack(run.losses)


@pytest.mark.parametrize("candidates", [0, 2**19])
@pytest.mark.parametrize("precision", [Precision.fp32, Precision.bf16])
def test_captured_steps_do_what_eager_ones_do(precision: Precision, candidates: int) -> None:
    """Nearly: atomic additions in the table's gradient come in any order."""
    eager, captured = (fast(capture, precision, candidates=candidates) for capture in (False, True))
    expected, found = taken(eager, N_STEPS), taken(captured, N_STEPS)
    assert captured.step.is_captured, captured.said
    assert found.isfinite().all()
    torch.testing.assert_close(found, expected, rtol=0.05, atol=1e-4)
    means = [run.stats.read(N_STEPS, 0, 0.0).means.values for run in (eager, captured)]
    for name in ("n_samples", "valid_rays", "occupied"):
        assert means[1][name] == pytest.approx(means[0][name], rel=0.05)


@pytest.mark.parametrize("candidates", [0, 2**16])
def test_kernels_and_twins_train_alike(candidates: int) -> None:
    losses = []
    for choice in (Kernels.triton, Kernels.torch):
        run = fast(False, n_rays=256, budget=2**15, candidates=candidates)
        with kernels(choice):
            losses.append(taken(run, 10))
    torch.testing.assert_close(losses[0], losses[1], rtol=0.02, atol=1e-4)


@pytest.mark.parametrize("candidates", [0, 2**19])
def test_nothing_waits_for_the_device_not_even_updates_of_the_grid(candidates: int) -> None:
    run, frames = fast(True, candidates=candidates), scene()
    taken(run, FIRST_WARM_UP + 20)
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        for n in range(N_STEPS):
            run.model.before_step(n)
            run.take(frames)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_view_is_the_same_whatever_the_rounds() -> None:
    run = fast(False)
    taken(run, N_STEPS)
    renderer, field = run.model._renderer, run.model.passes()[0]
    assert isinstance(renderer, OccupancyGridRenderer)
    rays = NearFarRaySampler(min_depth=2.0, max_depth=6.0).grid(orbit(1).to("cuda"), (64, 64), with_lengths=False)
    views = []
    for n in (16, 1024):
        renderer.samples_per_round_evaluation = n
        views.append(renderer(rays, [BoundField(field, FieldInputs())], EvaluationMode.EVALUATION).features)
    torch.testing.assert_close(views[0], views[1], rtol=0.0, atol=2e-3)
