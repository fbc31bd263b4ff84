"""A checkpoint that was found: proven whole, its values checked, its tensors put back into a run's objects."""

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from nerf_trainer.errors import CheckpointError, keyed_line, shown
from nerf_trainer.randomness import RandomStream
from nerf_trainer.training import checkpoint_files as files
from nerf_trainer.training import packing

logger = logging.getLogger(__name__)

DIRECTORY = re.compile(r"(\.old-)?step-(\d{8,})")
"""Names of directories that should be checkpoints: whether it gives way to another, and its step."""


@dataclass(frozen=True)
class CheckpointState:
    """Everything but tensors that a resume needs; plain JSON values."""

    step: int
    """Optimizer steps taken, over all epochs."""
    epoch: int
    """The epoch to continue in, from 0."""
    step_in_epoch: int
    """Steps of that epoch already taken; 0 at an epoch's boundary."""
    scheduler: dict[str, Any] = field(default_factory=dict)
    """State of the learning-rate schedule."""
    scaler: dict[str, Any] | None = None
    """State of the gradient scaler, where there is one."""
    param_groups: list[dict[str, Any]] = field(default_factory=list)
    """The optimizer's groups, parameters by name; filled in by `CheckpointStore.save`."""
    metrics_offset: int = 0
    """Length in bytes of the metrics file when the checkpoint was taken."""
    seed: int = 0
    """The run's seed, which a dead start may have moved."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Whatever else the training loop must find again."""


_STATE_TYPES: dict[str, tuple[type, ...]] = {
    "step": (int,),
    "epoch": (int,),
    "step_in_epoch": (int,),
    "scheduler": (dict,),
    "scaler": (dict, type(None)),
    "param_groups": (list,),
    "metrics_offset": (int,),
    "seed": (int,),
    "extra": (dict,),
    "aliases": (dict,),
    "optimizer_values": (dict,),
}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose every file was found to be what was written; each is proven again as it is read."""

    path: Path
    """Its directory."""
    state: CheckpointState
    """All that is no tensor."""
    manifest: files.Manifest
    """Its files, the configuration's digest, the number of processes."""
    aliases: dict[str, str]
    """Names of weights that are stored under another name."""
    optimizer_values: dict[str, Any]
    """What is no tensor in the optimizer's state, by parameter."""

    @classmethod
    def open(cls, path: Path) -> "Checkpoint":
        """Read and verify the checkpoint in `path`. Raises `CheckpointError` with the reason where it is bad."""
        manifest = files.read_manifest(path)
        files.verify_files(path, manifest)
        state_file = path / files.STATE
        try:
            content = files.parse_json(files.read_verified(path, manifest, files.STATE))
            files.check_types(content, _STATE_TYPES)
            for key in ("step", "epoch", "step_in_epoch", "metrics_offset"):
                if content[key] < 0:
                    raise ValueError(f"{key} is {content[key]}, expected 0 or more")
            _check_groups(content)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{state_file}: {error or 'nested too deeply'}") from None
        found = DIRECTORY.fullmatch(path.name)
        if found and int(found[2]) != content["step"]:
            raise CheckpointError(f"{state_file}: step is {content['step']}, expected the directory's {int(found[2])}")
        aliases, values = content.pop("aliases"), content.pop("optimizer_values")
        return cls(path, CheckpointState(**content), manifest, aliases, values)

    def load_model(self, model: nn.Module) -> None:
        """Put the weights into `model` (unwrapped), strictly. Raises `CheckpointError` listing what doesn't fit."""
        tensors = files.read_tensors(self.path, self.manifest, files.MODEL)
        with _located(self.path / files.MODEL):
            packing.unpack_model(model, tensors, self.aliases)

    def load_optimizer(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Put its state (not its settings) back into `optimizer`, made for `model`'s parameters after `load_model`.

        Raises:
            CheckpointError: the checkpoint has no optimizer, or that of other parameters or of another kind.
        """
        if files.OPTIMIZER not in self.manifest.files:
            raise CheckpointError(
                f"{self.path}: holds no optimizer state; expected {files.OPTIMIZER}: it can be evaluated, not continued"
            )
        tensors = files.read_tensors(self.path, self.manifest, files.OPTIMIZER)
        with _located(self.path / files.OPTIMIZER):
            packing.unpack_optimizer(model, optimizer, tensors, self.optimizer_values, self.state.param_groups)

    def load_streams(self, streams: Mapping[str, RandomStream], rank: int, world_size: int = 1) -> None:
        """Let `streams` and the global generators continue where those of `rank` stood.

        With another number of processes than the checkpoint's that is impossible: a warning says so, and a rank that
        the checkpoint doesn't know starts streams of its own.
        """
        saved = self.manifest.world_size
        if saved != world_size and rank == 0:
            logger.warning(
                "%s was written by %d processes, this run has %d: resumed, but not bit-exact",
                self.path, saved, world_size,
            )  # fmt: skip
        if rank >= saved:
            for name, stream in streams.items():
                stream.reseed(self.state.seed, rank, name, f"resumed at {self.state.step}")
            return
        name = files.random_file(rank)
        tensors = files.read_tensors(self.path, self.manifest, name)
        with _located(self.path / name):
            packing.unpack_random(streams, tensors)

    @contextmanager
    def restoring(self) -> Iterator[None]:
        """Within, a training takes up the numbers of `state`, which only it can tell from others.

        Raises:
            CheckpointError: they are not what it saves; nothing proves that it was this program that wrote them.
        """
        try:
            yield
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{self.path / files.STATE}: the training can't go on from these numbers ({shown(error)}); expected "
                "what this version writes: resume from another checkpoint"
            ) from error


@contextmanager
def _located(path: Path) -> Iterator[None]:
    """Puts the file's path before the message of a `CheckpointError` raised within."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(keyed_line(str(path), str(error))) from None


def _check_groups(content: dict[str, Any]) -> None:
    for i, group in enumerate(content["param_groups"]):
        members = group.get("params") if isinstance(group, dict) else None
        if not isinstance(members, list) or not all(isinstance(name, str) for name in members):
            raise ValueError(f"param_groups[{i}] has no list of parameter names under 'params'")
    for key, inner in (("aliases", str), ("optimizer_values", dict)):
        if not all(isinstance(value, inner) for value in content[key].values()):
            raise ValueError(f"{key} holds something else than {inner.__name__}")
