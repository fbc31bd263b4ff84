"""Time of one training step of the classic NeRF, everything included, by precision, number of rays and way to run it.

    python -m benchmarks.nerf_step --steps 200
    python -m benchmarks.nerf_step --steps 200 --capture eager --kernels torch --precision bf16 --rays 1024

The step is the trainer's own: pixels drawn from a resident scene, rays, 64 coarse and 64 + 128 fine samples through two
8x256 networks, losses, backward, gradient norm, Adam, sums of metrics, a learning rate that changes at each step. The
scene's pixels are random: time does not depend on them. Steps are taken one behind the other, as in training, and
timed on the device; eager and captured ones take turns. What comes before (compiling, warming up, the capture) is
listed apart. Memory is the most that was allocated from the first byte of the scene on.
"""

import argparse
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.record import add_options, passport, write
from benchmarks.timing import fresh_memory, peak_gib, step_times, summary
from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.config import Factory
from nerf_trainer.fields.nerf import NeuralRadianceFieldImplicitFunction
from nerf_trainer.frames import FrameData, PixelStore
from nerf_trainer.models.overfit import OverfitModel
from nerf_trainer.models.photographs import Background
from nerf_trainer.ops.backend import Kernels
from nerf_trainer.randomness import seed_streams
from nerf_trainer.rays.samplers import NearFarRaySampler
from nerf_trainer.renderers.multipass import MultiPassEmissionAbsorptionRenderer
from nerf_trainer.training.captured import FIRST_WARM_UP
from nerf_trainer.training.optimizer_factory import ImplicitronOptimizerFactory
from nerf_trainer.training.runtime import Precision, Runtime
from nerf_trainer.training.stats import Statistics
from nerf_trainer.training.step import TrainingStep

N_IMAGES, SIZE = 100, 400
WAYS = {"eager": (False,), "captured": (True,), "both": (False, True)}


def scene(device: torch.device, n_images: int = N_IMAGES, size: int = SIZE) -> FrameData:
    """Random images, and cameras at distance 4 around the origin that look at it."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n_images, size, size, 4), dtype=torch.uint8, generator=generator)
    angle = torch.arange(n_images) * (2 * torch.pi / n_images)
    zero, one = torch.zeros(n_images), torch.ones(n_images)
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
        T=torch.tensor([0.0, 0.0, 4.0]).expand(n_images, 3),
        focal=torch.full((n_images, 2), 555.0 * size / SIZE),
        principal_point=torch.full((n_images, 2), size / 2),
        image_size_hw=torch.full((n_images, 2), size),
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


@dataclass(frozen=True)
class Setting:
    """What is timed."""

    precision: Precision
    rays: int
    """Rays of a step."""
    captured: bool
    """Whether steps are one CUDA graph."""
    kernels: Kernels


class Training:
    """Steps as a training takes them, on a scene of its own."""

    def __init__(self, setting: Setting) -> None:
        self._runtime = Runtime(precision=setting.precision, kernels=setting.kernels)
        self._model = classic_nerf(setting.rays).to(self._runtime.device).train()
        seed_streams(self._model, 0)
        factory = ImplicitronOptimizerFactory(lr_policy="Exponential", update_every_step=True)
        optimizer, self._schedule = factory(self._model)
        self._stats = Statistics(self._runtime, None)
        self.said: list[str] = []
        self.step = TrainingStep(
            self._model, optimizer, self._runtime, 0.0, setting.captured, self._stats.accumulate, self.said.append
        )
        self._frames = scene(self._runtime.device)
        self._n = 0

    def take(self) -> None:
        """One step, and what a session does around it."""
        self._schedule.set_epoch(0, (self._n % 100_000) / 100_000)
        self._model.before_step(self._n)
        self._stats.count(self.step([self._frames]))
        self._n += 1


def timed(setting: Setting, n_warmup: int, n_steps: int) -> dict[str, Any]:
    """Milliseconds of each of some steps, and what it took to get there."""
    fresh_memory()
    training = Training(setting)
    began = time.perf_counter()
    for _ in range(FIRST_WARM_UP + 1):
        training.take()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    first = time.perf_counter() - began
    if setting.captured and not training.step.is_captured:
        raise SystemExit("\n".join(training.said) or "step: eager, for there is no GPU; give --capture eager")
    for _ in range(n_warmup):
        training.take()
    times, in_a_row = step_times(training.take, n_steps)
    return {
        "times": times,
        "in_a_row": in_a_row,
        "first_steps_s": first,
        "capture_s": training.step.capture_seconds,
        "peak": peak_gib(),
    }


def measure(settings: list[Setting], n_warmup: int, n_steps: int, n_turns: int) -> list[dict[str, Any]]:
    """Median, tenth and ninetieth percentile of the milliseconds a step takes, of settings that take turns."""
    parts: dict[Setting, list[dict[str, Any]]] = {setting: [] for setting in settings}
    for _ in range(n_turns):
        for setting in settings:
            parts[setting].append(timed(setting, n_warmup, -(-n_steps // n_turns)))
    return [_row(setting, of_setting) for setting, of_setting in parts.items()]


def _row(setting: Setting, parts: list[dict[str, Any]]) -> dict[str, Any]:
    times = [ms for part in parts for ms in part["times"]]
    in_a_row = statistics.mean(part["in_a_row"] for part in parts)
    return {
        "precision": setting.precision.value,
        "rays": setting.rays,
        "captured": setting.captured,
        "kernels": setting.kernels.value,
        **summary(times),
        "ms_in_a_row": round(in_a_row, 3),
        "rays_per_s": round(setting.rays / in_a_row * 1e3),
        "first_steps_s": round(parts[0]["first_steps_s"], 3),
        "capture_s": round(parts[0]["capture_s"], 3),
        "peak_gib": max(part["peak"] for part in parts),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, help="counted steps of each setting")
    parser.add_argument("--warmup", type=int, default=20, help="steps before those")
    parser.add_argument("--rays", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--precision", nargs="+", default=["fp32", "tf32", "bf16"])
    parser.add_argument("--capture", choices=["eager", "captured", "both"], default="both", help="ways to run a step")
    parser.add_argument("--kernels", nargs="+", default=["auto"], help="auto, triton, torch: any of them")
    parser.add_argument("--turns", type=int, default=2, help="turns that the counted steps are divided into")
    parser.add_argument("--name", default="nerf_step", help="name of the record")
    add_options(parser)
    options = parser.parse_args()
    record: dict[str, Any] = {"benchmark": "nerf_step", **passport(options.commit), "steps": options.steps}
    record["rows"] = rows = []
    for n_rays in options.rays:
        for name in options.precision:
            settings = [
                Setting(Precision(name), n_rays, captured, Kernels(kernels))
                for kernels in options.kernels
                for captured in WAYS[options.capture]
            ]
            for row in measure(settings, options.warmup, options.steps, options.turns):
                rows.append(row)
                print(row, flush=True)
                write(options.name, record, options.out)
    print("written to", write(options.name, record, options.out))


if __name__ == "__main__":
    main()
