"""Two processes on two GPUs: NCCL waits where gloo raises, and captured steps come to no meeting that the host sees.

The same faults as in tests/faults/test_ranks.py, row 45 and 46, and the same demands. Processes are started here as
torchrun would, which ends the others itself once one is gone.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.faults.rank_kit import PLUGIN, free_port, n_lines, status
from tests.faults.run_kit import LOADERS, LOOP, TINY

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
    pytest.mark.timeout(600),
]

REPOSITORY = Path(__file__).resolve().parents[2]


def start(folder: Path, *words: str, **environment: str) -> list[subprocess.Popen[str]]:
    """Two processes of a long training, a GPU each."""
    chosen = [*TINY, f"plugins=[{PLUGIN}]", f"exp_dir={folder}", f"{LOOP}.metric_print_interval=10"]
    chosen += [f"{LOADERS}.dataset_length_train=2000", "max_epochs=50", "precision=bf16", *words]
    path = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "nerf_trainer.experiment", *chosen],
            env={**os.environ, "PYTHONPATH": path, **meeting, **environment}
            | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


def await_lines(processes: list[subprocess.Popen[str]], folder: Path, n: int) -> None:
    """Return once the run has logged so many lines."""
    until = time.monotonic() + 240
    while n_lines(folder) < n:
        ended = [process for process in processes if process.poll() is not None]
        assert not ended and time.monotonic() < until, [process.communicate()[1][-2000:] for process in ended]
        time.sleep(0.01)


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("way", ["captured", "eager"])
def test_a_killed_process_ends_the_other_within_seconds(tmp_path: Path, victim: int, way: str) -> None:
    processes = start(tmp_path, f"{LOOP}.capture_step={str(way == 'captured').lower()}")
    await_lines(processes, tmp_path, 30)
    processes[victim].kill()
    at = time.monotonic()
    out, err = processes[1 - victim].communicate(timeout=120)
    assert time.monotonic() - at < 15.0
    assert processes[1 - victim].returncode == 7, err[-2000:]
    assert victim == 0 or f"step: {way}" in " ".join(out.split())
    said = status(tmp_path)
    assert (said["state"], said["code"]) == ("failed", 7) and f"process {victim} of 2 " in said["message"]
    assert said["message"] in err
    assert processes[victim].wait() == -9


@pytest.mark.parametrize("victim", [0, 1])
def test_a_stuck_process_is_waited_for_as_long_as_was_said(tmp_path: Path, victim: int) -> None:
    processes = start(tmp_path, "rank_timeout=10", RANK_FAULT=f"{victim}:1000:stuck")
    await_lines(processes, tmp_path, 95)
    at = time.monotonic()
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert time.monotonic() - at < 20.0
    assert [process.returncode for process in processes] == [7, 7], errors
    assert f"process {victim} of 2 is stuck" in status(tmp_path)["message"]


def test_a_process_that_raises_ends_the_other(tmp_path: Path) -> None:
    processes = start(tmp_path, RANK_FAULT="1:1000:raise")
    errors = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [7, 1], errors
    assert "ArithmeticError: a fault that the test brought in" in status(tmp_path)["message"]


def test_two_that_are_done_part(tmp_path: Path) -> None:
    processes = start(tmp_path, "max_epochs=1")
    errors = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert status(tmp_path)["state"] == "done"
