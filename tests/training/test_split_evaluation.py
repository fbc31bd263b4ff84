"""Evaluations of a run: which of them a signal ends."""

import os
import signal
from contextlib import nullcontext
from unittest.mock import Mock

import pytest
import torch

from nerf_trainer.data.loaders import DataLoaderMap
from nerf_trainer.training.interruption import StopRequestedError, StopSignals
from nerf_trainer.training.progress import Display
from nerf_trainer.training.runtime import Runtime
from nerf_trainer.training.session import TrainingRun
from nerf_trainer.training.split_evaluation import SplitEvaluation
from nerf_trainer.training.stats import Statistics
from tests.training.tiny_run import TinyEvaluator, TinyLoader, TinyModel


def evaluation(world_size, signals):
    """Of a run whose other processes, if any, do as this one."""
    runtime = Mock(spec=Runtime, device=torch.device("cpu"), seed=0, rank=0, world_size=world_size)
    runtime.autocast = nullcontext
    runtime.gather_objects = runtime.sum_over_ranks = lambda found: found
    stats = Mock(spec=Statistics, logged=lambda values: values, write=lambda row: "")
    run = Mock(spec=TrainingRun, runtime=runtime, loaders=DataLoaderMap(val=TinyLoader(3)))
    run.display = Mock(spec=Display)
    return SplitEvaluation(run, stats, TinyEvaluator(), signals, with_val=True, with_test=False)


def test_a_signal_ends_the_validation_of_a_process_that_trains_alone():
    with StopSignals() as signals:
        validation = evaluation(1, signals)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(StopRequestedError):
            validation.validate(TinyModel(), step=1, epoch=0)
    assert validation.rows == {}


def test_of_several_processes_none_leaves_the_others_with_a_validation():
    with StopSignals() as signals:
        validation = evaluation(2, signals)
        os.kill(os.getpid(), signal.SIGTERM)
        validation.validate(TinyModel(), step=1, epoch=0)
        assert signals.received == signal.SIGTERM
    assert validation.rows["val"]["loss_rgb_mse"] > 0
