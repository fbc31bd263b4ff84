"""Deterministic mode: the same bits from run to run on one GPU. The one place that says what our ops do about it.

`deterministic=true` is `torch.use_deterministic_algorithms`: torch's operations then take a deterministic algorithm, or
raise an error. Our own kernels don't know of that, and some of torch's have none, so that these ops ask here:

| op | otherwise on a GPU | in deterministic mode |
|---|---|---|
| hash_encode, gradient of the table | atomic additions | sorted sums, level by level (`index_add`) |
| vm_components, gradients of the factors | atomic additions | factor by factor, by interpolate_grid |
| interpolate_grid, linear, its gradients | grid_sample: atomic additions | sums within a cell, then over corners |
| features of source views, linear, their gradients | the same | the same, view by view |
| running sums (compositing, resampling, packed rays in plain torch) | torch.cumsum | by doubling |

All other kernels of ours sum within a block in a fixed order, and over blocks with torch.sum; none is tuned by times.
The rest is refused: the gradients of grids that are interpolated by the nearest node, continued by their mirror image,
or one node wide, and what else of torch's a model or a plug-in calls that has no such algorithm. Torch raises an error
where that is called for the first time, in the first step as a rule, and `naming_what_is_not` turns it into one that
says what to do.
"""

import contextlib
import re
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from nerf_trainer.errors import ConfigError

_NO_IMPLEMENTATION = re.compile(r"(\S+) does not have a deterministic implementation")
_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


def must_be_deterministic(tensor: Tensor) -> bool:
    """Whether ops on `tensor` have to give the same bits from run to run where they would not by themselves."""
    return tensor.is_cuda and torch.are_deterministic_algorithms_enabled()


def running_sum(values: Float[Tensor, "*n"], dim: int) -> Float[Tensor, "*n"]:
    """`torch.cumsum`, in deterministic mode too. Differentiable."""
    return _doubled_sum(values, dim) if must_be_deterministic(values) else torch.cumsum(values, dim=dim)


def _doubled_sum(values: Float[Tensor, "*n"], dim: int) -> Float[Tensor, "*n"]:
    """Sums of 1, 2, 4, ... neighbours up to each place (Hillis and Steele 1986)."""
    n, reach, total = values.shape[dim], 1, values
    while reach < n:
        before = torch.zeros_like(total.narrow(dim, 0, reach))
        total = total + torch.cat([before, total.narrow(dim, 0, n - reach)], dim=dim)
        reach *= 2
    return total


@contextlib.contextmanager
def naming_what_is_not() -> Iterator[None]:
    """Turns torch's error about an operation that has no deterministic algorithm into the user's.

    Raises:
        ConfigError: such an operation ran within.
    """
    try:
        yield
    except RuntimeError as error:
        if not torch.are_deterministic_algorithms_enabled():
            raise
        found = _NO_IMPLEMENTATION.search(str(error))
        if found is None and _CUBLAS not in str(error):
            raise
        if found is None:
            raise ConfigError(
                f"deterministic: true, but the environment variable {_CUBLAS} lets cuBLAS choose; expected :4096:8;"
                " unset it, or set deterministic=false"
            ) from error
        raise ConfigError(
            f"deterministic: true, but {found[1]} has no deterministic algorithm on this device; expected a"
            " configuration without it: set deterministic=false, change the component that calls it"
            " (NERF_TRAINER_DEBUG=1 shows where), or train on the CPU"
        ) from error
