"""How a step's time and memory grow: with rays, samples, resolution and number of images; a view's with its resolution.

    python -m benchmarks.growth                                # all of nerf_blender and ngp_blender
    python -m benchmarks.growth --recipes ngp_blender --axes rays samples
    python -m benchmarks.growth --streamed                     # 2000 images that don't fit, beside the same that do
    python -m benchmarks.growth_page                           # the figure

Models and optimizers are those of the recipes; the scene is random and resident, as in nerf_step. What isn't on the
axis stays as the recipe has it, with 100 images of 400x400. Samples are evaluations a ray for NeRF, and the budget of a
step for the fast path, whose untrained grid finds everything occupied, so that the budget is always used up.
"""

import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from benchmarks.growth_streamed import streamed_rows
from benchmarks.methods import composed
from benchmarks.nerf_step import N_IMAGES, SIZE, scene
from benchmarks.record import add_options, passport, write
from benchmarks.render_view import SCENE
from benchmarks.render_view import measure as measure_views
from benchmarks.timing import fresh_memory, peak_gib, step_times, summary, table
from nerf_trainer.cameras.trajectories import trajectory
from nerf_trainer.config import build, registry
from nerf_trainer.models.base import ImplicitronModelBase
from nerf_trainer.randomness import seed_streams
from nerf_trainer.training.captured import FIRST_WARM_UP
from nerf_trainer.training.model_factory import ModelFactoryBase
from nerf_trainer.training.optimizer_factory import OptimizerFactoryBase
from nerf_trainer.training.runtime import Precision, Runtime
from nerf_trainer.training.stats import Statistics
from nerf_trainer.training.step import TrainingStep

MODEL = "model_factory_ImplicitronModelFactory_args.model_OverfitModel_args"
RAYS = f"{MODEL}.raysampler_NearFarRaySampler_args.n_rays_total_training"
COARSE = f"{MODEL}.raysampler_NearFarRaySampler_args.n_pts_per_ray_training"
FINE = f"{MODEL}.renderer_MultiPassEmissionAbsorptionRenderer_args.n_pts_per_ray_fine_training"
PACKED = f"{MODEL}.renderer_OccupancyGridRenderer_args"
BUDGET = f"{PACKED}.sample_budget_training"
CANDIDATES = f"{PACKED}.candidate_budget_training"
TINY_PACKED = {
    BUDGET: 512,
    CANDIDATES: 1024,
    f"{PACKED}.occupancy_grid_args.resolution": 16,
    f"{MODEL}.implicit_function_HashGridImplicitFunction_args.log2_hashmap_size": 8,
}
SIDES = [200, 400, 800, 1600]
AXES = ("rays", "samples", "resolution", "images", "view")
RECIPES = ("nerf_blender", "ngp_blender")
COLUMNS = ("recipe", "axis", "value", "ms_median", "ms_p10", "ms_p90", "peak_gib", "captured")


@dataclass(frozen=True)
class Point:
    """One setting on an axis."""

    axis: str
    value: int
    changes: dict[str, int]
    """Options of the recipe that differ."""
    n_images: int = N_IMAGES
    size: int = SIZE
    """Height and width of the images, or of the rendered view."""


def points(recipe: str, axes: list[str], dry: bool) -> Iterator[Point]:
    """The settings of a recipe, axis by axis."""
    packed = recipe.startswith("ngp")
    base = {RAYS: 16} if dry else {}
    if dry:
        base |= TINY_PACKED if packed else {COARSE: 4, FINE: 8}
    few = {"n_images": 3, "size": 16} if dry else {}
    for axis in axes:
        if axis == "rays":
            for n in [16, 32] if dry else [2**k for k in range(10, 17)]:
                yield Point(axis, n, base | {RAYS: n}, **few)
        elif axis == "samples" and packed:
            for n in [512, 1024] if dry else [2**k for k in range(15, 21)]:
                yield Point(axis, n, base | {BUDGET: n, CANDIDATES: 4 * n}, **few)
        elif axis == "samples":
            for n in [4, 8] if dry else [16, 32, 64, 128, 256]:  # coarse ones; fine ones are twice as many
                yield Point(axis, 4 * n, base | {COARSE: n, FINE: 2 * n}, **few)
        elif axis == "resolution":
            for side in [8, 16] if dry else SIDES:
                yield Point(axis, side, base, few.get("n_images", N_IMAGES), side)
        elif axis == "images":
            for n in [2, 4] if dry else [100, 200, 500, 1000, 2000]:
                yield Point(axis, n, base, n, few.get("size", SIZE))
        else:
            for side in [8, 16] if dry else SIDES:
                yield Point(axis, side, base, size=side)


def recipe_of(name: str) -> DictConfig:
    """The whole configuration of a recipe for a scene in Blender format."""
    os.environ.update({key: os.environ.get(key, value) for key, value in SCENE.items()})
    return OmegaConf.create(composed(["--config-name", name], dict(os.environ)))


def changed(config: DictConfig, changes: dict[str, int]) -> DictConfig:
    """The configuration with other values."""
    config = config.copy()
    for key, value in changes.items():
        OmegaConf.update(config, key, value)
    return config


def model_of(config: DictConfig) -> ImplicitronModelBase:
    """A new model of a configuration."""
    chosen = config["model_factory_class_type"]
    return build(registry.get(ModelFactoryBase, chosen), config[f"model_factory_{chosen}_args"]).new_model()


def step_row(config: DictConfig, point: Point, precision: Precision, n_warmup: int, n_steps: int) -> dict[str, Any]:
    """Times and memory of training steps, captured where there is a GPU."""
    fresh_memory()
    runtime = Runtime(precision=precision)
    model = model_of(config).to(runtime.device).train()
    seed_streams(model, 0)
    chosen = config["optimizer_factory_class_type"]
    factory = build(registry.get(OptimizerFactoryBase, chosen), config[f"optimizer_factory_{chosen}_args"])
    optimizer, _ = factory(model)
    stats = Statistics(runtime, None)
    step = TrainingStep(model, optimizer, runtime, 0.0, True, stats.accumulate)
    frames = scene(runtime.device, point.n_images, point.size)
    taken = 0

    def take() -> None:
        nonlocal taken
        with runtime.autocast():
            model.before_step(taken)
        stats.count(step([frames]))
        taken += 1

    for _ in range(n_warmup + (FIRST_WARM_UP if runtime.device.type == "cuda" else 0)):
        take()
    times, in_a_row = step_times(take, n_steps)
    return {
        **summary(times),
        "ms_in_a_row": round(in_a_row, 4),
        "peak_gib": peak_gib(),
        "resident_gib": round(frames.pixels.rgba.nbytes / 2**30, 4) if frames.pixels is not None else None,
        "captured": step.is_captured,
    }


def view_row(config: DictConfig, point: Point, precision: Precision, n_views: int) -> dict[str, Any]:
    """The same of rendered views."""
    fresh_memory()
    cameras = trajectory(scene(torch.device("cpu"), 8, 8).cameras, n_views, scale=1.0, size_hw=(point.size, point.size))
    row, _ = measure_views(model_of(config), cameras, precision, 1)
    milliseconds = {f"ms_{name}": round(1e3 * row[f"s_{name}"], 3) for name in ("median", "p10", "p90")}
    return {**milliseconds, "peak_gib": row["peak_gib"], "captured": False}


def measured(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each point of each recipe."""
    precision = Precision(options.precision)
    for recipe in options.recipes:
        whole = recipe_of(recipe)
        for point in points(recipe, options.axes, options.dry):
            config = changed(whole, point.changes)
            if point.axis == "view":
                row = view_row(config, point, precision, options.views)
            else:
                row = step_row(config, point, precision, options.warmup, options.steps)
            yield {"recipe": recipe, "axis": point.axis, "value": point.value, "precision": precision.value, **row}


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=RECIPES)
    parser.add_argument("--axes", nargs="+", default=list(AXES), choices=AXES)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--steps", type=int, default=100, help="counted steps of a point")
    parser.add_argument("--warmup", type=int, default=20, help="steps before those")
    parser.add_argument("--views", type=int, default=5, help="counted views of a resolution")
    parser.add_argument("--streamed", action="store_true", help="compare a streamed set with a resident one instead")
    parser.add_argument("--images", type=int, default=2000, help="with --streamed: images of the set, 400x400 each")
    parser.add_argument("--data", type=Path, default=None, help="with --streamed: where the set is or will be written")
    parser.add_argument("--share", type=float, default=0.25, help="with --streamed: max_memory, of what the set takes")
    parser.add_argument("--run-steps", type=int, default=6000, help="with --streamed: steps of a run, a half counted")
    parser.add_argument("--turns", type=int, default=2, help="with --streamed: runs each way")
    parser.add_argument("--dry", action="store_true", help="tiny sizes, a few steps: does everything run?")
    add_options(parser)
    options = parser.parse_args(words)
    if options.dry:
        options.steps, options.warmup, options.views = 3, 1, 2
        options.images, options.run_steps, options.turns = 6, 8, 1
    name = "growth_streamed" if options.streamed else "growth"
    n_steps = options.run_steps if options.streamed else options.steps
    record: dict[str, Any] = {"benchmark": name, **passport(options.commit), "steps": n_steps}
    record["rows"] = rows = []
    for row in streamed_rows(options) if options.streamed else measured(options):
        rows.append(row)
        print(row, flush=True)
        write(name, record, options.out)
    print("written to", write(name, record, options.out))
    print(table(rows, list(rows[0]) if options.streamed else COLUMNS))


if __name__ == "__main__":
    main()
