"""Row 44: `deterministic=true` gives the same bits twice, or names the operation that can't.

On a CPU both are shown here; on a GPU by tests/gpu/test_deterministic.py and benchmarks/reproducibility.py, which also
records the drift of three seeds without the option.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import reproducibility
from nerf_trainer.errors import ConfigError
from nerf_trainer.frames import FrameData
from nerf_trainer.models.base import Predictions
from nerf_trainer.training.checkpoint import CheckpointStore
from tests.faults.nursery import Nursery
from tests.training import tiny_experiment
from tests.training.run_records import final, logged
from tests.training.tiny_experiment import experiment
from tests.training.tiny_run import TinyModel


@pytest.fixture
def only_deterministic() -> Iterator[None]:
    """The mode, without torch's own call of it, which imports Triton before tests of kernels have said how."""
    torch._C._set_deterministic_algorithms(True)
    yield
    torch._C._set_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are the slowest part of a tiny run."""
    monkeypatch.setattr("nerf_trainer.training.stats.draw_train_stats", lambda history, folder: ())


class Unordered(TinyModel):
    """A plug-in's model, with an operation that torch has no deterministic algorithm of."""

    def forward(self, frames: FrameData) -> Predictions:
        torch.zeros(3).put_(torch.tensor([1]), torch.ones(1))
        return super().forward(frames)


@pytest.mark.fault(row=44)
def test_two_deterministic_runs_are_the_same(tmp_path: Path, only_deterministic: None) -> None:
    for name in ("first", "second"):
        run = experiment(tmp_path / name)
        run.deterministic = True
        run.run()
    assert logged(tmp_path / "first") == logged(tmp_path / "second")
    assert final(tmp_path / "first") == final(tmp_path / "second")
    found = reproducibility.compare(tmp_path / "first", tmp_path / "second")
    assert found["losses_equal"] and found["weights_equal"] and found["n_losses"] > 0 and found["n_tensors"] > 2


@pytest.mark.fault(row=44)
def test_an_operation_that_can_not_be_deterministic_is_named_before_anything_is_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, only_deterministic: None
) -> None:
    monkeypatch.setattr(tiny_experiment, "TinyModel", Unordered)
    run = experiment(tmp_path)
    run.deterministic = True
    with pytest.raises(ConfigError, match="put_ has no deterministic algorithm on this device") as refused:
        run.run()
    assert refused.value.exit_code == 2 and len(str(refused.value)) < 400
    assert CheckpointStore(tmp_path).latest() is None and logged(tmp_path) == []
    assert json.loads((tmp_path / "status.json").read_text())["code"] == 2


class UnorderedInEvaluation(TinyModel):
    """The same, where a view is rendered that is not trained on."""

    def forward(self, frames: FrameData) -> Predictions:
        if not self.training:
            torch.zeros(3).put_(torch.tensor([1]), torch.ones(1))
        return super().forward(frames)


@pytest.mark.fault(row=44)
def test_an_operation_of_evaluation_alone_is_named_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, only_deterministic: None
) -> None:
    experiment(tmp_path).run()
    monkeypatch.setattr(tiny_experiment, "TinyModel", UnorderedInEvaluation)
    for options in ({"max_epochs": 4}, {"eval_only": True}):
        run = experiment(tmp_path, **options)
        run.deterministic = True
        with pytest.raises(ConfigError, match="put_ has no deterministic algorithm on this device"):
            run.run()


def test_runs_that_differ_are_told_apart(tmp_path: Path) -> None:
    """What the benchmark counts as a difference: another seed, from the first loss on."""
    for name, seed in (("first", 1), ("second", 2)):
        run = experiment(tmp_path / name, metric_print_interval=1)
        run.seed = seed
        run.run()
    found = reproducibility.compare(tmp_path / "first", tmp_path / "second")
    assert not found["losses_equal"] and not found["weights_equal"]
    assert found["first_difference"] == 1 and found["n_losses"] == 12
    assert "grid.values" in found["tensors_that_differ"]


@pytest.mark.fault(row=44, long=True)
@pytest.mark.parametrize("recipe", reproducibility.RECIPES)
def test_the_benchmark_finds_runs_on_a_cpu_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nursery: Nursery, recipe: str
) -> None:
    """The first of its six runs is a process as the benchmark starts it; the others are forked, without the imports."""
    start = reproducibility.train

    def forked(recipe: str, folder: Path, words: list[str], environment: dict[str, str]) -> str:
        if folder.name == "first":
            return start(recipe, folder, words, environment)
        options = {"timeout": 240.0, "composes_once": True, **environment}
        child = nursery.run("--config-name", recipe, f"exp_dir={folder}", *words, **options)
        assert child.code == 0, child.err
        return ""

    monkeypatch.setattr(reproducibility, "train", forked)
    reproducibility.main(["--tiny", "--steps", "4", "--recipes", recipe, "--out", str(tmp_path)])
    record = json.loads((tmp_path / "reproducibility.json").read_text())
    (row,) = record["rows"]
    assert row["refused"] is None and row["losses_equal"] and row["weights_equal"] and row["n_losses"] == 4
    assert row["same_seed_drift_db"] == 0.0 and row["same_seed"]["weights_equal"]
    assert len(row["psnr"]) == 4 and row["drift_db"] >= 0.0
