"""Whole runs of the tiny model, as objects: no configuration is composed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nerf_trainer.config import Factory
from nerf_trainer.experiment import Experiment
from nerf_trainer.training.loop import ImplicitronTrainingLoop
from nerf_trainer.training.model_factory import ImplicitronModelFactory
from nerf_trainer.training.optimizer_factory import ImplicitronOptimizerFactory
from tests.training.tiny_run import TinyEvaluator, TinyModel, TinySource

WORDS = (
    "plugins=[tests.training.tiny_run]",
    "data_source_class_type=TinySource",
    "model_factory_ImplicitronModelFactory_args.model_class_type=TinyModel",
    "optimizer_factory_ImplicitronOptimizerFactory_args.lr=0.05",
    "training_loop_ImplicitronTrainingLoop_args.evaluator_class_type=TinyEvaluator",
    "training_loop_ImplicitronTrainingLoop_args.metric_print_interval=3",
    "training_loop_ImplicitronTrainingLoop_args.visualize_interval=0",
    "training_loop_ImplicitronTrainingLoop_args.visdom_server=''",
)
"""What `nerf_runner` has to be told to run it, besides `exp_dir` and `max_epochs`."""

Options = Mapping[str, Any] | None


def experiment(
    folder: Path,
    model: Options = None,
    source: Options = None,
    optimizer: Options = None,
    factory: Options = None,
    **loop: Any,
) -> Experiment:
    """Three epochs of four steps, unless the options of its parts say otherwise."""
    settings = {"max_epochs": 3, "metric_print_interval": 3, **loop}
    return Experiment(
        exp_dir=str(folder),
        data_source=TinySource(**(source or {})),
        model_factory=ImplicitronModelFactory(model=Factory.of(TinyModel, **(model or {})), **(factory or {})),
        optimizer_factory=ImplicitronOptimizerFactory(**{"lr": 0.05, **(optimizer or {})}),
        training_loop=ImplicitronTrainingLoop(evaluator=TinyEvaluator(), **settings),
    )
