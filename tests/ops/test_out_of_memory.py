"""What counts as a lack of memory."""

import pytest
import torch

from nerf_trainer.errors import ConfigError
from nerf_trainer.ops.out_of_memory import lack_of_memory, naming_lack_of_memory


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB\nsecond line"), "CUDA out of memory. Tried 2 GiB"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you"),
            "DefaultCPUAllocator: can't allocate memory: you",
        ),
        (MemoryError(), "MemoryError"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
        (ValueError("out of memory"), None),
    ],
)
def test_errors_about_memory(error: Exception, found: str | None):
    assert lack_of_memory(error) == found
    raised = pytest.raises(type(error)) if found is None else pytest.raises(ConfigError, match="no room: ")
    with raised, naming_lack_of_memory(lambda words: f"no room: {words}"):
        raise error


def test_what_a_cpu_says():
    with pytest.raises(ConfigError, match="memory"), naming_lack_of_memory(str):
        torch.empty(2**50)
