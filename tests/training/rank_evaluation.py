"""What one of two processes does in the test of evaluations; a module of its own, as each imports it."""

import os
import sys

import torch
from omegaconf import OmegaConf

from nerf_trainer.config import build
from nerf_trainer.experiment import Experiment


def evaluate_a_rank(rank: int, folder: str) -> None:
    """The evaluation of the run in `folder`, as one of two ranks that meet in a file there."""
    places = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    os.environ.update(places, ACCELERATE_USE_CPU="true")
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    torch.set_num_threads(1)
    config = OmegaConf.load(f"{folder}/run/expconfig.yaml")
    config.eval_only = True
    with open(f"{folder}/said-{rank}", "w", encoding="utf-8") as sys.stdout:
        build(Experiment, config).run(config)
