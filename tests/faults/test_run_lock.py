"""Row 16: two processes never train in one folder; the second ends with exit 4 and says who has it.

The lock is the system's, so that it goes with the process that has it. Where a file system has no locks, or keeps them
within a machine, the holder's signs of life are looked for.
"""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nerf_trainer.errors import MAX_LINE, CheckpointError
from nerf_trainer.training import run_lock
from nerf_trainer.training.run_lock import FILE_NAME, exclusive
from tests.faults.counts import Fault
from tests.faults.nursery import Child, Nursery
from tests.faults.run_kit import start

AT_MOST_S = 6 * 2.0
"""Seconds that the second may take to end: the table's two, and much room for a busy machine, for to wait for signs of
life takes longer still."""
AT_ONCE = 4
"""Pairs of processes that begin together."""
ENDLESS = "max_epochs=100000"


def wait_for(folder: Path, run: Child, step: int) -> None:
    """Until a run has committed a checkpoint of at least `step` steps."""
    until = time.monotonic() + 240
    while time.monotonic() < until and not run.ended():
        path = folder / "status.json"
        saved = json.loads(path.read_text())["last_checkpoint"] if path.exists() else None
        if saved is not None and int(saved.rpartition("-")[2]) >= step:
            return
        time.sleep(0.01)
    raise AssertionError(f"no checkpoint of step {step}; stderr: {run.err}")


@pytest.mark.fault(row=16)
def test_the_second_of_two_runs_ends_and_a_killed_one_leaves_the_folder_free(
    nursery: Nursery, tmp_path: Path, fault: Fault
):
    folder = tmp_path / "run"
    first = start(nursery, folder, ENDLESS)
    wait_for(folder, first, step=4)
    for _ in range(fault.times(5, quick=1)):
        began = time.monotonic()
        second = start(nursery, folder, ENDLESS)
        assert second.wait() == 4
        assert time.monotonic() - began < AT_MOST_S
        (line,) = second.err.splitlines()
        assert line.startswith("error: exp_dir: ") and len(line) <= MAX_LINE
        assert f"in use by process {first.pid} on {socket.gethostname()}" in line
        assert not first.ended()

        first.kill(signal.SIGKILL)
        assert first.wait() == -signal.SIGKILL
        begins_at = json.loads((folder / "status.json").read_text())["step"]
        first = start(nursery, folder, ENDLESS)
        wait_for(folder, first, step=begins_at + 1)
        assert "resumes from step" in " ".join(first.out.split())
        fault.passed()
    first.kill(signal.SIGTERM)
    assert first.wait() == 143
    assert (folder / FILE_NAME).read_text() == ""


# --- file systems without locks ------------------------------------------------------------------------------------


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on an NFS whose server has no lock daemon."""

    def refuse(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signs of life come fast, and silence is short."""
    monkeypatch.setattr(run_lock, "BEAT_S", 0.05)
    monkeypatch.setattr(run_lock, "SILENCE_S", 1.0)


@pytest.mark.fault(row=16)
@pytest.mark.usefixtures("no_locks")
def test_without_locks_a_holder_is_known_by_its_signs_of_life(tmp_path: Path):
    with exclusive(tmp_path):
        began = time.monotonic()
        with pytest.raises(CheckpointError, match=f"process {os.getpid()} on"), exclusive(tmp_path):
            raise AssertionError("two have the folder")
        assert time.monotonic() - began < AT_MOST_S
    with exclusive(tmp_path):
        assert str(os.getpid()) in (tmp_path / FILE_NAME).read_text()


@pytest.mark.fault(row=16)
@pytest.mark.usefixtures("no_locks")
def test_without_locks_a_killed_process_of_this_machine_leaves_the_folder_free_at_once(tmp_path: Path):
    killed = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    killed.kill()
    killed.wait()
    (tmp_path / FILE_NAME).write_text(f"process {killed.pid} on {socket.gethostname()}")
    began = time.monotonic()
    with exclusive(tmp_path):
        assert time.monotonic() - began < AT_MOST_S < run_lock.SILENCE_S


@pytest.mark.fault(row=16)
@pytest.mark.usefixtures("no_locks", "impatient")
def test_without_locks_two_that_begin_together_don_t_both_go_on(tmp_path: Path, fault: Fault):
    """Most of it is waiting, which several pairs do at the same time."""
    n_alone, n = 0, fault.times(20, quick=1)
    for begin in range(0, n, AT_ONCE):
        folders = [tmp_path / str(i) for i in range(begin, min(begin + AT_ONCE, n))]
        for folder in folders:
            folder.mkdir()
        together = time.monotonic() + 0.3
        pairs = [[forked(folder, together) for _ in range(2)] for folder in folders]
        for pair in pairs:
            codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in pair]
            assert codes in ([0, 4], [4, 0], [4, 4])
            n_alone += 0 in codes
            fault.passed()
    assert n_alone >= n // 4, "refusing both is safe, but not how it ends as a rule"


def forked(folder: Path, at: float) -> int:
    """A process that takes the folder at a moment of the clock, and has it until another was refused, ten seconds at
    most: on a busy machine that one may be seconds late."""
    child = os.fork()
    if child:
        return child
    code, refused = 1, folder.with_suffix(".refused")
    try:
        time.sleep(max(0.0, at - time.monotonic()))
        try:
            with exclusive(folder):
                until = time.monotonic() + 10.0
                while not refused.exists() and time.monotonic() < until:
                    time.sleep(0.02)
                code = 0
        except CheckpointError:
            refused.touch()
            code = 4
    finally:
        os._exit(code)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder that a run on another machine has, whose lock does not reach this one."""
    path = tmp_path / FILE_NAME
    path.write_text("process 1 on elsewhere")
    ended = threading.Event()

    def live() -> None:
        while not ended.wait(run_lock.BEAT_S):
            os.utime(path)

    thread = threading.Thread(target=live)
    thread.start()
    yield tmp_path
    ended.set()
    thread.join()


@pytest.mark.fault(row=16)
def test_a_run_on_another_machine_is_seen_though_its_lock_is_not(elsewhere: Path):
    began = time.monotonic()
    with pytest.raises(CheckpointError, match="in use by process 1 on elsewhere"), exclusive(elsewhere):
        raise AssertionError("two have the folder")
    assert time.monotonic() - began < AT_MOST_S
    assert (elsewhere / FILE_NAME).read_text() == "process 1 on elsewhere"


@pytest.mark.fault(row=16)
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("ahead_s", [-86400, 0, 86400])
def test_a_run_on_another_machine_that_fell_silent_is_dead_whatever_its_clock(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, ahead_s: float
):
    path = tmp_path / FILE_NAME
    path.write_text("process 1 on elsewhere")
    os.utime(path, (time.time() + ahead_s, time.time() + ahead_s))
    with exclusive(tmp_path):
        assert f"process {os.getpid()} on {socket.gethostname()}" == path.read_text()
    assert "process 1 on elsewhere has given no sign of life for 1 s" in caplog.text
