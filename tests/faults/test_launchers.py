"""Row 19: a launcher that is told to stop leaves no training behind; other parents may go before their child.

`accelerate launch` dies from SIGTERM and does not tell the process that it started. Fifteen seconds after that, here
three times as many, nothing of it runs any more, and the training has saved.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nerf_trainer.training.checkpoint import CheckpointStore
from tests.faults.counts import Fault
from tests.faults.nursery import REPOSITORY
from tests.faults.run_kit import STEPWISE, TINY

AT_MOST_S = 3 * 15.0
"""Seconds from the launcher's end to the training's: the table's fifteen, and room for a busy machine."""
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}

WORK = """
import sys, time
from pathlib import Path
from nerf_trainer import stopping
said = Path(sys.argv[1])
said.write_text("at work")
until = time.monotonic() + float(sys.argv[2])
while time.monotonic() < until and not stopping.launcher_is_gone():
    time.sleep(0.01)
said.write_text("stopped" if stopping.launcher_is_gone() else "came to its end")
"""
"""What a training does about its launcher, without the training."""

LAUNCHER = """
import subprocess, sys
subprocess.Popen(sys.argv[1:]).wait()
"""
"""As `accelerate launch` does it."""


def wait_until(true: Callable[[], bool], at_most_s: float, what: str) -> None:
    until = time.monotonic() + at_most_s
    while not true():
        assert time.monotonic() < until, f"not within {at_most_s:g} s: {what}"
        time.sleep(0.02)


def says(said: Path, text: str) -> Callable[[], bool]:
    return lambda: said.exists() and said.read_text() == text


def work(said: Path, seconds: float) -> list[str]:
    """The command line of a process that works for some seconds unless its launcher goes."""
    return [sys.executable, "-c", WORK, str(said), str(seconds)]


@pytest.mark.fault(row=19)
@pytest.mark.parametrize("name", ["accelerate", "torchrun", "nerf_runner"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_a_process_stops_when_its_launcher_is_gone(tmp_path: Path, name: str, number: signal.Signals):
    (tmp_path / name).write_text(LAUNCHER)
    said = tmp_path / "said"
    command = [sys.executable, str(tmp_path / name), *work(said, seconds=60)]
    launcher = subprocess.Popen(command, env=ENVIRONMENT)
    wait_until(says(said, "at work"), 60, "the start")
    launcher.send_signal(number)
    launcher.wait()
    wait_until(says(said, "stopped"), AT_MOST_S, "the end")


@pytest.mark.fault(row=19)
@pytest.mark.parametrize(
    "typed",
    [
        "nohup {work} >/dev/null 2>&1 & wait",
        *(
            pytest.param(typed, marks=pytest.mark.fault(row=19, long=True))
            for typed in ("{work} & disown; wait", "setsid {work} & wait", "(trap '' HUP; {work}); :")
        ),
    ],
)
def test_a_process_outlives_the_shell_that_started_it(tmp_path: Path, typed: str):
    said = tmp_path / "said"
    quoted = " ".join(f"'{word}'" for word in work(said, seconds=1.5))
    shell = subprocess.Popen(["bash", "-c", typed.format(work=quoted)], env=ENVIRONMENT, start_new_session=True)
    wait_until(says(said, "at work"), 60, "the start")
    shell.send_signal(signal.SIGHUP)
    shell.kill()
    shell.wait()
    wait_until(says(said, "came to its end"), 60, "the end")


# --- the real ones -------------------------------------------------------------------------------------------------


def descendants(pid: int) -> list[int]:
    """The processes that a process started, and those that these did."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [found for child in map(int, children) for found in (child, *descendants(child))]


def lives(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has asked about does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def status(folder: Path) -> dict[str, object]:
    path = folder / "status.json"
    return json.loads(path.read_text()) if path.exists() else {"state": "not begun", "last_checkpoint": None}


LAUNCHERS = {
    "accelerate": ["accelerate.commands.launch", "--cpu", "--num_processes", "1", "--num_machines", "1"]
    + ["--mixed_precision", "no", "--dynamo_backend", "no"],
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc_per_node", "1"],
    "torchrun of two": ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
}


@pytest.mark.fault(row=19, long=True)
@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("accelerate", signal.SIGTERM),
        ("torchrun", signal.SIGTERM),
        ("torchrun", signal.SIGKILL),
        ("torchrun of two", signal.SIGKILL),
    ],
    ids=["accelerate-SIGTERM", "torchrun-SIGTERM", "torchrun-SIGKILL", "torchrun-of-two-SIGKILL"],
)
def test_a_launcher_that_is_told_to_stop_leaves_no_training(
    tmp_path: Path, name: str, number: signal.Signals, fault: Fault
):
    folder = tmp_path / "run"
    words = ["-m", "nerf_trainer.experiment", *TINY, f"exp_dir={folder}", STEPWISE, "max_epochs=100000"]
    environment = {**ENVIRONMENT, "ACCELERATE_USE_CPU": "true"}
    launcher = subprocess.Popen(
        [sys.executable, "-m", *LAUNCHERS[name], *words],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: status(folder)["last_checkpoint"] is not None, 240, "a checkpoint")
    started = descendants(launcher.pid)
    assert started and all(map(lives, started))
    launcher.send_signal(number)
    launcher.wait()
    wait_until(lambda: not any(map(lives, started)), AT_MOST_S, f"the end of {started}")
    ended = status(folder)
    assert (ended["state"], ended["code"]) == ("stopped", 143)
    checkpoint = CheckpointStore(folder).latest()
    assert checkpoint is not None and checkpoint.state.step == ended["step"]
    fault.n_of_table = 1
    fault.passed()
