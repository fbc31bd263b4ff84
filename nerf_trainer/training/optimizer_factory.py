"""Optimizers, their parameter groups and their learning rates over time.

The schedule is a pure function of the epoch: resuming needs the epoch's number and replays nothing.
"""

import contextlib
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from torch.optim import Optimizer

from nerf_trainer.config import ReplaceableBase, registry
from nerf_trainer.errors import ConfigError, unknown_name
from nerf_trainer.schedules import ParameterReplacement
from nerf_trainer.training import eager_optimizers
from nerf_trainer.training.weight_average import keep_average_

DEFAULT_GROUP = "default"
"""The group of every parameter that no module claims; its learning rate is the optimizer's own."""

LR_POLICIES = ("MultiStepLR", "Exponential", "LinearExponential")
"""How a learning rate may change; the spelling of upper and lower case is free."""

BREEDS = ("Adam", "SGD", "Adagrad")
"""The optimizers."""

_NEVER_NEGATIVE = ("exp_avg_sq", "max_exp_avg_sq", "sum")
"""Optimizer states that are sums or means of squares: resampling must not take them below zero."""


@runtime_checkable
class ChoosesParameterGroups(Protocol):
    """A model that makes its own parameter groups; what it says wins over the groups of its modules."""

    def _get_param_groups(self, lr: float, wd: float) -> list[dict[str, Any]]:
        """Groups as torch's optimizers take them, given the learning rate and the weight decay of the configuration."""
        ...


@runtime_checkable
class NamesParameterGroups(Protocol):
    """A module that puts parameters into named groups."""

    param_groups: Mapping[str, str]
    """Group names by what they hold: "self" (the whole module), a parameter, a child, or a dotted path below it."""


def lr_multiplier(
    policy: str,
    epoch: float,
    *,
    gamma: float,
    milestones: Sequence[int] = (),
    step_size: float = 250,
    linear_milestone: float = 200,
    start_gamma: float = 0.1,
) -> float:
    """What the learning rate is multiplied by at `epoch`, in closed form.

    - MultiStepLR: gamma ** (number of milestones reached).
    - Exponential: gamma ** (epoch / step_size).
    - LinearExponential: rises in a straight line from `start_gamma` at epoch 0 to 1 at `linear_milestone`, then decays
      as gamma ** ((epoch - linear_milestone) / step_size).

    Args:
        policy: one of LR_POLICIES, in any case.
        epoch: epochs done, from 0; a fraction says how far the current one has come.

    Raises:
        ConfigError: there is no such policy.
    """
    kind = policy.lower()
    if kind == "multisteplr":
        return gamma ** sum(epoch >= milestone for milestone in milestones)
    if kind == "exponential":
        return gamma ** (epoch / step_size)
    if kind == "linearexponential":
        if epoch < linear_milestone:
            return start_gamma + (1.0 - start_gamma) * (epoch / linear_milestone)
        return gamma ** ((epoch - linear_milestone) / step_size)
    raise ConfigError(f"lr_policy: {unknown_name(policy, 'is not a policy', LR_POLICIES)}")


class LearningRateSchedule:
    """Sets the learning rate of each group to its base rate times a function of the epoch.

    A rate that is a tensor (see `rates_to_device_`) is written into; the tensor stays the same and nothing is read.

    Args:
        optimizer: whose groups are set; their rates at this moment are the base rates.
        multiplier: maps an epoch (fractions allowed) to what the base rates are multiplied by.
        update_every_step: follow the multiplier within an epoch as well, not only at its start.
    """

    def __init__(
        self, optimizer: Optimizer, multiplier: Callable[[float], float], update_every_step: bool = False
    ) -> None:
        self._optimizer = optimizer
        self._multiplier = multiplier
        self._base_rates = [float(group["lr"]) for group in optimizer.param_groups]
        self.update_every_step = update_every_step
        self.epoch = 0.0
        self._factor: float | None = None
        self.set_epoch(0)

    def set_epoch(self, epoch: int, fraction: float = 0.0) -> None:
        """Set the rates for `epoch` (from 0), of which `fraction` (in [0, 1)) is done."""
        self.epoch = epoch + fraction if self.update_every_step else float(epoch)
        factor = self._multiplier(self.epoch)
        if factor == self._factor:
            return
        self._factor = factor
        for group, rate in zip(self._optimizer.param_groups, self._base_rates, strict=True):
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate * factor)
            else:
                group["lr"] = rate * factor

    def scale(self, factor: float) -> None:
        """Multiply all base rates, from now on."""
        self._base_rates = [rate * factor for rate in self._base_rates]
        self._factor = None

    @property
    def learning_rate(self) -> float:
        """The rate of the first group, which a log shows."""
        return self._base_rates[0] * (1.0 if self._factor is None else self._factor)

    def state_dict(self) -> dict[str, float]:
        """All there is to save: the epoch."""
        return {"epoch": self.epoch}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Continue from a saved epoch, with the base rates and the function of the present configuration."""
        self.epoch = float(state["epoch"])
        whole = int(self.epoch)
        self._factor = None  # the optimizer's groups may have been loaded too
        self.set_epoch(whole, self.epoch - whole)


def parameter_groups(module: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Trainable parameters by group name, in the order of the modules; a shared parameter appears once.

    A module's `param_groups` (see `NamesParameterGroups`) speaks for what is below it; a child's own word beats its
    parent's.
    """
    groups: dict[str, list[nn.Parameter]] = {}
    seen: set[int] = set()

    def visit(part: nn.Module, inherited: str, said: dict[str, str]) -> None:
        if isinstance(part, NamesParameterGroups):
            said = {**said, **part.param_groups}
            inherited = part.param_groups.get("self", inherited)
        for name, parameter in part.named_parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                groups.setdefault(said.get(name, inherited), []).append(parameter)
        for name, child in part.named_children():
            below = {key.removeprefix(f"{name}."): group for key, group in said.items() if key.startswith(f"{name}.")}
            visit(child, said.get(name, inherited), below)

    visit(module, DEFAULT_GROUP, {})
    return groups


def carry_over_(optimizer: Optimizer, replacements: Iterable[ParameterReplacement]) -> None:
    """Put new parameters in the places of old ones, in place: same group, same step count, moments resampled.

    A replaced parameter that the optimizer doesn't hold (a frozen one) is left alone.

    Raises:
        ValueError: a resampled moment hasn't the new parameter's shape.
    """
    for replacement in replacements:
        old, new = replacement.old, replacement.new
        for group in optimizer.param_groups:
            group["params"] = [new if parameter is old else parameter for parameter in group["params"]]
        state = optimizer.state.pop(old, None)
        if state is None:
            continue
        optimizer.state[new] = {}
        for key, value in state.items():
            if key != "step" and isinstance(value, torch.Tensor) and value.shape == old.shape:
                value = replacement.resample(value).detach()
                if value.shape != new.shape:
                    raise ValueError(f"{key} was resampled to {tuple(value.shape)}, not {tuple(new.shape)}")
                if key in _NEVER_NEGATIVE:
                    value = value.clamp(min=0)
            optimizer.state[new][key] = value


class OptimizerFactoryBase(ReplaceableBase):
    """Makes the optimizer of a model and the schedule of its learning rate."""

    @abstractmethod
    def __call__(self, model: nn.Module) -> tuple[Optimizer, LearningRateSchedule]:
        """An optimizer over the trainable parameters of `model`, which lies on its device already, at epoch 0."""


@registry.register
class ImplicitronOptimizerFactory(OptimizerFactoryBase):
    """Adam, SGD or Adagrad with one of three learning rate policies and named parameter groups."""

    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's decay rates of the first and the second moment."""
    eps: float = 1e-8
    """What Adam adds to the root of the second moment; hash tables, whose gradients are tiny, want 1e-15."""
    breed: str = "Adam"
    """The optimizer: Adam, SGD or Adagrad."""
    exponential_lr_step_size: int = 250
    """Epochs in which the exponential policies multiply the rate by `gamma`."""
    gamma: float = 0.1
    """What the rate is multiplied by at each milestone, or each `exponential_lr_step_size` epochs."""
    lr: float = 0.0005
    """Learning rate of the default group before the policy's multiplier."""
    lr_policy: str = "MultiStepLR"
    """MultiStepLR, Exponential or LinearExponential; upper or lower case."""
    momentum: float = 0.9
    """Momentum of SGD."""
    multistep_lr_milestones: tuple[int, ...] = ()
    """Epochs from which MultiStepLR multiplies the rate by `gamma` once more."""
    weight_decay: float = 0.0
    """Weight of the L2 penalty that the optimizer adds to the gradients."""
    linear_exponential_lr_milestone: int = 200
    """Epochs over which LinearExponential warms up."""
    linear_exponential_start_gamma: float = 0.1
    """Multiplier at the start of LinearExponential's warm-up."""
    foreach: bool = True
    """Update all parameters at once, fused into one kernel where torch has one. False: one parameter after another."""
    group_learning_rates: dict[str, float] = field(default_factory=dict)
    """Learning rates of the parameter groups that the model's modules name."""
    update_every_step: bool = False
    """Evaluate the policy at each step, at the fraction of the epoch that is done, as the original NeRF does."""
    average_decay: float = 0.0
    """Decay of an exponential average of the weights, as 0.99, which takes their place after the last step; 0: none."""

    def __post_init__(self) -> None:
        if self.breed not in BREEDS:
            raise ConfigError(f"breed: {unknown_name(self.breed, 'is not an optimizer', BREEDS)}")
        if self.lr_policy.lower() not in [policy.lower() for policy in LR_POLICIES]:
            raise ConfigError(f"lr_policy: {unknown_name(self.lr_policy, 'is not a policy', LR_POLICIES)}")
        rates = {"lr": self.lr, **{f"group_learning_rates.{k}": v for k, v in self.group_learning_rates.items()}}
        for key, rate in rates.items():
            if rate < 0:
                raise ConfigError(f"{key}: {rate} is negative; a learning rate is 0 or more")
        if not 0.0 <= self.average_decay < 1.0:
            raise ConfigError(f"average_decay: {self.average_decay}; expected 0 (no average) or more, below 1, as 0.99")
        if self.eps < 0:
            raise ConfigError(f"eps: {self.eps} is negative; expected 0 or more, as 1e-8")
        if self.exponential_lr_step_size <= 0:
            raise ConfigError(f"exponential_lr_step_size: {self.exponential_lr_step_size} epochs; expected at least 1")

    def __call__(self, model: nn.Module) -> tuple[Optimizer, LearningRateSchedule]:
        """See the base class.

        Raises:
            ConfigError: a module names a group that has no learning rate, or nothing can be trained.
        """
        if isinstance(model, ChoosesParameterGroups):
            groups = model._get_param_groups(self.lr, wd=self.weight_decay)
        else:
            named = parameter_groups(model)
            groups = [
                {"params": params, "lr": self._group_rate(name), "group_name": name} for name, params in named.items()
            ]
        if not any(group["params"] for group in groups):
            raise ConfigError("the model has no trainable parameter; only eval_only=True makes sense of it")
        optimizer = self._optimizer(groups)
        rates_to_device_(optimizer)
        if self.average_decay > 0.0:
            keep_average_(optimizer, self.average_decay)
        return optimizer, LearningRateSchedule(optimizer, self.multiplier, self.update_every_step)

    def multiplier(self, epoch: float) -> float:
        """`lr_multiplier` of this configuration."""
        return lr_multiplier(
            self.lr_policy,
            epoch,
            gamma=self.gamma,
            milestones=self.multistep_lr_milestones,
            step_size=self.exponential_lr_step_size,
            linear_milestone=self.linear_exponential_lr_milestone,
            start_gamma=self.linear_exponential_start_gamma,
        )

    def _group_rate(self, name: str) -> float:
        if name in self.group_learning_rates:
            return self.group_learning_rates[name]
        if name == DEFAULT_GROUP:
            return self.lr
        raise ConfigError(
            f"group_learning_rates: the model has a parameter group '{name}' without a learning rate; add "
            f"'{name}: <rate>' to the optimizer factory's group_learning_rates (it has {self.group_learning_rates})"
        )

    def _optimizer(self, groups: list[dict[str, Any]]) -> Optimizer:
        parameters = [parameter for group in groups for parameter in group["params"]]
        fused = self.foreach and can_fuse(self.breed, parameters)
        how: dict[str, Any] = {"fused": True} if fused else {"foreach": self.foreach}
        how["weight_decay"] = self.weight_decay
        if self.breed == "Adam":
            return eager_optimizers.Adam(groups, lr=self.lr, betas=self.betas, eps=self.eps, **how)
        if self.breed == "SGD":
            optimizer = eager_optimizers.SGD(groups, lr=self.lr, momentum=self.momentum, **how)
            if fused and self.momentum != 0:
                _fill_momentum_(optimizer)
                optimizer.register_load_state_dict_post_hook(_fill_momentum_)
            return optimizer
        return eager_optimizers.Adagrad(groups, lr=self.lr, **how)


def _fill_momentum_(optimizer: Optimizer) -> None:
    """Give parameters that had no gradient yet a momentum of 0: torch's fused SGD fails where the first comes later."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(parameter)


def can_fuse(breed: str, parameters: Sequence[nn.Parameter]) -> bool:
    """Whether torch has a fused kernel of this optimizer for these parameters."""
    devices = {parameter.device.type for parameter in parameters}
    plain = all(parameter.is_floating_point() for parameter in parameters)
    return plain and (devices == {"cpu"} or (devices == {"cuda"} and breed != "Adagrad"))


def rates_to_device_(optimizer: Optimizer) -> None:
    """Make the learning rates of a fused optimizer on CUDA scalars of the device, in place.

    Its kernels read them there, so that a captured step follows a schedule that writes new values into them.
    """
    if not skips_on_device(optimizer):
        return
    for group in optimizer.param_groups:
        device = group["params"][0].device if group["params"] else torch.device("cpu")
        if device.type == "cuda":
            group["lr"] = torch.tensor(float(group["lr"]), dtype=torch.float32, device=device)


def follows_rates_on_device(optimizer: Optimizer) -> bool:
    """Whether the optimizer runs on the device alone, its learning rates included (see `rates_to_device_`)."""
    rates = [group["lr"] for group in optimizer.param_groups if group["params"]]
    return skips_on_device(optimizer) and all(isinstance(rate, torch.Tensor) and rate.is_cuda for rate in rates)


@contextlib.contextmanager
def while_captured(optimizer: Optimizer) -> Iterator[None]:
    """Let torch's Adam be captured within. Its fused kernels need nothing for that but to be told; outside of captures
    it would complain of having been told.
    """
    groups = [group for group in optimizer.param_groups if group.get("capturable") is False]
    for group in groups:
        group["capturable"] = True
    try:
        yield
    finally:
        for group in groups:
            group["capturable"] = False


def skips_on_device(optimizer: Optimizer) -> bool:
    """Whether the optimizer can skip a step by itself, given a flag that lies on the device (`found_inf`)."""
    return bool(optimizer.defaults.get("fused"))
