"""One training step: forward, backward, optimizer; nothing in it waits for the GPU.

The step decides by itself whether its values are finite. With a fused optimizer on CUDA the flag never leaves the
device: the optimizer's kernel reads it (`found_inf`, as gradient scalers do) and leaves weights and moments alone.
Elsewhere, on the CPU and for optimizers without a fused kernel (Adagrad on CUDA, or `foreach: false`), the flag is read
by the host, which then leaves the optimizer's step out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.optim import Optimizer

from nerf_trainer.errors import ConfigError
from nerf_trainer.frames import FrameData
from nerf_trainer.models.base import Predictions
from nerf_trainer.renderers.base import RendererOutput
from nerf_trainer.training.optimizer_factory import skips_on_device
from nerf_trainer.training.runtime import Runtime

OVERFLOWS = "fp16_overflows"
"""Metric of fp16 alone: the share of steps that the gradient scaler left out; a few are normal."""


@dataclass(frozen=True)
class StepResult:
    """What one step computed; every tensor is on the device and none has been read."""

    metrics: dict[str, Float[Tensor, ""]]
    """The model's metrics, `objective` and `grad_norm` (before clipping), means over accumulated batches."""
    skipped: Bool[Tensor, ""]
    """Whether the objective or a gradient was not finite, so that the weights were left alone."""
    opacity: Float[Tensor, ""]
    """Mean rendered opacity of the step's rays, in [0, 1]."""
    foreground: Float[Tensor, ""] | None
    """Mean foreground probability of the step's targets, in [0, 1]; None where the data has no masks."""
    n_rays: int
    """Rays rendered by this rank."""
    rasterize: Callable[[], RendererOutput] | None = None
    """Makes pictures of the last batch's rays, where the model does."""


@dataclass(frozen=True)
class _Scored:
    """What a step keeps of one batch's predictions; nothing but the objective leads back to the weights."""

    objective: Float[Tensor, ""] | None
    metrics: dict[str, Float[Tensor, ""]]
    opacity: Float[Tensor, ""]
    foreground: Float[Tensor, ""] | None
    n_rays: int
    rasterize: Callable[[], RendererOutput] | None


class _ScoredModel(nn.Module):
    """A model as training steps call it.

    Distributed training waits for the gradient of every weight that the output of this forward depends on. Returning
    the predictions themselves would name weights that the objective does not reach: those of a coarse pass whose loss
    has no weight, say, and the wait would never end.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, frames: FrameData) -> _Scored:
        predictions: Predictions = self.model(frames)
        masks, foreground = predictions.rendered.masks.detach(), predictions.targets.fg_probability
        return _Scored(
            objective=predictions.objective,
            metrics={name: value.detach() for name, value in predictions.metrics.items()},
            opacity=masks.float().mean(),
            foreground=None if foreground is None else foreground.detach().mean(),
            n_rays=masks.numel(),
            rasterize=predictions.rasterize,
        )


class TrainingStep:
    """Takes optimizer steps.

    Args:
        model: what is trained; where several processes train, the step averages their gradients.
        optimizer: over the model's parameters.
        runtime: device, precision and ranks.
        clip_grad: largest norm of the gradient, all parameters together; 0 for no limit.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, runtime: Runtime, clip_grad: float = 0.0) -> None:
        self._model = runtime.wrap(_ScoredModel(model))
        self._optimizer = optimizer
        self._runtime = runtime
        self._clip_grad = clip_grad
        self._on_device = runtime.device.type == "cuda" and skips_on_device(optimizer)

    def __call__(self, batches: Sequence[FrameData]) -> StepResult:
        """One optimizer step on the mean of the batches' objectives.

        Args:
            batches: one batch, or several whose gradients are accumulated.

        Raises:
            ConfigError: the model has no objective.
        """
        self._optimizer.zero_grad(set_to_none=True)
        scored = []
        for i, frames in enumerate(batches):
            with self._runtime.without_sync(self._model, last=i == len(batches) - 1):
                scored.append(self._forward_backward(frames, len(batches)))
        scaler = self._runtime.scaler
        if scaler is not None:
            scaler.unscale_(self._optimizer)
        gradients = [p.grad for group in self._optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        if self._clip_grad > 0:
            scale = (self._clip_grad / (norm + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_(gradients, scale)
        metrics = _mean_metrics(scored)
        objective_is_finite = metrics["objective"].isfinite()
        if scaler is not None:
            # The scaler skips overflowing steps by itself and lowers its scale: no fault of the training's until the
            # scale is so low that it can't be the cause.
            scale = scaler.scale(torch.ones((), device=norm.device))
            finite = self._runtime.all_agree(objective_is_finite & (norm.isfinite() | (scale >= 1)))
            metrics[OVERFLOWS] = (~norm.isfinite()).float()
            scaler.step(self._optimizer)
            scaler.update()
        else:
            finite = self._runtime.all_agree(objective_is_finite & norm.isfinite())
            self._update(finite)
        metrics["grad_norm"] = norm.detach()
        return _result(scored, metrics, ~finite)

    def _forward_backward(self, frames: FrameData, n_batches: int) -> _Scored:
        with self._runtime.autocast():
            scored: _Scored = self._model(frames)
        if scored.objective is None:
            raise ConfigError(
                "loss_weights: none of the weighted losses can be computed by this model on this data; "
                f"give a weight to one of {', '.join(sorted(scored.metrics)) or 'the losses that it has'}"
            )
        self._runtime.backward(scored.objective / n_batches)
        return scored

    def _update(self, finite: Bool[Tensor, ""]) -> None:
        if not self._on_device:
            if bool(finite):
                self._optimizer.step()
            return
        self._optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined] (torch's own protocol)
        self._optimizer.step()
        del self._optimizer.found_inf  # type: ignore[attr-defined]


def _mean_metrics(scored: Sequence[_Scored]) -> dict[str, Tensor]:
    """Metrics and objective, detached, as float32 scalars; a mean where several batches were accumulated."""
    named = [{**one.metrics, "objective": one.objective.detach()} for one in scored if one.objective is not None]
    if len(named) == 1:
        return named[0]
    names = dict.fromkeys(name for metrics in named for name in metrics)
    values = {name: [metrics[name] for metrics in named if name in metrics] for name in names}
    return {name: torch.stack(several).mean() for name, several in values.items()}


def _result(scored: Sequence[_Scored], metrics: dict[str, Tensor], skipped: Tensor) -> StepResult:
    foreground = [one.foreground for one in scored if one.foreground is not None]
    return StepResult(
        metrics=metrics,
        skipped=skipped,
        opacity=_mean([one.opacity for one in scored]),
        foreground=_mean(foreground) if foreground else None,
        n_rays=sum(one.n_rays for one in scored),
        rasterize=scored[-1].rasterize,
    )


def _mean(scalars: Sequence[Tensor]) -> Tensor:
    return scalars[0] if len(scalars) == 1 else torch.stack(list(scalars)).mean()
