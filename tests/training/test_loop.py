"""Whole runs of a tiny model: resuming, stopping, epochs' ends, dead starts."""

import json
import os
import signal

import pytest
import torch

from nerf_trainer.errors import CheckpointError
from nerf_trainer.training.checkpoint import CheckpointStore
from nerf_trainer.training.interruption import RunStoppedError
from tests.training.run_records import StopAfter, final, logged
from tests.training.tiny_experiment import experiment
from tests.training.tiny_run import TinyModel


@pytest.fixture(autouse=True)
def drawing(request, monkeypatch):
    """Curves are drawn only where a test asks for `drawn_curves`: it is the slowest part of a tiny run."""
    if "drawn_curves" not in request.fixturenames:
        monkeypatch.setattr("nerf_trainer.training.stats.draw_train_stats", lambda history, folder: ())


@pytest.fixture
def drawn_curves():
    """Asks for curves."""


@pytest.mark.parametrize(
    ("stop_after", "model", "optimizer"),
    [
        (4, {}, {}),
        (6, {}, {}),
        (7, {}, {}),
        (1, {}, {}),
        (6, {"upsample_at": 6}, {}),
        (7, {"upsample_at": 6}, {}),
        (5, {"upsample_at": 6}, {}),
        (4, {}, {"multistep_lr_milestones": (1,)}),
        (7, {}, {"multistep_lr_milestones": (1, 2), "breed": "SGD"}),
        (6, {"upsample_at": 4}, {"lr_policy": "Exponential", "update_every_step": True, "breed": "Adagrad"}),
        (7, {}, {"average_decay": 0.9}),
        (12, {"upsample_at": 6}, {"average_decay": 0.9, "breed": "SGD"}),
    ],
)
def test_stopped_and_resumed_equals_uninterrupted(tmp_path, monkeypatch, stop_after, model, optimizer):
    settings = {"model": model, "optimizer": optimizer}
    experiment(tmp_path / "whole", **settings).run()
    with monkeypatch.context() as patch:
        StopAfter(patch, stop_after)
        with pytest.raises(RunStoppedError, match="the same command continues") as stopped:
            experiment(tmp_path / "parts", **settings).run()
    assert stopped.value.exit_code == 143
    assert CheckpointStore(tmp_path / "parts").latest().state.step == stop_after
    result = experiment(tmp_path / "parts", **settings).run()
    assert result.step == 12
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole")
    assert final(tmp_path / "parts") == final(tmp_path / "whole")


def test_killed_run_repeats_the_steps_since_its_checkpoint(tmp_path, monkeypatch):
    experiment(tmp_path / "whole").run()

    class Killed(BaseException):
        pass

    def killed(self, *args):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("nerf_trainer.training.split_evaluation.SplitEvaluation.validate", killed)
        with pytest.raises(Killed):
            experiment(tmp_path / "parts", checkpoint_interval=3).run()
    assert json.loads((tmp_path / "parts" / "status.json").read_text())["code"] == 1
    experiment(tmp_path / "parts", checkpoint_interval=3).run()
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole")


def test_upsampling_keeps_the_optimizers_moments(tmp_path):
    run = experiment(tmp_path, model={"upsample_at": 4, "noise": 0.0}, source={"n_steps": 8}, metric_print_interval=1)
    run.run()
    losses = [row["loss_rgb_mse"] for row in logged(tmp_path) if row["split"] == "train"]
    assert losses[5] < 1.5 * losses[3]
    checkpoint = CheckpointStore(tmp_path).latest()
    model = TinyModel()
    checkpoint.load_model(model)
    assert model.grid.values.shape == (8,)


def test_lines_of_the_log_and_files_of_a_run(tmp_path, drawn_curves):
    result = experiment(tmp_path, test_interval=2).run()
    rows = logged(tmp_path)
    train = [(row["step"], row["epoch"]) for row in rows if row["split"] == "train"]
    # Every third step, and what is left at the end of each epoch of four steps.
    assert train == [(3, 0), (4, 0), (6, 1), (8, 1), (9, 2), (12, 2)]
    assert [row["epoch"] for row in rows if row["split"] == "val"] == [0, 1, 2]
    assert [row["epoch"] for row in rows if row["split"] == "test"] == [0, 2]
    assert set(rows[0]) == {"step", "epoch", "split", "lr", "loss_rgb_mse", "loss_rgb_psnr", "objective", "grad_norm"}
    assert rows[0]["lr"] == 0.05
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["code"], status["step"]) == ("done", 0, 12)
    assert status["last_checkpoint"] == "checkpoints/step-00000012"
    assert (tmp_path / "train_stats.pdf").stat().st_size > 1000
    assert (tmp_path / "train_stats.png").stat().st_size > 1000
    assert set(result.last_rows) == {"train", "val", "test"}


def test_training_lowers_the_loss(tmp_path):
    experiment(tmp_path, source={"n_steps": 50}, max_epochs=4).run()
    losses = {split: [r["loss_rgb_mse"] for r in logged(tmp_path) if r["split"] == split] for split in ("train", "val")}
    assert losses["val"][-1] < 2 * 0.05**2 < 0.1 * losses["train"][0]  # the variance of the frames' own noise


def test_complete_run_is_left_as_it_is(tmp_path, capsys):
    experiment(tmp_path).run()

    def tree():
        return {str(p): p.read_bytes() for p in sorted(tmp_path.rglob("*")) if p.is_file()}

    before = tree()
    result = experiment(tmp_path).run()
    assert "already complete: 3 epochs, 12 steps" in capsys.readouterr().out
    assert result.step == 12
    assert tree() == before


def test_a_run_that_was_killed_when_all_was_done_is_said_to_be_done_by_the_next(tmp_path):
    experiment(tmp_path).run()
    path = tmp_path / "status.json"
    said = path.read_text()
    for state in ({"state": "running", "code": None}, {"state": "stopped", "code": 130, "message": "interrupted"}):
        path.write_text(json.dumps(json.loads(said) | state))
        experiment(tmp_path).run()
        assert path.read_text() == said


def test_test_that_is_missing_after_the_last_epoch_is_made_up_for(tmp_path):
    experiment(tmp_path).run()
    assert not [row for row in logged(tmp_path) if row["split"] == "test"]
    experiment(tmp_path, test_when_finished=True).run()
    assert [row["step"] for row in logged(tmp_path) if row["split"] == "test"] == [12]


def test_more_epochs_continue_a_complete_run(tmp_path):
    experiment(tmp_path / "whole", max_epochs=5).run()
    experiment(tmp_path / "parts").run()
    experiment(tmp_path / "parts", max_epochs=5).run()
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole")
    assert final(tmp_path / "parts") == final(tmp_path / "whole")


def test_eval_only_evaluates_and_changes_nothing_else(tmp_path):
    experiment(tmp_path).run()
    before = logged(tmp_path)
    result = experiment(tmp_path, eval_only=True).run()
    assert result.step == 12
    assert result.last_rows["test"]["psnr_full_image"] > 0
    assert logged(tmp_path) == before


@pytest.mark.parametrize("folder_exists", [True, False])
def test_eval_only_without_checkpoint_is_refused(tmp_path, folder_exists):
    folder = tmp_path if folder_exists else tmp_path / "mistyped"
    with pytest.raises(CheckpointError, match="trained run"):
        experiment(folder, eval_only=True).run()
    assert folder.exists() == folder_exists


def test_missing_val_split_is_one_notice(tmp_path, capsys):
    experiment(tmp_path, source={"has_val": False}).run()
    assert capsys.readouterr().out.count("no val split") == 1


def test_gradient_accumulation_counts_optimizer_steps(tmp_path):
    result = experiment(tmp_path, source={"n_steps": 5}, gradient_accumulation_steps=2, max_epochs=2).run()
    assert result.step == 2 * 3  # two full groups and a smaller one, in each of two epochs


def test_checkpoints_that_are_kept(tmp_path):
    experiment(tmp_path, max_epochs=5, store_checkpoints_purge=2).run()
    kept = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))
    assert kept == ["step-00000012", "step-00000016", "step-00000020"]


def test_sigint_ends_with_130(tmp_path, monkeypatch):
    StopAfter(monkeypatch, 2, signal.SIGINT)
    with pytest.raises(RunStoppedError) as stopped:
        experiment(tmp_path).run()
    assert stopped.value.exit_code == 130
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["code"], status["step"]) == ("stopped", 130, 2)


def test_a_signal_does_not_wait_for_a_view_to_be_rendered(tmp_path, monkeypatch):
    """A run that goes on reaches what one does that was never stopped."""
    experiment(tmp_path / "whole", validation_interval=1).run()
    forward, reached = TinyModel.forward, []

    def stopped(self, frames):
        if not self.training:
            os.kill(os.getpid(), signal.SIGTERM)
            reached.append("rendered on")
        return forward(self, frames)

    with monkeypatch.context() as patch:
        patch.setattr(TinyModel, "forward", stopped)
        with pytest.raises(RunStoppedError, match="after step 4; a checkpoint is saved"):
            experiment(tmp_path / "stopped", validation_interval=1).run()
    assert reached == [] and CheckpointStore(tmp_path / "stopped").latest().state.step == 4
    experiment(tmp_path / "stopped", validation_interval=1).run()
    whole, stopped_once = (final(tmp_path / name)["model.safetensors"] for name in ("whole", "stopped"))
    assert whole == stopped_once


def test_dead_start_begins_anew_with_the_next_seed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("nerf_trainer.training.dead_start._PATIENCE", 6)
    monkeypatch.setattr(TinyModel, "made", 0)
    experiment(tmp_path / "dead", model={"dead_seeds": 2}).run()
    assert capsys.readouterr().out.count("beginning anew with seed") == 2
    state = CheckpointStore(tmp_path / "dead").latest().state
    assert (state.seed, state.step, state.extra["n_restarts"]) == (44, 12, 2)
    # What was reached is what a run with that seed reaches by itself.
    alive = experiment(tmp_path / "alive")
    alive.seed = 44
    alive.run()
    lines = [[row for row in logged(tmp_path / name) if row["split"] == "train"] for name in ("dead", "alive")]
    assert lines[0] == lines[1]
    model_files = [final(tmp_path / name)["model.safetensors"] for name in ("dead", "alive")]
    assert model_files[0] == model_files[1]


def test_dead_starts_end_after_three_restarts(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("nerf_trainer.training.dead_start._PATIENCE", 6)
    monkeypatch.setattr(TinyModel, "made", 0)
    result = experiment(tmp_path, model={"dead_seeds": 100}).run()
    out = capsys.readouterr().out
    assert out.count("beginning anew with seed") == 3
    assert out.count("training goes on as it is") == 1
    assert result.step == 12


def test_disk_that_refuses_twice_costs_two_checkpoints(tmp_path, monkeypatch, capsys):
    from nerf_trainer.errors import StorageError

    save, calls = CheckpointStore.save, []

    def full(self, *args, **kwargs):
        calls.append(1)
        if len(calls) <= 2:
            raise StorageError("disk full")
        return save(self, *args, **kwargs)

    monkeypatch.setattr(CheckpointStore, "save", full)
    experiment(tmp_path).run()
    assert capsys.readouterr().out.count("disk full") == 2
    assert CheckpointStore(tmp_path).latest().state.step == 12


def test_disk_that_refuses_three_times_ends_the_run(tmp_path, monkeypatch):
    from nerf_trainer.errors import StorageError

    def full(self, *args, **kwargs):
        raise StorageError("disk full")

    monkeypatch.setattr(CheckpointStore, "save", full)
    with pytest.raises(StorageError):
        experiment(tmp_path).run()


def test_full_disk_costs_the_log_and_is_said_once(tmp_path, monkeypatch, capsys):
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    from nerf_trainer.training.session import Session

    take_step = Session.take_step

    def full_from_the_first_step(session, *args):
        take_step(session, *args)
        if session.step == 1:
            (tmp_path / "metrics.jsonl").unlink()
            (tmp_path / "metrics.jsonl").symlink_to("/dev/full")

    monkeypatch.setattr(Session, "take_step", full_from_the_first_step)
    assert experiment(tmp_path, source={"has_val": False}).run().step == 12
    assert capsys.readouterr().out.count("could not be written (No space left on device); training goes on") == 1


def test_dead_start_is_seen_though_the_log_has_a_line_an_epoch(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("nerf_trainer.training.dead_start._PATIENCE", 6)
    monkeypatch.setattr("nerf_trainer.training.dead_start._FIRST_STEPS", 8)
    monkeypatch.setattr(TinyModel, "made", 0)
    experiment(tmp_path, model={"dead_seeds": 1}, source={"n_steps": 20}, metric_print_interval=100).run()
    assert capsys.readouterr().out.count("beginning anew with seed 43") == 1


def test_loss_scale_begins_anew_too(tmp_path, monkeypatch):
    monkeypatch.setattr("nerf_trainer.training.dead_start._PATIENCE", 3)
    monkeypatch.setattr(TinyModel, "made", 0)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=2)
    monkeypatch.setattr("nerf_trainer.training.runtime.Runtime.scaler", scaler)
    monkeypatch.setattr("accelerate.Accelerator.backward", lambda self, loss: scaler.scale(loss).backward())
    experiment(tmp_path, model={"dead_seeds": 1}).run()
    # Two finite steps double the scale; of the 12 of the second start six pairs do, and the first start's don't count.
    assert scaler.get_scale() == 64.0 * 2**6
