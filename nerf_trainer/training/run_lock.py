"""One run at a time in a folder: a lock that the system lets go of when its holder dies, and a sign of life.

The holder locks `.lock` (flock), which names it, and touches the file every second. Between processes of one machine
the lock alone decides. Some network file systems have no locks, or keep them within a machine: there a newcomer watches
the file while it names somebody. As soon as the file is touched the folder is in use; when nothing touches it for a
while its holder is dead. Nobody's clock is asked, so clocks may differ.
"""

import contextlib
import fcntl
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from nerf_trainer.errors import CheckpointError, StorageError

logger = logging.getLogger(__name__)

FILE_NAME = ".lock"

BEAT_S = 1.0
"""Seconds between two signs of life."""

SILENCE_S = 30.0
"""Seconds without a sign of life after which a holder on another machine counts as dead."""

_POLL_S = 0.1
_SETTLING_S = 0.5
_HOLDER = re.compile(r"process (\d+) on (.+)")


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold the run's folder for this process; it is free again when the process ends, however that is.

    Where the file system's locks don't reach the machine of a run that died without a word, this waits until that has
    been silent for `SILENCE_S`. A machine that sleeps for longer than that, and wakes, is not kept from going on.

    Raises:
        CheckpointError: another process has it.
        StorageError: the lock's file can't be written.
    """
    path = folder / FILE_NAME
    try:
        file = open(path, "a+b", buffering=0)  # noqa: SIM115 (closed below)
    except OSError as error:
        raise StorageError(
            f"{path}: {error.strerror or error}; expected a file that may be written; permit it, or set another exp_dir"
        ) from error
    with file:
        _take(path, file)
        ended = threading.Event()
        beat = threading.Thread(target=_beat, args=(path, ended), name="run-lock", daemon=True)
        beat.start()
        try:
            yield
        finally:
            ended.set()
            beat.join()
            _write(file, "")


def _take(path: Path, file: BinaryIO) -> None:
    """Lock the file and put this process's name into it, or raise the error that names who has it."""
    locked = _lock(file)
    holder = _holder_of(path)
    if locked is not False and not _lives(path, holder, locked is True):
        me = f"process {os.getpid()} on {socket.gethostname()}"
        _write(file, me)
        if locked:
            return
        time.sleep(_SETTLING_S)  # where there are no locks, of two that begin together the later one goes on
        holder = _holder_of(path)
        if holder == me:
            return
    raise CheckpointError(
        f"exp_dir: {path.parent} is in use by {holder or 'another process'}, expected no other run there; "
        "wait until it ends, stop it, or set another exp_dir"
    )


def _holder_of(path: Path) -> str:
    return path.read_bytes().decode(errors="replace").strip()


def _lock(file: BinaryIO) -> bool | None:
    """Whether this process has the file's lock now; None where the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _lives(path: Path, holder: str, locked: bool) -> bool:
    """Whether the process that the file names, if any, is at work still.

    Args:
        locked: whether this process has the lock, so that no other process of this machine has it.
    """
    named = _HOLDER.fullmatch(holder)
    if named is None:
        return False
    if named[2] == socket.gethostname() and (locked or not _exists(int(named[1]))):
        return False
    logger.info("%s names %s: waiting up to %g s for a sign of life", path, holder, SILENCE_S)
    touched, until = _touched(path), time.monotonic() + SILENCE_S
    while time.monotonic() < until:
        time.sleep(_POLL_S)
        if _touched(path) != touched:
            return True
    logger.warning("%s: %s has given no sign of life for %g s: going on without it", path, holder, SILENCE_S)
    return False


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _touched(path: Path) -> int:
    """When the file was touched last; opened for that, as network file systems then ask their server."""
    with open(path, "rb") as file:
        return os.fstat(file.fileno()).st_mtime_ns


def _beat(path: Path, ended: threading.Event) -> None:
    """Touch the file until the run has ended."""
    while not ended.wait(BEAT_S):
        with contextlib.suppress(OSError):
            os.utime(path)


def _write(file: BinaryIO, text: str) -> None:
    """Replace the file's content. A full disk leaves it without a name, and the lock as it is.

    A network file system would keep the name on this machine for a while.
    """
    with contextlib.suppress(OSError):
        file.truncate(0)
        file.write(text.encode())
        os.fsync(file.fileno())
