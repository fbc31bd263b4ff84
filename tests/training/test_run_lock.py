"""The lock's own file; what it does against other processes is shown in tests/faults/test_run_lock.py."""

import os
import socket
import time
from pathlib import Path

import pytest

from nerf_trainer.errors import CheckpointError, StorageError
from nerf_trainer.training import run_lock
from nerf_trainer.training.run_lock import FILE_NAME, exclusive


def test_the_lock_names_its_holder_and_is_let_go(tmp_path: Path):
    with exclusive(tmp_path), pytest.raises(CheckpointError, match=f"process {os.getpid()} on"), exclusive(tmp_path):
        raise AssertionError("two have the folder")
    with exclusive(tmp_path):
        pass
    assert (tmp_path / FILE_NAME).read_text() == ""


def test_the_file_is_touched_while_the_folder_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(run_lock, "BEAT_S", 0.01)
    path = tmp_path / FILE_NAME
    with exclusive(tmp_path):
        os.utime(path, (0, 0))
        until = time.monotonic() + 60
        while path.stat().st_mtime == 0:
            assert time.monotonic() < until
            time.sleep(0.01)
    os.utime(path, (0, 0))
    time.sleep(0.1)
    assert path.stat().st_mtime == 0


def test_the_holder_s_name_is_brought_to_other_machines_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A network file system may keep what was written on the machine that wrote it."""
    brought, fsync = [], os.fsync

    def heard(number: int) -> None:
        fsync(number)
        brought.append((tmp_path / FILE_NAME).read_text())

    monkeypatch.setattr(os, "fsync", heard)
    with exclusive(tmp_path):
        assert brought == [f"process {os.getpid()} on {socket.gethostname()}"]
    assert brought[1:] == [""]


def test_a_lock_that_can_t_be_written_is_a_storage_error(tmp_path: Path):
    (tmp_path / FILE_NAME).mkdir()
    with pytest.raises(StorageError, match=r"\.lock: Is a directory; expected a file that may"), exclusive(tmp_path):
        raise AssertionError("there is no lock")
