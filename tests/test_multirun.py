"""Trainings started through others: a sweep's jobs, and accelerate's launcher."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.recipe_kit import ONE_STEP
from tests.training.run_records import logged

REPOSITORY = Path(__file__).resolve().parent.parent
RUNNER = "nerf_trainer.experiment"


def start(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(words, capture_output=True, text=True, cwd=folder, env=environment, timeout=240)
    assert ended.returncode == 0, ended.stderr
    return ended


def status(folder: Path) -> tuple[str, int, int]:
    held = json.loads((folder / "status.json").read_text())
    return held["state"], held["code"], held["step"]


@pytest.mark.slow
def test_a_sweep_trains_each_job_in_a_folder_of_its_own(tmp_path: Path) -> None:
    words = ("--config-name", "quickstart", *ONE_STEP)
    start(tmp_path, sys.executable, "-m", RUNNER, "--multirun", *words, "exp_dir=sweep", "seed=1,2")
    folders = sorted(path.parent for path in (tmp_path / "sweep").glob("*/status.json"))
    assert len(folders) == 2
    assert [status(folder) for folder in folders] == [("done", 0, 1)] * 2
    losses = [logged(folder)[0]["objective"] for folder in folders]
    assert losses[0] != losses[1]
    assert ["seed: 1\n" in (folder / "expconfig.yaml").read_text() for folder in folders] == [True, False]
    # A job is what the same run is by itself.
    start(tmp_path, sys.executable, "-m", RUNNER, *words, "exp_dir=alone", "seed=2")
    assert logged(tmp_path / "alone") == logged(folders[1])


@pytest.mark.slow
def test_accelerate_launches_a_training(tmp_path: Path) -> None:
    words = ("--config-name", "quickstart", *ONE_STEP)
    launcher = (sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "-m")
    start(tmp_path, *launcher, RUNNER, *words, "exp_dir=launched")
    assert status(tmp_path / "launched") == ("done", 0, 1)
    start(tmp_path, sys.executable, "-m", RUNNER, *words, "exp_dir=plain")
    assert logged(tmp_path / "launched") == logged(tmp_path / "plain")
