import pytest
import torch

from nerf_trainer.errors import ConfigError
from nerf_trainer.training.optimizer_factory import ImplicitronOptimizerFactory
from nerf_trainer.training.runtime import Precision, Runtime
from nerf_trainer.training.step import TrainingStep
from tests.training.tiny_run import N_PIXELS, TinyModel, frame, resample


def made(clip_grad=0.0, model=None, precision=Precision.fp32, **optimizer):
    torch.manual_seed(0)
    model = TinyModel(**{"noise": 0.0, **(model or {})})
    made_optimizer, _ = ImplicitronOptimizerFactory(**{"breed": "SGD", "momentum": 0.0, "lr": 0.5, **optimizer})(model)
    return model, TrainingStep(model, made_optimizer, Runtime(precision=precision), clip_grad)


def gradient_of_bias(model, target):
    """d/d bias of the mean over pixels of (value - target)^2, by hand."""
    values = resample(model.grid.values.detach(), N_PIXELS) + model.bias.detach()
    return float(2 * (values - target).mean())


def line_of(frames):
    return frames.image_rgb.mean(dim=(1, 2))[0]


def test_a_step_goes_down_the_gradient():
    model, step = made()
    gradient = gradient_of_bias(model, line_of(frame(1)))
    result = step([frame(1)])
    assert float(model.bias.detach()) == pytest.approx(-0.5 * gradient, rel=1e-5)
    assert not result.skipped
    assert result.n_rays == N_PIXELS
    assert (float(result.opacity), float(result.foreground)) == (0.5, 1.0)
    assert set(result.metrics) == {"loss_rgb_mse", "loss_rgb_psnr", "objective", "grad_norm"}


def test_accumulated_batches_step_along_the_mean_gradient():
    model, step = made()
    expected = [gradient_of_bias(model, line_of(frame(i))) for i in (1, 2, 3)]
    result = step([frame(1), frame(2), frame(3)])
    assert float(model.bias.detach()) == pytest.approx(-0.5 * sum(expected) / 3, rel=1e-5)
    assert result.n_rays == 3 * N_PIXELS


def test_accumulated_metrics_are_means():
    losses = []
    for i in (1, 2):
        _, step = made()
        losses.append(float(step([frame(i)]).metrics["loss_rgb_mse"]))
    _, step = made()
    assert float(step([frame(1), frame(2)]).metrics["loss_rgb_mse"]) == pytest.approx(sum(losses) / 2, rel=1e-5)


def test_clipping_scales_the_whole_gradient_to_the_norm():
    free_model, free = made()
    clipped_model, clipped = made(clip_grad=0.01)
    before = torch.cat([p.detach().flatten().clone() for p in free_model.parameters()])
    norm = float(free([frame(1)]).metrics["grad_norm"])
    assert float(clipped([frame(1)]).metrics["grad_norm"]) == pytest.approx(norm, rel=1e-6)
    moved = [torch.cat([p.detach().flatten() for p in m.parameters()]) - before for m in (free_model, clipped_model)]
    assert float(moved[0].norm()) == pytest.approx(0.5 * norm, rel=1e-4)
    assert float(moved[1].norm()) == pytest.approx(0.5 * 0.01, rel=1e-3)
    assert torch.nn.functional.cosine_similarity(moved[0], moved[1], dim=0) > 1 - 1e-5


def test_clipping_leaves_small_gradients_alone():
    models = []
    for clip_grad in (0.0, 1e6):
        model, step = made(clip_grad=clip_grad)
        step([frame(1)])
        models.append(model)
    assert torch.equal(models[0].bias, models[1].bias)


@pytest.mark.parametrize("breed", ["Adam", "SGD", "Adagrad"])
@pytest.mark.parametrize("foreach", [True, False])
def test_a_non_finite_step_changes_neither_weights_nor_moments(breed, foreach):
    model, step = made(model={"nan_from": 2, "nan_to": 3}, breed=breed, foreach=foreach, momentum=0.9)
    step([frame(1)])
    step([frame(2)])
    optimizer = step._body._optimizer
    before = [p.detach().clone() for p in model.parameters()]
    moments = [value.clone() for state in optimizer.state.values() for value in state.values()]
    assert step([frame(3)]).skipped
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    now = [value for state in optimizer.state.values() for value in state.values()]
    assert all(torch.equal(a, b) for a, b in zip(now, moments, strict=True))
    assert not step([frame(4)]).skipped
    assert not torch.equal(model.bias, before[-1])


def test_finite_objective_with_infinite_gradient_is_skipped():
    model, step = made()
    model.bias.register_hook(lambda gradient: gradient * float("inf"))
    result = step([frame(1)])
    assert result.skipped and result.metrics["objective"].isfinite()
    assert float(model.bias.detach()) == 0.0


def test_bf16_autocasts_the_forward():
    seen = []

    class Casting(TinyModel):
        def forward(self, frames):
            seen.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
            return super().forward(frames)

    model = Casting(noise=0.0)
    optimizer, _ = ImplicitronOptimizerFactory()(model)
    TrainingStep(model, optimizer, Runtime(precision=Precision.bf16))([frame(1)])
    TrainingStep(model, optimizer, Runtime(precision=Precision.fp32))([frame(1)])
    assert seen == [torch.bfloat16, torch.float32]
    assert model.bias.dtype == torch.float32


def test_model_without_objective_is_a_config_error():
    class Aimless(TinyModel):
        def forward(self, frames):
            import dataclasses

            return dataclasses.replace(super().forward(frames), objective=None)

    model = Aimless()
    optimizer, _ = ImplicitronOptimizerFactory()(model)
    with pytest.raises(ConfigError, match=r"loss_weights.*loss_rgb_mse"):
        TrainingStep(model, optimizer, Runtime())([frame(1)])


def test_fp16_overflow_is_the_trainings_fault_once_the_scale_is_below_one(monkeypatch):
    model, _ = made()
    optimizer, _ = ImplicitronOptimizerFactory(breed="SGD", momentum=0.0)(model)
    runtime = Runtime()
    monkeypatch.setattr(runtime.accelerator, "scaler", torch.amp.GradScaler("cpu", init_scale=4.0))
    step = TrainingStep(model, optimizer, runtime)
    model.bias.register_hook(lambda gradient: gradient * float("nan"))
    results = [step([frame(1)]) for _ in range(5)]
    # Each step that overflows halves the scale: 4, 2, 1, 0.5, 0.25.
    assert [bool(result.skipped) for result in results] == [False, False, False, True, True]
    assert all(float(result.metrics["fp16_overflows"]) == 1.0 for result in results)
    assert float(model.bias.detach()) == 0.0
