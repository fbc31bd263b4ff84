"""A training under way: model, optimizer and position, how they advance, and how they are saved and restored."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from nerf_trainer.data.loaders import DataLoaderMap, FrameLoader
from nerf_trainer.errors import CheckpointError, StorageError
from nerf_trainer.frames import FrameData
from nerf_trainer.models.base import ImplicitronModelBase, Predictions
from nerf_trainer.ops.out_of_memory import naming_lack_of_memory
from nerf_trainer.randomness import random_streams, seed_streams
from nerf_trainer.renderers.base import RendererOutput
from nerf_trainer.schedules import scheduled_modules
from nerf_trainer.training.checkpoint import Checkpoint, CheckpointState, CheckpointStore
from nerf_trainer.training.dead_start import DeadStartDetector
from nerf_trainer.training.optimizer_factory import OptimizerFactoryBase, carry_over_
from nerf_trainer.training.progress import Display
from nerf_trainer.training.runtime import Runtime, StatusFile
from nerf_trainer.training.skipped_steps import SkippedSteps
from nerf_trainer.training.stats import Statistics, was_skipping
from nerf_trainer.training.step import StepResult, TrainingStep
from nerf_trainer.training.weight_average import drop_average_, exchange_, keeps_average
from nerf_trainer.visualization.plots import History

_MAX_FAILED_SAVES = 3
"""Checkpoints in a row that the disk may refuse before the run ends."""


@runtime_checkable
class Preview(Protocol):
    """Shows a run as it goes on, on a server or in a window; must not slow it down."""

    @property
    def reachable(self) -> bool:
        """Whether anybody may see it; if not, nothing need be rendered for it. Showing curves finds out anew."""
        ...

    def knock(self) -> None:
        """Begin to find out whether anybody may see it."""
        ...

    def curves(self, history: History) -> None:
        """Show every metric of the run so far."""
        ...

    def view(
        self, predictions: Predictions, split: str, caption: str, sources: Float[Tensor, "V 3 H W"] | None = None
    ) -> None:
        """Show the first of the views that were rendered whole, and the photographs that it was rendered from."""
        ...

    def close(self) -> None:
        """The run ends; takes a few seconds at most."""
        ...


@dataclass(frozen=True)
class TrainingRun:
    """What a training loop is given."""

    runtime: Runtime
    """Device, precision and ranks."""
    exp_dir: Path
    """The run's folder."""
    model: ImplicitronModelBase
    """The model, its weights loaded where there is a checkpoint; on the run's device."""
    checkpoint: Checkpoint | None
    """Where to go on from; None: from the start."""
    new_model: Callable[[int], ImplicitronModelBase]
    """A model, on the run's device, whose initial weights are drawn from the given seed."""
    optimizer_factory: OptimizerFactoryBase
    """Makes the optimizer of a model."""
    loaders: DataLoaderMap
    """The splits' batches; placed by the loop."""
    store: CheckpointStore
    """The run's checkpoints."""
    status: StatusFile
    """The run's state for those who look from outside."""
    display: Display
    """Where the user reads."""
    config_sha256: str = ""
    """Digest of the configuration, saved with checkpoints."""
    preview: Preview | None = None
    """A live view of the run."""
    begins_by: str = ""
    """Name of the option that said where to begin, if one did: the same command would begin there again."""


class Session:
    """Holds what training changes.

    Args:
        run: what the loop was given.
        train: the training batches.
        clip_grad: largest norm of the gradient; 0 for no limit.
        capture_step: capture steps as one CUDA graph where nothing forbids it.
    """

    def __init__(
        self, run: TrainingRun, train: FrameLoader, clip_grad: float = 0.0, capture_step: bool = False
    ) -> None:
        self.run = run
        self._train = train
        self._clip_grad = clip_grad
        self._capture_step = capture_step
        self._said: set[str] = set()
        self._failed_saves = 0
        self.last_save: Path | None = None
        self.rasterize: Callable[[], RendererOutput] | None = None
        saved = run.checkpoint.state if run.checkpoint is not None else None
        self.n_restarts = 0
        if saved is not None and run.runtime.is_main:
            run.store.abandon_after(saved.step)  # with a copy of the log, before that is cut
        folder = run.exp_dir if run.runtime.is_main else None
        offset = saved.metrics_offset if saved is not None else 0
        self.stats = Statistics(run.runtime, folder, offset, run.model.log_vars)
        self._skipped = SkippedSteps(run.runtime, run.exp_dir)
        self.n_rollbacks = 0
        self._rate_scale = 1.0
        scaler = run.runtime.scaler
        self._new_scaler = scaler.state_dict() if scaler is not None else None
        self._begin(run.model, saved.seed if saved is not None else run.runtime.seed)
        if run.checkpoint is not None:
            self._restore(run.checkpoint)

    def _begin(self, model: ImplicitronModelBase, seed: int) -> None:
        """Take up `model` at step 0."""
        runtime = self.run.runtime
        self.seed = seed
        self.model = model.to(runtime.device)
        seed_streams(self.model, seed, runtime.rank)
        self._train.place(runtime.device, seed, runtime.rank, runtime.world_size)
        self.optimizer, self.schedule = self.run.optimizer_factory(self.model)
        self.dead_start = DeadStartDetector()
        self.step = self.epoch = self.step_in_epoch = 0
        self._settled = False
        self._step = TrainingStep(
            self.model, self.optimizer, runtime, self._clip_grad, self._capture_step, self._record, self._say
        )
        self._scheduled = list(scheduled_modules(self.model))

    def _say(self, line: str) -> None:
        """Say something, the first time that it is to be said."""
        if line not in self._said:
            self._said.add(line)
            self.run.display.line(line)

    def _record(self, result: StepResult) -> None:
        """What is kept of a step on the device; part of a captured one."""
        self.stats.accumulate(result)
        self._skipped.accumulate(result)

    def take_step(self, batches: Sequence[FrameData], n_steps: int) -> None:
        """One optimizer step, schedules first.

        Args:
            batches: what the step accumulates gradients over.
            n_steps: steps of an epoch.

        Raises:
            ConfigError: there is no memory for it.
        """
        self.run.runtime.begin_step()
        self.schedule.set_epoch(self.epoch, self.step_in_epoch / n_steps)
        changes = [change for module in self._scheduled if (change := module.advance(self.epoch, self.step))]
        if changes:
            carry_over_(self.optimizer, [replacement for change in changes for replacement in change.replacements])
            self._scheduled = list(scheduled_modules(self.model))
            self._step.outdated()
        with naming_lack_of_memory(self._out_of_memory):
            with self.run.runtime.autocast():
                self.model.before_step(self.step)
            result = self._step(batches)
        self.stats.count(result)
        self.rasterize = result.rasterize
        self.step += 1
        self.step_in_epoch += 1
        self._skipped.count(self.step, batches)
        self.run.status.step = self.step

    def _out_of_memory(self, found: str) -> str:
        """What to say where a step has no room."""
        saved = self.run.status.last_checkpoint
        kept = f"{saved} is kept" if saved is not None else "nothing was saved yet"
        return (
            f"memory: ran out in step {self.step + 1} ({found}); {kept}; take fewer rays"
            " (n_rays_total_training, n_rays_per_image_sampled_from_mask) or points a ray, a smaller model or"
            " precision=bf16, or end what else runs on the device"
        )

    def write_skipped(self) -> None:
        """Write down which batches the skipped steps had since this was called last; all ranks call it."""
        notice = self._skipped.write(self.run.status.last_checkpoint)
        if notice is not None:
            self.run.display.note(notice)

    def settle(self) -> None:
        """The last step is taken: where an average of the weights is kept, it takes their place."""
        if keeps_average(self.optimizer) and not self._settled:
            exchange_(self.optimizer)
            self._settled = True

    def take_up(self) -> None:
        """Further steps come: they go on from the weights, not from their average, and without one if none is kept."""
        if self._settled:
            exchange_(self.optimizer)
            self._settled = False
        if not keeps_average(self.optimizer):
            drop_average_(self.optimizer)

    def release(self) -> None:
        """Let go of what only further steps need: the memory of a captured one."""
        self.rasterize = None
        self._step.release()

    def _leave(self) -> None:
        """Free the memory of the present model and optimizer before others are made: who gave us the model keeps it."""
        self.release()
        self.optimizer.state.clear()
        self.optimizer.param_groups.clear()
        self.model.to("meta")

    def start_over(self) -> None:
        """Begin again with the next seed: weights, optimizer, loss scale, random streams, batches and log are new."""
        self.n_restarts += 1
        if self.run.runtime.is_main:
            self.run.store.abandon_after(-1)
        self.run.runtime.barrier()
        self._leave()
        self.stats.start_over(0)
        self._skipped.forget()
        scaler = self.run.runtime.scaler
        if scaler is not None and self._new_scaler is not None:
            scaler.load_state_dict(self._new_scaler)
        self._begin(self.run.new_model(self.seed + 1), self.seed + 1)
        self.run.status.step, self.run.status.last_checkpoint = 0, None

    def checkpoint_to_go_back_to(self) -> Checkpoint | None:
        """The newest valid checkpoint, the first rank's choice on all; None where there is none.

        One that was saved on request while steps were skipped is not chosen where there is another.
        """
        run, found = self.run, None
        if run.runtime.is_main:
            try:
                found = run.store.latest(preferred=lambda one: not was_skipping(one.state.extra["statistics"]))
            except CheckpointError as error:
                run.display.note(str(error))
        names = run.runtime.gather_objects([found.path.name if found is not None else None])
        return None if names[0] is None else Checkpoint.open(run.store.folder / names[0])

    def roll_back(self, checkpoint: Checkpoint, rate_scale: float = 1.0) -> None:
        """Go on from a checkpoint of this run, as a resumed run would; the log loses what came after it.

        Args:
            rate_scale: what all learning rates are multiplied by from here on, in resumed runs too.
        """
        saved = checkpoint.state
        if self.run.runtime.is_main:
            self.run.store.abandon_after(saved.step)
        self._leave()
        self.run.runtime.barrier()
        self.stats.start_over(saved.metrics_offset)
        self._skipped.forget()
        model = self.run.new_model(saved.seed)
        checkpoint.load_model(model)
        self._begin(model, saved.seed)
        self._restore(checkpoint)
        self.n_rollbacks += 1
        self._rate_scale *= rate_scale
        self.schedule.scale(rate_scale)

    def save(self) -> Path | None:
        """Commit a checkpoint.

        Returns:
            Its path, or None when the disk refused; the run goes on and tries again at the next occasion.

        Raises:
            StorageError: the disk refused three times in a row.
        """
        run = self.run
        if self.stats.n_unread:
            self.write_skipped()
        run.runtime.agree_on_buffers(self.model)
        try:
            path = run.store.save(
                self.model,
                self.optimizer,
                self._state(),
                dict(random_streams(self.model)),
                run.runtime.rank,
                run.runtime.world_size,
                run.runtime.barrier,
                run.config_sha256,
            )
        except StorageError as error:
            self._failed_saves += 1
            if self._failed_saves >= _MAX_FAILED_SAVES:
                raise
            run.display.note(f"{error} (training goes on and tries again at the next checkpoint)")
            return None
        self._failed_saves = 0
        self.last_save = path
        run.status.last_checkpoint = str(path.relative_to(run.exp_dir))
        run.status.write("running")
        return path

    def _state(self) -> CheckpointState:
        scaler = self.run.runtime.scaler
        extra: dict[str, Any] = {
            "n_restarts": self.n_restarts,
            "n_rollbacks": self.n_rollbacks,
            "rate_scale": self._rate_scale,
            "settled": self._settled,
            "dead_start": self.dead_start.state(),
            "statistics": self.stats.state(),
        }
        return CheckpointState(
            step=self.step,
            epoch=self.epoch,
            step_in_epoch=self.step_in_epoch,
            scheduler=self.schedule.state_dict(),
            scaler=scaler.state_dict() if scaler is not None else None,
            metrics_offset=self.stats.log.offset(),
            seed=self.seed,
            extra=extra,
        )

    def _restore(self, checkpoint: Checkpoint) -> None:
        runtime, state = self.run.runtime, checkpoint.state
        checkpoint.load_optimizer(self.model, self.optimizer)
        checkpoint.load_streams(dict(random_streams(self.model)), runtime.rank, runtime.world_size)
        with checkpoint.restoring():
            self.n_restarts = int(state.extra.get("n_restarts", 0))
            self.n_rollbacks = int(state.extra.get("n_rollbacks", 0))
            self._rate_scale = float(state.extra.get("rate_scale", 1.0))
            self._settled = bool(state.extra.get("settled", False))
            self.schedule.scale(self._rate_scale)
            self.schedule.load_state_dict(state.scheduler)
            if runtime.scaler is not None and state.scaler is not None:
                runtime.scaler.load_state_dict(state.scaler)
            self.dead_start.restore(state.extra["dead_start"])
            self.stats.restore(state.extra["statistics"])
            self.step, self.epoch, self.step_in_epoch = state.step, state.epoch, state.step_in_epoch
        self.last_save = checkpoint.path
        self.run.status.step = state.step
        self.run.status.last_checkpoint = str(checkpoint.path.relative_to(self.run.exp_dir))
