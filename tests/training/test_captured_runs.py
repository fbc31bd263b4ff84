"""Whole runs whose steps are captured, by a stand-in for graphs that works on the CPU, are what eager ones are."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Generator

from nerf_trainer.training.captured import FIRST_WARM_UP
from nerf_trainer.training.interruption import RunStoppedError
from tests.training.run_records import StopAfter, final, logged
from tests.training.test_loop import experiment
from tests.training.tiny_run import TinyModel


class Rerun:
    """A graph that was executed when it was captured, and does the same again at each further replay."""

    def __init__(self, run: Callable[[], object]) -> None:
        self._run = run
        self._done = True

    def replay(self) -> None:
        if not self._done:
            self._run()
        self._done = False


class Reruns:
    """Graphs whose replays run the step's own code, on the batches that were held for the capture."""

    captures = 0

    def __init__(self, device: torch.device) -> None:
        assert device.type == "cpu"

    def warm_up(self, run, generators: Sequence[Generator], rehearse: bool):
        return run()

    def capture(self, run, generators: Sequence[Generator]):
        Reruns.captures += 1
        return Rerun(run), run()


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Steps are captured once this is called."""
    monkeypatch.setattr("nerf_trainer.training.stats.draw_train_stats", lambda history, folder: ())
    monkeypatch.setattr(Reruns, "captures", 0)

    def turn_on() -> None:
        monkeypatch.setattr("nerf_trainer.training.step.why_eager", lambda *parts: None)
        monkeypatch.setattr("nerf_trainer.training.step.CudaGraphs", Reruns)

    return turn_on


@pytest.mark.parametrize(
    ("model", "loop", "n_captures"),
    [
        ({}, {}, 1),
        ({"upsample_at": 6}, {}, 2),
        ({"nan_from": 6, "nan_to": 8}, {}, 1),
        ({}, {"gradient_accumulation_steps": 3}, 1),  # a batch is left at the end of each epoch
    ],
)
def test_captured_runs_are_eager_runs(tmp_path, captured, model, loop, n_captures):
    options = {"model": model, "source": {"n_steps": 7}, **loop}
    experiment(tmp_path / "eager", **options).run()
    captured()
    experiment(tmp_path / "captured", **options).run()
    assert Reruns.captures == n_captures
    assert str(logged(tmp_path / "captured")) == str(logged(tmp_path / "eager"))  # nan is not nan
    eager, captured_run = final(tmp_path / "eager"), final(tmp_path / "captured")
    for name in eager:
        assert captured_run[name] == eager[name], name


@pytest.mark.parametrize("stop_after", [FIRST_WARM_UP - 1, FIRST_WARM_UP + 2, 9])
def test_captured_runs_go_on_where_they_were_stopped(tmp_path, monkeypatch, captured, stop_after):
    options = {"model": {"upsample_at": 8}, "source": {"n_steps": 5}}
    captured()
    experiment(tmp_path / "whole", **options).run()
    with monkeypatch.context() as patch:
        StopAfter(patch, stop_after)
        with pytest.raises(RunStoppedError):
            experiment(tmp_path / "parts", **options).run()
    experiment(tmp_path / "parts", **options).run()
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole")
    whole, parts = final(tmp_path / "whole"), final(tmp_path / "parts")
    for name in whole:
        assert parts[name] == whole[name], name


def test_a_dead_start_begins_anew_with_a_graph_of_its_own(tmp_path, monkeypatch, captured, capsys):
    monkeypatch.setattr("nerf_trainer.training.dead_start._PATIENCE", 6)
    monkeypatch.setattr(TinyModel, "made", 0)
    captured()
    experiment(tmp_path, model={"dead_seeds": 1}).run()
    assert Reruns.captures == 2
    said = capsys.readouterr().out
    assert said.count("step: captured as one CUDA graph") == 1 and said.count("beginning anew") == 1
