"""The training loop: epochs and what is due in them, resuming, stopping, evaluation at the end."""

import itertools
import time
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NoReturn

import torch

from nerf_trainer.config import ReplaceableBase, choice, registry
from nerf_trainer.errors import CheckpointError, ConfigError, DataError, DivergenceError
from nerf_trainer.evaluation.evaluator import EvaluatorBase
from nerf_trainer.ops.deterministic import naming_what_is_not
from nerf_trainer.training.dead_start import MAX_RESTARTS
from nerf_trainer.training.disk_room import room_notice
from nerf_trainer.training.interruption import StopRequestedError, StopSignals
from nerf_trainer.training.live_preview import LivePreviews
from nerf_trainer.training.metrics_log import Row
from nerf_trainer.training.model_factory import learns
from nerf_trainer.training.session import Preview, Session, TrainingRun
from nerf_trainer.training.split_evaluation import SplitEvaluation, was_tested
from nerf_trainer.training.stats import FOREGROUND, OPACITY, Means, Statistics, blamed
from nerf_trainer.visualization.visdom import VisdomClient, VisdomPreview, default_port

MAX_SKIPPED_IN_A_ROW = 10
"""Steps with values that are not finite, one after another, after which training goes back or ends."""


@dataclass(frozen=True)
class LoopResult:
    """How a loop ended."""

    step: int
    """Optimizer steps of the model as it is now."""
    epoch: int
    """Finished epochs."""
    last_rows: dict[str, Row] = field(default_factory=dict)
    """The newest line of each split."""


class TrainingLoopBase(ReplaceableBase):
    """Trains or evaluates a model."""

    eval_only: bool = False
    """Evaluate the newest checkpoint on the test views and end."""
    max_epochs: int = 1000
    """Epochs of a whole run, resumed parts included."""
    test_when_finished: bool = False
    """Evaluate on the test views after the last epoch."""

    @abstractmethod
    def run(self, run: TrainingRun) -> LoopResult:
        """Do what the configuration says with what `run` holds.

        Raises:
            RunStoppedError: a signal asked to stop; a checkpoint was saved.
            DivergenceError: losses or gradients were not finite for too long, after going back to a checkpoint too.
            ConfigError: in deterministic mode, an operation has no such algorithm on the run's device; or there is no
                memory for a step.
        """

    @property
    def with_val(self) -> bool:
        """Whether a training looks at the validation views."""
        return False

    @property
    def with_test(self) -> bool:
        """Whether a training looks at the test views, on its way or at its end."""
        return self.test_when_finished

    @property
    def checkpoints_kept(self) -> int | None:
        """How many checkpoints a run keeps; None for all."""
        return 2

    def preview(self, folder: Path, notice: Callable[[str], None]) -> Preview | None:
        """A live view of a training; None for none.

        Args:
            folder: the run's folder.
            notice: told what the user may want to know of it, from any thread.
        """
        return None

    def is_complete(self, run: TrainingRun) -> bool:
        """Whether a run that stands at its checkpoint has nothing left to do."""
        return run.checkpoint is not None and not self.eval_only and run.checkpoint.state.epoch >= self.max_epochs


@registry.register
class ImplicitronTrainingLoop(TrainingLoopBase):
    """Epochs of optimizer steps, with validation, tests and checkpoints at intervals."""

    evaluator: EvaluatorBase = choice("ImplicitronEvaluator")
    """Scores the test views."""
    store_checkpoints: bool = True
    """Save a checkpoint at the end of an epoch."""
    store_checkpoints_purge: int = 1
    """Keep this many checkpoints besides the newest (never fewer than two in all); 0 or less keeps all."""
    checkpoint_interval: int = 0
    """Also save a checkpoint whenever this many more steps are done; 0: only at the ends of epochs."""
    checkpoint_seconds: float = 0.0
    """Save at the end of an epoch only if the last checkpoint is this old; the first and the last epoch always save."""
    test_interval: int = -1
    """Evaluate on the test views after the first epoch and every so many more; 0 or less: never while training."""
    validation_interval: int = 1
    """Compute the losses on the validation views after the first epoch and every so many more; 0 or less: never."""
    capture_step: bool = True
    """On a GPU, run each training step as one CUDA graph where the model's parts, the optimizer and the precision allow
    it; a line says which way steps run, and why. False: launch one operation after another."""
    clip_grad: float = 0.0
    """Largest norm of the gradient, all parameters together; larger ones are scaled down. 0: no limit."""
    gradient_accumulation_steps: int = 1
    """Batches that an optimizer step takes the mean gradient of."""
    metric_print_interval: int = 5
    """Steps whose metrics are averaged into one line of the log, and read back from the device together."""
    halve_rate_on_divergence: bool = False
    """Halve all learning rates when training goes back to a checkpoint, as steps were not finite for too long."""
    detect_dead_start: bool = True
    """Start anew with the next seed when the first 1,000 steps render nothing where something should be."""
    visualize_interval: int = 1000
    """Steps between live pictures on the visdom server; 0 or less: no pictures, and a server is not missed."""
    visdom_env: str = ""
    """Environment on the visdom server; empty: the name of the run's folder."""
    visdom_port: int = field(default_factory=default_port)
    """Port of the visdom server; the default is the environment variable VISDOM_PORT, or 8097."""
    visdom_server: str = "http://127.0.0.1"
    """Address of the visdom server, which also shows the curves at the ends of epochs; empty: nothing is shown."""

    def __post_init__(self) -> None:
        if self.max_epochs < 1:
            raise ConfigError(f"max_epochs: {self.max_epochs}; expected at least 1")
        counts = {
            "gradient_accumulation_steps": self.gradient_accumulation_steps,
            "metric_print_interval": self.metric_print_interval,
        }
        for name, count in counts.items():
            if count < 1:
                raise ConfigError(f"{name}: {count}; expected at least 1")

    @property
    def with_val(self) -> bool:
        """See the base class."""
        return self.validation_interval > 0

    @property
    def with_test(self) -> bool:
        """See the base class."""
        return self.test_interval > 0 or self.test_when_finished

    @property
    def checkpoints_kept(self) -> int | None:
        """See the base class."""
        return self.store_checkpoints_purge + 1 if self.store_checkpoints_purge > 0 else None

    def preview(self, folder: Path, notice: Callable[[str], None]) -> Preview | None:
        """See the base class: on a visdom server."""
        if self.eval_only or not self.visdom_server:
            return None
        asked_for = self.visualize_interval > 0
        client = VisdomClient(self.visdom_server, self.visdom_port, notice if asked_for else _unsaid)
        return VisdomPreview(client, self.visdom_env or folder.resolve().name)

    def is_complete(self, run: TrainingRun) -> bool:
        """See the base class; a test that is due after the last epoch is left to do until it is in the log."""
        if run.checkpoint is None or not super().is_complete(run):
            return False
        return not self.test_when_finished or was_tested(run, run.checkpoint.state.step)

    def run(self, run: TrainingRun) -> LoopResult:
        """See the base class."""
        with StopSignals() as signals, naming_what_is_not():
            if self.eval_only:
                return self._evaluate_only(run, signals)
            return _Training(self, run, signals).finish()

    def _evaluate_only(self, run: TrainingRun, signals: StopSignals) -> LoopResult:
        if run.checkpoint is None and learns(run.model):
            raise CheckpointError(
                f"eval_only: no checkpoint in {run.exp_dir}; expected one to evaluate; train first or change exp_dir"
            )
        state, runtime = run.checkpoint.state if run.checkpoint is not None else None, run.runtime
        step, n_epochs, epoch = (state.step, state.epoch, state.epoch - 1) if state is not None else (0, 0, 0)
        stats = Statistics(runtime, None)
        evaluation = SplitEvaluation(run, stats, self.evaluator, signals, with_val=False, with_test=True)
        evaluation.need_test_views()
        try:
            evaluation.test(run.model.to(runtime.device), step, epoch)
        except StopRequestedError:
            raise signals.error(f"stopped by {signals.name} while evaluating") from None
        return LoopResult(step, n_epochs, evaluation.rows)


class _Training:
    """One training, from where the run stands to its last epoch.

    Args:
        loop: the options.
        run: what the loop was given.
        signals: what asks it to stop.
    """

    def __init__(self, loop: ImplicitronTrainingLoop, run: TrainingRun, signals: StopSignals) -> None:
        train = run.loaders.train
        if train is None or len(train) == 0:
            raise DataError("the data source has no training frames; expected a train split, or eval_only=True")
        self._loop = loop
        self._run = run
        self._signals = signals
        self._train = train
        self._n_steps = -(-len(train) // loop.gradient_accumulation_steps)
        self._session = Session(run, train, loop.clip_grad, loop.capture_step)
        self._stats = self._session.stats
        self._evaluation = SplitEvaluation(
            run, self._stats, loop.evaluator, signals, with_val=loop.with_val, with_test=loop.with_test
        )
        self._previews = LivePreviews(run, loop.visualize_interval)
        self._saved_at = time.monotonic()
        self._save_is_put_off = False
        self._last_train_row: Row = {}

    def finish(self) -> LoopResult:
        """Train until the last epoch is done, and test where that is asked for."""
        loop, run, session = self._loop, self._run, self._session
        run.status.write("running")
        if loop.store_checkpoints and run.runtime.is_main:
            self._notice(
                room_notice(run.exp_dir, session.model, session.optimizer, run.checkpoint, loop.checkpoints_kept)
            )
        try:
            with run.display.training(loop.max_epochs * self._n_steps):
                while session.epoch < loop.max_epochs:
                    self._epoch()
            session.release()  # the memory of a captured step
            if loop.test_when_finished and not was_tested(run, session.step):
                self._evaluation.test(session.model, session.step, session.epoch - 1)
        except StopRequestedError:
            self._stop()
        finally:
            session.release()  # a graph that holds messages between ranks must go before they part
        self._draw_last()
        train = {"train": self._last_train_row} if self._last_train_row else {}
        return LoopResult(session.step, session.epoch, {**train, **self._evaluation.rows})

    def _epoch(self) -> None:
        """One epoch, or what is left of it, and what is due at its end."""
        loop, session = self._loop, self._session
        session.take_up()
        go_back = self._steps()
        if go_back is not None:
            self._save_is_put_off = False
            return go_back()
        epoch, last = session.epoch, session.epoch + 1 == loop.max_epochs
        if last:
            session.settle()
        with self._stats.paused():
            if _is_due(loop.validation_interval, epoch):
                self._evaluation.validate(session.model, session.step, epoch)
            if _is_due(loop.test_interval, epoch) and not (last and loop.test_when_finished):
                self._evaluation.test(session.model, session.step, epoch)
            session.epoch, session.step_in_epoch = epoch + 1, 0
            if loop.store_checkpoints and (last or self._checkpoint_is_due()):
                self._save(at_once=last)
            self._notice(self._stats.draw())
            self._previews.curves(self._stats.history)
        if self._run.runtime.world_size > 1 and self._all_stop():
            raise StopRequestedError

    def _draw_last(self) -> None:
        """The curves as they are when training ends."""
        self._notice(self._stats.draw(due_only=False))
        self._previews.curves(self._stats.history, at_once=True)

    def _checkpoint_is_due(self) -> bool:
        """Whether the last checkpoint is old enough by the first rank's clock, or there is none to go back to yet."""
        is_old = time.monotonic() - self._saved_at >= self._loop.checkpoint_seconds
        return self._run.runtime.main_decides(is_old or self._session.last_save is None)

    def _steps(self) -> Callable[[], None] | None:
        """The steps that are left of an epoch; what to do first where training can't go on from them."""
        loop, session = self._loop, self._session
        session.model.train()
        n = loop.gradient_accumulation_steps
        batches = self._train.steps(session.epoch, session.step_in_epoch * n)
        while group := list(itertools.islice(batches, n)):
            session.take_step(group, self._n_steps)
            if self._report_is_due() and (go_back := self._report()) is not None:
                return go_back
            if self._previews.is_due(session.step):
                with self._stats.paused():
                    self._previews.pictures(session, group[-1])
            if self._stop_requested():
                raise StopRequestedError
            if self._save_is_put_off or _is_due(loop.checkpoint_interval, session.step):
                with self._stats.paused():
                    self._save()
        return self._report() if self._stats.n_unread > 0 else None

    def _report_is_due(self) -> bool:
        """At intervals; and where these are long, while a dead start can still be seen."""
        loop, session = self._loop, self._session
        if session.step % loop.metric_print_interval == 0:
            return True
        return session.step < loop.metric_print_interval and session.dead_start.is_last_look(session.step)

    def _report(self) -> Callable[[], None] | None:
        """Read and show what was summed; how to go back where the start is dead, or steps have not been finite for too
        long."""
        run, session = self._run, self._session
        row, means, notice = self._stats.read(session.step, session.epoch, session.schedule.learning_rate)
        self._notice(notice)
        self._last_train_row = row
        run.display.update(row, run.runtime.peak_memory_bytes)
        if means.n_skipped:
            run.display.note(
                f"{means.n_skipped} of {means.n_steps} steps up to step {session.step} were skipped: "
                f"{blamed(means)} was not finite"
            )
            session.write_skipped()
        if means.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            return self._after_divergence(means)
        return session.start_over if self._loop.detect_dead_start and self._is_dead(means) else None

    def _after_divergence(self, means: Means) -> Callable[[], None]:
        """How to go back to the newest checkpoint, which a run does once.

        Raises:
            DivergenceError: there is none, or it was done before.
        """
        loop, session = self._loop, self._session
        found = f"{blamed(means)} was not finite in {means.skipped_in_a_row} steps in a row up to step {session.step}"
        mend = "lower the learning rate, set clip_grad, or use precision=fp32; skipped_steps.jsonl names the batches"
        if session.n_rollbacks > 0:
            raise DivergenceError(f"{found}, again after going back to a checkpoint; {mend}")
        checkpoint = session.checkpoint_to_go_back_to()
        if checkpoint is None:
            raise DivergenceError(f"{found}; the weights are as they were before, but no checkpoint was saved; {mend}")
        halved = loop.halve_rate_on_divergence
        at = f"step {checkpoint.state.step}{', with half the learning rate' if halved else ''}"
        self._run.display.note(f"{found}; going back to the checkpoint of {at}")
        return partial(session.roll_back, checkpoint, 0.5 if halved else 1.0)

    def _is_dead(self, means: Means) -> bool:
        session = self._session
        opacity, foreground = means.values[OPACITY], means.values.get(FOREGROUND)
        if not session.dead_start.observe(session.step, means.n_steps, opacity, foreground):
            return False
        found = f"dead start: nothing is rendered (mean opacity {opacity:.1g}) up to step {session.step}"
        if session.n_restarts >= MAX_RESTARTS:
            session.dead_start.give_up()
            self._run.display.note(f"{found}, in {MAX_RESTARTS + 1} starts; training goes on as it is")
            return False
        self._run.display.note(f"{found}; beginning anew with seed {session.seed + 1}")
        return True

    def _save(self, at_once: bool = False) -> None:
        """Save; after a skipped step only once one is taken, so that training can go back behind those skipped."""
        self._save_is_put_off = not at_once and self._stats.skipped_in_a_row > 0
        if not self._save_is_put_off:
            self._session.save()
            self._saved_at = time.monotonic()

    def _notice(self, text: str | None) -> None:
        if text:
            self._run.display.note(text)

    def _stop_requested(self) -> bool:
        """Whether to stop after this step; several ranks agree on it, at steps where metrics are read."""
        if self._run.runtime.world_size == 1:
            return self._signals.received is not None
        return self._session.step % self._loop.metric_print_interval == 0 and self._all_stop()

    def _all_stop(self) -> bool:
        """Whether any rank received a signal; all ranks ask at the same time and hear the same."""
        runtime = self._run.runtime
        going_on = torch.tensor(self._signals.received is None, device=runtime.device)
        return not bool(runtime.all_agree(going_on))

    def _stop(self) -> NoReturn:
        saved = self._session.save() if self._loop.store_checkpoints else None
        self._draw_last()
        command = f"command without {self._run.begins_by}" if self._run.begins_by else "command"
        kept = f"a checkpoint is saved; the same {command} continues" if saved else "no checkpoint was saved"
        raise self._signals.error(f"stopped by {self._signals.name} after step {self._session.step}; {kept}")


def _is_due(interval: int, n: int) -> bool:
    """Whether what happens every `interval` epochs or steps (0 or less: never) happens after `n`."""
    return interval > 0 and n % interval == 0


def _unsaid(text: str) -> None:
    """Takes the notice of a server that nobody asked for."""
