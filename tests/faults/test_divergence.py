"""Steps with values that are not finite, and float16's overflows.

| row | what must happen |
|---|---|
| 39 a NaN loss or an infinite gradient in one step, on one rank | all ranks leave the step out, count it and name its batches; weights stay finite and equal |
| 40 ten such steps in a row | back to the newest checkpoint, once, the learning rate halved only if asked for; again, or without a checkpoint: exit 5; no checkpoint holds what is not finite |
| 41 float16 overflows | the scaler's state is in checkpoints, and the steps that it leaves out are no faults of the training |
"""  # noqa: E501

import gc
import json
import math
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nerf_trainer.errors import DivergenceError
from nerf_trainer.training import runtime as runtimes
from nerf_trainer.training.checkpoint import CheckpointStore
from nerf_trainer.training.interruption import RunStoppedError
from nerf_trainer.training.loop import MAX_SKIPPED_IN_A_ROW
from nerf_trainer.training.session import Session
from nerf_trainer.training.skipped_steps import FILE_NAME
from tests.faults.counts import Fault
from tests.faults.divergence_rank import FAULTY_RANK, GRADIENT_AT, LOSS_AT, N_STEPS, train_a_rank
from tests.faults.nursery import Nursery
from tests.faults.rank_kit import call_ranks
from tests.training import tiny_experiment
from tests.training.run_records import StopAfter, final, logged
from tests.training.tiny_experiment import experiment
from tests.training.tiny_run import TinyModel


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are the slowest part of a tiny run."""
    monkeypatch.setattr("nerf_trainer.training.stats.draw_train_stats", lambda history, folder: ())


def skipped_lines(folder: Path) -> list[dict]:
    """What was written of steps that were left out."""
    path = folder / FILE_NAME
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def assert_checkpoints_are_finite(folder: Path) -> int:
    """How many there are, also those that training went back behind."""
    found = list((folder / "checkpoints").rglob("step-*"))
    for path in found:
        for name in ("model.safetensors", "optim.safetensors"):
            tensors = load_file(path / name)
            assert tensors and all(tensor.isfinite().all() for tensor in tensors.values()), path / name
    return len(found)


class Breaking(TinyModel):
    """A model that breaks in some of the forwards of this process, whichever model of a run makes them."""

    broken: range = range(0)
    forwards = 0

    def forward(self, frames):
        if self.training:
            self.nan_from, self.nan_to = (0, 10**9) if Breaking.forwards in Breaking.broken else (-1, 0)
            Breaking.forwards += 1
        return super().forward(frames)


@pytest.fixture
def breaking(monkeypatch: pytest.MonkeyPatch):
    """Says which training forwards break, counted from 0."""
    monkeypatch.setattr(tiny_experiment, "TinyModel", Breaking)

    def choose(broken: range) -> None:
        monkeypatch.setattr(Breaking, "broken", broken)
        monkeypatch.setattr(Breaking, "forwards", 0)

    return choose


@pytest.mark.fault(row=39)
def test_all_ranks_leave_out_a_step_that_is_not_finite_on_one(fault: Fault, nursery: Nursery, tmp_path: Path) -> None:
    fault.times(2, quick=2)
    children = call_ranks(nursery, 2, train_a_rank, str(tmp_path))
    one, other = (load_file(tmp_path / f"weights-{rank}")["weights"] for rank in range(2))
    assert one.isfinite().all() and torch.equal(one, other)
    stayed = [i for i in range(1, N_STEPS) if torch.equal(one[i], one[i - 1])]
    assert stayed == [LOSS_AT, GRADIENT_AT], "these steps, and no others, leave the weights alone"
    assert_checkpoints_are_finite(tmp_path / "run")

    lines = skipped_lines(tmp_path / "run")
    assert [(line["step"], line["rank"]) for line in lines] == [
        (step + 1, rank) for step in (LOSS_AT, GRADIENT_AT) for rank in range(2)
    ]
    for line in lines:
        step = line["step"] - 1
        assert line["batches"] == [{"frame_number": [100 * line["rank"] + step]}]
        at_fault = step == LOSS_AT and line["rank"] == FAULTY_RANK
        assert line["objective_is_finite"] is not at_fault
    said = " ".join(children[0].out.split())
    assert "1 of 3 steps up to step 6 were skipped: loss_rgb_mse, loss_rgb_psnr was not finite" in said
    assert "1 of 3 steps up to step 9 were skipped: grad_norm was not finite" in said
    fault.passed(2)


@pytest.mark.fault(row=39)
def test_a_step_that_is_not_finite_is_counted_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment(tmp_path, model={"nan_from": 5, "nan_to": 6}).run()
    out = " ".join(capsys.readouterr().out.split())
    assert "1 of 2 steps up to step 6 were skipped: loss_rgb_mse, loss_rgb_psnr was not finite" in out
    assert all(math.isfinite(row["objective"]) for row in logged(tmp_path))
    (line,) = skipped_lines(tmp_path)
    assert line["step"] == 6 and line["last_checkpoint"] == "checkpoints/step-00000004"


@pytest.mark.fault(row=39)
def test_a_checkpoint_between_two_lines_of_the_log_forgets_no_skipped_step(tmp_path: Path) -> None:
    experiment(tmp_path, model={"nan_from": 5, "nan_to": 8}, checkpoint_interval=1, metric_print_interval=100).run()
    assert [line["step"] for line in skipped_lines(tmp_path)] == [6, 7, 8]


@pytest.mark.fault(row=40)
@pytest.mark.parametrize("halved", [False, True])
def test_ten_in_a_row_go_back_to_the_newest_checkpoint_once(tmp_path, breaking, capsys, halved) -> None:
    """Steps 10 to 19, of checkpoints that are saved every eighth: 8 lies before them, and 16 is not saved."""
    first = 9
    breaking(range(first, first + MAX_SKIPPED_IN_A_ROW))
    options = {"checkpoint_interval": 8, "checkpoint_seconds": 1e6, "max_epochs": 10, "metric_print_interval": 1}
    experiment(tmp_path / "broken", halve_rate_on_divergence=halved, **options).run()
    said = " ".join(capsys.readouterr().out.split())
    back = "going back to the checkpoint of step 8" + (", with half the learning rate" if halved else "")
    assert f"was not finite in 10 steps in a row up to step 19; {back}" in said
    assert [line["step"] for line in skipped_lines(tmp_path / "broken")] == list(range(10, 20))
    breaking(range(0))  # what follows the checkpoint is never broken
    experiment(tmp_path / "whole", **options).run()
    rows = [[row for row in logged(tmp_path / name) if row["split"] == "train"] for name in ("broken", "whole")]
    steps = [row["step"] for row in rows[0]]
    assert steps == list(range(1, 41)), "no step is missing in the log, and none is there twice"
    assert str(rows[0][:8]) == str(rows[1][:8])
    rates = [[row["lr"] for row in of_run] for of_run in rows]
    assert rates[0] == rates[1][:8] + [rate * (0.5 if halved else 1.0) for rate in rates[1][8:]]
    states = [final(tmp_path / name) for name in ("broken", "whole")]
    assert (states[0]["model.safetensors"] == states[1]["model.safetensors"]) is not halved
    assert states[0]["state"]["extra"]["n_rollbacks"] == 1 and states[1]["state"]["extra"]["n_rollbacks"] == 0
    assert assert_checkpoints_are_finite(tmp_path / "broken") >= 2


@pytest.mark.fault(row=40)
def test_checkpoints_that_are_rare_leave_one_to_go_back_to_from_the_first_epoch_on(tmp_path, breaking, capsys) -> None:
    breaking(range(9, 9 + MAX_SKIPPED_IN_A_ROW))
    experiment(tmp_path, checkpoint_seconds=1e6, max_epochs=6, metric_print_interval=1).run()
    assert "up to step 19; going back to the checkpoint of step 4" in " ".join(capsys.readouterr().out.split())


def saved_steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


@pytest.mark.fault(row=40)
@pytest.mark.parametrize("interval", [1, 3])
def test_training_goes_back_behind_the_steps_that_were_not_finite(tmp_path, breaking, capsys, interval) -> None:
    """However often checkpoints are saved, and though a few are kept: steps 10 to 19 leave none."""
    breaking(range(9, 9 + MAX_SKIPPED_IN_A_ROW))
    options = {"checkpoint_interval": interval, "max_epochs": 6, "metric_print_interval": 1}
    experiment(tmp_path / "broken", **options).run()
    assert "up to step 19; going back to the checkpoint of step 9" in " ".join(capsys.readouterr().out.split())
    experiment(tmp_path / "whole", **options).run()
    states = [final(tmp_path / name)["model.safetensors"] for name in ("broken", "whole")]
    assert states[0] == states[1]


@pytest.mark.fault(row=40)
def test_a_checkpoint_saved_on_request_is_gone_back_behind(tmp_path, breaking, monkeypatch, capsys) -> None:
    """Stopped among the steps 10 to 19, the run saves and goes on from there; what it goes back to lies before them."""
    breaking(range(9, 9 + MAX_SKIPPED_IN_A_ROW))
    options = {"checkpoint_interval": 8, "checkpoint_seconds": 1e6, "max_epochs": 6, "metric_print_interval": 1}
    with monkeypatch.context() as patch:
        StopAfter(patch, 12)
        with pytest.raises(RunStoppedError):
            experiment(tmp_path, **options).run()
    assert saved_steps(tmp_path / "checkpoints") == [8, 12]
    experiment(tmp_path, **options).run()
    assert "up to step 19; going back to the checkpoint of step 8" in " ".join(capsys.readouterr().out.split())
    assert saved_steps(tmp_path / "checkpoints" / "abandoned-1") == [12]
    assert saved_steps(tmp_path / "checkpoints") == [16, 24]


@pytest.mark.fault(row=40)
def test_a_checkpoint_that_is_put_off_is_saved_after_the_next_step(tmp_path, breaking) -> None:
    breaking(range(7, 10))
    options = {"checkpoint_interval": 8, "checkpoint_seconds": 1e6, "store_checkpoints_purge": 0}
    experiment(tmp_path, max_epochs=5, **options).run()
    assert saved_steps(tmp_path / "checkpoints") == [4, 11, 16, 20]


@pytest.mark.fault(row=40)
def test_a_run_that_goes_back_holds_one_model(tmp_path, breaking, monkeypatch) -> None:
    """A large one would not fit twice, nor its optimizer."""
    breaking(range(5, 5 + MAX_SKIPPED_IN_A_ROW))
    roll_back, held = Session.roll_back, []

    def watched(session: Session, *arguments) -> None:
        before = session.model
        assert session.optimizer.state and before is session.run.model
        weights = [weakref.ref(parameter) for parameter in before.parameters()]
        moments = [weakref.ref(state["exp_avg"]) for state in session.optimizer.state.values()]
        roll_back(session, *arguments)
        gc.collect()
        held.extend(ref() for ref in (*weights, *moments) if ref() is not None and not ref().is_meta)
        assert all(parameter.is_meta for parameter in before.parameters()) and session.model is not before

    monkeypatch.setattr(Session, "roll_back", watched)
    experiment(tmp_path, max_epochs=6, metric_print_interval=1).run()
    assert not held


@pytest.mark.fault(row=40)
def test_a_halved_rate_stays_halved_when_the_run_is_resumed(tmp_path, breaking, monkeypatch) -> None:
    breaking(range(5, 5 + MAX_SKIPPED_IN_A_ROW))
    options = {"max_epochs": 6, "metric_print_interval": 1, "halve_rate_on_divergence": True}
    with monkeypatch.context() as patch:
        StopAfter(patch, 20)
        with pytest.raises(RunStoppedError):
            experiment(tmp_path, **options).run()
    experiment(tmp_path, **options).run()
    rates = [row["lr"] for row in logged(tmp_path) if row["split"] == "train"]
    assert rates[:4] == [0.05] * 4 and rates[4:] == [0.025] * 20


@pytest.mark.fault(row=40)
def test_ten_in_a_row_again_end_the_run(tmp_path: Path) -> None:
    """A model that breaks from its sixth step on, and so does the one that is loaded from the checkpoint."""
    with pytest.raises(DivergenceError, match=r"loss_rgb_mse.*in a row.*again after going back") as diverged:
        experiment(tmp_path, model={"nan_from": 5}, max_epochs=20).run()
    assert diverged.value.exit_code == 5
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["code"]) == ("failed", 5)
    assert assert_checkpoints_are_finite(tmp_path) >= 2


@pytest.mark.fault(row=40)
def test_without_a_checkpoint_there_is_nothing_to_go_back_to(tmp_path: Path) -> None:
    with pytest.raises(DivergenceError, match="no checkpoint was saved") as diverged:
        experiment(tmp_path, model={"nan_from": 5}, max_epochs=20, store_checkpoints=False).run()
    assert diverged.value.exit_code == 5


@pytest.mark.fault(row=40)
def test_nine_in_a_row_do_not_go_back(tmp_path, breaking, capsys) -> None:
    breaking(range(5, 5 + MAX_SKIPPED_IN_A_ROW - 1))
    experiment(tmp_path, max_epochs=5).run()
    assert "going back" not in capsys.readouterr().out and len(skipped_lines(tmp_path)) == MAX_SKIPPED_IN_A_ROW - 1


@pytest.mark.fault(row=40)
@pytest.mark.parametrize("where", ["weight", "moment"])
def test_what_is_not_finite_is_never_saved(fault: Fault, tmp_path, monkeypatch, where) -> None:
    """However it came there: here somebody writes it, behind the back of the step that looks for it."""
    fault.times(1, quick=1)
    take_step = Session.take_step

    def poisoned(session: Session, *arguments) -> None:
        take_step(session, *arguments)
        if session.step == 6:
            held = session.optimizer.state[session.model.bias]["exp_avg"] if where == "moment" else session.model.bias
            held.data.fill_(float("nan"))

    monkeypatch.setattr(Session, "take_step", poisoned)
    with pytest.raises(DivergenceError, match=r"bias.*not finite, so no checkpoint is written") as diverged:
        experiment(tmp_path, detect_dead_start=False).run()
    assert diverged.value.exit_code == 5
    latest = CheckpointStore(tmp_path).latest()
    assert latest is not None and latest.state.step == 4
    assert assert_checkpoints_are_finite(tmp_path) == 1
    fault.passed()


class Overflowing(TinyModel):
    """Gradients of more than 1000 become infinite, as float16's beyond 65504 do."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.bias.register_hook(lambda gradient: gradient.where(gradient.abs() < 1000.0, torch.inf))


@pytest.fixture
def scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs with a scaler of losses, which a CPU's have none of, that begins much too high."""
    monkeypatch.setattr(tiny_experiment, "TinyModel", Overflowing)
    make = runtimes._accelerator

    def with_scaler(*arguments):
        accelerator = make(*arguments)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**26, growth_interval=4)
        return accelerator

    monkeypatch.setattr(runtimes, "_accelerator", with_scaler)


@pytest.mark.fault(row=41)
def test_overflows_are_the_scalers_business(tmp_path, scaled, capsys) -> None:
    """The scale is halved at each overflow; with one of 2^26 more than ten come one after another."""
    experiment(tmp_path, max_epochs=6, metric_print_interval=1).run()
    overflows = [row["fp16_overflows"] for row in logged(tmp_path) if row["split"] == "train"]
    assert overflows[: MAX_SKIPPED_IN_A_ROW + 1] == [1.0] * (MAX_SKIPPED_IN_A_ROW + 1) and 0.0 in overflows
    assert skipped_lines(tmp_path) == [] and "going back" not in capsys.readouterr().out


@pytest.mark.fault(row=41)
@pytest.mark.parametrize("stop_after", [3, 17])
def test_a_scaler_goes_on_where_it_was(tmp_path, scaled, monkeypatch, stop_after) -> None:
    options = {"max_epochs": 6, "metric_print_interval": 1}
    experiment(tmp_path / "whole", **options).run()
    with monkeypatch.context() as patch:
        StopAfter(patch, stop_after)
        with pytest.raises(RunStoppedError):
            experiment(tmp_path / "parts", **options).run()
    saved = CheckpointStore(tmp_path / "parts").latest()
    assert saved is not None and saved.state.scaler is not None
    assert saved.state.scaler["scale"] < 2.0**26
    experiment(tmp_path / "parts", **options).run()
    assert str(logged(tmp_path / "parts")) == str(logged(tmp_path / "whole"))  # nan is not nan
    assert final(tmp_path / "parts") == final(tmp_path / "whole")
