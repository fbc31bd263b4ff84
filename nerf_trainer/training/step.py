"""One training step: forward, backward, optimizer; nothing in it waits for the GPU.

There are two ways to run it: eagerly, or captured as one CUDA graph that is replayed (`captured`), wherever all parts
allow that.

The step decides by itself whether its values are finite. With a fused optimizer on CUDA the flag never leaves the
device: the optimizer's kernel reads it (`found_inf`, as gradient scalers do) and leaves weights and moments alone.
Elsewhere, on the CPU and for optimizers without a fused kernel (Adagrad on CUDA, or `foreach: false`), the flag is read
by the host, which then leaves the optimizer's step out.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.optim import Optimizer

from nerf_trainer.errors import ConfigError
from nerf_trainer.frames import FrameData
from nerf_trainer.models.base import ImplicitronModelBase, Predictions
from nerf_trainer.renderers.base import RendererOutput
from nerf_trainer.training.captured import CapturedStep, CudaGraphs, why_eager
from nerf_trainer.training.gradient_average import GradientAverage
from nerf_trainer.training.optimizer_factory import skips_on_device, while_captured
from nerf_trainer.training.runtime import Precision, Runtime
from nerf_trainer.training.static_batches import StaticBatches

OVERFLOWS = "fp16_overflows"
"""Metric of fp16 alone: the share of steps that the gradient scaler left out; a few are normal."""


@dataclass(frozen=True)
class StepResult:
    """What one step computed; every tensor is on the device and none has been read.

    Those of a captured step are written to by the next one: whoever wants to keep them makes a copy.
    """

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


class _Body:
    """The work of a step: everything that a captured step holds.

    Args:
        model: what is trained.
        optimizer: over the model's parameters.
        runtime: device, precision and ranks.
        clip_grad: largest norm of the gradient; 0 for no limit.
        average: averages the ranks' gradients; None leaves that to the runtime's wrapper, or there is one rank.
        record: told of each step's result, on the device alone.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        runtime: Runtime,
        clip_grad: float,
        average: GradientAverage | None,
        record: Callable[[StepResult], None] | None,
    ) -> None:
        scored = _ScoredModel(model)
        self._model = scored if average is not None else runtime.wrap(scored)
        self._optimizer = optimizer
        self._runtime = runtime
        self._clip_grad = clip_grad
        self._average = average
        self._record = record
        self._on_device = runtime.device.type == "cuda" and skips_on_device(optimizer)

    def __call__(self, batches: Sequence[FrameData]) -> StepResult:
        """One optimizer step on the mean of the batches' objectives; see `TrainingStep`."""
        self._optimizer.zero_grad(set_to_none=True)
        scored = []
        for i, frames in enumerate(batches):
            with self._runtime.without_sync(self._model, last=i == len(batches) - 1):
                scored.append(self._forward_backward(frames, len(batches)))
        metrics = _mean_metrics(scored)
        finite = metrics["objective"].isfinite()
        if self._average is not None:
            finite = self._average(finite)
        scaler = self._runtime.scaler
        if scaler is not None:
            scaler.unscale_(self._optimizer)
        gradients = [p.grad for group in self._optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        if self._clip_grad > 0:
            scale = (self._clip_grad / (norm + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_(gradients, scale)
        if scaler is not None:
            # The scaler skips overflowing steps by itself and lowers its scale: no fault of the training's until the
            # scale is so low that it can't be the cause.
            scale = scaler.scale(torch.ones((), device=norm.device))
            finite = self._runtime.all_agree(finite & (norm.isfinite() | (scale >= 1)))
            metrics[OVERFLOWS] = (~norm.isfinite()).float()
            scaler.step(self._optimizer)
            scaler.update()
        else:
            finite = finite & norm.isfinite()
            if self._average is None:
                finite = self._runtime.all_agree(finite)
            self._update(finite)
        metrics["grad_norm"] = norm.detach()
        result = _result(scored, metrics, ~finite)
        if self._record is not None:
            self._record(result)
        return result

    def _forward_backward(self, frames: FrameData, n_batches: int) -> _Scored:
        with self._runtime.autocast():
            scored: _Scored = self._model(frames)
        if scored.objective is None:
            raise ConfigError(
                "loss_weights: none of the weighted losses can be computed by this model on this data; "
                f"give a weight to one of {', '.join(sorted(scored.metrics)) or 'the losses that it has'}"
            )
        n_summed = n_batches if self._average is None else n_batches * self._runtime.world_size
        self._runtime.backward(scored.objective / n_summed)
        return scored

    def _update(self, finite: Bool[Tensor, ""]) -> None:
        if not self._on_device:
            if bool(finite):
                self._optimizer.step()
            return
        capturing = torch.cuda.is_current_stream_capturing()
        self._optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined] (torch's own protocol)
        try:
            with while_captured(self._optimizer) if capturing else nullcontext():
                self._optimizer.step()
        finally:
            del self._optimizer.found_inf  # type: ignore[attr-defined]


class TrainingStep:
    """Takes optimizer steps, eagerly or as one CUDA graph.

    Args:
        model: what is trained; where several processes train, the step averages their gradients.
        optimizer: over the model's parameters.
        runtime: device, precision and ranks.
        clip_grad: largest norm of the gradient, all parameters together; 0 for no limit.
        capture: capture the step where nothing forbids it (see `why_eager`). The tensors of a result are then written
            to by the next step.
        record: told of each step's result within the step: sums that are kept on the device. It must not read them,
            and works in place: a captured step calls it once and repeats what it launched.
        say: told in a line which way steps run, once it is known.
    """

    def __init__(
        self,
        model: ImplicitronModelBase,
        optimizer: Optimizer,
        runtime: Runtime,
        clip_grad: float = 0.0,
        capture: bool = False,
        record: Callable[[StepResult], None] | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._captured: CapturedStep[StepResult] | None = None
        reason = why_eager(model, optimizer, runtime) if capture else "capture_step is off"
        if reason is not None and runtime.device.type == "cuda":
            say(f"step: eager, since {reason}")
        sent_as = torch.bfloat16 if runtime.precision is Precision.bf16 else None
        captures = reason is None and runtime.world_size > 1
        self._average = GradientAverage(model, runtime, large_as=sent_as) if captures else None
        self._make_body = partial(_Body, model, optimizer, runtime, clip_grad, self._average, record)
        self._body = self._make_body()
        if reason is None:
            static, graphs = StaticBatches(runtime.device), CudaGraphs(runtime.device)
            self._captured = CapturedStep(self._body, model, static, graphs, say)

    def __call__(self, batches: Sequence[FrameData]) -> StepResult:
        """One optimizer step on the mean of the batches' objectives.

        Args:
            batches: one batch, or several whose gradients are accumulated.

        Raises:
            ConfigError: the model has no objective.
        """
        return self._body(batches) if self._captured is None else self._captured(batches)

    @property
    def is_captured(self) -> bool:
        """Whether a graph is replayed."""
        return self._captured is not None and self._captured.is_captured

    @property
    def capture_seconds(self) -> float:
        """Time that captures took so far."""
        return 0.0 if self._captured is None else self._captured.seconds

    def outdated(self) -> None:
        """Parameters were replaced, or the model does something else from now on, as its schedules say."""
        if self._captured is None:
            self._body = self._make_body()
            return
        if self._average is not None:
            self._average.begin()
        self._captured.outdated()

    def release(self) -> None:
        """Let the memory of a graph go; a later step captures anew."""
        if self._captured is not None:
            self._captured.release()


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
