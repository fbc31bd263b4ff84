"""What one of two processes does in the test of evaluations; a module of its own, as each imports it."""

import os
import sys

import torch

from nerf_trainer import experiment


def evaluate_a_rank(rank: int, folder: str, words: list[str]) -> None:
    """The command `nerf_runner` with these words, as one of two ranks that meet in a file of the folder."""
    places = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    os.environ.update(places, ACCELERATE_USE_CPU="true")
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    torch.set_num_threads(1)
    sys.argv = ["nerf_runner", *words]
    with open(f"{folder}/said-{rank}", "w", encoding="utf-8") as sys.stdout:
        experiment.main()
