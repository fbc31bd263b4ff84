"""Row 13: a run that goes back to an older epoch leaves what came after it aside, and goes on along its new branch."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from nerf_trainer.training.checkpoint import CheckpointStore
from nerf_trainer.training.interruption import RunStoppedError
from tests.training.run_records import StopAfter, final, logged
from tests.training.tiny_experiment import experiment

BRANCH: dict[str, Any] = {"optimizer": {"lr": 0.01}}
"""Options of the second branch, so that it is another one."""


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than these runs."""
    monkeypatch.setattr("nerf_trainer.training.stats.draw_train_stats", lambda history, folder: ())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.fault(row=13)
@pytest.mark.parametrize("epoch", [0, 1])
def test_a_run_that_went_back_goes_on_along_the_new_branch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch: int):
    """A whole run; back to the end of an epoch, and stopped two steps later; and the plain command after that."""
    folder, uninterrupted = tmp_path / "run", tmp_path / "uninterrupted"
    experiment(folder, store_checkpoints_purge=0).run()
    shutil.copytree(folder, uninterrupted)
    checkpoints, start = folder / "checkpoints", 4 * (epoch + 1)
    left = [f"step-{step:08d}" for step in (4, 8, 12) if step > start]
    kept = {name: contents(checkpoints / name) for name in left}
    log = (folder / "metrics.jsonl").read_bytes()

    with monkeypatch.context() as patch:
        StopAfter(patch, 2)
        with pytest.raises(RunStoppedError, match="the same command without resume_epoch continues"):
            experiment(folder, factory={"resume_epoch": epoch}, store_checkpoints_purge=0, **BRANCH).run()
    aside = checkpoints / "abandoned-1"
    assert sorted(path.name for path in aside.iterdir()) == ["metrics.jsonl", *left]
    assert {name: contents(aside / name) for name in left} == kept
    assert (aside / "metrics.jsonl").read_bytes() == log

    newest = CheckpointStore(folder).latest()
    assert newest is not None and newest.state.step == start + 2
    experiment(folder, store_checkpoints_purge=0, **BRANCH).run()
    experiment(uninterrupted, factory={"resume_epoch": epoch}, store_checkpoints_purge=0, **BRANCH).run()
    assert logged(folder) == logged(uninterrupted)
    assert final(folder) == final(uninterrupted)
    assert {name: contents(aside / name) for name in left} == kept
    assert final(folder)["model.safetensors"] != (aside / "step-00000012" / "model.safetensors").read_bytes()
    assert not (checkpoints / "abandoned-2").exists()


@pytest.mark.fault(row=13)
def test_a_run_that_begins_anew_leaves_the_whole_old_one_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    experiment(tmp_path).run()
    log = (tmp_path / "metrics.jsonl").read_bytes()
    with monkeypatch.context() as patch:
        StopAfter(patch, 2)
        with pytest.raises(RunStoppedError, match="the same command without resume continues"):
            experiment(tmp_path, factory={"resume": False}, **BRANCH).run()
    aside = tmp_path / "checkpoints" / "abandoned-1"
    assert {path.name for path in aside.iterdir()} == {"metrics.jsonl", "step-00000008", "step-00000012"}
    assert (aside / "metrics.jsonl").read_bytes() == log
    result = experiment(tmp_path, **BRANCH).run()
    assert result.step == 12 and [row["lr"] for row in logged(tmp_path) if row["split"] == "train"] == [0.01] * 6
