"""Seconds of a command's start-up, and of the quickstart on a CPU.

    python -m benchmarks.start_up
    python -m benchmarks.start_up --no-quickstart

`nerf_runner --help`, `--cfg job` and two steps of the quickstart are run ten times each, in a process of its own each.
The quickstart is trained by the command as it stands, but for a look at the test views after each epoch: its seconds
are those of training, from its log, without evaluations; those of the whole, and those until the test views first
reached the target.
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

from benchmarks.record import add_options, passport, write
from benchmarks.timing import summary, table

LOADER = "data_source_ImplicitronDataSource_args.data_loader_map_provider_ResidentDataLoaderMapProvider_args"
COMMANDS = {
    "help": ("--help",),
    "cfg_job": ("--cfg", "job"),
    "two_steps": (
        *("--config-name", "quickstart", "exp_dir=run", "max_epochs=1", "test_when_finished=false"),
        f"{LOADER}.dataset_length_train=2",
    ),
}


def seconds_of(words: tuple[str, ...]) -> float:
    """Wall seconds of the command, in an empty folder on the CPU."""
    command = Path(sys.executable).parent / "nerf_runner"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        subprocess.run([str(command), *words], check=True, stdout=subprocess.DEVNULL, cwd=folder, env=environment)
        return time.perf_counter() - began


def quickstart(target: float) -> dict[str, Any]:
    """Train it on the CPU; seconds of training, whole and until its test views first reached the target, and PSNR."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run"
        every_epoch = "training_loop_ImplicitronTrainingLoop_args.test_interval=1"
        words = ["--config-name", "quickstart", f"exp_dir={folder}", every_epoch]
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, "-m", "nerf_trainer.experiment", *words]
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    seconds, step = 0.0, 0
    reached: float | None = None
    psnr = float("-inf")
    for row in rows:
        if row["split"] == "train":
            seconds += row["sec_per_step"] * (row["step"] - step)
            step = row["step"]
        elif row["split"] == "test":
            psnr = row["psnr_full_image"]
            if reached is None and psnr >= target:
                reached = seconds
    found = {"quickstart_steps": step, "quickstart_train_s": round(seconds, 2), "quickstart_psnr": round(psnr, 2)}
    if reached is not None:
        found["quickstart_s"] = round(reached, 2)
    return found


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10, help="runs of each command")
    parser.add_argument("--target", type=float, default=27.0, help="PSNR of the quickstart, dB")
    parser.add_argument("--no-quickstart", action="store_true", help="commands alone")
    add_options(parser)
    options = parser.parse_args(words)
    record: dict[str, Any] = {"benchmark": "start_up", **passport(options.commit), "processors": os.cpu_count()}
    for name, arguments in COMMANDS.items():
        record |= summary([seconds_of(arguments) for _ in range(options.repeats)], f"{name}_s")
    if not options.no_quickstart:
        record |= quickstart(options.target)
    print("written to", write("start_up", record, options.out))
    shown = {name: value for name, value in record.items() if name.startswith((*COMMANDS, "quickstart"))}
    print(table([shown], list(shown)))


if __name__ == "__main__":
    main()
