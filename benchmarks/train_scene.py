"""Train a recipe on a scene, evaluate it, and record what it took and reached.

    python -m benchmarks.train_scene --name lego_bf16 --exp-dir runs/lego -- \\
        --config-name nerf_blender precision=bf16 max_epochs=25

What stands after -- goes to nerf_runner as it is; training and evaluation are runs of the command, in processes of
their own. With --video, the fly-around is rendered too; words for nerf_visualizer may follow it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import add_options, passport, write
from benchmarks.time_to_quality import FIRST_STEPS, seconds_at, spans
from benchmarks.trainings import logged


def run(module: str, *arguments: str) -> float:
    """Run one of the package's commands to its end; returns its wall time in seconds, start-up included."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", module, *arguments], check=True)
    return round(time.perf_counter() - began, 1)


def speed(metrics: Path) -> dict[str, Any]:
    """Median, tenth and ninetieth percentile of the logged intervals after the first tenth of the steps; seconds of all
    steps, and of the first, in which a step is compiled and captured; and the curve of the validations."""
    rows = logged(metrics.parent)
    train = [row for row in rows if row["split"] == "train"]
    steady = [row for row in train if row["step"] > train[-1]["step"] / 10]
    ms = [1e3 * row["sec_per_step"] for row in steady]
    tenths = statistics.quantiles(ms, n=10)
    validated = [row for row in rows if row["split"] == "val" and "loss_rgb_psnr" in row]
    parts = spans(rows)
    return {
        "steps": train[-1]["step"],
        "training_seconds": round(seconds_at(parts, train[-1]["step"])[0], 1),
        f"first_{FIRST_STEPS}_steps_seconds": round(seconds_at(parts, FIRST_STEPS)[0], 1),
        "ms_per_step_median": round(statistics.median(ms), 2),
        "ms_per_step_p10": round(tenths[0], 2),
        "ms_per_step_p90": round(tenths[-1], 2),
        "rays_per_s_median": round(statistics.median(row["rays_per_s"] for row in steady)),
        "peak_memory_gib": train[-1]["peak_memory_gib"],
        "train_psnr_last": round(train[-1].get("loss_rgb_psnr", float("nan")), 3),
        "validation_psnr": {row["step"]: round(row["loss_rgb_psnr"], 2) for row in validated},
    }


def kernel_cache() -> str:
    """Whether Triton finds any kernels compiled before, if not all it needs: warm or cold; "none" without a GPU."""
    if not torch.cuda.is_available():
        return "none"
    folder = Path(os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton" / "cache")
    return "warm" if folder.is_dir() and any(folder.iterdir()) else "cold"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="name of the record")
    parser.add_argument("--exp-dir", type=Path, required=True, help="the run's folder; must be new")
    parser.add_argument("--video", nargs="*", help="render the fly-around; words for nerf_visualizer may follow")
    add_options(parser)
    parser.add_argument("runner", nargs="+", help="arguments of nerf_runner, after --")
    options = parser.parse_args()
    arguments = [*options.runner, f"exp_dir={options.exp_dir}"]
    parts = [
        ("train", "nerf_trainer.experiment", [*arguments, "test_when_finished=false"]),
        ("evaluate", "nerf_trainer.experiment", [*arguments, "eval_only=true"]),
    ]
    if options.video is not None:
        parts.append(("video", "nerf_trainer.visualize", [f"exp_dir={options.exp_dir}", *options.video]))
    record: dict[str, Any] = {"benchmark": "train_scene", **passport(options.commit)}
    record |= {"command": " ".join(["nerf_runner", *options.runner]), "kernel_cache": kernel_cache()}
    record["wall_seconds"] = {}
    for name, module, words in parts:
        record["wall_seconds"][name] = run(module, *words)
        record |= speed(options.exp_dir / "metrics.jsonl")
        tested = options.exp_dir / "results_test.json"
        record["test"] = json.loads(tested.read_text()) if tested.exists() else None
        for row in record["test"] or []:
            row.pop("lpips_missing", None)  # names folders of the machine
        record["status"] = json.loads((options.exp_dir / "status.json").read_text())
        print("written to", write(options.name, record, options.out), flush=True)


if __name__ == "__main__":
    main()
