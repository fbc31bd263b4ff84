"""Whether two trainings are the same, and how far they drift apart where they need not be.

    python -m benchmarks.reproducibility                     # nerf_blender and ngp_blender, BLENDER_DATASET_ROOT set
    python -m benchmarks.reproducibility --recipes ngp_blender --steps 500 --precision bf16
    python -m benchmarks.reproducibility --steps 6 --tiny    # tiny sizes on any machine: does everything run?

Each recipe is trained twice with `deterministic=true` and the same seed, by the command and each in a process of its
own. A loss is logged for every step; losses are compared one by one, and the last checkpoints' weights and optimizer
states tensor by tensor: equal means equal in every bit. Where a run is refused, the record has the error, which names
the operation. Then the recipe is trained without that option with three seeds, and once more with the first one, and
scored on the test views. The drift is the largest PSNR less the smallest, of the three seeds, and of the two runs of
one seed. Words that follow `--` are passed on to all runs. Rows of other recipes stay in the record.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.growth import COARSE, FINE, MODEL, RAYS, RECIPES, TINY_PACKED
from benchmarks.record import add_options, earlier, passport, write
from benchmarks.timing import table
from benchmarks.trainings import (
    LOADER,
    LOOP,
    NO_LPIPS,
    SCENE,
    STEPS_ALONE,
    CommandFailedError,
    logged,
    nerf_runner,
    scores,
)
from nerf_trainer.training.checkpoint import CheckpointStore

SEEDS = (42, 43, 44)
QUICKSTART = Path(__file__).resolve().parent.parent / "scenes"
COLUMNS = ("recipe", "losses_equal", "weights_equal", "first_difference", "refused", "drift_db", "same_seed_drift_db")


def words_of(recipe: str, options: argparse.Namespace) -> list[str]:
    """What all runs of a recipe are told."""
    words = [
        f"precision={options.precision}",
        "max_epochs=1",
        "resume=false",
        *STEPS_ALONE,
        f"{LOOP}.metric_print_interval=1",
        NO_LPIPS,
        f"{SCENE}.testskip={options.testskip}",
        f"{LOADER}.dataset_length_train={options.steps}",
    ]
    if options.tiny:
        tiny = TINY_PACKED if recipe.startswith("ngp") else {COARSE: 4, FINE: 8}
        tiny = {**tiny, RAYS: 16, f"{MODEL}.render_image_height": 8, f"{MODEL}.render_image_width": 8}
        words += [f"{key}={value}" for key, value in tiny.items()]
        words += [f"{LOADER}.dataset_length_test=2", f"{LOADER}.dataset_length_val=1"]
    return [*words, *options.words]


def train(recipe: str, folder: Path, words: list[str], environment: dict[str, str]) -> str:
    """Train by the command; what it was refused for, or nothing."""
    try:
        log = folder.with_suffix(".log")
        nerf_runner("--config-name", recipe, f"exp_dir={folder}", *words, log=log, environment=environment)
    except CommandFailedError as error:
        refused = [line for line in error.said.splitlines() if "error: deterministic" in line]
        if error.exit_code != 2 or not refused:
            raise
        return refused[0]
    return ""


def losses(folder: Path) -> list[dict[str, Any]]:
    """What was logged of each step, without what depends on the clock."""
    clocked = ("sec_per_step", "rays_per_s", "peak_memory_gib")
    return [{k: v for k, v in row.items() if k not in clocked} for row in logged(folder, "train")]


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


def measure(recipe: str, options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """The two deterministic runs of a recipe, then with the four others."""
    environment = {"BLENDER_SINGLESEQ_CLASS": os.environ.get("BLENDER_SINGLESEQ_CLASS", "lego")}
    if options.tiny:
        environment = {"BLENDER_DATASET_ROOT": str(QUICKSTART), "BLENDER_SINGLESEQ_CLASS": "quickstart"}
    words, refused, began = words_of(recipe, options), "", time.monotonic()
    for name in ("first", "second"):
        fixed = ["deterministic=true", f"seed={SEEDS[0]}", "test_when_finished=false"]
        refused = refused or train(recipe, folder / name, [*words, *fixed], environment)
    found: dict[str, Any] = {"recipe": recipe, "refused": refused or None}
    if not refused:
        found |= compare(folder / "first", folder / "second")
    found["deterministic_s"] = round((time.monotonic() - began) / 2, 1)
    yield found
    reached = {}
    for name, seed in (*((f"seed {seed}", seed) for seed in SEEDS), ("again", SEEDS[0])):
        free = ["deterministic=false", f"seed={seed}", "test_when_finished=true"]
        train(recipe, folder / name, [*words, *free], environment)
        reached[name] = round(scores(folder / name)[1]["psnr_full_image"], 4)
    of_seeds = [reached[f"seed {seed}"] for seed in SEEDS]
    drift = {"drift_db": round(max(of_seeds) - min(of_seeds), 4)}
    drift["same_seed_drift_db"] = round(abs(reached["again"] - of_seeds[0]), 4)
    yield {**found, "psnr": reached, **drift, "same_seed": compare(folder / f"seed {SEEDS[0]}", folder / "again")}


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=RECIPES)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--testskip", type=int, default=1, help="test every so many-th view")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, the scene that comes with the package")
    add_options(parser)
    parser.add_argument("words", nargs="*", help="after --: passed on to all runs")
    options = parser.parse_args(words)
    settings = {name: vars(options)[name] for name in ("steps", "precision", "testskip", "tiny", "words")}
    made_by = passport(options.commit)
    rows = earlier("reproducibility", options.out).get("rows", [])
    record = {"benchmark": "reproducibility", **made_by, "rows": rows}
    for recipe in options.recipes:
        rows[:] = [*(row for row in rows if row["recipe"] != recipe), {}]
        with tempfile.TemporaryDirectory() as temporary:
            for found in measure(recipe, options, Path(temporary)):
                rows[-1] = {**found, **settings, "date": made_by["date"], "commit": made_by["commit"]}
                write("reproducibility", record, options.out)
        print(rows[-1], flush=True)
    print("written to", write("reproducibility", record, options.out))
    print(table(rows, COLUMNS))


if __name__ == "__main__":
    main()
