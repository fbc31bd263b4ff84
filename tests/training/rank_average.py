"""What one of two processes does in the test of averaged gradients; a module of its own, as each imports it."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from nerf_trainer.training import gradient_average, step
from nerf_trainer.training.gradient_average import GradientAverage
from nerf_trainer.training.runtime import Runtime, leave_ranks
from tests.training.tiny_run import TinyModel, frame

RATE = 0.5


class Several(nn.Module):
    """Parameters that both ranks reach (one of them large), that one of them reaches, and that none does."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.shared = nn.Parameter(torch.full((2,), 1.0 + rank))
        self.large = nn.Parameter(torch.full((3, 4), 2.0 + rank))
        self.of_second = nn.Parameter(torch.full((3,), 3.0 + rank))
        self.of_none = nn.Parameter(torch.full((1,), 4.0 + rank))
        self.register_buffer("seen", torch.tensor(rank))

    def objective(self, rank: int) -> torch.Tensor:
        """Gradients of the shared one: 1 and 2; of the large one: 3 and 5; of the second rank's: 7."""
        value = (1 + rank) * self.shared.sum() + (3 + 2 * rank) * self.large.T.sum()
        return value + 7 * self.of_second.sum() if rank == 1 else value


def average_a_rank(rank: int, folder: str) -> None:
    """Averages gradients three times, once of an objective that is not finite, and takes a step of a model."""
    places = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    os.environ.update(places, ACCELERATE_USE_CPU="true")
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    torch.set_num_threads(1)
    gradient_average._LARGE = 12
    runtime = Runtime()
    model = Several(rank)
    average = GradientAverage(model, runtime)
    kept = {f"begin.{name}": value.detach().clone() for name, value in model.state_dict().items()}
    flags = []
    for finite in (True, rank == 0, True):
        model.zero_grad(set_to_none=True)
        (model.objective(rank) / runtime.world_size).backward()
        flags.append(average(torch.tensor(finite)))
    assert model.of_none.grad is None
    kept |= {f"grad.{name}": p.grad.contiguous() for name, p in model.named_parameters() if p.grad is not None}
    kept["flags"] = torch.stack(flags)
    model.zero_grad(set_to_none=True)
    rounding = GradientAverage(model, runtime, large_as=torch.bfloat16)
    (model.objective(rank) / 3 / runtime.world_size).backward()
    rounding(torch.tensor(True))
    assert model.large.grad is not None and model.shared.grad is not None
    kept |= {"rounded.large": model.large.grad.contiguous(), "rounded.shared": model.shared.grad}
    kept |= {f"step.{name}": value for name, value in stepped(runtime, [frame(1 + rank), frame(3 + rank)]).items()}
    save_file(kept, Path(folder, f"rank-{rank}"))
    leave_ranks()


def stepped(runtime: Runtime, batches: Sequence) -> dict[str, torch.Tensor]:
    """Weights after a step on the mean over both ranks' batches."""
    torch.manual_seed(0)
    model = TinyModel(noise=0.0)
    average = GradientAverage(model, runtime) if runtime.world_size > 1 else None
    body = step._Body(model, torch.optim.SGD(model.parameters(), lr=RATE), runtime, 0.0, average, None)
    result = body(batches)
    assert not result.skipped
    weights = {name: p.detach() for name, p in model.named_parameters()}
    return {**weights, "norm": result.metrics["grad_norm"]}
