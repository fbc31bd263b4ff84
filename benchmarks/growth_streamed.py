"""A set of images that does not fit on the device, streamed, against the same set resident: for benchmarks.growth."""

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.trainings import LOADER, LOOP, STEPS_ALONE, logged, nerf_runner

SIZE, DRY_SIZE = 400, 24


def write_image(path: Path, number: int, size: int) -> None:
    """A picture of its own: smooth random colours and a random disc of alpha."""
    generator = np.random.default_rng(number)
    coarse = Image.fromarray(generator.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    rgb = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))
    y, x = np.mgrid[:size, :size] / size - 0.5
    alpha = np.where(np.hypot(x, y) < generator.uniform(0.2, 0.4), 255, 0).astype(np.uint8)
    Image.fromarray(np.dstack([rgb, alpha])).save(path, compress_level=1)


def write_scene(folder: Path, n_images: int, size: int) -> None:
    """A scene in Blender format: views on a sphere of radius 4, of which the first is also that of val and test."""
    (folder / "train").mkdir(parents=True)
    paths = [folder / "train" / f"r_{i}.png" for i in range(n_images)]
    with ProcessPoolExecutor(min(16, os.cpu_count() or 1), mp_context=get_context("spawn")) as pool:
        list(pool.map(write_image, paths, range(n_images), [size] * n_images, chunksize=16))
    frames = []
    for i, path in enumerate(paths):
        height, angle = 1.0 - 2.0 * (i + 0.5) / n_images, i * 2.39996  # a spiral with the golden angle
        back = np.array([np.sqrt(1 - height**2) * np.cos(angle), np.sqrt(1 - height**2) * np.sin(angle), height])
        right = np.array([-np.sin(angle), np.cos(angle), 0.0])
        matrix = np.eye(4)
        matrix[:3] = np.column_stack([right, np.cross(back, right), back, 4.0 * back])
        frames.append({"file_path": f"./train/{path.stem}", "transform_matrix": matrix.tolist()})
    for split, shown in (("train", frames), ("val", frames[:1]), ("test", frames[:1])):
        content = {"camera_angle_x": 0.6911112, "frames": shown}
        (folder / f"transforms_{split}.json").write_text(json.dumps(content))


def run(recipe: str, scene: Path, max_memory: float, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train by the command; mean ms of a step over the second half, in which waiting for images counts."""
    every = max(options.run_steps // 60, 1)
    words = [
        f"exp_dir={folder}",
        f"precision={'fp32' if options.dry else options.precision}",
        "max_epochs=1",
        "test_when_finished=false",
        *STEPS_ALONE,
        f"{LOOP}.metric_print_interval={every}",
        f"{LOADER}.dataset_length_train={options.run_steps}",
        f"{LOADER}.max_memory={max_memory!r}",
        *(dry_words(recipe) if options.dry else []),
    ]
    place = {"BLENDER_DATASET_ROOT": str(scene.parent.resolve()), "BLENDER_SINGLESEQ_CLASS": scene.name}
    log = folder.with_suffix(".log")
    nerf_runner("--config-name", recipe, *words, log=log, environment=place)
    rows = logged(folder, "train")
    half = options.run_steps // 2
    ends = [0, *(row["step"] for row in rows)]
    counted = [(row["step"] - end, row["sec_per_step"]) for end, row in zip(ends, rows) if end >= half]
    return {
        "ms": 1e3 * sum(n * seconds for n, seconds in counted) / sum(n for n, _ in counted),
        "peak_gib": max(row["peak_memory_gib"] for row in rows),
        "streamed": "are streamed" in log.read_text(),
    }


def dry_words(recipe: str) -> list[str]:
    """What makes the recipe's step tiny."""
    model = "model_factory_ImplicitronModelFactory_args.model_OverfitModel_args"
    words = [f"{model}.raysampler_NearFarRaySampler_args.n_rays_total_training=16", f"{LOADER}.steps_per_pool=2"]
    if recipe.startswith("ngp"):
        return [*words, f"{model}.renderer_OccupancyGridRenderer_args.sample_budget_training=512"]
    return [
        *words,
        f"{model}.raysampler_NearFarRaySampler_args.n_pts_per_ray_training=4",
        f"{model}.renderer_MultiPassEmissionAbsorptionRenderer_args.n_pts_per_ray_fine_training=4",
    ]


def streamed_rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """For each recipe the mean step both ways, in turns, and the ratio of their speeds."""
    size = DRY_SIZE if options.dry else SIZE
    needed = options.images * size**2 * 4 / 1e9
    with tempfile.TemporaryDirectory() as temporary:
        scene = (options.data or Path(temporary)) / f"images_{options.images}_{size}"
        if not (scene / "transforms_test.json").exists():
            write_scene(scene, options.images, size)
        for recipe in options.recipes:
            share = 0.75 if options.dry else options.share
            parts: dict[str, list[dict[str, Any]]] = {"resident": [], "streamed": []}
            for turn in range(options.turns):
                for way, of_way in parts.items():
                    allowed = needed * share if way == "streamed" else 2 * needed
                    of_way.append(run(recipe, scene, allowed, options, Path(temporary) / f"{recipe}-{way}-{turn}"))
            if any(part["streamed"] != (way == "streamed") for way, of_way in parts.items() for part in of_way):
                raise SystemExit(f"{recipe}: found runs that were not resident or streamed as asked")
            resident, streamed = (statistics.mean(part["ms"] for part in of_way) for of_way in parts.values())
            row: dict[str, Any] = {"recipe": recipe, "images": options.images, "size": size, "share": share}
            row |= {"resident_ms": round(resident, 4), "streamed_ms": round(streamed, 4)}
            row |= {"speed_ratio": round(resident / streamed, 4)}
            row |= {f"{way}_peak_gib": max(part["peak_gib"] for part in of_way) for way, of_way in parts.items()}
            yield row
