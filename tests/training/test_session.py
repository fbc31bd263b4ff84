"""A session takes up what a checkpoint says, or refuses it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nerf_trainer.errors import CheckpointError
from nerf_trainer.training.checkpoint_files import (
    MANIFEST,
    STATE,
    json_bytes,
    manifest_bytes,
    new_manifest,
    parse_json,
    read_manifest,
)
from nerf_trainer.training.checkpoint_reading import Checkpoint
from tests.training.tiny_experiment import experiment

MADE_UP: dict[str, Callable[[dict[str, Any]], object]] = {
    "no statistics": lambda state: state["extra"].pop("statistics"),
    "statistics of another kind": lambda state: state["extra"].update(statistics=[1, 2]),
    "too few sums": lambda state: state["extra"]["statistics"]["groups"].append({"names": ["a", "b"], "sums": [[1.0]]}),
    "words for sums": lambda state: state["extra"]["statistics"].update(skips=["a", "b", "c"]),
    "no dead start": lambda state: state["extra"].update(dead_start={}),
    "words for a number": lambda state: state["extra"].update(n_rollbacks="often"),
    "a list for a number": lambda state: state["extra"].update(n_restarts=[1]),
    "no schedule": lambda state: state.update(scheduler={}),
    "a schedule without end": lambda state: state.update(scheduler={"epoch": 10**400}),
}


@pytest.mark.parametrize("case", MADE_UP)
def test_numbers_that_no_training_saved_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    """With a manifest that vouches for them."""
    monkeypatch.setattr("nerf_trainer.training.stats.draw_train_stats", lambda history, folder: ())
    experiment(tmp_path, max_epochs=1).run()
    (directory,) = (tmp_path / "checkpoints").glob("step-*")
    state = parse_json((directory / STATE).read_bytes())
    MADE_UP[case](state)
    (directory / STATE).write_bytes(json_bytes(state))
    members = {name: (directory / name).read_bytes() for name in read_manifest(directory).files}
    (directory / MANIFEST).write_bytes(manifest_bytes(new_manifest("", 1, members)))
    assert Checkpoint.open(directory).state.step == 4, "the checkpoint is whole"
    with pytest.raises(CheckpointError, match=r"state\.json: the training can't go on from these numbers") as refused:
        experiment(tmp_path, max_epochs=2).run()
    assert refused.value.exit_code == 4
