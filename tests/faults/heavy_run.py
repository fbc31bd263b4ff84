"""Runs of a tiny model whose checkpoints are large enough to fill a small disk."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nerf_trainer.config import Factory, registry
from nerf_trainer.experiment import Experiment
from nerf_trainer.frames import FrameData
from nerf_trainer.models.base import Predictions
from nerf_trainer.training.loop import ImplicitronTrainingLoop
from nerf_trainer.training.model_factory import ImplicitronModelFactory
from tests.training.tiny_run import TinyEvaluator, TinyModel, TinySource

WEIGHTS = 16384
"""Numbers of the model whose checkpoint takes 200 kB."""


@registry.register
class HeavyModel(TinyModel):
    """The tiny model, with enough weights to fill a small disk."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.ballast = nn.Parameter(torch.zeros(WEIGHTS))

    def forward(self, frames: FrameData) -> Predictions:
        predictions = super().forward(frames)
        assert predictions.objective is not None
        return replace(predictions, objective=predictions.objective + (self.ballast - 1).square().mean())


def tiny(folder: Path, **loop: Any) -> Experiment:
    """Four epochs of four steps of the heavy model, with a checkpoint after each."""
    settings = {"max_epochs": 4, "metric_print_interval": 3, "visdom_server": "", **loop}
    return Experiment(
        exp_dir=str(folder),
        data_source=TinySource(),
        model_factory=ImplicitronModelFactory(model=Factory.of(HeavyModel)),
        training_loop=ImplicitronTrainingLoop(evaluator=TinyEvaluator(), **settings),
    )
