"""The average of the weights: what it is, that it takes their place at the end, and what moves along."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from nerf_trainer.errors import ConfigError
from nerf_trainer.schedules import ParameterReplacement
from nerf_trainer.training.checkpoint import CheckpointStore
from nerf_trainer.training.disk_room import room_notice
from nerf_trainer.training.optimizer_factory import ImplicitronOptimizerFactory, carry_over_
from nerf_trainer.training.weight_average import KEY, take_average_
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
    take_average_(optimizer)
    torch.testing.assert_close(model.slope.detach(), expected)


def test_what_has_no_gradient_keeps_its_weights() -> None:
    model = Line()
    optimizer, _ = ImplicitronOptimizerFactory(lr=0.1, average_decay=DECAY)(model)
    steps(model, optimizer, 4, late_from=9)
    take_average_(optimizer)
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
    take_average_(optimizer)
    assert torch.equal(model.slope.detach(), last)


def test_the_last_checkpoint_holds_the_average_and_those_before_it_the_weights(tmp_path, monkeypatch) -> None:
    tested = []
    monkeypatch.setattr(
        "nerf_trainer.training.split_evaluation.SplitEvaluation.test",
        lambda self, model, step, epoch: tested.append(model.state_dict()["bias"].clone()),
    )
    run = experiment(tmp_path, optimizer={"average_decay": DECAY}, store_checkpoints_purge=0, test_when_finished=True)
    run.run()
    found = [CheckpointStore(tmp_path).at_epoch(epoch) for epoch in (2, 3)]
    assert [one.state.step for one in found] == [8, 12]
    weights, averages = zip(*(_loaded(one) for one in found), strict=True)
    assert not torch.equal(weights[0], averages[0])
    assert torch.equal(weights[1], averages[1]) and torch.equal(tested[-1], weights[1])


def _loaded(checkpoint) -> tuple[torch.Tensor, torch.Tensor]:
    """A parameter's weights and its average."""
    model = TinyModel()
    checkpoint.load_model(model)
    optimizer, _ = ImplicitronOptimizerFactory(average_decay=DECAY)(model)
    checkpoint.load_optimizer(model, optimizer)
    return model.bias.detach(), optimizer.state[model.bias][KEY]


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
