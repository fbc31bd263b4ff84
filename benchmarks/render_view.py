"""Time of rendering whole views: by a run's model, or by an untrained one of a recipe.

    python -m benchmarks.render_view --run runs/nerf_blender/lego --precision fp32 bf16
    python -m benchmarks.render_view --run runs/nerf_blender/lego --precision fp32 bf16 --tested 20
    python -m benchmarks.render_view --recipe nerf_blender
    python -m benchmarks.render_view --recipe ngp_blender --views 100

A run's model flies around what its training views look at, an untrained one around the origin. Views are rendered one
by one as in evaluation, without photographs. An untrained model with an occupancy grid finds nothing empty: its time is
an upper bound. With --tested a run's test views are rendered too, in each precision, and compared with their
photographs: what a faster precision costs, in dB.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from omegaconf import OmegaConf
from torch import Tensor

from benchmarks.methods import composed
from benchmarks.nerf_step import scene
from benchmarks.record import add_options, passport, write
from benchmarks.timing import fresh_memory, peak_gib, summary
from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.cameras.trajectories import trajectory
from nerf_trainer.config import build, registry
from nerf_trainer.data.loaders import EvaluationFrameLoader
from nerf_trainer.data.splits import DatasetBase
from nerf_trainer.evaluation.view_synthesis import evaluate_view
from nerf_trainer.losses import functions
from nerf_trainer.models.base import ImplicitronModelBase
from nerf_trainer.training.checkpoint import CheckpointStore
from nerf_trainer.training.model_factory import ModelFactoryBase
from nerf_trainer.training.runtime import Precision, Runtime
from nerf_trainer.training.saved_run import SavedRun
from nerf_trainer.visualization.colormaps import to_bytes
from nerf_trainer.visualization.flyaround import render_views

SCENE = {"BLENDER_DATASET_ROOT": "scene:/", "BLENDER_SINGLESEQ_CLASS": "quickstart"}
"""What recipes for Blender scenes ask of the environment; no data is read."""


def of_run(folder: Path, n_views: int, size: int) -> tuple[ImplicitronModelBase, Cameras]:
    """A run's model with its newest weights, and views around its scene."""
    saved = SavedRun(folder)
    train = saved.datasets().train
    if train is None:
        raise ValueError(f"{folder}: the run's data has no training views to fly around")
    return saved.model()[0], trajectory(train.cameras(), n_views, scale=1.0, size_hw=(size, size))


def of_recipe(words: Sequence[str], n_views: int, size: int) -> tuple[ImplicitronModelBase, Cameras]:
    """The untrained model of a recipe, and views around the origin."""
    os.environ.update({name: os.environ.get(name, value) for name, value in SCENE.items()})
    config = OmegaConf.create(composed(["--config-name", *words], dict(os.environ)))
    chosen = config["model_factory_class_type"]
    factory = build(registry.get(ModelFactoryBase, chosen), config[f"model_factory_{chosen}_args"])
    with tempfile.TemporaryDirectory() as empty:
        model, _ = factory(Path(empty), CheckpointStore(Path(empty)), eval_only=False, is_main=False)
    cameras = scene(torch.device("cpu")).cameras
    return model, trajectory(cameras, n_views, scale=1.0, size_hw=(size, size))


def measure(
    model: ImplicitronModelBase, cameras: Cameras, precision: Precision, n_warmup: int
) -> tuple[dict[str, Any], Float[Tensor, "3 H W"]]:
    """Seconds a view, on the device and as bytes in host memory, and the first counted picture."""
    runtime = Runtime(precision=precision)
    model = model.to(runtime.device).eval()
    cuda = runtime.device.type == "cuda"
    warm_views = cameras[[i % len(cameras) for i in range(n_warmup)]]
    for _ in render_views(model, warm_views, runtime.device, runtime.autocast):
        pass
    fresh_memory()
    seconds, with_copy, pictures = [], [], []
    began = _now(cuda)
    for predictions in render_views(model, cameras, runtime.device, runtime.autocast):
        seconds.append(_now(cuda) - began)
        image = predictions.images_render[0]
        _on_host(image)
        with_copy.append(_now(cuda) - began)
        if not pictures:
            pictures.append(image.float().cpu())
        del predictions, image
        began = _now(cuda)
    row = {
        "precision": precision.value,
        "size": int(cameras.image_size_hw[0, 0]),
        "views": len(cameras),
        **summary(seconds, "s", 5),
        "views_per_s": round(1.0 / statistics.median(seconds), 2),
        **summary(with_copy, "to_host_s", 5),
        "to_host_views_per_s": round(1.0 / statistics.median(with_copy), 2),
        "peak_gib": peak_gib() if cuda else None,
    }
    return row, pictures[0]


def _now(cuda: bool) -> float:
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


def _on_host(image: Float[Tensor, "3 H W"]) -> UInt8[Tensor, "H W 3"]:
    """As a video writer takes it."""
    return to_bytes(image.permute(1, 2, 0)).cpu()


@torch.no_grad()
def tested(model: ImplicitronModelBase, dataset: DatasetBase, precision: Precision, n_views: int) -> dict[str, Any]:
    """PSNR of test views, spread evenly over all, at their own size; dB, the mean of the views'."""
    runtime = Runtime(precision=precision)
    model = model.to(runtime.device).eval()
    loader = EvaluationFrameLoader(dataset, n_views, num_workers=4)
    loader.place(runtime.device, 0)
    found = []
    for frames in loader.steps(0):
        with runtime.autocast():
            predictions = model(frames)
        found.append(evaluate_view(predictions)["psnr_full_image"])
    return {"tested_views": len(found), "psnr_full_image": round(statistics.mean(found), 4)}


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    of_what = parser.add_mutually_exclusive_group(required=True)
    of_what.add_argument("--run", type=Path, help="folder of a trained run, whose data must be at hand")
    of_what.add_argument("--recipe", nargs="+", help="name of a recipe, and overrides of it")
    parser.add_argument("--precision", nargs="+", default=["bf16"], help="fp32, tf32, bf16; pictures compare with fp32")
    parser.add_argument("--size", type=int, default=800, help="height and width of a view")
    parser.add_argument("--views", type=int, default=10, help="counted views")
    parser.add_argument("--warmup", type=int, default=2, help="views before those")
    parser.add_argument("--name", default="render_view", help="name of the record")
    parser.add_argument("--tested", type=int, default=0, help="with --run: test views to compare with photographs")
    add_options(parser)
    options = parser.parse_args(words)
    arguments = options.views, options.size
    model, cameras = of_run(options.run, *arguments) if options.run else of_recipe(options.recipe, *arguments)
    dataset = SavedRun(options.run).datasets().test if options.run and options.tested else None
    record: dict[str, Any] = {"benchmark": "render_view", **passport(options.commit)}
    record |= {"run": str(options.run)} if options.run else {"recipe": " ".join(options.recipe)}
    record["rows"] = rows = []
    exact: tuple[Tensor, float] | None = None
    for name in options.precision:
        row, picture = measure(model, cameras, Precision(name), options.warmup)
        if dataset is not None:
            row |= tested(model, dataset, Precision(name), options.tested)
        if name == "fp32":
            exact = picture, row.get("psnr_full_image", 0.0)
        if exact is not None:
            row["psnr_to_fp32"] = round(functions.psnr(functions.mse(picture, exact[0])).item(), 2)
        if exact is not None and dataset is not None:
            row["psnr_less_fp32"] = round(row["psnr_full_image"] - exact[1], 4)
        rows.append(row)
        print(row, flush=True)
        write(options.name, record, options.out)
    print("written to", write(options.name, record, options.out))


if __name__ == "__main__":
    main()
