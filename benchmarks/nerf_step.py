"""Time of one training step of the classic NeRF, everything included, by precision and number of rays.

    python -m benchmarks.nerf_step --steps 200

The step is the trainer's own: pixels drawn from a resident scene, rays, 64 coarse and 64 + 128 fine samples through two
8x256 networks, losses, backward, gradient norm, Adam. The scene's pixels are random: time does not depend on them.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import passport, write
from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.config import Factory
from nerf_trainer.fields.nerf import NeuralRadianceFieldImplicitFunction
from nerf_trainer.frames import FrameData, PixelStore
from nerf_trainer.models.overfit import OverfitModel
from nerf_trainer.models.photographs import Background
from nerf_trainer.randomness import seed_streams
from nerf_trainer.rays.samplers import NearFarRaySampler
from nerf_trainer.renderers.multipass import MultiPassEmissionAbsorptionRenderer
from nerf_trainer.training.optimizer_factory import ImplicitronOptimizerFactory
from nerf_trainer.training.runtime import Precision, Runtime
from nerf_trainer.training.step import TrainingStep

N_IMAGES, SIZE = 100, 400


def scene(device: torch.device) -> FrameData:
    """Random images, and cameras at distance 4 around the origin that look at it."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (N_IMAGES, SIZE, SIZE, 4), dtype=torch.uint8, generator=generator)
    angle = torch.arange(N_IMAGES) * (2 * torch.pi / N_IMAGES)
    zero, one = torch.zeros(N_IMAGES), torch.ones(N_IMAGES)
    # camera axes as rows: right, down, forward; z is up in the world
    R = torch.stack(
        [
            torch.stack([-angle.sin(), angle.cos(), zero], dim=-1),
            torch.stack([zero, zero, -one], dim=-1),
            torch.stack([-angle.cos(), -angle.sin(), zero], dim=-1),
        ],
        dim=1,
    )
    cameras = Cameras(
        R=R,
        T=torch.tensor([0.0, 0.0, 4.0]).expand(N_IMAGES, 3),
        focal=torch.full((N_IMAGES, 2), 555.0),
        principal_point=torch.full((N_IMAGES, 2), SIZE / 2),
        image_size_hw=torch.full((N_IMAGES, 2), SIZE),
    )
    return FrameData(cameras=cameras, pixels=PixelStore.from_images(list(images))).to(device)


def classic_nerf(n_rays: int) -> OverfitModel:
    """The model of configs/nerf_blender.yaml."""
    nerf = Factory.of(NeuralRadianceFieldImplicitFunction)
    sampler = NearFarRaySampler(min_depth=2.0, max_depth=6.0, n_rays_total_training=n_rays)
    renderer = Factory.of(MultiPassEmissionAbsorptionRenderer, n_pts_per_ray_fine_training=128)
    return OverfitModel(
        raysampler=sampler,
        renderer=renderer,
        implicit_function=nerf,
        coarse_implicit_function=nerf,
        background=Background.COLOR,
        bg_color=(1.0, 1.0, 1.0),
        mask_threshold=None,
        log_vars=("loss_rgb_psnr", "loss_prev_stage_rgb_psnr", "loss_rgb_mse", "loss_mask_neg_iou"),
    )


def measure(precision: Precision, n_rays: int, n_warmup: int, n_steps: int) -> dict[str, Any]:
    """Median, tenth and ninetieth percentile of the milliseconds a step takes, and the peak of allocated memory."""
    runtime = Runtime(precision=precision)
    model = classic_nerf(n_rays).to(runtime.device).train()
    seed_streams(model, 0)
    frames = scene(runtime.device)
    step = TrainingStep(model, ImplicitronOptimizerFactory()(model)[0], runtime)
    cuda = runtime.device.type == "cuda"
    for _ in range(n_warmup):
        step([frames])
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    times = [_timed(step, frames, cuda) for _ in range(n_steps)]
    # Back to back, as in training, the host runs ahead of the device.
    began = time.perf_counter()
    for _ in range(n_steps):
        step([frames])
    if cuda:
        torch.cuda.synchronize()
    in_a_row = (time.perf_counter() - began) / n_steps * 1e3
    tenths = statistics.quantiles(times, n=10)
    return {
        "precision": precision.value,
        "rays": n_rays,
        "ms_median": round(statistics.median(times), 3),
        "ms_p10": round(tenths[0], 3),
        "ms_p90": round(tenths[-1], 3),
        "ms_in_a_row": round(in_a_row, 3),
        "rays_per_s": round(n_rays / in_a_row * 1e3),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 3) if cuda else None,
    }


def _timed(step: TrainingStep, frames: FrameData, cuda: bool) -> float:
    """Milliseconds of one step with the device idle before and after."""
    if cuda:
        torch.cuda.synchronize()
    began = time.perf_counter()
    step([frames])
    if cuda:
        torch.cuda.synchronize()
    return (time.perf_counter() - began) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, help="counted steps of each setting")
    parser.add_argument("--warmup", type=int, default=20, help="steps before those")
    parser.add_argument("--rays", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--precision", nargs="+", default=["fp32", "tf32", "bf16"])
    parser.add_argument("--out", type=Path, default=None, help="folder for the record; default benchmarks/records")
    parser.add_argument("--commit", default=None, help="what to record as commit outside a git checkout")
    options = parser.parse_args()
    rows = []
    for n_rays in options.rays:
        for name in options.precision:
            rows.append(measure(Precision(name), n_rays, options.warmup, options.steps))
            print(rows[-1], flush=True)
    record = {"benchmark": "nerf_step", **passport(options.commit), "steps": options.steps, "rows": rows}
    print("written to", write("nerf_step", record, options.out))


if __name__ == "__main__":
    main()
