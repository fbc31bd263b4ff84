"""How much memory something takes at its peak."""

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def memory_grows_by_less_than(mib: int) -> Iterator[None]:
    """Fails where the process takes more at some moment within than it had before, whatever it once took earlier."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the highest so far is forgotten
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    assert grown < mib, f"{grown} MiB more"
