"""Trainings by the command, in processes of their own, for benchmarks that look at what they leave behind."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LOOP = "training_loop_ImplicitronTrainingLoop_args"
DATA = "data_source_ImplicitronDataSource_args"
LOADER = f"{DATA}.data_loader_map_provider_ResidentDataLoaderMapProvider_args"
SCENE = f"{DATA}.dataset_map_provider_BlenderDatasetMapProvider_args"
NO_LPIPS = f"{LOOP}.evaluator_ImplicitronEvaluator_args.lpips_net=none"
STEPS_ALONE = (
    f"{LOOP}.validation_interval=0",
    f"{LOOP}.visualize_interval=0",
    f"{LOOP}.visdom_server=''",
    f"{LOOP}.detect_dead_start=false",
)
"""Nothing between the steps that is no training."""


class CommandFailedError(SystemExit):
    """A training that failed: the end of what it said is the message.

    Args:
        code: its exit code.
        log: what it said.
    """

    def __init__(self, name: str, code: int, log: Path) -> None:
        self.exit_code, self.said = code, log.read_text(errors="replace")
        super().__init__(f"{name} ended with {code}; the end of {log}:\n{self.said[-4000:]}")


def nerf_runner(
    *words: str, log: Path, n_ranks: int | None = None, environment: Mapping[str, str] | None = None
) -> float:
    """Run the command to its end; returns its wall seconds, start-up included.

    Args:
        log: gets what it says.
        n_ranks: under torchrun, as so many processes; None: as one, without a launcher.
        environment: what differs from this process's.

    Raises:
        CommandFailedError: it did not end well.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n_ranks)] if n_ranks else []
    command = [sys.executable, *launcher, "-m", "nerf_trainer.experiment", *words]
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    with open(log, "w") as said:
        done = subprocess.run(command, env={**os.environ, **(environment or {})}, stdout=said, stderr=said)
    if done.returncode != 0:
        raise CommandFailedError(" ".join(words[:2]), done.returncode, log)
    return time.perf_counter() - began


def logged(folder: Path, split: str | None = None) -> list[dict[str, Any]]:
    """The rows of a run's log; those of one split (train, test) where one is named."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if split in (None, row["split"])]


def scores(folder: Path) -> tuple[int, dict[str, float]]:
    """How many views a run was tested on last, and their metrics."""
    row = json.loads((folder / "results_test.json").read_text())[0]
    return row["n_views"], {name: value for name, value in row["metrics"].items() if value is not None}
