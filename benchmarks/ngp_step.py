"""Time of a training step of the fast path (configs/ngp_blender.yaml), everything included, and of its parts.

    python -m benchmarks.ngp_step --steps 500
    python -m benchmarks.ngp_step --steps 500 --capture eager --kernels torch
    BLENDER_DATASET_ROOT=/data BLENDER_SINGLESEQ_CLASS=lego python -m benchmarks.ngp_step --scene own --train 5000

The step is the trainer's own: rays drawn from a resident scene, the march, packed samples through encoding and
networks, compositing, losses, backward, gradient norm, Adam, and the update of the occupancy grid before every
sixteenth step, which the times of steps in a row contain. The scene is a ball with a pattern of eight octaves, seen by
100 cameras, or the recipe's own; the grid has found it before steps are counted (`--train`). Samples a second are those
that were used, not the places of the row. Parts are timed by themselves, each as a graph that is replayed, so that they
are times of the device; backward is what forward and backward take together less the forward. `--profile` prints the
kernels of a step.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from benchmarks.methods import composed
from benchmarks.nerf_step import scene
from benchmarks.record import add_options, passport, write
from benchmarks.render_view import SCENE
from benchmarks.step_ops import profiled, show_kernels
from benchmarks.timing import fresh_memory, peak_gib, step_times, summary
from nerf_trainer.config import build
from nerf_trainer.experiment import Experiment
from nerf_trainer.fields.base import BoundField, FieldInputs
from nerf_trainer.fields.hash_grid import HashGridImplicitFunction
from nerf_trainer.frames import FrameData, PixelStore
from nerf_trainer.models.overfit import OverfitModel
from nerf_trainer.ops.backend import Kernels
from nerf_trainer.ops.packed import composite_packed
from nerf_trainer.randomness import random_streams, seed_streams
from nerf_trainer.rays.bundle import RayBundle
from nerf_trainer.renderers.occupancy import N_CANDIDATES, N_SAMPLES, VALID_RAYS, OccupancyGridRenderer
from nerf_trainer.training.optimizer_factory import while_captured
from nerf_trainer.training.runtime import Precision, Runtime
from nerf_trainer.training.stats import Statistics
from nerf_trainer.training.step import TrainingStep

WAYS = {"eager": (False,), "captured": (True,), "both": (False, True)}
N_OCTAVES = 8


def ball(device: torch.device) -> FrameData:
    """Photographs of a ball of radius 1 around the origin, by the cameras of `nerf_step.scene`."""
    cameras = scene(torch.device("cpu")).cameras.to(device)
    height, width = cameras.image_size_hw[0].tolist()
    y, x = torch.meshgrid(*(torch.arange(n, device=device) + 0.5 for n in (height, width)), indexing="ij")
    xy = torch.stack([x, y], dim=-1)
    images = []
    for i in range(len(cameras)):
        origins, directions = cameras.pixel_rays(xy, torch.full_like(xy[..., 0], i, dtype=torch.int64))
        along = -(origins * directions).sum(dim=-1)
        inside = 1.0 - origins.square().sum(dim=-1) + along.square()
        points = origins + (along - inside.clamp(min=0.0).sqrt())[..., None] * directions
        waves = [torch.sin(points * 2.0**octave * 3.0) / 2.0**octave for octave in range(N_OCTAVES)]
        color = (0.5 + 0.25 * torch.stack(waves).sum(dim=0)).clamp(0.0, 1.0)
        image = torch.cat([color, (inside > 0.0).float()[..., None]], dim=-1)
        images.append((image * 255.0).round().to(torch.uint8).cpu())
    return FrameData(cameras=cameras, pixels=PixelStore.from_images(images)).to(device)


def own_views(experiment: Experiment, device: torch.device) -> FrameData:
    """The training views of the recipe's data, resident."""
    _, loaders = experiment.data_source.get_datasets_and_dataloaders()
    if loaders.train is None:
        raise SystemExit("--scene own: the data has no views to train on")
    loaders.train.place(device, 0)
    return next(iter(loaders.train.steps(0)))


class Training:
    """Steps as a training takes them."""

    def __init__(
        self, words: Sequence[str], precision: Precision, captured: bool, kernels: Kernels, views: str = "ball"
    ) -> None:
        self.runtime = Runtime(precision=precision, kernels=kernels)
        os.environ.update({name: os.environ.get(name, value) for name, value in SCENE.items()})
        config = OmegaConf.create(composed(["--config-name", "ngp_blender", *words], dict(os.environ)))
        experiment = build(Experiment, config)
        model = experiment.model_factory.new_model()
        if not isinstance(model, OverfitModel):
            raise SystemExit(f"model_class_type: found {type(model).__name__}, expected OverfitModel")
        self.model = model
        self.frames = ball(self.runtime.device) if views == "ball" else own_views(experiment, self.runtime.device)
        self.model.learn_views(lambda: self.frames.cameras.to("cpu"))
        self.model = self.model.to(self.runtime.device).train()
        seed_streams(self.model, 0)
        self.optimizer, self._schedule = experiment.optimizer_factory(self.model)
        self.stats = Statistics(self.runtime, None)
        self.said: list[str] = []
        self.step = TrainingStep(
            self.model, self.optimizer, self.runtime, 0.0, captured, self.stats.accumulate, self.said.append
        )
        self.n = 0

    def take(self) -> None:
        """One step, and what a session does around it."""
        self._schedule.set_epoch(0, (self.n % 20_000) / 20_000)
        with self.runtime.autocast():
            self.model.before_step(self.n)
        self.stats.count(self.step([self.frames]))
        self.n += 1


def timed(training: Training, n_train: int, n_steps: int) -> dict[str, Any]:
    """Milliseconds of steps once the grid has found the scene."""
    began = time.perf_counter()
    for _ in range(n_train):
        training.take()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    trained = time.perf_counter() - began
    training.stats.read(training.n, 0, 0.0)
    times, in_a_row = step_times(training.take, n_steps)
    means = training.stats.read(training.n, 0, 0.0).means.values
    return {
        **summary(times),
        "ms_in_a_row": round(in_a_row, 4),
        "samples": round(means[N_SAMPLES]),
        "candidates": round(means.get(N_CANDIDATES, means[N_SAMPLES])),
        "valid_rays": round(means[VALID_RAYS], 4),
        "samples_per_s": round(means[N_SAMPLES] / in_a_row * 1e3),
        "psnr": round(means["loss_rgb_psnr"], 2),
        "train_s": round(trained, 3),
        "capture_s": round(training.step.capture_seconds, 3),
        "peak_gib": peak_gib(),
    }


def parts(training: Training, n_times: int) -> dict[str, float]:
    """Microseconds on the device of the parts of a step, each by itself, on one draw of rays; only on a GPU."""
    model, autocast = training.model, training.runtime.autocast
    renderer, field = model._renderer, model.passes()[0]
    if not isinstance(renderer, OccupancyGridRenderer) or not isinstance(field, HashGridImplicitFunction):
        raise SystemExit("parts are those of a HashGridImplicitFunction under an OccupancyGridRenderer")
    bound = BoundField(field, FieldInputs())
    rays = model.raysampler.draw(training.frames.cameras, training.frames.pixels, with_lengths=False)
    with autocast():
        packed = renderer._training_samples(rays.flatten(), bound)[0]
    layout = (packed.starts, packed.ends, packed.ray_index, packed.first, packed.count)

    def forward() -> tuple[Tensor, Tensor]:
        with autocast():
            outputs = bound(packed.samples)
        return outputs.densities.flatten(), outputs.features.flatten(0, -2)

    with torch.no_grad():
        densities, features = forward()

    def encode() -> Tensor:
        with autocast():
            return field.encoding(field.encoded_places(packed.samples)[0], packed.n_used)

    def backward(loss_of: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(loss_of(), list(field.parameters()))

    def whole() -> Tensor:
        seen = composite_packed(*forward(), *layout)
        return seen.features.square().sum() + seen.opacity.sum()

    leaves = [densities.requires_grad_(), features.requires_grad_()]

    def composite() -> Tensor:
        return composite_packed(leaves[0], leaves[1], *layout).features.sum()

    for parameter in field.parameters():
        parameter.grad = torch.zeros_like(parameter)
    actions: dict[str, Callable[[], object]] = {
        **parts_around(training, renderer, bound, rays),
        "encode": torch.no_grad()(encode),
        "field_forward": torch.no_grad()(forward),
        "composite_forward": torch.no_grad()(composite),
        "composite_forward_backward": lambda: torch.autograd.grad(composite(), leaves),
        "field_composite_forward_backward": backward(whole),
    }
    generators = [made for _, stream in random_streams(model) for made in stream.made_on("cuda")]
    return {name: round(replayed(action, generators, n_times), 2) for name, action in actions.items()}


def parts_around(
    training: Training, renderer: OccupancyGridRenderer, field: BoundField, rays: RayBundle
) -> dict[str, Callable[[], object]]:
    """Parts of a step before its samples are evaluated, and after the backward."""
    model, autocast, grid = training.model, training.runtime.autocast, renderer.occupancy_grid
    cameras, pixels = training.frames.cameras, training.frames.pixels
    generator = renderer._jitter.on(rays.near.device)
    longest = max(renderer.sample_budget_training, renderer.candidate_budget_training)

    def sample() -> None:
        with autocast():
            renderer._training_samples(rays.flatten(), field)

    def optimize() -> None:
        capturing = torch.cuda.is_current_stream_capturing()
        with while_captured(training.optimizer) if capturing else nullcontext():
            training.optimizer.step()

    def update(step: int) -> Callable[[], object]:
        def renew() -> None:
            with autocast():
                renderer.before_step(step, [field])

        return renew

    return {
        "draw_rays": lambda: model.raysampler.draw(cameras, pixels, with_lengths=False),
        "march": lambda: grid.samples(rays, longest, generator),
        "march_and_prune": sample,
        "optimizer": optimize,
        "occupancy_update_all_cells": update(0),
        "occupancy_update_drawn_cells": update(grid.update_interval * 10_000),
    }


def replayed(action: Callable[[], object], generators: Sequence[torch.Generator], n_times: int) -> float:
    """Microseconds of an action on the device, as a graph that is replayed."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            action()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        graph.register_generator_state(generator)
    with torch.cuda.graph(graph):
        action()
    graph.replay()
    times, _ = step_times(graph.replay, n_times)
    return statistics.median(times) * 1e3


def measured(
    options: argparse.Namespace, precision: Precision, captured: bool, kernels: Kernels
) -> Iterator[dict[str, Any]]:
    """One row of the record, then with the times of parts."""
    fresh_memory()
    training = Training(options.words, precision, captured, kernels, options.scene)
    row = {"precision": precision.value, "captured": captured, "kernels": kernels.value}
    row |= timed(training, options.train, options.steps)
    if captured and not training.step.is_captured:
        raise SystemExit("\n".join(training.said) or "step: eager, for there is no GPU; give --capture eager")
    yield row
    if options.profile:
        show_kernels(profiled(training.take, options.profile), n_shown=60)
    if torch.cuda.is_available() and training.model.capturable:
        yield {**row, "parts_us": parts(training, options.steps)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="overrides of the recipe, as nerf_runner takes them")
    parser.add_argument("--steps", type=int, default=500, help="counted steps of each setting")
    parser.add_argument("--train", type=int, default=1000, help="steps before those")
    parser.add_argument("--precision", nargs="+", default=["bf16"])
    parser.add_argument("--capture", choices=list(WAYS), default="both", help="ways to run a step")
    parser.add_argument("--kernels", nargs="+", default=["auto"], help="auto, triton, torch: any of them")
    parser.add_argument("--name", default="ngp_step", help="name of the record")
    parser.add_argument("--scene", choices=("ball", "own"), default="ball", help="a ball, or the recipe's own data")
    parser.add_argument("--profile", type=int, default=0, help="print the kernels of so many more steps, on a GPU")
    add_options(parser)
    options = parser.parse_args()
    record: dict[str, Any] = {"benchmark": "ngp_step", **passport(options.commit), "words": options.words}
    record |= {"scene": options.scene, "train": options.train, "steps": options.steps}
    record["rows"] = rows = []
    for name in options.precision:
        for kernels in options.kernels:
            for captured in WAYS[options.capture]:
                rows.append({})
                for found in measured(options, Precision(name), captured, Kernels(kernels)):
                    rows[-1] = found
                    write(options.name, record, options.out)
                print(rows[-1], flush=True)
    print("written to", write(options.name, record, options.out))


if __name__ == "__main__":
    main()
