"""Whether two trainings are the same, and how far they drift apart where they need not be.

    python -m benchmarks.reproducibility                     # nerf_blender and ngp_blender, BLENDER_DATASET_ROOT set
    python -m benchmarks.reproducibility --recipes ngp_blender --steps 500 --precision bf16
    python -m benchmarks.reproducibility --steps 6 --tiny    # tiny sizes on any machine: does everything run?

Each recipe is trained twice with `deterministic=true` and the same seed, by the command and each in a process of its
own. A loss is logged for every step; losses are compared one by one, and the last checkpoints' weights and optimizer
states tensor by tensor: equal means equal in every bit. Where a run is refused, the record has the error, which names
the operation. Then the recipe is trained without that option with three seeds, and once more with the first one, and
scored on the test views. The drift is the largest PSNR less the smallest, of the three seeds, and of the two runs of
one seed. Words that follow `--` are passed on to all runs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.growth import COARSE, FINE, MODEL, RAYS, RECIPES, TINY_PACKED
from benchmarks.record import passport, write
from benchmarks.timing import table
from nerf_trainer.training.checkpoint import CheckpointStore

LOOP = "training_loop_ImplicitronTrainingLoop_args"
LOADER = "data_source_ImplicitronDataSource_args.data_loader_map_provider_ResidentDataLoaderMapProvider_args"
SEEDS = (42, 43, 44)
QUICKSTART = Path(__file__).resolve().parent.parent / "scenes"
COLUMNS = ("recipe", "losses_equal", "weights_equal", "first_difference", "refused", "drift_db", "same_seed_drift_db")


def words_of(recipe: str, options: argparse.Namespace) -> list[str]:
    """What all runs of a recipe are told."""
    words = [
        f"precision={options.precision}",
        "max_epochs=1",
        "resume=false",
        f"{LOOP}.validation_interval=0",
        f"{LOOP}.visualize_interval=0",
        f"{LOOP}.visdom_server=''",
        f"{LOOP}.detect_dead_start=false",
        f"{LOOP}.metric_print_interval=1",
        f"{LOOP}.evaluator_ImplicitronEvaluator_args.lpips_net=none",
        f"{LOADER}.dataset_length_train={options.steps}",
    ]
    if options.tiny:
        tiny = TINY_PACKED if recipe.startswith("ngp") else {COARSE: 4, FINE: 8}
        tiny = {**tiny, RAYS: 16, f"{MODEL}.render_image_height": 8, f"{MODEL}.render_image_width": 8}
        words += [f"{key}={value}" for key, value in tiny.items()]
        words += [f"{LOADER}.dataset_length_test=2", f"{LOADER}.dataset_length_val=1"]
    return [*words, *options.words]


def train(recipe: str, folder: Path, words: list[str], environment: dict[str, str]) -> str:
    """Train by the command; what it was refused for, or nothing.

    Raises:
        SystemExit: it failed otherwise.
    """
    command = [sys.executable, "-m", "nerf_trainer.experiment", "--config-name", recipe, f"exp_dir={folder}", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode == 0:
        return ""
    refused = [line for line in done.stderr.splitlines() if "error: deterministic" in line]
    if done.returncode == 2 and refused:
        return refused[0]
    raise SystemExit(f"{recipe} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


def losses(folder: Path) -> list[dict[str, Any]]:
    """What was logged of each step, without what depends on the clock."""
    clocked = ("sec_per_step", "rays_per_s", "peak_memory_gib")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in clocked} for row in rows if row["split"] == "train"]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Weights and optimizer state of the last checkpoint."""
    checkpoint = CheckpointStore(folder).latest()
    if checkpoint is None:
        raise SystemExit(f"{folder}: no checkpoint was saved")
    return {**load_file(checkpoint.path / "model.safetensors"), **load_file(checkpoint.path / "optim.safetensors")}


def compare(one: Path, other: Path) -> dict[str, Any]:
    """Whether two runs are the same in every bit, and where they first differ."""
    rows = list(zip(losses(one), losses(other), strict=True))
    differing = [a["step"] for a, b in rows if str(a) != str(b)]  # nan is not nan
    held, others = tensors(one), tensors(other)
    apart = [name for name in held if name not in others or not torch.equal(held[name], others[name])]
    return {
        "n_losses": len(rows),
        "losses_equal": not differing,
        "first_difference": differing[0] if differing else None,
        "n_tensors": len(held),
        "weights_equal": not apart and held.keys() == others.keys(),
        "tensors_that_differ": apart[:10],
    }


def psnr(folder: Path) -> float:
    """Of the test views."""
    return json.loads((folder / "results_test.json").read_text())[0]["metrics"]["psnr_full_image"]


def measure(recipe: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The two deterministic runs and the four others of a recipe."""
    environment = dict(os.environ)
    if options.tiny:
        environment |= {"BLENDER_DATASET_ROOT": str(QUICKSTART), "BLENDER_SINGLESEQ_CLASS": "quickstart"}
    environment.setdefault("BLENDER_SINGLESEQ_CLASS", "lego")
    words, refused, began = words_of(recipe, options), "", time.monotonic()
    for name in ("first", "second"):
        fixed = ["deterministic=true", f"seed={SEEDS[0]}", "test_when_finished=false"]
        refused = refused or train(recipe, folder / name, [*words, *fixed], environment)
    found: dict[str, Any] = {"recipe": recipe, "refused": refused or None}
    if not refused:
        found |= compare(folder / "first", folder / "second")
    found["deterministic_s"] = round((time.monotonic() - began) / 2, 1)
    scores = {}
    for name, seed in (*((f"seed {seed}", seed) for seed in SEEDS), ("again", SEEDS[0])):
        free = ["deterministic=false", f"seed={seed}", "test_when_finished=true"]
        train(recipe, folder / name, [*words, *free], environment)
        scores[name] = round(psnr(folder / name), 4)
    of_seeds = [scores[f"seed {seed}"] for seed in SEEDS]
    found["psnr"] = scores
    found["drift_db"] = round(max(of_seeds) - min(of_seeds), 4)
    found["same_seed_drift_db"] = round(abs(scores["again"] - of_seeds[0]), 4)
    found["same_seed"] = compare(folder / f"seed {SEEDS[0]}", folder / "again")
    return found


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=RECIPES)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, the scene that comes with the package")
    parser.add_argument("--out", type=Path, default=None, help="folder for the record; default benchmarks/records")
    parser.add_argument("--commit", default=None, help="what to record as commit outside a git checkout")
    parser.add_argument("words", nargs="*", help="after --: passed on to all runs")
    options = parser.parse_args(words)
    rows = []
    for recipe in options.recipes:
        with tempfile.TemporaryDirectory() as temporary:
            rows.append(measure(recipe, options, Path(temporary)))
        print(rows[-1], flush=True)
    record = {
        "benchmark": "reproducibility",
        **passport(options.commit),
        "steps": options.steps,
        "precision": options.precision,
        "tiny": options.tiny,
        "words": options.words,
        "rows": rows,
    }
    print("written to", write("reproducibility", record, options.out))
    print(table(rows, COLUMNS))


if __name__ == "__main__":
    main()
