"""What a process does in the test of evaluations, alone or one of two; a module of its own, as each imports it."""

import os
import sys

import torch
from omegaconf import OmegaConf

from nerf_trainer.config import build
from nerf_trainer.experiment import Experiment


def evaluate_a_rank(rank: int, folder: str, world_size: int) -> None:
    """The evaluation of the run in `folder`, alone or as one of several ranks that meet in a file there."""
    # One thread for each, which Accelerate would choose by the number of processes: more add up in another order.
    os.environ.update(ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1")
    if world_size > 1:
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size}
        os.environ.update({name: str(place) for name, place in places.items()}, MASTER_ADDR="127.0.0.1")
        torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=world_size)
    torch.set_num_threads(1)
    config = OmegaConf.load(f"{folder}/run/expconfig.yaml")
    config.eval_only = True
    with open(f"{folder}/said-{rank}-of-{world_size}", "w", encoding="utf-8") as sys.stdout:
        build(Experiment, config).run(config)
