"""An exponential moving average of the weights over the steps (Polyak and Juditsky 1992), for the end of training.

With a learning rate that has not fallen far, weights go to and fro around what they learn; their average does not. It
is kept in the optimizer's state, so that checkpoints hold it, a resumed run goes on with it, parameters that are
resampled take it along, and a captured step updates it.
"""

from functools import partial
from typing import Any

import torch
from torch.optim import Optimizer

KEY = "average"
"""The average's key in the optimizer's state of a parameter."""


def keep_average_(optimizer: Optimizer, decay: float) -> None:
    """From now on, average the weights after each step: average += (1 - decay) (weights - average).

    It begins with the weights after a parameter's first step. Where a fused optimizer skips a step on the device, the
    average moves on towards weights that stood still; where the host skips it, it stands still too.

    Args:
        optimizer: whose parameters' averages are kept, from the first gradient of each.
        decay: in (0, 1); about the last 1 / (1 - decay) steps count.
    """
    optimizer.register_step_post_hook(partial(_update_, decay))
    optimizer.defaults[KEY] = decay  # what a checkpoint's state doesn't replace: this says what was configured


def keeps_average(optimizer: Optimizer) -> bool:
    """Whether averages are kept."""
    return KEY in optimizer.defaults


@torch.no_grad()
def _update_(decay: float, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    averages, weights = [], []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            begun = KEY in optimizer.state.get(parameter, ())
            if not begun and parameter.grad is None:  # Adam makes its own state where there is none at all
                continue
            state = optimizer.state[parameter]
            if not begun:
                state[KEY] = parameter.detach().clone()
            averages.append(state[KEY])
            weights.append(parameter.detach())
    if averages:
        torch._foreach_lerp_(averages, weights, 1.0 - decay)


@torch.no_grad()
def exchange_(optimizer: Optimizer) -> None:
    """Let weights and their averages change places; weights without an average stay. Twice is not at all."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            average = optimizer.state.get(parameter, {}).get(KEY)
            if average is not None:
                weights = parameter.detach().clone()
                parameter.copy_(average)
                average.copy_(weights)


def drop_average_(optimizer: Optimizer) -> None:
    """Forget averages, as those of a checkpoint that was written when they were kept."""
    for state in optimizer.state.values():
        state.pop(KEY, None)
