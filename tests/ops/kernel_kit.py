"""Tests of Triton kernels against their twins in plain torch: on a CUDA device, or in Triton's interpreter.

Where there is no Triton, which has no build for every Python and machine, tests are skipped once they ask for kernels.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import pytest
import torch

from nerf_trainer.ops.backend import Kernels, choose_kernels, chosen_kernels, has_triton

INTERPRET = "TRITON_INTERPRET"
NO_TRITON = "needs Triton, which is not installed"
needs_triton = pytest.mark.skipif(not has_triton(), reason=NO_TRITON)
"""For tests that import modules of kernels themselves; others are skipped by `triton_kernels`."""


def device_for_kernels() -> torch.device:
    """Where kernels can run here, or their twins where there is no Triton.

    Ask before anything imports Triton: it decides then whether to interpret, for as long as the process lives. So a
    process whose kernels are interpreted has no CUDA device, and its environment says so from here on.
    """
    if torch.cuda.is_available():
        return torch.device("cuda")
    if has_triton():
        os.environ[INTERPRET] = "1"
        _mend_interpreter()
    return torch.device("cpu")


@cache
def _mend_interpreter() -> None:
    """Lets kernels loop up to a loaded value: numpy 2.4 no longer takes an array of one element for a number."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patch_and_mend(tensor, scope) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patch_and_mend


@contextmanager
def kernels(choice: Kernels) -> Iterator[None]:
    """Fast ops run these kernels within."""
    before = chosen_kernels()
    choose_kernels(choice)
    try:
        yield
    finally:
        choose_kernels(before)


@contextmanager
def triton_kernels() -> Iterator[None]:
    """Fast ops run their Triton kernels within, interpreted where there is no CUDA device; skips without Triton."""
    if not has_triton():
        pytest.skip(NO_TRITON)
    device_for_kernels()
    with kernels(Kernels.triton):
        yield


@contextmanager
def torch_twins() -> Iterator[None]:
    """Fast ops run their twins within."""
    with kernels(Kernels.torch):
        yield
