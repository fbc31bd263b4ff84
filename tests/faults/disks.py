"""Disks that are small, full or read-only, and files that may not grow, for the time of a `with`.

Mounting needs the right to do so: `own_disk` skips a test where neither this process nor a namespace of its own
(`unshare -rm`) may.
"""

import contextlib
import ctypes
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
_INSIDE = "NERF_TRAINER_OWN_MOUNTS"
"""Set in a process that has a namespace of mounts of its own."""


@contextlib.contextmanager
def own_disk(folder: Path, size: str = "1m") -> Iterator[Path]:
    """A tmpfs of `size` at `folder`, which is made."""
    folder.mkdir(parents=True)
    _mount("-t", "tmpfs", "-o", f"size={size}", "none", str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def make_read_only(disk: Path) -> None:
    """From now on nothing changes on a disk of `own_disk`."""
    _mount("-o", "remount,ro", str(disk))


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True, capture_output=True)


def can_mount(folder: Path) -> bool:
    """Whether this process may mount a disk."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError), own_disk(folder / "probe"):
        return True
    return False


def where_mounting_is_permitted(request: pytest.FixtureRequest, folder: Path) -> bool:
    """True where the calling test may mount, and should go on; false where it was run in a namespace of its own, and
    passed there. Skips where neither is permitted.

    Args:
        request: of the test.
        folder: of the test, where a mount is tried.
    """
    if can_mount(folder):
        return True
    if (
        os.environ.get(_INSIDE)
        or subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("mounting is not permitted here, nor in a namespace of one's own (unshare -rm)")
    # -p no:cacheprovider: nothing is written into the checkout by what counts as another user.
    command = ["unshare", "-rm", sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", request.node.nodeid]
    run = subprocess.run(
        command, cwd=REPOSITORY, env={**os.environ, _INSIDE: "1"}, capture_output=True, text=True, check=False
    )
    if " skipped" in run.stdout:
        pytest.skip("mounting is not permitted here, though a namespace of mounts is")
    assert run.returncode == 0, run.stdout[-4000:]
    return False


@contextlib.contextmanager
def files_no_larger_than(n_bytes: int) -> Iterator[None]:
    """No file of this process grows beyond `n_bytes`: what the kernel says then is errno 27, EFBIG."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Capabilities(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


@contextlib.contextmanager
def permissions_that_bind() -> Iterator[None]:
    """Within, a file's permissions bind the superuser too, whom they would not stop otherwise: the thread does without
    its capabilities."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = _Header(0x20080522, 0)  # version 3, this thread
    held, none = (_Capabilities * 2)(), (_Capabilities * 2)()
    if libc.capget(ctypes.byref(header), held) != 0:
        raise OSError(ctypes.get_errno(), "capget")
    for kept, without in zip(held, none, strict=True):
        without.permitted = kept.permitted  # to come back
    _set_capabilities(libc, header, none)
    try:
        yield
    finally:
        _set_capabilities(libc, header, held)


def _set_capabilities(libc: ctypes.CDLL, header: _Header, capabilities: "ctypes.Array[_Capabilities]") -> None:
    if libc.capset(ctypes.byref(header), capabilities) != 0:
        raise OSError(ctypes.get_errno(), "capset")
