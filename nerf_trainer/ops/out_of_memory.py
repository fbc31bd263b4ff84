"""What a lack of memory looks like, on a GPU and on a CPU, and who is to be told.

torch has a type for it on GPUs alone: the CPU's allocator and the libraries on a GPU raise RuntimeError.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch

from nerf_trainer.errors import ConfigError

_SAID = ("out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""By errors that have no type of their own."""


def lack_of_memory(error: BaseException) -> str | None:
    """In a few words how memory ran out, if that is what an error is about."""
    said = str(error)
    typed = isinstance(error, torch.OutOfMemoryError | MemoryError)
    if not typed and not (isinstance(error, RuntimeError) and any(words in said for words in _SAID)):
        return None
    return next(iter(said.splitlines()), type(error).__name__)[:120]


@contextlib.contextmanager
def naming_lack_of_memory(line: Callable[[str], str]) -> Iterator[None]:
    """Turns a lack of memory within into the user's error.

    Args:
        line: makes the message, from a few words about how memory ran out.

    Raises:
        ConfigError: memory ran out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        found = lack_of_memory(error)
        if found is None:
            raise
        raise ConfigError(line(found)) from error
