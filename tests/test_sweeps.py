import json
import os
import signal
import weakref
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from nerf_trainer import sweeps
from nerf_trainer.errors import ConfigError, DistributedError, StorageError, UserError
from nerf_trainer.stopping import InterruptingSignals, StoppedError
from nerf_trainer.sweeps import Job, Record, Sweep, SweepWatch, reported, require_no_stop, sweep_folder, table
from nerf_trainer.training.interruption import RunStoppedError, StopSignals


def write(folder: Path, **values: object) -> None:
    (folder / sweeps.RECORDS).mkdir(exist_ok=True)
    (folder / sweeps.RECORDS / f"{values['number']}.json").write_text(json.dumps(values))


def test_jobs_that_left_no_record_were_not_started(tmp_path: Path) -> None:
    write(tmp_path, number=1, overrides=["a=2"], state="done", code=0)
    (tmp_path / sweeps.RECORDS / "2.json").write_text('{"number": 2, "over')  # torn
    jobs = Sweep(tmp_path, [["a=1"], ["a=2"], ["a=3"]]).jobs()
    assert [(job.number, job.state) for job in jobs] == [(0, "not started"), (1, "done"), (2, "not started")]


def test_the_table_shows_what_varies_and_what_came_of_it(tmp_path: Path) -> None:
    jobs = [
        Job(
            0, ["x=1", "a.b.lr=0.1"], f"{tmp_path}/lr-0.1", "done", 0, results={"split": "test", "loss_psnr": 21.23456}
        ),
        Job(1, ["x=1", "a.b.lr=0.2"], f"{tmp_path}/lr-0.2", "failed", 5, f"a | b {'and so on ' * 30}"),
        Job(2, ["x=1", "a.b.lr=0.3"]),
    ]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table(jobs, tmp_path).splitlines()]
    assert rows[0] == ["job", "overrides", "state", "split", "psnr", "folder", "error"]
    assert rows[2] == ["0", "lr=0.1", "done", "test", "21.23", "lr-0.1", ""]
    assert rows[3][:6] == ["1", "lr=0.2", "failed (5)", "", "", "lr-0.2"]
    assert rows[3][6].startswith("a / b and") and len(rows[3][6]) <= 100
    assert rows[4] == ["2", "lr=0.3", "not started", "", "", "", ""]


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (RunStoppedError("stopped by SIGINT after step 3", signal.SIGINT), "stopped (130)"),
        (RunStoppedError("stopped by SIGTERM after step 3", signal.SIGTERM), "stopped (143)"),
        (StoppedError.with_nothing_to_save(signal.SIGINT), "stopped (130)"),
        (StorageError("the disk is full"), "failed (6)"),
        (ZeroDivisionError(), "failed (1)"),
    ],
)
def test_the_table_tells_stopped_jobs_from_failed_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, state: str
) -> None:
    settings = OmegaConf.create({"job": {"num": 0}, "sweep": {"dir": str(tmp_path)}})
    monkeypatch.setattr("nerf_trainer.sweeps.HydraConfig.get", lambda: settings)
    Record(["a=1"], OmegaConf.create({})).failed(error)
    assert state in table(Sweep(tmp_path, []).jobs(), tmp_path)


def test_a_launcher_that_fails_over_a_lost_job_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def launch(error: Exception) -> None:
        with reported():
            SweepWatch.sweep = Sweep(tmp_path, [["a=1"], ["a=2"]])
            raise error

    write(tmp_path, number=0, overrides=["a=1"], state="done", code=0)
    write(tmp_path, number=1, overrides=["a=2"], state="unfinished")
    with pytest.raises(DistributedError, match=r"^job: 1 ended without a word .*RuntimeError: a worker is gone"):
        launch(RuntimeError("a worker is gone"))
    assert "sweep of 2 jobs: 1 done, 1 unfinished" in capsys.readouterr().out
    assert (tmp_path / "sweep.md").read_text().count("unfinished") == 1
    with pytest.raises(ConfigError):  # a job's own error stays what it is
        launch(ConfigError("a key"))
    write(tmp_path, number=1, overrides=["a=2"], state="failed", code=1)
    with pytest.raises(ZeroDivisionError):
        launch(ZeroDivisionError())


def test_the_folder_of_a_sweep_over_folders_is_what_they_have_in_common() -> None:
    parse = OverridesParser.create().parse_overrides
    assert sweep_folder(parse(["exp_dir=runs/x/a,runs/x/b"])) == "runs/x"
    assert sweep_folder(parse(["exp_dir=a,b"])) == "."
    assert sweep_folder(parse(["exp_dir=a", "seed=1,2"])) == "${oc.select:exp_dir,.}"


@pytest.mark.parametrize(("executor", "number", "raised"), [("local", 12, [12]), ("local", 15, []), ("", 12, [])])
def test_only_its_own_signal_goes_back_to_submitit(
    monkeypatch: pytest.MonkeyPatch, executor: str, number: int, raised: list[int]
) -> None:
    found: list[int] = []
    monkeypatch.setattr("nerf_trainer.sweeps.signal.raise_signal", found.append)
    monkeypatch.setenv("SUBMITIT_EXECUTOR", executor)
    sweeps.requeue(number)
    assert found == raised


def test_where_submitit_does_not_queue_a_job_again_it_stays_stopped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its own error would end the whole sweep with a traceback."""

    def refuse(number: int) -> None:
        raise RuntimeError("Job not requeued because: timed-out too many times.")

    monkeypatch.setattr("nerf_trainer.sweeps.signal.raise_signal", refuse)
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    require_no_stop(RunStoppedError("stopped by SIGUSR2 after step 3", signal.SIGUSR2))
    assert capsys.readouterr().out == "note: Job not requeued because: timed-out too many times.\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RunStoppedError("stopped by SIGTERM after step 3", signal.SIGTERM), 143),
        (RunStoppedError("stopped by SIGINT after step 3", signal.SIGINT), 130),
        (DistributedError("process 1 of 2 gives no sign"), 7),
    ],
)
def test_after_these_no_other_job_may_begin(error: UserError, code: int) -> None:
    with pytest.raises(StoppedError, match=str(error)) as stop:
        require_no_stop(error)
    assert stop.value.exit_code == code


def test_after_others_the_next_job_begins() -> None:
    require_no_stop(StorageError("the disk is full"))
    require_no_stop(None)


def test_a_signal_that_came_too_late_for_a_job_keeps_the_next_from_beginning() -> None:
    with InterruptingSignals():
        with StopSignals():
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(StoppedError, match="stopped by SIGTERM with nothing to save"):
            require_no_stop(None)


class Held:
    """What takes memory."""


def test_the_error_of_a_failed_job_holds_nothing_of_it() -> None:
    """Hydra keeps the error, and the next job needs the room."""
    held: list[weakref.ref[Held]] = []

    def work(large: Held) -> None:
        held.append(weakref.ref(large))
        raise RuntimeError("out of memory")

    def job() -> None:
        model = Held()
        try:
            work(model)
        except RuntimeError as error:
            raise ConfigError("no room") from error

    with pytest.raises(ConfigError) as kept:
        job()
    assert held[0]() is not None
    sweeps._let_go(kept.value)
    assert held[0]() is None and isinstance(kept.value.__cause__, RuntimeError)
