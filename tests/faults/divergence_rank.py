"""What one of two processes does in the test of a step that is not finite on one of them; each imports this module."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from nerf_trainer.config import Factory
from nerf_trainer.data.loaders import DataLoaderMap
from nerf_trainer.data.source import DataSourceBase
from nerf_trainer.data.splits import DatasetMap
from nerf_trainer.experiment import Experiment
from nerf_trainer.frames import FrameData
from nerf_trainer.models.base import Predictions
from nerf_trainer.training.loop import ImplicitronTrainingLoop
from nerf_trainer.training.model_factory import ImplicitronModelFactory
from nerf_trainer.training.optimizer_factory import ImplicitronOptimizerFactory
from nerf_trainer.training.runtime import leave_ranks
from nerf_trainer.training.session import Session
from tests.training.tiny_run import TinyEvaluator, TinyLoader, TinyModel, frame

N_STEPS = 12
FAULTY_RANK = 1
LOSS_AT, GRADIENT_AT = 4, 8
"""Steps, from 0, in which the loss is NaN, and in which it is finite and a gradient infinite; on the faulty rank."""


class Faulty(TinyModel):
    """A model that breaks in two of its steps."""

    is_faulty: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.bias.register_hook(self._broken_gradient)

    def _broken_gradient(self, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * float("inf") if self.is_faulty and self.calls == GRADIENT_AT + 1 else gradient

    def forward(self, frames: FrameData) -> Predictions:
        self.nan_from = LOSS_AT if self.is_faulty else -1
        self.nan_to = LOSS_AT + 1
        return super().forward(frames)


class OwnFrames(TinyLoader):
    """Frames that no other rank sees: 100 times the rank, plus the step."""

    def place(self, device: torch.device | str, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self._rank = rank

    def steps(self, epoch: int, start: int = 0) -> Iterator[FrameData]:
        yield from (frame(100 * self._rank + step) for step in range(start, N_STEPS))


class OwnSource(DataSourceBase):
    """Those, for training alone."""

    def get_datasets_and_dataloaders(self) -> tuple[DatasetMap, DataLoaderMap]:
        return DatasetMap(), DataLoaderMap(train=OwnFrames(N_STEPS))


def train_a_rank(rank: int, folder: str) -> None:
    """One epoch; the weights after each step are left in a file of this rank."""
    places = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    os.environ.update(places, ACCELERATE_USE_CPU="true")
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    torch.set_num_threads(1)
    take_step, weights = Session.take_step, []

    def witnessed(session: Session, *arguments: Any) -> None:
        take_step(session, *arguments)
        weights.append(torch.cat([p.detach().flatten().clone() for p in session.model.parameters()]))

    patch = pytest.MonkeyPatch()
    patch.setattr(Session, "take_step", witnessed)
    patch.setattr("nerf_trainer.training.stats.draw_train_stats", lambda history, folder: ())
    loop = ImplicitronTrainingLoop(
        evaluator=TinyEvaluator(), max_epochs=1, metric_print_interval=3, validation_interval=0, visdom_server=""
    )
    Experiment(
        exp_dir=f"{folder}/run",
        data_source=OwnSource(),
        model_factory=ImplicitronModelFactory(model=Factory.of(Faulty, is_faulty=rank == FAULTY_RANK)),
        optimizer_factory=ImplicitronOptimizerFactory(lr=0.05),
        training_loop=loop,
    ).run()
    save_file({"weights": torch.stack(weights)}, Path(folder, f"weights-{rank}"))
    leave_ranks()
