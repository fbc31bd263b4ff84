"""Checkpoints of a run: written whole or not at all, proven when written, and pruned only after a newer one is proven.

A checkpoint is a directory `exp_dir/checkpoints/step-00012000` that appears by one rename, after every file in it and
the directory itself have reached the disk. Discovery scans the directories and orders them by step, never by time; the
file `latest` (`.tmp-latest` while it is written) is a hint for people. Beside checkpoints there may stand, all ours:

- `.tmp-step-*`: one that is being written, or was when the run was killed; swept when the run goes on;
- `.trash-step-*`: one that is being removed, or was; swept when the run goes on;
- `.old-step-*`: one that gives way to another of the same step; counts until that one is there, and is then swept;
- `abandoned-<n>`: a folder of checkpoints that training went back behind, with the log as it was; kept for people.

Only one run may write into an exp_dir at a time. Whoever only reads removes nothing.
"""

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from nerf_trainer.errors import MAX_LINE, CheckpointError, StorageError, UserError
from nerf_trainer.randomness import RandomStream
from nerf_trainer.training import checkpoint_files as files
from nerf_trainer.training import packing
from nerf_trainer.training.checkpoint_reading import DIRECTORY, Checkpoint, CheckpointState
from nerf_trainer.training.metrics_log import FILE_NAME as METRICS_FILE

__all__ = ["Checkpoint", "CheckpointState", "CheckpointStore"]

logger = logging.getLogger(__name__)

_LEFTOVER = re.compile(r"\.(tmp|trash)-step-\d{8,}(-\d+)?")
_ABANDONED = re.compile(r"abandoned-(\d+)")


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        exp_dir: the run's folder; they lie in its `checkpoints/`.
        keep: how many valid ones to keep, the newest; at least 2 whatever is asked. None keeps all.
    """

    def __init__(self, exp_dir: Path, keep: int | None = 2) -> None:
        self.folder = exp_dir / "checkpoints"
        self.keep = None if keep is None else max(keep, 2)
        self._reported: set[Path] = set()
        self._hint_draft = self.folder / ".tmp-latest"

    # --- finding -------------------------------------------------------------------------------------------------

    def latest(
        self,
        fall_back: bool = True,
        preferred: Callable[[Checkpoint], bool] = lambda found: True,
        to_train: bool = True,
    ) -> Checkpoint | None:
        """The valid checkpoint of the highest step, or None where there is no checkpoint at all.

        A bad one is passed over with a warning that says why.

        Args:
            fall_back: whether an older one may stand in for the newest where that is bad.
            preferred: of the valid ones the newest for which this is true, where there is one.
            to_train: whether training goes on from it; else it is only looked at, and errors advise accordingly.

        Raises:
            CheckpointError: there are checkpoints and all are bad, or the newest is and shall not be passed over.
        """
        reasons, newest = [], None
        for path in self._candidates():
            try:
                found = Checkpoint.open(path)
                if preferred(found):
                    return found
                newest = newest or found
            except CheckpointError as error:
                if not fall_back:
                    older = (
                        "force_resume=False to go on from" if to_train else "resume_epoch=N, its last epoch, to take"
                    )
                    raise CheckpointError(
                        f"{error}; expected the newest checkpoint to be whole, as force_resume=True takes no other; "
                        f"restore it, or set {older} an older one"
                    ) from None
                reasons.append(self._reason(error))
                self._report(path, error)
        if newest is None and reasons:
            room = MAX_LINE - 150 - len(str(self.folder))
            advice = "to resume from; restore one, or set resume=False to start anew"
            if not to_train:
                advice = "to look at; restore one, or train the run anew with nerf_runner"
            raise CheckpointError(
                f"{self.folder}: no valid checkpoint ({_listed(reasons, room)}); expected one {advice}"
            )
        return newest

    def at_epoch(self, epoch: int) -> Checkpoint:
        """The checkpoint with which epoch `epoch` (from 0) begins.

        Raises:
            CheckpointError: there is none, or it is bad; what there is is listed.
        """
        begun, reasons = [], []
        for path in self._candidates():
            try:
                checkpoint = Checkpoint.open(path)
            except CheckpointError as error:
                reasons.append(self._reason(error))
                continue
            if checkpoint.state.step_in_epoch == 0:
                if checkpoint.state.epoch == epoch:
                    return checkpoint
                begun.append(checkpoint.state.epoch)
        listed = ", ".join(map(str, sorted(set(begun)))) or "none"
        bad = f"; bad: {'; '.join(reasons)}" if reasons else ""
        raise CheckpointError(
            f"{self.folder}: no checkpoint with {epoch} finished epochs (resume_epoch={epoch - 1}); there are {listed}"
            f"{bad}; expected resume_epoch to be one less than one of these"
        )

    def _candidates(self) -> list[Path]:
        """Everything that should be a checkpoint, the highest step first; one that gives way after its successor."""
        found = []
        for path in self._entries():
            match = DIRECTORY.fullmatch(path.name)
            if match and path.is_dir():
                found.append((int(match[2]), match[1] is None, path))
        return [path for _, _, path in sorted(found, reverse=True)]

    def _entries(self) -> list[Path]:
        try:
            return sorted(self.folder.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StorageError(
                f"{self.folder}: {error.strerror or error}; expected a folder of checkpoints that can be read"
            ) from None

    def _reason(self, error: CheckpointError) -> str:
        """The error's message, for a line that names the folder and says already that it is bad."""
        return str(error).replace(f"{self.folder}{os.sep}", "").partition("; the ")[0]

    def _report(self, path: Path, error: CheckpointError) -> None:
        if path not in self._reported:
            self._reported.add(path)
            logger.warning("passing over a bad checkpoint: %s", error)

    # --- writing -------------------------------------------------------------------------------------------------

    def sweep(self) -> None:
        """Delete what a killed run left half written, half deleted, or replaced by another of the same step.

        The hint names the last checkpoint then, which it may not if the run was killed. To be called by the first
        process, when a training begins. What can't be deleted is left for the next save.
        """
        try:
            self._delete_leftovers()
            for path in self.folder.glob(".old-step-*"):
                successor = self.folder / path.name.removeprefix(".old-")
                with contextlib.suppress(CheckpointError):
                    Checkpoint.open(successor)
                    self._discard(path)
            hint, last = self.folder / "latest", [path.name.removeprefix(".old-") for path in self._candidates()][:1]
            told = hint.read_bytes() if hint.is_file() else b""
            if last and (told != f"{last[0]}\n".encode() or self._hint_draft.exists()):
                self._hint(last[0])
        except OSError as error:
            logger.warning("%s: what a killed run left can't be put in order: %s", self.folder, error)

    def save(
        self,
        model: nn.Module,
        optimizer: Optimizer | None,
        state: CheckpointState,
        streams: Mapping[str, RandomStream],
        rank: int = 0,
        world_size: int = 1,
        barrier: Callable[[], None] = lambda: None,
        config_sha256: str = "",
    ) -> Path:
        """Write a checkpoint, prove it, then prune; every process calls this, the first one commits.

        Args:
            model: unwrapped (no DDP around it).
            optimizer: None where the checkpoint is for evaluation only.
            state: of which `param_groups` is filled in here.
            streams: the model's random streams by dotted name.
            barrier: returns once every process has called it.

        Returns:
            The checkpoint's directory. When anything fails, checkpoints that were there before are intact.

        Raises:
            DivergenceError: a weight or an optimizer tensor is not finite.
            StorageError: the disk is full or refuses; nothing is left of the new checkpoint.
        """
        final = self.folder / f"step-{state.step:08d}"
        partial = self.folder / f".tmp-{final.name}"
        own: dict[str, bytes] = {}

        def begin() -> None:
            packing.refuse_non_finite(model, optimizer)
            own[files.random_file(rank)] = files.tensor_bytes(packing.pack_random(streams))
            if rank == 0:
                own.update(_packed(model, optimizer, state))
                self._begin(partial)

        def write() -> None:
            if not partial.is_dir():
                raise StorageError(f"{partial}: the first process could not begin the checkpoint; see its message")
            for name, data in own.items():
                files.write_durably(partial / name, data)

        def commit() -> None:
            if rank == 0:
                self._commit(partial, final, own, world_size, config_sha256)

        failure = _in_step((begin, write, commit), barrier)
        if failure is None and not (final / files.MANIFEST).is_file():
            failure = StorageError(f"{final}: the first process could not write the checkpoint; see its message")
        if failure is None:
            return final
        if rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
        if isinstance(failure, OSError):
            raise files.storage_error(final, sum(map(len, own.values())), failure) from failure
        raise failure

    def _begin(self, partial: Path) -> None:
        """Make the folder, put right what killed runs left, make the directory to write in."""
        self.folder.mkdir(parents=True, exist_ok=True)
        files.sync_directory(self.folder.parent)  # that the folder is there, and the log, which the state counts on
        self._delete_leftovers()
        for path in self._entries():
            match = DIRECTORY.fullmatch(path.name)
            if match and match[1] and not (self.folder / f"step-{match[2]}").exists():
                os.rename(path, self.folder / f"step-{match[2]}")
        partial.mkdir()

    def _delete_leftovers(self) -> None:
        for path in self._entries():
            if _LEFTOVER.fullmatch(path.name):
                files.delete(path)

    def _commit(
        self, partial: Path, final: Path, own: Mapping[str, bytes], world_size: int, config_sha256: str
    ) -> None:
        """Manifest, sync, rename, sync, read back; then the hint and the pruning, which may fail without harm."""
        members = dict(own)
        for rank in range(1, world_size):
            path = partial / files.random_file(rank)
            try:
                members[path.name] = path.read_bytes()
            except FileNotFoundError:
                raise StorageError(f"{path}: process {rank} could not write it; see its message") from None
        manifest = files.new_manifest(config_sha256, world_size, members)
        files.write_durably(partial / files.MANIFEST, files.manifest_bytes(manifest))
        files.sync_directory(partial)
        if final.exists():
            self._make_way(final)
        os.rename(partial, final)
        files.sync_directory(self.folder)
        try:
            checkpoint = Checkpoint.open(final)
        except CheckpointError as error:
            raise StorageError(f"{error} (as read back); expected what was just written: check the disk") from None
        try:
            self._hint(final.name)
            self._prune(checkpoint)
        except (OSError, UserError) as error:
            logger.warning("%s: the checkpoint is written, but the others could not be tidied: %s", final, error)

    def _make_way(self, final: Path) -> None:
        """Rename a checkpoint of the same step to `.old-*`, where it still counts while there is no other."""
        replaced = self.folder / f".old-{final.name}"
        if replaced.exists():
            try:
                Checkpoint.open(final)
                self._discard(replaced)
            except CheckpointError:
                self._discard(final)
        if final.exists():
            os.rename(final, replaced)

    def _hint(self, name: str) -> None:
        try:
            if os.path.lexists(self._hint_draft):
                self._hint_draft.unlink()  # it may be a link
            with open(self._hint_draft, "x") as file:
                file.write(name + "\n")
            os.replace(self._hint_draft, self.folder / "latest")
        except OSError:
            self._hint_draft.unlink(missing_ok=True)
            raise

    def _prune(self, newest: Checkpoint) -> None:
        """Remove all but the newest `keep` valid ones up to `newest`, and what it took the place of."""
        valid = {newest.state.step}
        for path in self._candidates():
            match = DIRECTORY.fullmatch(path.name)
            step = int(match[2]) if match else newest.state.step
            if path == newest.path or step > newest.state.step:
                continue
            if step in valid or (self.keep is not None and len(valid) >= self.keep):
                self._discard(path)
                continue
            try:
                valid.add(Checkpoint.open(path).state.step)
            except CheckpointError as error:
                self._report(path, error)

    def _discard(self, path: Path) -> None:
        """Rename, then delete: a kill in between leaves nothing that looks like a checkpoint."""
        if not files.only_ours(path):
            return
        trash = self.folder / f".trash-{path.name.removeprefix('.old-')}"
        names = [trash, *(trash.with_name(f"{trash.name}-{n}") for n in range(1, 1000))]
        trash = next(name for name in names if not name.exists())
        os.rename(path, trash)
        files.delete(trash)

    def abandon_after(self, step: int) -> Path | None:
        """Move checkpoints of more than `step` steps into a new folder `abandoned-<n>`: training goes back behind them.

        The log of the metrics is copied there too: the run's own is about to lose the lines of those steps.

        To be called by the first process, when training continues from an older checkpoint (its step) or from scratch
        (-1). Returns the folder, or None where there was nothing to move.

        Raises:
            StorageError: they can't be moved.
        """
        newer = [path for path in self._candidates() if int(path.name.rpartition("-")[2]) > step]
        if not newer:
            return None
        taken = [int(match[1]) for path in self._entries() if (match := _ABANDONED.fullmatch(path.name))]
        target = self.folder / f"abandoned-{max(taken, default=0) + 1}"
        try:
            target.mkdir()
            for path in newer:
                os.rename(path, target / path.name)
            if (log := self.folder.parent / METRICS_FILE).is_file():
                shutil.copy2(log, target / METRICS_FILE)
            files.sync_directory(target)
            files.sync_directory(self.folder)
            remaining = self._candidates()
            if remaining:
                self._hint(remaining[0].name)
            else:
                (self.folder / "latest").unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(
                f"{self.folder}: can't move checkpoints into {target.name}: {error.strerror or error}; "
                "expected permission to write there"
            ) from error
        logger.info("moved %d checkpoints of more than %d steps into %s", len(newer), step, target)
        return target


def _listed(reasons: list[str], room: int) -> str:
    """As many of them as there is room for, at least one; the log has a line on each."""
    n = 1 + sum(len("; ".join(reasons[: i + 1])) <= room for i in range(1, len(reasons)))
    return "; ".join(reasons[:n]) + (f"; and {len(reasons) - n} more" if n < len(reasons) else "")


def _in_step(phases: Iterable[Callable[[], None]], barrier: Callable[[], None]) -> Exception | None:
    """Run the phases with a barrier after each. One that fails ends the work here, but not the waiting for others."""
    failure: Exception | None = None
    for phase in phases:
        if failure is None:
            try:
                phase()
            except Exception as error:  # the caller raises it
                failure = error
        barrier()
    return failure


def _packed(model: nn.Module, optimizer: Optimizer | None, state: CheckpointState) -> dict[str, bytes]:
    """The files that only the first process writes."""
    weights, aliases = packing.pack_model(model)
    packed = {files.MODEL: files.tensor_bytes(weights)}
    values: dict[str, Any] = {}
    if optimizer is not None:
        tensors, values, groups = packing.pack_optimizer(model, optimizer)
        state = replace(state, param_groups=groups)
        packed[files.OPTIMIZER] = files.tensor_bytes(tensors)
    packed[files.STATE] = files.json_bytes({**asdict(state), "aliases": aliases, "optimizer_values": values})
    return packed
