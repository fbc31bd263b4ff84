"""The training step on a GPU: nothing waits for it, and bad steps are left out."""

import pytest
import torch

from nerf_trainer.config import Factory
from nerf_trainer.fields.nerf import NeuralRadianceFieldImplicitFunction
from nerf_trainer.fields.voxel import VoxelGridImplicitFunction
from nerf_trainer.fields.voxel_grids import FullResolutionVoxelGrid, VoxelGridModule
from nerf_trainer.frames import FrameData, PixelStore
from nerf_trainer.models.overfit import OverfitModel
from nerf_trainer.models.photographs import Background
from nerf_trainer.randomness import seed_streams
from nerf_trainer.rays.samplers import NearFarRaySampler
from nerf_trainer.training.optimizer_factory import ImplicitronOptimizerFactory
from nerf_trainer.training.runtime import Precision, Runtime
from nerf_trainer.training.step import TrainingStep
from tests.scene_kit import orbit

pytestmark = pytest.mark.gpu

NERF = Factory.of(NeuralRadianceFieldImplicitFunction, n_hidden_neurons_xyz=64)


def scene() -> FrameData:
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (16, 16, 4), dtype=torch.uint8, generator=generator) for _ in range(4)]
    return FrameData(cameras=orbit(4), pixels=PixelStore.from_images(images)).to("cuda")


def voxels() -> Factory:
    """A small voxel-grid field; the same grid for density and colour."""

    def grid(n_features: int) -> VoxelGridModule:
        return VoxelGridModule(
            voxel_grid=FullResolutionVoxelGrid(n_features=n_features, resolution_changes={0: (9, 9, 9)})
        )

    return Factory.of(VoxelGridImplicitFunction, voxel_grid_density=grid(1), voxel_grid_color=grid(4))


def stepper(
    precision: Precision, background: Background = Background.RANDOM, field: Factory = NERF
) -> tuple[OverfitModel, TrainingStep]:
    model = OverfitModel(
        raysampler=NearFarRaySampler(min_depth=2.0, max_depth=6.0, n_rays_total_training=128),
        implicit_function=field,
        coarse_implicit_function=field,
        background=background,
        mask_threshold=None,
        loss_weights={"loss_rgb_mse": 1.0, "loss_prev_stage_rgb_mse": 1.0, "loss_mask_bce": 0.1},
    )
    runtime = Runtime(precision=precision)
    model = model.to(runtime.device).train()
    seed_streams(model, 0)
    return model, TrainingStep(model, ImplicitronOptimizerFactory(lr=1e-3)(model)[0], runtime, clip_grad=1.0)


@pytest.mark.parametrize("field", [NERF, voxels()], ids=["nerf", "voxels"])
@pytest.mark.parametrize("precision", [Precision.fp32, Precision.tf32, Precision.bf16])
def test_steps_never_wait_for_the_device(precision: Precision, field: Factory) -> None:
    _, step = stepper(precision, field=field)
    frames = scene()
    step([frames])  # warm-up: libraries allocate and look around
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        results = [step([frames]) for _ in range(20)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.isfinite(r.metrics["objective"]) for r in results)
    assert not any(bool(r.skipped) for r in results)


def test_a_step_that_is_not_finite_leaves_the_weights_alone() -> None:
    model, step = stepper(Precision.fp32)
    frames = scene()
    step([frames])
    with torch.no_grad():
        bias = next(iter(model.parameters()))
        kept = bias.clone()
        bias.fill_(float("nan"))
    before = [p.detach().clone() for p in model.parameters()]
    assert bool(step([frames]).skipped)
    for was, parameter in zip(before, model.parameters(), strict=True):
        torch.testing.assert_close(parameter.detach(), was, equal_nan=True, rtol=0, atol=0)
    with torch.no_grad():
        bias.copy_(kept)
    assert not bool(step([frames]).skipped)


@pytest.mark.parametrize("precision", [Precision.fp32, Precision.bf16, Precision.fp16])
def test_training_lowers_the_loss(precision: Precision) -> None:
    _, step = stepper(precision, Background.COLOR)
    frames = scene()
    losses = torch.stack([step([frames]).metrics["objective"] for _ in range(150)])
    assert losses[-20:].mean() < 0.9 * losses[:20].mean()


def test_the_gpu_computes_what_the_cpu_does() -> None:
    model, _ = stepper(Precision.fp32, Background.COLOR)
    model = model.eval()
    frames = FrameData(cameras=orbit(1), image_rgb=torch.rand(1, 3, 16, 16))
    with torch.no_grad():
        on_gpu = model(frames.to("cuda"))
        on_cpu = model.cpu()(frames)
    # Fine samples lie where the coarse weights are: a rounding of these moves a sample to beyond an edge of a bin.
    torch.testing.assert_close(on_gpu.images_render.cpu(), on_cpu.images_render, atol=4e-3, rtol=0)
    assert (on_gpu.images_render.cpu() - on_cpu.images_render).abs().mean() < 1e-4
