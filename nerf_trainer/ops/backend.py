"""Which implementation of a fast op runs: its Triton kernels, or its twin in plain torch.

Every fast op asks `uses_triton` with the tensors that it was given. Triton comes with torch's CUDA builds; where it is
missing, on the CPU, or where the user says so, the twins of `ops/reference` run, which compute the same.
"""

import functools
import importlib.util
import os
from enum import Enum

import torch
from torch import Tensor


class Kernels(Enum):
    """What fast ops run."""

    auto = "auto"
    """Triton kernels on a CUDA device that has Triton, else plain torch."""
    triton = "triton"
    """Triton kernels; an error where there are none."""
    torch = "torch"
    """Plain torch everywhere."""


_chosen = Kernels.auto


def choose_kernels(kernels: Kernels) -> None:
    """Set what fast ops of this process run from now on."""
    global _chosen
    _chosen = kernels


def chosen_kernels() -> Kernels:
    """What `choose_kernels` was told last."""
    return _chosen


@functools.cache
def has_triton() -> bool:
    """Whether Triton can be imported."""
    return importlib.util.find_spec("triton") is not None


def is_interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter, on the CPU, which is for tests: it is slow."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def uses_triton(tensor: Tensor) -> bool:
    """Whether ops on `tensor` run their Triton kernels. These compute in float32 at most: float64 is the twins'.

    Raises:
        RuntimeError: they were asked for where they can't run.
    """
    if _chosen is Kernels.torch or tensor.dtype is torch.float64:
        return False
    can_run = has_triton() and (tensor.is_cuda or is_interpreted())
    if _chosen is Kernels.triton and not can_run:
        found = f"tensors on {tensor.device}" if has_triton() else "no Triton"
        raise RuntimeError(f"kernels: triton, but found {found}; expected a CUDA device with Triton, or kernels=auto")
    return can_run if _chosen is Kernels.triton else can_run and tensor.is_cuda
