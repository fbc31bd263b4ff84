"""What a run left behind, without what depends on the clock, and how to stop one at a given step."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from nerf_trainer.training.checkpoint import CheckpointStore
from nerf_trainer.training.metrics_log import Row, read_rows
from nerf_trainer.training.session import Session


def logged(folder: Path) -> list[Row]:
    """All lines without what depends on the clock."""
    clocked = ("sec_per_step", "rays_per_s", "peak_memory_gib")
    return [{k: v for k, v in row.items() if k not in clocked} for row in read_rows(folder / "metrics.jsonl")]


def newest(folder: Path) -> Path:
    """The folder of the newest checkpoint."""
    checkpoint = CheckpointStore(folder).latest()
    assert checkpoint is not None
    return checkpoint.path


def optimizer_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """What the optimizer held at the newest checkpoint, by name."""
    return load_file(newest(folder) / "optim.safetensors")


def final(folder: Path) -> dict[str, Any]:
    """All that the newest checkpoint holds, exactly, but for what depends on the clock or on the test run itself."""
    path = newest(folder)
    state = json.loads((path / "state.json").read_text())
    del state["metrics_offset"]  # lines with times are not always equally long
    random_states = load_file(path / "rng-0.safetensors")
    del random_states["global.python"]  # the shape checks of the test run draw from it
    held = {name: (path / name).read_bytes() for name in ("model.safetensors", "optim.safetensors")}
    return {**held, "state": state, "random": {name: t.tolist() for name, t in random_states.items()}}


class StopAfter:
    """Sends this process a signal once the n-th step of a run is done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, n: int, number: signal.Signals = signal.SIGTERM) -> None:
        take_step, done = Session.take_step, []

        def counted(session: Session, *args: Any) -> None:
            take_step(session, *args)
            done.append(session.step)
            if len(done) == n:
                os.kill(os.getpid(), number)

        monkeypatch.setattr(Session, "take_step", counted)
