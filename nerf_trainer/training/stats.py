"""Statistics of a run: sums on the device, read back together now and then, written to `metrics.jsonl` and drawn.

Between two reads nothing waits for the device. What has not been read yet is part of a checkpoint, so that a resumed
run writes the same lines as one that was never interrupted.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nerf_trainer.training.metrics_log import MetricsLog, Row, read_rows
from nerf_trainer.training.runtime import Runtime
from nerf_trainer.training.step import OVERFLOWS, StepResult
from nerf_trainer.visualization.plots import History, draw_train_stats

SECONDS_BETWEEN_PLOTS = 300.0

OPACITY = "opacity of the step's rays"
FOREGROUND = "foreground of the step's targets"


@dataclass(frozen=True)
class Means:
    """What some steps had in common."""

    values: dict[str, float]
    """Mean of each metric over the steps in which it was finite; nan where it never was."""
    n_steps: int
    """How many steps they were."""
    n_skipped: int
    """Steps that left the weights alone."""
    skipped_in_a_row: int
    """The longest run of such steps."""
    not_finite: tuple[str, ...]
    """Metrics that were not finite in a skipped step."""


class MetricSums:
    """Sums of metrics on the device; adding reads nothing back.

    Sums stay in the same memory, so that a captured step can add to them; what the host counts of each step is said
    separately there (`count`).
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._groups: dict[tuple[str, ...], Float[Tensor, "3 n"]] = {}
        """By names: sums of what was finite, how often it was, and how often it was to blame for a skipped step."""
        self._used: dict[tuple[str, ...], None] = {}
        self.n_steps = 0
        """Steps added since the last read."""
        self._in_a_row, self._skipped, self._longest = self._zeros(3).unbind()

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float64, device=self._device)

    def add(self, metrics: Mapping[str, Tensor], skipped: Bool[Tensor, ""] | None = None) -> None:
        """Add one step's scalars; `skipped` says whether the step left the weights alone."""
        self.accumulate(metrics, skipped)
        self.count(tuple(metrics))

    def accumulate(self, metrics: Mapping[str, Tensor], skipped: Bool[Tensor, ""] | None = None) -> None:
        """The device's part of `add`: in place, a dozen small kernels whatever the number of metrics."""
        names = tuple(metrics)
        if names not in self._groups:
            self._groups[names] = self._zeros(3, len(names))
        totals, counts, blamed = self._groups[names]
        values = torch.stack([value.detach() for value in metrics.values()])
        finite = values.abs() < torch.inf
        totals.add_(values.where(finite, 0.0))
        counts.add_(finite)
        if skipped is not None:
            blamed.add_(finite < skipped)  # of booleans: skipped, and not finite
            self._skipped.add_(skipped)
            self._in_a_row.add_(1).mul_(skipped)
            torch.maximum(self._longest, self._in_a_row, out=self._longest)

    def count(self, names: tuple[str, ...]) -> None:
        """The host's part of `add`.

        Args:
            names: of the metrics that the step had.
        """
        self._used[names] = None
        self.n_steps += 1

    def read(self, runtime: Runtime) -> Means:
        """The means over all ranks since the last read, in one read-back; starts the next sums."""
        skips = torch.stack([self._skipped, self._longest])
        # A rank may have had nothing to add, or other metrics: all of them sum the same groups in the same order.
        groups = dict.fromkeys(runtime.gather_objects(list(self._used)))
        sums = [runtime.sum_over_ranks(self._sums_of(group)) for group in groups]
        n_skipped, longest, *numbers = torch.cat([skips, *(group.T.flatten() for group in sums)]).tolist()
        names = [name for group in groups for name in group]
        found: dict[str, list[float]] = {name: [0.0, 0.0, 0.0] for name in names}
        for i, name in enumerate(names):
            found[name] = [a + b for a, b in zip(found[name], numbers[3 * i : 3 * i + 3], strict=True)]
        for zeroed in (*(self._groups[group] for group in self._used), self._skipped, self._longest):
            zeroed.zero_()
        self._used = {}
        n_steps, self.n_steps = self.n_steps, 0
        return Means(
            values={name: total / count if count else float("nan") for name, (total, count, _) in found.items()},
            n_steps=n_steps,
            n_skipped=round(n_skipped),
            skipped_in_a_row=round(longest),
            not_finite=tuple(name for name, (_, _, blamed) in found.items() if blamed),
        )

    def _sums_of(self, names: tuple[str, ...]) -> Float[Tensor, "3 n"]:
        """This rank's sums of a group of metrics; zeros where it has none."""
        return self._groups[names] if names in self._used else self._zeros(3, len(names))

    @property
    def skipped_in_a_row(self) -> int:
        """Steps that left the weights alone, up to the last one; waits for the device."""
        return round(self._in_a_row.item())

    def state(self) -> dict[str, Any]:
        """What was summed and not read yet, as JSON."""
        groups = [{"names": list(names), "sums": self._groups[names].tolist()} for names in self._used]
        return {
            "n_steps": self.n_steps,
            "groups": groups,
            "skips": [float(t) for t in (self._in_a_row, self._skipped, self._longest)],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue the sums of `state`; for before the first step. Raises ValueError where there are more or fewer."""
        make = partial(torch.tensor, dtype=torch.float64, device=self._device)
        self._groups = {tuple(group["names"]): make(group["sums"]) for group in state["groups"]}
        for names, sums in self._groups.items():
            if sums.shape != (3, len(names)):
                raise ValueError(f"sums of {len(names)} metrics have the shape {tuple(sums.shape)}")
        self._used = dict.fromkeys(self._groups)
        self.n_steps = int(state["n_steps"])
        self._in_a_row, self._skipped, self._longest = make(state["skips"]).unbind()


class Reading(NamedTuple):
    """What was read back of some training steps."""

    row: Row
    """The line that was written about them."""
    means: Means
    """Their means."""
    notice: str | None
    """What to tell the user where the line could not be written."""


class Statistics:
    """What a run logs.

    Args:
        runtime: device and ranks.
        folder: the run's folder; None writes nothing (ranks other than the first).
        offset: bytes of the folder's metrics that belong to this run: those of the checkpoint it resumes from.
        log_vars: the metrics to log; none means all of them.
    """

    def __init__(self, runtime: Runtime, folder: Path | None, offset: int = 0, log_vars: Sequence[str] = ()) -> None:
        self._runtime = runtime
        self._folder = folder
        self._log_vars = frozenset(log_vars)
        self.log = MetricsLog(folder, offset)
        self.history = History()
        for row in read_rows(self.log.path) if self.log.path is not None else ():
            self.history.add(row)
        self._drawn = time.monotonic()
        self._drawing_failed = False
        self._restart_interval()

    def _restart_interval(self) -> None:
        self._sums = MetricSums(self._runtime.device)
        self._start_timing()

    def _start_timing(self) -> None:
        self._since = time.perf_counter()
        self._timed_steps = 0
        self._timed_rays = 0

    @property
    def n_unread(self) -> int:
        """Training steps added since the last read."""
        return self._sums.n_steps

    @property
    def skipped_in_a_row(self) -> int:
        """Steps that left the weights alone, up to the last one; waits for the device."""
        return self._sums.skipped_in_a_row

    def add(self, result: StepResult) -> None:
        """Add one training step; reads nothing back."""
        self.accumulate(result)
        self.count(result)

    def accumulate(self, result: StepResult) -> None:
        """The device's part of `add`, which may be part of a captured step."""
        self._sums.accumulate(_summed(result), result.skipped)

    def count(self, result: StepResult) -> None:
        """The host's part of `add`, after each step."""
        self._sums.count(tuple(_summed(result)))
        self._timed_steps += 1
        self._timed_rays += result.n_rays * self._runtime.world_size

    def read(self, step: int, epoch: int, learning_rate: float) -> Reading:
        """Read the steps since the last read and write a line about them.

        Args:
            step: optimizer steps done.
            epoch: the epoch they belong to.
            learning_rate: of the last of them.
        """
        means = self._sums.read(self._runtime)
        seconds = time.perf_counter() - self._since
        timed = max(1, self._timed_steps)
        row = {
            "step": step,
            "epoch": epoch,
            "split": "train",
            "sec_per_step": round(seconds / timed, 6),
            "rays_per_s": round(self._timed_rays / max(seconds, 1e-9)),
            "peak_memory_gib": round(self._runtime.peak_memory_bytes / 2**30, 3),
            "lr": learning_rate,
            **self.logged(means.values),
        }
        self._start_timing()
        notice = self.write(row)
        return Reading(row, means, notice)

    def write(self, row: Row) -> str | None:
        """Write a line; a notice when the disk refuses for the first time."""
        self.history.add(row)
        return self.log.append(row)

    def logged(self, values: Mapping[str, float]) -> dict[str, float]:
        """Those of `values` that a log shows."""
        always = {"objective", "grad_norm", OVERFLOWS}
        hidden = {OPACITY, FOREGROUND}
        return {
            name: value
            for name, value in values.items()
            if name not in hidden and (not self._log_vars or name in self._log_vars or name in always)
        }

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves what happens within (an evaluation, a checkpoint) out of the time of steps."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._since += time.perf_counter() - start

    def draw(self, due_only: bool = True) -> str | None:
        """Draw the curves; with `due_only`, only when the last drawing is some minutes old.

        Returns:
            A notice when they can't be written for the first time.
        """
        if self._folder is None or (due_only and time.monotonic() - self._drawn < SECONDS_BETWEEN_PLOTS):
            return None
        self._drawn = time.monotonic()
        try:
            draw_train_stats(self.history, self._folder)
        except OSError as error:
            first, self._drawing_failed = not self._drawing_failed, True
            reason = error.strerror or error
            return f"the curves could not be drawn in {self._folder} ({reason}); training goes on" if first else None
        return None

    def state(self) -> dict[str, Any]:
        """What a checkpoint saves besides the file's offset."""
        return self._sums.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint."""
        self._sums.restore(state)

    def start_over(self, offset: int) -> None:
        """Forget all lines after the first `offset` bytes, and what was not read yet."""
        self.log.rewind(offset)
        self.history = History()
        for row in read_rows(self.log.path) if self.log.path is not None else ():
            self.history.add(row)
        self._restart_interval()


def _summed(result: StepResult) -> dict[str, Tensor]:
    """What of a step is summed, by name."""
    metrics = {**result.metrics, OPACITY: result.opacity}
    return metrics if result.foreground is None else {**metrics, FOREGROUND: result.foreground}


def was_skipping(state: Mapping[str, Any]) -> bool:
    """Whether the last step before this `state` of a checkpoint left the weights alone."""
    return state["skips"][0] > 0


def blamed(means: Means) -> str:
    """What was not finite, in a reader's words: losses by name, else the gradient."""
    losses = [name for name in means.not_finite if name.startswith("loss_")]
    return ", ".join(losses or means.not_finite) or "the gradient of the objective"
