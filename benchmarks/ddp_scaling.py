"""Weak scaling: a recipe on one and on two GPUs of a host, with as many rays a GPU.

    export BLENDER_DATASET_ROOT=/data BLENDER_SINGLESEQ_CLASS=lego_400
    python -m benchmarks.ddp_scaling --recipes nerf_blender ngp_blender -- precision=bf16

Every run is nerf_runner under torchrun, which one and two processes take in turns. The time of a step is the median of
what the log says, after a part of the steps that is left out: compiling, the capture, and a recipe's own beginning.
The efficiency is t1 / t2, 1 where a second GPU costs nothing. That ranks draw other rays is seen in what the last
checkpoint keeps of each one's random streams. Rows of other recipes stay in the record.
"""

import argparse
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.record import add_options, earlier, passport, write
from benchmarks.trainings import LOADER, LOOP, STEPS_ALONE, logged, nerf_runner

EMBEDDED = {"BLENDER_DATASET_ROOT": "scene:/", "BLENDER_SINGLESEQ_CLASS": "quickstart"}
"""The scene where the environment names none."""


def train(recipe: str, n_ranks: int, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train by the command; what its log says of the steps that count."""
    words = [
        f"exp_dir={folder}",
        "max_epochs=1",
        "test_when_finished=false",
        *STEPS_ALONE,
        f"{LOOP}.metric_print_interval={options.every}",
        f"{LOADER}.dataset_length_train={options.steps}",
        *options.words,
    ]
    log = folder.with_suffix(".log")
    environment = {name: os.environ.get(name, value) for name, value in {"OMP_NUM_THREADS": "4", **EMBEDDED}.items()}
    nerf_runner("--config-name", recipe, *words, log=log, n_ranks=n_ranks, environment=environment)
    counted = [row for row in logged(folder, "train") if row["step"] > options.skip]
    return {
        "ms": [row["sec_per_step"] * 1e3 for row in counted],
        "rays_per_s": statistics.median(row["rays_per_s"] for row in counted),
        "peak_gib": max(row["peak_memory_gib"] for row in counted),
        "way": next((line for line in log.read_text().splitlines() if line.startswith("step: ")), "step: eager"),
        "distinct_draws": distinct_draws(folder, n_ranks),
    }


def distinct_draws(folder: Path, n_ranks: int) -> bool:
    """Whether no two ranks' streams of pixels are in the same state."""
    (newest,) = sorted((folder / "checkpoints").glob("step-*"))[-1:]
    states = set()
    for rank in range(n_ranks):
        streams = load_file(newest / f"rng-{rank}.safetensors")
        states.add(tuple(n for name, state in streams.items() if "pixel_draws" in name for n in state.tolist()))
    return len(states) == n_ranks and () not in states


def measure(recipe: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Both numbers of processes in turns."""
    runs: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
    for turn in range(options.turns):
        for n_ranks, parts in runs.items():
            parts.append(train(recipe, n_ranks, options, folder / f"{recipe}-{n_ranks}-{turn}"))
    if not all(part["distinct_draws"] for part in runs[2]):
        raise SystemExit(f"{recipe}: both ranks draw the same rays")
    one, two = (statistics.median(ms for part in parts for ms in part["ms"]) for parts in runs.values())
    return {
        "recipe": recipe,
        "ms_1": round(one, 3),
        "ms_2": round(two, 3),
        "efficiency": round(one / two, 4),
        "rays_per_s_1": round(statistics.median(part["rays_per_s"] for part in runs[1])),
        "rays_per_s_2": round(statistics.median(part["rays_per_s"] for part in runs[2])),
        "peak_gib_of_a_gpu": max(part["peak_gib"] for part in runs[2]),
        "ways": sorted({part["way"] for parts in runs.values() for part in parts}),
        "rays_differ": True,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=["nerf_blender", "ngp_blender"])
    parser.add_argument("--steps", type=int, default=2000, help="steps of a run")
    parser.add_argument("--skip", type=int, default=1000, help="steps of a run that are left out, from the first")
    parser.add_argument("--every", type=int, default=100, help="steps of a line of the log")
    parser.add_argument("--turns", type=int, default=2, help="runs on each number of GPUs")
    parser.add_argument("--name", default="ddp_scaling", help="name of the record")
    add_options(parser)
    parser.add_argument("words", nargs="*", help="overrides of the recipes, after --")
    options = parser.parse_args()
    if torch.cuda.is_available() and torch.cuda.device_count() < 2:
        raise SystemExit("found one GPU, expected two of one host")
    settings = {"steps": options.steps, "skip": options.skip, "turns": options.turns, "words": options.words}
    made_by = passport(options.commit)
    for recipe in options.recipes:
        with tempfile.TemporaryDirectory() as folder:
            row = measure(recipe, options, Path(folder))
        row |= {**settings, "date": made_by["date"], "commit": made_by["commit"]}
        print(row, flush=True)
        rows = [other for other in earlier(options.name, options.out).get("rows", []) if other["recipe"] != recipe]
        path = write(options.name, {"benchmark": "ddp_scaling", **made_by, "rows": [*rows, row]}, options.out)
        print("written to", path, flush=True)


if __name__ == "__main__":
    main()
