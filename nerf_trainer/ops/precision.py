"""Where float32 has to mean float32."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_float32(device_type: str) -> Iterator[None]:
    """Products of float32 matrices with all of their 24 bits: no autocast, and no TF32 (11 bits) on a GPU.

    `torch.autocast(enabled=False)` alone leaves TF32 as it is. The setting is the process's and is put back at the end,
    also after an error. A backward pass that runs later has the process's own precision again; derivatives taken
    within have this one. Blocks may be nested. Inputs have to be float32 already.

    Args:
        device_type: of the tensors within, as `tensor.device.type`.
    """
    reduced = device_type == "cuda" and torch.backends.cuda.matmul.allow_tf32
    with torch.autocast(device_type, enabled=False):
        if not reduced:
            yield
            return
        torch.backends.cuda.matmul.allow_tf32 = False
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32 = True
