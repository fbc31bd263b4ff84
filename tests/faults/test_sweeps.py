"""Sweeps and launchers: rows 51 to 53 of the table of faults.

- 51: a job of three that fails does not keep the others from running; the sweep ends with an exit code other than 0 and
  with one table of all jobs. The same with Hydra's own launcher, joblib and submitit's local executor.
- 52: two launches on one host at once don't meet at the same port; one that is told a port that is taken says so.
- 53: a job that Slurm takes its machine from saves, is queued again, and continues in its folder: no step is missing or
  twice in the log, and all is as without the interruption.

What joblib, submitit and torchrun start imports torch anew, tens of seconds on a busy machine: those tests are long.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.counts import Fault
from tests.faults.nursery import REPOSITORY, Nursery
from tests.faults.rank_kit import WORDS, await_lines, status
from tests.faults.run_kit import LOOP, TINY
from tests.training.run_records import final, logged

pytestmark = pytest.mark.timeout(900)
"""On a busy machine; on two cores of its own each takes a minute or two at the table's counts."""
LR = "optimizer_factory_ImplicitronOptimizerFactory_args.lr"
SHORT = ("max_epochs=1", f"{LOOP}.visdom_server=")
ENVIRONMENT = {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


def check_sweep_with_a_failing_job(nursery: Nursery, folder: Path, *launcher: str) -> None:
    child = nursery.start(*TINY, *SHORT, f"exp_dir={folder}", "-m", f"{LR}=1e-3,-1,1e-2", *launcher, **ENVIRONMENT)
    assert child.wait(400) == 2, child.err[-3000:]
    jobs = json.loads((folder / "sweep.json").read_text())
    assert [(job["number"], job["state"], job["code"]) for job in jobs] == [
        (0, "done", 0), (1, "failed", 2), (2, "done", 0),
    ]  # fmt: skip
    assert "-1.0 is negative" in jobs[1]["message"]
    assert [job["results"].get("step") for job in jobs] == [4, None, 4]
    for job in (jobs[0], jobs[2]):
        assert job["results"]["objective"] == logged(Path(job["exp_dir"]))[-1]["objective"]
    table = (folder / "sweep.md").read_text()
    assert table in child.out
    lines = table.splitlines()
    assert len(lines) == 5
    assert [line.split("|")[2].strip() for line in lines[2:]] == ["lr=0.001", "lr=-1", "lr=0.01"]
    assert "sweep of 3 jobs: 2 done, 1 failed" in child.out
    assert [status(folder / name)["state"] for name in ("lr-0.001", "lr-0.01")] == ["done"] * 2


@pytest.mark.fault(row=51)
def test_a_failing_job_leaves_the_others_and_the_table_alone(nursery: Nursery, tmp_path: Path, fault: Fault) -> None:
    for i in range(fault.times(3, quick=1)):
        check_sweep_with_a_failing_job(nursery, tmp_path / str(i))
        fault.passed()


@pytest.mark.fault(row=51, long=True)
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_jobs_in_other_processes_fail_alone_too(nursery: Nursery, tmp_path: Path, fault: Fault, launcher: str) -> None:
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher")
    fault.times(1, quick=1)
    check_sweep_with_a_failing_job(nursery, tmp_path / "sweep", f"hydra/launcher={launcher}")
    fault.passed()


@pytest.mark.fault(row=51, long=True)
def test_the_table_of_a_sweep_that_is_run_again_has_all_results(nursery: Nursery, tmp_path: Path, fault: Fault) -> None:
    """Jobs that were complete before show what they reached then."""
    fault.times(1, quick=1)
    words = (*TINY, *SHORT, f"exp_dir={tmp_path / 'sweep'}", "-m", "seed=1,2")
    tables = []
    for _ in range(2):
        assert nursery.run(*words, **ENVIRONMENT).code == 0
        tables.append((tmp_path / "sweep" / "sweep.md").read_text())
    assert tables[0] == tables[1]
    assert tables[0].count("| done ") == 2
    fault.passed()


@pytest.mark.fault(row=52)
def test_a_port_that_is_taken_is_said(nursery: Nursery, tmp_path: Path, fault: Fault) -> None:
    for i in range(fault.times(2, quick=1)):
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(other.getsockname()[1])}
            places = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
            words = (*TINY, f"exp_dir={tmp_path / str(i)}", "rank_timeout=20")
            child = nursery.run(*words, timeout=120, **ENVIRONMENT, **meeting, **places)
        assert child.code == 7
        line = child.err.splitlines()[-1]
        assert line.startswith("error: processes: ") and "torchrun --standalone" in line and len(line) < 400
        assert meeting["MASTER_PORT"] in line
        fault.passed()


@pytest.mark.fault(row=52, long=True)
def test_two_launches_on_one_host_do_not_meet(tmp_path: Path, fault: Fault) -> None:
    """As docs/sweeps.md says to launch them."""
    fault.times(2, quick=2)
    page = (REPOSITORY / "docs" / "sweeps.md").read_text()
    assert "torchrun --standalone --nproc-per-node" in page
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    launches = [
        subprocess.Popen(
            [*torchrun, "-m", "nerf_trainer.experiment", *TINY, *SHORT, f"exp_dir={tmp_path / str(i)}", f"seed={i}"],
            env={**os.environ, **ENVIRONMENT},
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    errors = [launch.communicate(timeout=280)[1] for launch in launches]
    assert [launch.returncode for launch in launches] == [0, 0], errors
    for i in range(2):
        assert status(tmp_path / str(i))["state"] == "done"
        fault.passed()
    assert logged(tmp_path / "0") != logged(tmp_path / "1")


@pytest.mark.fault(row=53)
def test_a_job_whose_machine_is_taken_away_is_queued_again(nursery: Nursery, tmp_path: Path, fault: Fault) -> None:
    """With submitit's environment, and a handler of the signal such as submitit's."""
    n_steps, chance = 12, random.Random(53)
    words = (*TINY, *WORDS, f"{LOOP}.checkpoint_interval=0", f"max_epochs={n_steps // 4}", "-m", "seed=5")
    assert nursery.run(*words, f"exp_dir={tmp_path / 'whole'}", **ENVIRONMENT).code == 0
    whole = tmp_path / "whole" / "0"
    for i in range(fault.times(5, quick=1)):
        sweep, queued, step = tmp_path / f"taken-{i}", tmp_path / f"queued-{i}", chance.randrange(n_steps - 1)
        taken, environment = sweep / "0", {**ENVIRONMENT, "SUBMITIT_EXECUTOR": "local", "REQUEUE": str(queued)}
        child = nursery.run(*words, f"exp_dir={sweep}", RANK_FAULT=f"0:{step}:signal", **environment)
        assert child.code == 144, child.err[-2000:]
        assert queued.read_text() == "queued again"
        said = status(taken)
        assert (said["state"], said["code"], said["step"]) == ("stopped", 143, step + 1)
        assert said["last_checkpoint"].endswith(f"{step + 1:08d}"), "saved before it is queued again"
        again = nursery.run(*words, f"exp_dir={sweep}", **environment)
        assert again.code == 0, again.err[-2000:]
        assert f"resumes from step {step + 1} in {taken}" in again.out
        assert [row["step"] for row in logged(taken)] == list(range(1, n_steps + 1))
        assert logged(taken) == logged(whole)
        assert final(taken) == final(whole)
        fault.passed()


def jobs_of_submitit(folder: Path) -> list[int]:
    """Processes of submitit's local executor that run a job of a sweep in this folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if "submitit.core._submit" in words and any(word.startswith(str(folder)) for word in words):
            found.append(int(process.name))
    return found


@pytest.mark.fault(row=53, long=True)
def test_submitit_queues_a_job_again(nursery: Nursery, tmp_path: Path, fault: Fault) -> None:
    """With submitit's local executor, whose jobs are queued as Slurm's are."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    fault.times(1, quick=1)
    n_steps, sweep = 200, tmp_path / "sweep"
    words = (*TINY, *WORDS, f"{LOOP}.checkpoint_interval=0", f"{LOOP}.checkpoint_seconds=600")
    words = (*words, f"max_epochs={n_steps // 4}", f"exp_dir={sweep}", "-m", "seed=5", "hydra/launcher=submitit_local")
    child = nursery.start(*words, **ENVIRONMENT)
    await_lines(child, sweep / "0", 3, seconds=240)
    (job,) = jobs_of_submitit(sweep)
    os.kill(job, signal.SIGUSR2)
    assert child.wait(280) == 0, child.err[-3000:]
    (log,) = (sweep / ".submitit").rglob("*_log.out")
    said = log.read_text()
    assert said.count("Requeued job") >= 1
    assert said.count("starts in ") == 1 and said.count("resumes from step ") == 1
    assert [row["step"] for row in logged(sweep / "0")] == list(range(1, n_steps + 1))
    assert [job["state"] for job in json.loads((sweep / "sweep.json").read_text())] == ["done"]
    fault.passed()
