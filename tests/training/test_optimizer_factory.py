import pytest
import torch
from torch import nn

from nerf_trainer.errors import ConfigError
from nerf_trainer.schedules import ParameterReplacement
from nerf_trainer.training.optimizer_factory import (
    ImplicitronOptimizerFactory,
    carry_over_,
    lr_multiplier,
    parameter_groups,
)


@pytest.mark.parametrize(("epoch", "expected"), [(0, 1.0), (1, 1.0), (2, 0.5), (3, 0.5), (4, 0.25), (400, 0.25)])
def test_multistep_multiplies_by_gamma_from_each_milestone_on(epoch, expected):
    assert lr_multiplier("multisteplr", epoch, gamma=0.5, milestones=(2, 4)) == expected


@pytest.mark.parametrize(("epoch", "expected"), [(0, 1.0), (10, 0.1), (20, 0.01), (5, 0.1**0.5), (2.5, 0.1**0.25)])
def test_exponential_reaches_gamma_after_step_size_epochs(epoch, expected):
    assert lr_multiplier("Exponential", epoch, gamma=0.1, step_size=10) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [(0, 0.2), (25, 0.2 + 0.8 / 4), (50, 0.6), (99, 0.2 * 0.01 + 0.99), (100, 1.0), (110, 0.1), (120, 0.01)],
)
def test_linear_exponential_warms_up_in_a_line_and_then_decays(epoch, expected):
    rate = lr_multiplier("LINEARexponential", epoch, gamma=0.1, step_size=10, linear_milestone=100, start_gamma=0.2)
    assert rate == pytest.approx(expected, rel=1e-12)


def test_linear_exponential_without_warm_up_starts_at_one():
    assert lr_multiplier("LinearExponential", 0, gamma=0.1, step_size=10, linear_milestone=0) == 1.0


def test_unknown_policy_and_breed_name_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'Exponential'"):
        ImplicitronOptimizerFactory(lr_policy="Exponentail")
    with pytest.raises(ConfigError, match="did you mean 'Adam'"):
        ImplicitronOptimizerFactory(breed="Adm")


def test_schedule_sets_every_group_from_its_own_base_rate():
    model = Grouped()
    factory = ImplicitronOptimizerFactory(
        lr=1.0, gamma=0.1, multistep_lr_milestones=(1,), group_learning_rates={"grid": 4.0, "deep": 2.0}
    )
    optimizer, schedule = factory(model)
    rates = {group["group_name"]: group["lr"] for group in optimizer.param_groups}
    assert rates == {"default": 1.0, "grid": 4.0, "deep": 2.0}
    schedule.set_epoch(1, 0.5)
    rates = {group["group_name"]: group["lr"] for group in optimizer.param_groups}
    assert rates == pytest.approx({"default": 0.1, "grid": 0.4, "deep": 0.2})
    assert schedule.state_dict() == {"epoch": 1.0}


def test_schedule_follows_the_fraction_of_an_epoch_only_when_asked():
    for every_step, expected in ((False, 0.1**1), (True, 0.1**1.5)):
        factory = ImplicitronOptimizerFactory(
            lr=1.0, lr_policy="exponential", exponential_lr_step_size=1, update_every_step=every_step
        )
        _, schedule = factory(nn.Linear(1, 1))
        schedule.set_epoch(1, 0.5)
        assert schedule.learning_rate == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("policy", ["MultiStepLR", "Exponential", "LinearExponential"])
@pytest.mark.parametrize("resume_at", [1, 2, 3])
def test_resumed_rates_equal_uninterrupted_ones(policy, resume_at):
    factory = ImplicitronOptimizerFactory(
        lr_policy=policy,
        multistep_lr_milestones=(2,),
        exponential_lr_step_size=2,
        linear_exponential_lr_milestone=2,
    )
    _, schedule = factory(nn.Linear(1, 1))
    trace = []
    for epoch in range(5):
        schedule.set_epoch(epoch)
        trace.append(schedule.learning_rate)
        if epoch == resume_at:
            saved = schedule.state_dict()
    optimizer, resumed = factory(nn.Linear(1, 1))
    optimizer.param_groups[0]["lr"] = 123.0  # a checkpoint's rate, already decayed, must not be decayed again
    resumed.load_state_dict(saved)
    again = [resumed.learning_rate]
    for epoch in range(resume_at + 1, 5):
        resumed.set_epoch(epoch)
        again.append(resumed.learning_rate)
    assert again == trace[resume_at:]


class Branch(nn.Module):
    def __init__(self, param_groups=None):
        super().__init__()
        self.grid = nn.Parameter(torch.zeros(2))
        self.rest = nn.Parameter(torch.zeros(3))
        if param_groups is not None:
            self.param_groups = param_groups


class Grouped(nn.Module):
    """Says where its children's parameters belong; one child disagrees for a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.own = nn.Parameter(torch.zeros(1))
        self.frozen = nn.Parameter(torch.zeros(1), requires_grad=False)
        self.left = Branch()
        self.right = Branch({"self": "default", "grid": "grid"})
        self.left_again = self.left
        self.param_groups = {"left.grid": "deep", "right": "deep", "right.rest": "deep"}


def test_groups_follow_the_modules_words_and_a_child_beats_its_parent():
    model = Grouped()
    groups = parameter_groups(model)
    ids = {name: {id(p) for p in params} for name, params in groups.items()}
    assert ids["grid"] == {id(model.right.grid)}
    assert ids["deep"] == {id(model.left.grid), id(model.right.rest)}
    assert ids["default"] == {id(model.own), id(model.left.rest)}


def test_group_without_learning_rate_is_a_config_error():
    with pytest.raises(ConfigError, match="parameter group 'grid'"):
        ImplicitronOptimizerFactory(group_learning_rates={"deep": 1.0})(Grouped())


def test_model_hook_wins():
    class Chooses(Grouped):
        def _get_param_groups(self, lr, wd):
            return [{"params": [self.own], "lr": 10 * lr, "weight_decay": wd}]

    optimizer, _ = ImplicitronOptimizerFactory(lr=0.5, weight_decay=0.25)(Chooses())
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [(5.0, 0.25)]


@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize("breed", ["Adam", "SGD", "Adagrad"])
def test_first_step_is_the_textbooks(breed, foreach):
    weight, gradient, lr, decay = 2.0, 0.5, 0.1, 0.01
    model = nn.Module()
    model.w = nn.Parameter(torch.tensor([weight]))
    optimizer, _ = ImplicitronOptimizerFactory(breed=breed, lr=lr, weight_decay=decay, foreach=foreach)(model)
    model.w.grad = torch.tensor([gradient])
    optimizer.step()
    full = gradient + decay * weight
    # Adam's bias-corrected first step and Adagrad's are lr * sign(gradient); SGD's is lr * gradient.
    expected = weight - (lr * full if breed == "SGD" else lr)
    assert model.w.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("breed", ["Adam", "SGD", "Adagrad"])
def test_replacement_resamples_moments_and_keeps_the_step(breed):
    model = nn.Module()
    model.grid = nn.Parameter(torch.tensor([1.0, 3.0]))
    model.other = nn.Parameter(torch.tensor([1.0]))
    optimizer, _ = ImplicitronOptimizerFactory(breed=breed, lr=0.1)(model)
    for _ in range(3):
        (model.grid.square().sum() + model.other.square().sum()).backward()
        optimizer.step()
    old, before = model.grid, {key: value.clone() for key, value in optimizer.state[model.grid].items()}
    other_before = optimizer.state[model.other]

    def resample(value):
        return torch.nn.functional.interpolate(value[None, None], size=3, mode="linear", align_corners=True)[0, 0]

    model.grid = nn.Parameter(resample(old.detach()))
    carry_over_(optimizer, [ParameterReplacement(old, model.grid, resample)])
    state = optimizer.state[model.grid]
    assert old not in optimizer.state and optimizer.state[model.other] is other_before
    assert any(parameter is model.grid for parameter in optimizer.param_groups[0]["params"])
    for key, value in before.items():
        if key == "step":
            assert state[key] == value
        else:
            low, high = value.tolist()
            assert state[key].tolist() == pytest.approx([low, (low + high) / 2, high])
            assert state[key].abs().sum() > 0
    (model.grid.square().sum()).backward()
    optimizer.step()
    assert model.grid.isfinite().all()


def test_replacement_of_an_unknown_parameter_changes_nothing():
    model = nn.Linear(2, 1)
    optimizer, _ = ImplicitronOptimizerFactory()(model)
    stranger = nn.Parameter(torch.zeros(2))
    carry_over_(optimizer, [ParameterReplacement(stranger, nn.Parameter(torch.zeros(3)), lambda t: t)])
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in model.parameters()}


def test_resampling_to_a_wrong_shape_is_refused():
    model = nn.Linear(2, 1)
    optimizer, _ = ImplicitronOptimizerFactory()(model)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    with pytest.raises(ValueError, match="resampled"):
        carry_over_(optimizer, [ParameterReplacement(model.weight, nn.Parameter(torch.zeros(1, 3)), lambda t: t)])


def test_eps_is_adams():
    """A gradient as small as eps moves a weight by half of the rate, and eps of 1e-15 leaves it the whole of it."""
    for eps, moved in ((1e-8, 0.05), (1e-15, 0.1)):
        model = nn.Module()
        model.w = nn.Parameter(torch.tensor([2.0]))
        optimizer, _ = ImplicitronOptimizerFactory(lr=0.1, eps=eps)(model)
        model.w.grad = torch.tensor([1e-8])
        optimizer.step()
        assert model.w.item() == pytest.approx(2.0 - moved, abs=1e-5)
    with pytest.raises(ConfigError, match=r"eps: -1\.0 is negative"):
        ImplicitronOptimizerFactory(eps=-1.0)


@pytest.mark.parametrize("resumed", [False, True])
def test_a_gradient_may_come_late_to_fused_sgd(resumed):
    """As it may to one that updates one parameter after another; in a run that goes on from a checkpoint too."""
    ends = []
    for foreach in (True, False):
        model = Branch()
        factory = ImplicitronOptimizerFactory(breed="SGD", lr=0.1, momentum=0.9, foreach=foreach)
        optimizer, _ = factory(model)
        for step in range(6):
            model.grid.grad = torch.full((2,), 1.0 + step)
            model.rest.grad = torch.full((3,), 2.0) if step >= 4 else None
            optimizer.step()
            if resumed and step == 2:
                state = optimizer.state_dict()
                index = len(state["state"]) - 1 if foreach else None
                if index is not None:
                    del state["state"][index]  # as checkpoints leave out what holds nothing, or older ones had it
                optimizer, _ = factory(model)
                optimizer.load_state_dict(state)
        ends.append((model.grid.detach(), model.rest.detach()))
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))
