"""Signals and launchers that ask a run to stop.

| row | fault | what must happen |
|---|---|---|
| 17 | SIGTERM, SIGUSR1 or SIGUSR2 | the step is finished, then saved; exit 143 within 10 s; resuming is bit-exact |
| 18 | Ctrl-C once, twice | once: saved, exit 130; twice: exit 130 at once, and what was saved stays valid |

Limits of time have room for a machine that others work on: three times the table's.
"""

import json
import os
import random
import re
import signal
import time
from pathlib import Path

import pytest

from nerf_trainer import experiment
from nerf_trainer.errors import MAX_LINE
from nerf_trainer.training.checkpoint import CheckpointStore
from tests.command_kit import typed
from tests.faults.counts import Fault
from tests.faults.nursery import Child, Nursery
from tests.faults.run_kit import STEPWISE, start, train
from tests.training.run_records import StopAfter, final, logged
from tests.training.tiny_experiment import WORDS

AT_MOST_S = 3 * 10.0
"""Seconds from a signal to the end: the table's ten, and room for a busy machine."""
AT_ONCE_S = 3 * 2.0
"""The same of a second Ctrl-C."""
LONGER = "max_epochs=8"
"""Of four steps each, so that most of a run is training."""


class Interrupted:
    """Runs that get signals at random moments, and what an undisturbed run leaves behind.

    Args:
        nursery: forks them.
        folder: the undisturbed run's.
    """

    def __init__(self, nursery: Nursery, folder: Path) -> None:
        self._nursery = nursery
        self._draw = random.Random(7)
        train(nursery, folder, LONGER, STEPWISE, timeout=240)  # composes, which takes long
        began = time.monotonic()
        assert train(nursery, folder.with_name("again"), LONGER, STEPWISE, timeout=240).code == 0
        self._takes_s = time.monotonic() - began
        self._logged, self._final = logged(folder), final(folder)

    def stopped(self, folder: Path, *signals: signal.Signals, trains: bool = False) -> Child:
        """A run that had not ended when the last of the signals came; tried until there is one.

        Args:
            trains: the first comes some time after the run has saved something, and not at any time.
        """
        while True:
            run = start(self._nursery, folder, LONGER, STEPWISE)
            while trains and not run.ended() and not any(folder.glob("checkpoints/step-*")):
                time.sleep(0.005)
            time.sleep(self._draw.uniform(0.0 if trains else 0.02, self._takes_s / 3 if trains else self._takes_s))
            for i, number in enumerate(signals):
                if i > 0:
                    time.sleep(self._draw.uniform(0, 0.02))
                run.kill(number)
            sent = time.monotonic()
            code = run.wait(timeout=2 * AT_MOST_S)
            assert time.monotonic() - sent < (AT_MOST_S if len(signals) == 1 else AT_ONCE_S)
            if code != 0:
                return run
            self.ends_as_if_nothing_had_been(folder)  # it had ended
            self._takes_s *= 0.95
            folder.rename(folder.with_name(f"{folder.name}-had-ended-{time.monotonic_ns()}"))

    def ends_as_if_nothing_had_been(self, folder: Path) -> None:
        """Go on to the end, and compare."""
        assert train(self._nursery, folder, LONGER, STEPWISE, timeout=240).code == 0
        assert logged(folder) == self._logged
        assert final(folder) == self._final

    def check_what_was_said(self, run: Child, folder: Path, name: str, code: int) -> bool:
        """One line, the state of the run, and the checkpoint that both speak of; whether the run had begun to train."""
        errors = [line for line in run.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and run.err.endswith(f"{errors[0]}\n") and len(errors[0]) <= MAX_LINE, run.err
        assert "Traceback" not in run.err
        said = re.search(r"stopped by (\w+) after step (\d+); a checkpoint is saved; the same command", errors[0])
        if said is None:
            assert errors[0] == f"error: stopped by {name} with nothing to save"
            return False
        status = json.loads((folder / "status.json").read_text())
        assert (status["state"], status["code"], status["step"]) == ("stopped", code, int(said[2])) and said[1] == name
        checkpoint = CheckpointStore(folder).latest()
        assert checkpoint is not None and checkpoint.state.step == int(said[2])
        assert status["last_checkpoint"] == f"checkpoints/{checkpoint.path.name}"
        return True


@pytest.fixture(scope="module")
def interrupted(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Interrupted:
    """See the class."""
    return Interrupted(nursery, tmp_path_factory.mktemp("signals") / "undisturbed")


@pytest.mark.fault(row=17)
@pytest.mark.parametrize(
    ("number", "n"),
    [
        (signal.SIGTERM, 17),
        pytest.param(signal.SIGUSR1, 17, marks=pytest.mark.fault(row=17, long=True)),
        pytest.param(signal.SIGUSR2, 16, marks=pytest.mark.fault(row=17, long=True)),
    ],
)
def test_a_run_that_is_told_to_stop_saves_and_goes_on_to_the_same_end(
    interrupted: Interrupted, tmp_path: Path, fault: Fault, number: signal.Signals, n: int
):
    """Fifty in all; every other one has begun to train."""
    n_saved = 0
    for i in range(n := fault.times(n, quick=1)):
        folder = tmp_path / f"run-{i}"
        run = interrupted.stopped(folder, number, trains=i % 2 == 0)
        assert run.code == 143
        n_saved += interrupted.check_what_was_said(run, folder, number.name, 143)
        interrupted.ends_as_if_nothing_had_been(folder)
        fault.passed()
    assert n_saved >= max(1, n // 3)


@pytest.mark.fault(row=17, long=True)
def test_a_sweep_that_is_told_to_stop_begins_no_other_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The job that runs saves, as by itself."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("nerf_trainer.training.stats.draw_train_stats", lambda history, folder: ())
    StopAfter(monkeypatch, 2)
    nerf_runner = typed("nerf_runner", experiment.main, monkeypatch, capsys)
    code, _, err = nerf_runner("--multirun", *WORDS, f"exp_dir={tmp_path / 'sweep'}", "seed=1,2")
    assert code == 143
    assert err.splitlines()[-1].startswith("error: stopped by SIGTERM after step 2; a checkpoint is saved")
    assert [path.parent.name for path in (tmp_path / "sweep").glob("*/checkpoints")] == ["seed-1"]
    assert not (tmp_path / "sweep" / "seed-2").exists()


@pytest.mark.fault(row=17, long=True)
def test_a_signal_that_comes_too_late_for_a_job_still_ends_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """While the curves are drawn for the last time: that job is done, and the next does not begin."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "nerf_trainer.training.stats.draw_train_stats", lambda history, folder: os.kill(os.getpid(), signal.SIGTERM)
    )
    nerf_runner = typed("nerf_runner", experiment.main, monkeypatch, capsys)
    code, _, err = nerf_runner("--multirun", *WORDS, f"exp_dir={tmp_path / 'sweep'}", "seed=1,2")
    assert code == 143
    assert err.splitlines()[-1] == "error: stopped by SIGTERM with nothing to save"
    jobs = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert [job["state"] for job in jobs] == ["done", "not started"]
    assert not (tmp_path / "sweep" / "seed-2").exists()


@pytest.mark.fault(row=18)
def test_ctrl_c_once_saves(interrupted: Interrupted, tmp_path: Path, fault: Fault):
    n_saved = 0
    for i in range(n := fault.times(20, quick=1)):
        folder = tmp_path / f"run-{i}"
        run = interrupted.stopped(folder, signal.SIGINT, trains=i % 2 == 0)
        assert run.code == 130
        n_saved += interrupted.check_what_was_said(run, folder, "SIGINT", 130)
        interrupted.ends_as_if_nothing_had_been(folder)
        fault.passed()
    assert n_saved >= max(1, n // 3)


@pytest.mark.fault(row=18)
def test_ctrl_c_twice_ends_at_once_and_harms_nothing(interrupted: Interrupted, tmp_path: Path, fault: Fault):
    for i in range(fault.times(20, quick=1)):
        folder = tmp_path / f"run-{i}"
        run = interrupted.stopped(folder, signal.SIGINT, signal.SIGINT)
        assert run.code == 130 and "Traceback" not in run.err
        if (folder / "checkpoints").exists():
            CheckpointStore(folder).latest()  # raises where there are some and none is valid
        interrupted.ends_as_if_nothing_had_been(folder)
        fault.passed()
