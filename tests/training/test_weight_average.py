"""The average of the weights: what it is, that it takes their place at the end, and what moves along."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from nerf_trainer.errors import ConfigError
from nerf_trainer.frames import FrameData
from nerf_trainer.models.base import Predictions
from nerf_trainer.schedules import ParameterReplacement
from nerf_trainer.training.checkpoint import CheckpointStore
from nerf_trainer.training.disk_room import room_notice
from nerf_trainer.training.interruption import RunStoppedError
from nerf_trainer.training.optimizer_factory import ImplicitronOptimizerFactory, carry_over_
from nerf_trainer.training.split_evaluation import SplitEvaluation
from nerf_trainer.training.weight_average import KEY, exchange_
from tests.training.tiny_experiment import experiment
from tests.training.tiny_run import TinyModel

DECAY = 0.7


class Line(nn.Module):
    """Some weights that are pulled towards a noisy target, some that nothing pulls until later."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.linspace(-1.0, 1.0, 5))
        self.late = nn.Parameter(torch.ones(2))


def steps(model: Line, optimizer: torch.optim.Optimizer, n: int, late_from: int) -> list[torch.Tensor]:
    """Take steps; the first parameter after each."""
    generator = torch.Generator().manual_seed(0)
    seen = []
    for step in range(n):
        optimizer.zero_grad()
        loss = (model.slope - torch.randn(5, generator=generator)).square().sum()
        (loss + model.late.square().sum() if step >= late_from else loss).backward()
        optimizer.step()
        seen.append(model.slope.detach().clone())
    return seen


@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize("breed", ["Adam", "SGD", "Adagrad"])
def test_it_is_the_exponential_average_of_the_weights_after_each_step(breed: str, foreach: bool) -> None:
    model = Line()
    optimizer, _ = ImplicitronOptimizerFactory(breed=breed, lr=0.1, average_decay=DECAY, foreach=foreach)(model)
    seen = steps(model, optimizer, 8, late_from=3)
    expected = seen[0]
    for weights in seen[1:]:
        expected = DECAY * expected + (1.0 - DECAY) * weights
    torch.testing.assert_close(optimizer.state[model.slope][KEY], expected)
    assert not torch.equal(expected, seen[-1])
    exchange_(optimizer)
    torch.testing.assert_close(model.slope.detach(), expected)


def test_what_has_no_gradient_keeps_its_weights() -> None:
    model = Line()
    optimizer, _ = ImplicitronOptimizerFactory(lr=0.1, average_decay=DECAY)(model)
    steps(model, optimizer, 4, late_from=9)
    exchange_(optimizer)
    assert torch.equal(model.late.detach(), torch.ones(2))


def test_a_resampled_parameter_takes_its_average_along() -> None:
    model = Line()
    optimizer, _ = ImplicitronOptimizerFactory(lr=0.1, average_decay=DECAY)(model)
    steps(model, optimizer, 4, late_from=0)
    old, average = model.slope, optimizer.state[model.slope][KEY].clone()
    model.slope = nn.Parameter(old.detach().repeat(2))
    carry_over_(optimizer, [ParameterReplacement(old, model.slope, lambda value: value.repeat(2))])
    assert torch.equal(optimizer.state[model.slope][KEY], average.repeat(2))


def test_without_it_nothing_is_kept_and_the_last_weights_stay() -> None:
    model = Line()
    optimizer, _ = ImplicitronOptimizerFactory(lr=0.1)(model)
    (*_, last) = steps(model, optimizer, 4, late_from=0)
    assert all(KEY not in state for state in optimizer.state.values())
    exchange_(optimizer)
    assert torch.equal(model.slope.detach(), last)


def test_it_moves_on_where_gradients_have_ended() -> None:
    model = Line()
    optimizer, _ = ImplicitronOptimizerFactory(breed="SGD", lr=0.1, average_decay=DECAY)(model)
    steps(model, optimizer, 2, late_from=0)
    optimizer.state[model.late][KEY].zero_()
    steps(model, optimizer, 60, late_from=99)
    torch.testing.assert_close(optimizer.state[model.late][KEY], model.late.detach())


def test_the_last_checkpoint_holds_the_average_and_those_before_it_the_weights(tmp_path, monkeypatch) -> None:
    seen = {"validate": [], "test": []}
    for name, models in seen.items():
        monkeypatch.setattr(
            f"nerf_trainer.training.split_evaluation.SplitEvaluation.{name}",
            lambda self, model, step, epoch, models=models: models.append(model.state_dict()["bias"].clone()),
        )
    run = experiment(tmp_path, **AVERAGED, store_checkpoints_purge=0, validation_interval=1, test_when_finished=True)
    run.run()
    found = [CheckpointStore(tmp_path).at_epoch(epoch) for epoch in (2, 3)]
    assert [one.state.step for one in found] == [8, 12]
    assert [one.state.extra["settled"] for one in found] == [False, True]
    (before, kept), (average, weights) = [_loaded(one) for one in found]
    assert not torch.equal(before, kept) and not torch.equal(average, weights)
    assert torch.equal(seen["validate"][1], before)
    assert torch.equal(seen["validate"][2], average) and torch.equal(seen["test"][-1], average)


AVERAGED = {"optimizer": {"average_decay": DECAY}}


def _loaded(checkpoint) -> tuple[torch.Tensor, torch.Tensor]:
    """A parameter of the model, and what the optimizer keeps of it."""
    model = TinyModel()
    checkpoint.load_model(model)
    optimizer, _ = ImplicitronOptimizerFactory(average_decay=DECAY)(model)
    checkpoint.load_optimizer(model, optimizer)
    return model.bias.detach(), optimizer.state[model.bias][KEY]


def _last(folder) -> tuple[torch.Tensor, torch.Tensor]:
    return _loaded(CheckpointStore(folder).latest())


def test_a_finished_run_that_is_extended_equals_a_longer_one(tmp_path) -> None:
    experiment(tmp_path / "longer", **AVERAGED, max_epochs=4).run()
    experiment(tmp_path / "extended", **AVERAGED).run()
    experiment(tmp_path / "extended", **AVERAGED, max_epochs=4).run()
    longer, extended = _last(tmp_path / "longer"), _last(tmp_path / "extended")
    assert all(torch.equal(one, other) for one, other in zip(longer, extended, strict=True))


def _equal(one: Path, other: Path) -> bool:
    return all(torch.equal(*pair) for pair in zip(_last(one), _last(other), strict=True))


def test_a_run_that_is_stopped_in_its_last_validation_can_be_extended(tmp_path, monkeypatch) -> None:
    """Its checkpoint is settled, and its last epoch not counted yet."""
    experiment(tmp_path / "longer", **AVERAGED, validation_interval=1, max_epochs=4).run()
    validate = SplitEvaluation.validate

    def stopped(self: SplitEvaluation, model: nn.Module, step: int, epoch: int) -> None:
        if step == 12:
            os.kill(os.getpid(), signal.SIGTERM)
        validate(self, model, step, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(SplitEvaluation, "validate", stopped)
        with pytest.raises(RunStoppedError):
            experiment(tmp_path / "stopped", **AVERAGED, validation_interval=1).run()
    state = CheckpointStore(tmp_path / "stopped").latest().state
    assert state.step == 12 and state.step_in_epoch == 4 and state.extra["settled"] is True
    experiment(tmp_path / "stopped", **AVERAGED, validation_interval=1, max_epochs=4).run()
    assert _equal(tmp_path / "stopped", tmp_path / "longer")


def test_what_goes_back_to_the_end_of_a_finished_run_goes_on_from_its_weights(tmp_path, monkeypatch) -> None:
    """The first epoch that follows has no finite objective."""
    options = {**AVERAGED, "source": {"n_steps": 12}, "detect_dead_start": False, "metric_print_interval": 3}
    experiment(tmp_path / "longer", **options, max_epochs=4).run()
    experiment(tmp_path / "gone_back", **options, max_epochs=3).run()
    forward, n_bad = TinyModel.forward, 0

    def bad_at_first(self: TinyModel, frames: FrameData) -> Predictions:
        nonlocal n_bad
        out = forward(self, frames)
        if not self.training or n_bad == 12:
            return out
        n_bad += 1
        return replace(out, objective=out.objective * float("nan"))

    monkeypatch.setattr(TinyModel, "forward", bad_at_first)
    experiment(tmp_path / "gone_back", **options, max_epochs=4).run()
    assert n_bad == 12 and _equal(tmp_path / "gone_back", tmp_path / "longer")


def test_a_finished_run_is_tested_later_with_its_average(tmp_path, monkeypatch) -> None:
    experiment(tmp_path, **AVERAGED).run()
    tested = []
    monkeypatch.setattr(
        "nerf_trainer.training.split_evaluation.SplitEvaluation.test",
        lambda self, model, step, epoch: tested.append(model.state_dict()["bias"].clone()),
    )
    experiment(tmp_path, **AVERAGED, test_when_finished=True).run()
    assert len(tested) == 1 and torch.equal(tested[0], _last(tmp_path)[0])


@pytest.mark.parametrize("finished", [2, 3])
def test_a_run_that_keeps_none_any_more_goes_on_from_the_weights(tmp_path, finished: int) -> None:
    experiment(tmp_path / "never", max_epochs=4).run()
    experiment(tmp_path / "before", **AVERAGED, max_epochs=finished).run()
    experiment(tmp_path / "before", max_epochs=4).run()
    models = []
    for name in ("never", "before"):
        model, checkpoint = TinyModel(), CheckpointStore(tmp_path / name).latest()
        checkpoint.load_model(model)
        optimizer, _ = ImplicitronOptimizerFactory()(model)
        checkpoint.load_optimizer(model, optimizer)
        assert all(KEY not in state for state in optimizer.state.values())
        models.append(model.bias.detach())
    assert torch.equal(*models)


def test_it_may_begin_in_a_resumed_run(tmp_path) -> None:
    experiment(tmp_path, max_epochs=2).run()
    experiment(tmp_path, **AVERAGED).run()
    average, weights = _last(tmp_path)
    assert not torch.equal(average, weights)


@pytest.mark.parametrize(("decay", "kept"), [(0.0, 3), (DECAY, 4)])
def test_room_for_it_is_counted_before_the_first_step(tmp_path, monkeypatch, decay: float, kept: int) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=0))
    model = Line()
    optimizer, _ = ImplicitronOptimizerFactory(average_decay=decay)(model)
    n_bytes = kept * sum(4 * p.numel() for p in model.parameters())
    assert f"of about {n_bytes:,} bytes" in (room_notice(tmp_path, model, optimizer, None, keep=2) or "")


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5])
def test_what_is_no_decay_is_refused(decay: float) -> None:
    with pytest.raises(ConfigError, match="average_decay"):
        ImplicitronOptimizerFactory(average_decay=decay)
