"""Which checkpoint a run goes on from, and what happens where there is none."""

from pathlib import Path

import pytest
import torch

from nerf_trainer.config import Factory
from nerf_trainer.errors import CheckpointError, ConfigError
from nerf_trainer.frames import FrameData
from nerf_trainer.models.base import ImplicitronModelBase, Predictions
from nerf_trainer.training.checkpoint import CheckpointState, CheckpointStore
from nerf_trainer.training.model_factory import ImplicitronModelFactory


class Constant(ImplicitronModelBase):
    """A model of one number, whose first value is drawn."""

    width: int = 1

    def __post_init__(self) -> None:
        self.value = torch.nn.Parameter(torch.rand(self.width))

    def forward(self, frames: FrameData) -> Predictions:
        raise NotImplementedError


def factory(width: int = 1, **options: object) -> ImplicitronModelFactory:
    return ImplicitronModelFactory(model=Factory.of(Constant, width=width), **options)


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path, keep=None)


def save(store: CheckpointStore, step: int, epoch: int, step_in_epoch: int = 0) -> None:
    model = Constant()
    torch.nn.init.constant_(model.value, float(step))
    store.save(model, None, CheckpointState(step=step, epoch=epoch, step_in_epoch=step_in_epoch), {})


def used(store: CheckpointStore) -> None:
    """Epochs of ten steps: the ends of the epochs 0 and 1, and 5 steps more."""
    for step, epoch, step_in_epoch in ((10, 1, 0), (20, 2, 0), (25, 2, 5)):
        save(store, step, epoch, step_in_epoch)


def test_a_new_run_starts_with_drawn_weights(tmp_path: Path, store: CheckpointStore):
    make = factory()
    torch.manual_seed(0)
    first, checkpoint = make(tmp_path, store, eval_only=False)
    assert checkpoint is None
    torch.manual_seed(0)
    again, _ = make(tmp_path, store, eval_only=False)
    other, _ = make(tmp_path, store, eval_only=False)
    assert again is not first
    assert torch.equal(again.value, first.value)
    assert not torch.equal(other.value, first.value)


@pytest.mark.parametrize(("resume_epoch", "step"), [(-1, 25), (0, 10), (1, 20)])
@pytest.mark.parametrize("eval_only", [False, True])
def test_the_checkpoint_asked_for_is_loaded(
    tmp_path: Path, store: CheckpointStore, resume_epoch: int, step: int, eval_only: bool
):
    used(store)
    model, checkpoint = factory(resume_epoch=resume_epoch)(tmp_path, store, eval_only)
    assert checkpoint is not None
    assert checkpoint.state.step == step
    assert model.value.item() == step
    assert len(list(store.folder.glob("step-*"))) == 3


@pytest.mark.parametrize("eval_only", [False, True])
def test_an_epoch_that_was_not_saved_is_an_error(tmp_path: Path, store: CheckpointStore, eval_only: bool):
    with pytest.raises(CheckpointError, match=r"with 3 finished epochs \(resume_epoch=2\); there are none"):
        factory(resume_epoch=2)(tmp_path, store, eval_only)
    used(store)
    with pytest.raises(CheckpointError, match=r"with 3 finished epochs \(resume_epoch=2\); there are 1, 2"):
        factory(resume_epoch=2)(tmp_path, store, eval_only)


class Ruler(ImplicitronModelBase):
    """A model that has nothing to learn."""

    def forward(self, frames: FrameData) -> Predictions:
        raise NotImplementedError


@pytest.mark.parametrize("options", [{}, {"resume": False}, {"force_resume": True}], ids=str)
def test_a_model_without_parameters_is_evaluated_as_it_is_and_not_trained(
    tmp_path: Path, store: CheckpointStore, options: dict[str, bool]
):
    used(store)
    make = ImplicitronModelFactory(model=Factory.of(Ruler), **options)
    model, checkpoint = make(tmp_path, store, eval_only=True)
    assert isinstance(model, Ruler) and checkpoint is None
    with pytest.raises(ConfigError, match="Ruler has no parameters to train; set eval_only=true"):
        make(tmp_path, store, eval_only=False)
    assert store.latest() is not None, "another model's checkpoints stay where they are"


def test_evaluating_without_a_checkpoint_is_an_error(tmp_path: Path, store: CheckpointStore):
    with pytest.raises(CheckpointError, match=f"no checkpoint in {tmp_path}; expected one to evaluate; train first"):
        factory()(tmp_path, store, eval_only=True)
    used(store)
    with pytest.raises(CheckpointError, match="resume: False was given with eval_only: True"):
        factory(resume=False)(tmp_path, store, eval_only=True)
    assert store.latest() is not None


def test_force_resume_wants_a_checkpoint(tmp_path: Path, store: CheckpointStore):
    with pytest.raises(CheckpointError, match="force_resume: True expects one to continue"):
        factory(force_resume=True)(tmp_path, store, eval_only=False)
    used(store)
    _, checkpoint = factory(force_resume=True)(tmp_path, store, eval_only=False)
    assert checkpoint is not None


def test_starting_anew_moves_old_checkpoints_aside(tmp_path: Path, store: CheckpointStore):
    used(store)
    _, checkpoint = factory(resume=False)(tmp_path, store, eval_only=False, is_main=False)
    assert checkpoint is None
    assert store.latest() is not None
    _, checkpoint = factory(resume=False)(tmp_path, store, eval_only=False)
    assert checkpoint is None
    assert {path.name for path in (store.folder / "abandoned-1").iterdir()} == {
        "step-00000010", "step-00000020", "step-00000025",
    }  # fmt: skip
    assert factory()(tmp_path, store, eval_only=False)[1] is None


def test_bad_checkpoints_never_mean_starting_anew(tmp_path: Path, store: CheckpointStore):
    used(store)
    for path in store.folder.glob("step-*/model.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="no valid checkpoint"):
        factory()(tmp_path, store, eval_only=False)
    assert len(list(store.folder.glob("step-*"))) == 3


def test_weights_of_another_shape_are_an_error(tmp_path: Path, store: CheckpointStore):
    used(store)
    with pytest.raises(CheckpointError, match=r"value \(\[1\] in the checkpoint, \[2\] in the model\)"):
        factory(width=2)(tmp_path, store, eval_only=False)
