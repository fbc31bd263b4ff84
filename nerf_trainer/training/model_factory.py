"""Where a run's model comes from: freshly made, or continued from a checkpoint."""

from abc import abstractmethod
from pathlib import Path

from nerf_trainer.config import Factory, ReplaceableBase, choice, registry
from nerf_trainer.errors import CheckpointError, ConfigError
from nerf_trainer.models.base import ImplicitronModelBase
from nerf_trainer.training.checkpoint import Checkpoint, CheckpointStore


def learns(model: ImplicitronModelBase) -> bool:
    """Whether a model has parameters: one without is evaluated as it is made, and needs no checkpoint."""
    return next(model.parameters(), None) is not None


class ModelFactoryBase(ReplaceableBase):
    """Makes the model and finds the checkpoint that the run goes on from."""

    resume: bool = True
    """Go on from a checkpoint where there is one; otherwise start anew and move old checkpoints aside."""

    @abstractmethod
    def __call__(
        self, exp_dir: Path, store: CheckpointStore, eval_only: bool, is_main: bool = True
    ) -> tuple[ImplicitronModelBase, Checkpoint | None]:
        """A model on the CPU, its weights loaded where a checkpoint is returned beside it.

        Args:
            exp_dir: the run's folder.
            store: its checkpoints.
            eval_only: whether the model is only to be looked at: nothing is moved, and a checkpoint must exist, unless
                the model learns nothing.
            is_main: whether this is the process that may move files.

        Raises:
            CheckpointError: a checkpoint was asked for, and there is none or none that can be used.
            ConfigError: the model is to be trained and has nothing to learn.
        """

    @property
    def begins_by(self) -> str:
        """Name of the option that lets a run begin elsewhere than where it stopped; empty where none does."""
        return "" if self.resume else "resume"

    @abstractmethod
    def new_model(self) -> ImplicitronModelBase:
        """A model on the CPU whose weights are drawn now, from torch's global generator."""


@registry.register
class ImplicitronModelFactory(ModelFactoryBase):
    """Resumes the newest valid checkpoint, or the one that was written at the end of `resume_epoch`."""

    model: Factory[ImplicitronModelBase] = choice("GenericModel")
    """The model; each call makes a new one, whose weights are drawn then."""
    resume_epoch: int = -1
    """Resume with what was known at the end of this epoch (from 0); -1: the newest checkpoint."""
    force_resume: bool = False
    """Whether having no checkpoint to resume is an error, and a damaged newest one too: no older one is taken then."""

    def __call__(
        self, exp_dir: Path, store: CheckpointStore, eval_only: bool, is_main: bool = True
    ) -> tuple[ImplicitronModelBase, Checkpoint | None]:
        """See the base class. Checkpoints of later epochs than `resume_epoch` stay: the training loop moves them."""
        model = self.new_model()
        if not learns(model):
            if not eval_only:
                raise ConfigError(
                    f"model_class_type: {type(model).__name__} has no parameters to train; set eval_only=true"
                )
            return model, None
        if is_main and not eval_only:
            store.sweep()
        checkpoint = self._find(exp_dir, store, eval_only)
        if checkpoint is not None:
            checkpoint.load_model(model)
        elif is_main:
            store.abandon_after(-1)
        return model, checkpoint

    @property
    def begins_by(self) -> str:
        """See the base class."""
        return "resume_epoch" if self.resume and self.resume_epoch >= 0 else super().begins_by

    def new_model(self) -> ImplicitronModelBase:
        """See the base class."""
        return self.model()

    def _find(self, exp_dir: Path, store: CheckpointStore, eval_only: bool) -> Checkpoint | None:
        if not self.resume:
            if eval_only:
                raise CheckpointError(
                    "resume: False was given with eval_only: True, which leaves no weights to evaluate; "
                    "expected resume: True"
                )
            return None
        if self.resume_epoch >= 0:
            return store.at_epoch(self.resume_epoch + 1)
        checkpoint = store.latest(fall_back=not self.force_resume, to_train=not eval_only)
        if checkpoint is None and eval_only:
            raise CheckpointError(
                f"no checkpoint in {exp_dir}; expected one to evaluate; train first or point exp_dir to a trained run"
            )
        if checkpoint is None and self.force_resume:
            raise CheckpointError(
                f"no checkpoint in {exp_dir}; force_resume: True expects one to continue; "
                "set force_resume=False or point exp_dir to the run to continue"
            )
        return checkpoint
