"""The mean of the ranks' gradients as part of a step that is captured.

DistributedDataParallel finds out in each step, on the host, which parameters were reached; a graph can't. Here the
ranks agree on that once, and from then on a step sums what they agreed on: large gradients where they lie, all small
ones joined, with a flag that says whether some rank's objective was not finite.
"""

import torch
from jaxtyping import Bool
from torch import Tensor, distributed, nn

from nerf_trainer.training.runtime import Runtime

_LARGE = 2**20
"""Gradients of so many numbers are summed where they lie; joining smaller ones costs less than a message for each."""


class GradientAverage:
    """Averages gradients over the ranks; where each rank's objective was divided by how many ranks there are, the mean
    is a sum.

    Args:
        model: whose gradients; every rank gets the first one's parameters and buffers.
        runtime: the ranks.
        large_as: what large gradients are sent in, each rank's being rounded to it; None: as they are.
    """

    def __init__(self, model: nn.Module, runtime: Runtime, large_as: torch.dtype | None = None) -> None:
        self._model = model
        self._runtime = runtime
        self._large_as = large_as
        self._reached: list[nn.Parameter] | None = None
        self.begin()

    def begin(self) -> None:
        """Start from the first rank's parameters and buffers, and agree anew on what a step reaches."""
        self._reached = None
        self._runtime.agree_on_parameters(self._model)
        self._runtime.agree_on_buffers(self._model)

    @torch.no_grad()
    def __call__(self, finite: Bool[Tensor, ""]) -> Bool[Tensor, ""]:
        """Sum every gradient over the ranks; one that only other ranks have is zeros here.

        Args:
            finite: whether this rank's objective was.

        Returns:
            Whether every rank's was.
        """
        if self._reached is None:
            self._reached = self._agree()
        small: list[nn.Parameter] = []
        for parameter in self._reached:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if parameter.dtype == torch.float32 and parameter.numel() < _LARGE:
                small.append(parameter)
            else:
                parameter.grad = self._sum_large(parameter.grad)
        flag = (~finite).to(torch.float32).reshape(1)
        joined = torch.cat([*(p.grad.flatten() for p in small if p.grad is not None), flag])
        distributed.all_reduce(joined)
        *sums, flags = joined.split([*(p.numel() for p in small), 1])
        for parameter, summed in zip(small, sums, strict=True):
            parameter.grad = summed.view_as(parameter)
        return flags[0] == 0

    def _sum_large(self, gradient: Tensor) -> Tensor:
        """A gradient summed by itself."""
        sent = gradient.contiguous() if self._large_as is None else gradient.to(self._large_as).contiguous()
        distributed.all_reduce(sent)
        return sent.to(gradient.dtype)

    def _agree(self) -> list[nn.Parameter]:
        """The parameters that some rank reached in this step, on every rank in the same order."""
        trained = [p for p in self._model.parameters() if p.requires_grad]
        ours = [i for i, parameter in enumerate(trained) if parameter.grad is not None]
        reached = set(self._runtime.gather_objects(ours))
        return [parameter for i, parameter in enumerate(trained) if i in reached]
