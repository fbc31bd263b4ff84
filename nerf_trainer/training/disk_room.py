"""Whether the disk has room for a run's checkpoints, asked before the first step: a long training that meets a full
disk at its end is a training lost."""

import shutil
from pathlib import Path

from torch import nn
from torch.optim import Optimizer

from nerf_trainer.training.checkpoint_reading import Checkpoint
from nerf_trainer.training.weight_average import keeps_average

_MOMENTS = 2
"""Tensors of a weight's size that an optimizer is expected to keep for each, as Adam does."""


def room_notice(
    folder: Path, model: nn.Module, optimizer: Optimizer, checkpoint: Checkpoint | None, keep: int | None
) -> str | None:
    """A notice where less is free than the checkpoints that are kept and the one that is written beside them will take.

    Args:
        folder: the run's folder, which exists.
        model: as it is now; one that grows will take more.
        optimizer: over its parameters.
        checkpoint: what the run goes on from: of that size the others will be.
        keep: how many checkpoints are kept; None for all, of which nobody knows how many they will be.
    """
    if checkpoint is not None:
        size = sum(record.bytes for record in checkpoint.manifest.files.values())
    else:
        size = _expected_bytes(model, optimizer)
    there = sum(path.is_dir() for path in (folder / "checkpoints").glob("step-*"))
    to_come = max(1, (2 if keep is None else keep) + 1 - there)
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return None
    if free >= to_come * size:
        return None
    return (
        f"{folder}: {free:,} bytes are free, expected {to_come * size:,} for {to_come} more checkpoints of about "
        f"{size:,} bytes; make room, or set exp_dir to another place: the run ends when three in a row can't be written"
    )


def _expected_bytes(model: nn.Module, optimizer: Optimizer) -> int:
    """About what a checkpoint takes before there is one: weights, buffers, the optimizer's moments, and averages."""
    stored = {id(t): t.numel() * t.element_size() for t in model.state_dict(keep_vars=True).values()}
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    kept = _MOMENTS + keeps_average(optimizer)
    return sum(stored.values()) + kept * sum(p.numel() * p.element_size() for p in trained)
