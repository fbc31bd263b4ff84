"""Small checkpoints whose weights tell their step, and ways to stop the writing of one in between."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from nerf_trainer.randomness import RandomStream
from nerf_trainer.training import checkpoint_files
from nerf_trainer.training.checkpoint import CheckpointState, CheckpointStore


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it, nothing tidies up after it."""


def model_filled_with(value: float, width: int = 4) -> nn.Module:
    model = nn.Linear(3, width)
    for parameter in model.parameters():
        nn.init.constant_(parameter, value)
    return model


def save(store: CheckpointStore, step: int, value: float | None = None, epoch: int = 0, step_in_epoch: int = 1) -> Path:
    """A checkpoint whose weights all are `value` (the step, when not given)."""
    model = model_filled_with(step if value is None else value)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(step if value is None else value)
    state = CheckpointState(step=step, epoch=epoch, step_in_epoch=step_in_epoch, seed=42, extra={"best": 0.1})
    return store.save(model, optimizer, state, {"jitter": RandomStream("jitter")}, config_sha256="c" * 64)


def loaded_value(store: CheckpointStore) -> float:
    """What the weights of the newest valid checkpoint are filled with."""
    checkpoint = store.latest()
    assert checkpoint is not None
    model = model_filled_with(-1.0)
    checkpoint.load_model(model)
    values = {v for parameter in model.parameters() for v in parameter.flatten().tolist()}
    assert len(values) == 1
    return values.pop()


def names(store: CheckpointStore) -> set[str]:
    return {path.name for path in store.folder.iterdir()}


def flip_bit(path: Path, position: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


CALLS = ("mkdir", "fsync", "rename", "replace", "unlink", "rmdir")
"""Functions of `os` through which a save changes the disk, besides writing into files."""


def interrupt(monkeypatch: pytest.MonkeyPatch, at: int, act: Callable[[], object]) -> list[str]:
    """Do `act` before the `at`-th change of the disk (from 0), which is after the one before it.

    Returns the list that the changes are added to.
    """
    changes: list[str] = []

    def reached(name: str) -> None:
        changes.append(name)
        if len(changes) - 1 == at:
            act()

    def wrapped(name: str, original: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **options: object) -> object:
            reached(name)
            return original(*args, **options)

        return call

    for name in CALLS:
        monkeypatch.setattr(os, name, wrapped(name, getattr(os, name)))
    monkeypatch.setattr(checkpoint_files, "write_durably", torn(lambda: reached("write")))
    return changes


def torn(between: Callable[[], object]) -> Callable[[Path, bytes], None]:
    """`write_durably`, with a call when half of the bytes are written."""
    write_whole, remove = checkpoint_files.write_durably, os.unlink

    def write(path: Path, data: bytes) -> None:
        path.write_bytes(data[: len(data) // 2])
        between()
        remove(path)
        write_whole(path, data)

    return write


EARLIER: dict[str, list[int]] = {"first": [], "second": [1], "pruning": [1, 2], "same step": [2, 3]}
"""Steps saved before a save of step 3, by what that save then does."""


def run_forked(work: Callable[[], object]) -> int:
    """Exit status of a child process that does `work`: 0 when it came to its end."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
