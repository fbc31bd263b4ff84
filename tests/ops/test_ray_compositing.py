"""Compositing in one kernel: the same as plain torch, forward and backward, and finite where numbers are extreme."""

from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from nerf_trainer.ops.ray_compositing import MOST_CHANNELS, Composited, composite
from nerf_trainer.ops.reference import ray_compositing as reference
from tests.ops.kernel_kit import device_for_kernels, torch_twins, triton_kernels

DEVICE = device_for_kernels()


def random(*shape: int, seed: int = 0, device: torch.device = DEVICE) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)).to(device)


def rays(n_rays: int, n_samples: int, n_channels: int = 3, device: torch.device = DEVICE) -> dict[str, Any]:
    """Densities of both signs, sorted lengths, directions that are not of unit length."""
    return {
        "densities": 3.0 * random(n_rays, n_samples, seed=1, device=device) - 1.0,
        "features": random(n_rays, n_samples, n_channels, seed=2, device=device),
        "lengths": 2.0 + 4.0 * random(n_rays, n_samples, seed=3, device=device).sort(dim=-1).values,
        "directions": random(n_rays, 3, seed=4, device=device) + 0.2,
        "background": random(n_rays, n_channels, seed=5, device=device),
    }


def results(inputs: dict[str, Any], parts: tuple[str, ...], **options: Any) -> tuple[Composited, list[Tensor]]:
    """What came out, and the gradients of densities and features of a sum over some of its parts."""
    leaves = {name: inputs[name].detach().clone().requires_grad_() for name in ("densities", "features")}
    seen = composite(**{**inputs, **leaves}, **options)
    objective = torch.zeros((), device=inputs["densities"].device)
    for i, name in enumerate(parts):
        part = getattr(seen, name)
        objective = objective + (part * random(*part.shape, seed=10 + i, device=part.device)).sum()
    objective.backward()
    return seen, [leaf.grad for leaf in leaves.values() if leaf.grad is not None]


def check(inputs: dict[str, Any], parts: tuple[str, ...], atol: float = 2e-6, **options: Any) -> None:
    with torch_twins():
        expected, expected_gradients = results(inputs, parts, **options)
    with triton_kernels(), patch.object(reference, "composite", side_effect=AssertionError("plain torch ran")):
        found, gradients = results(inputs, parts, **options)
    for name in Composited._fields:
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-5, atol=atol, msg=name)
    assert len(gradients) == len(expected_gradients)
    for found_gradient, gradient in zip(gradients, expected_gradients, strict=True):
        scale = float(gradient.abs().max().clamp(min=1.0))
        torch.testing.assert_close(found_gradient, gradient, rtol=1e-4, atol=atol * scale)


ALL = Composited._fields


@pytest.mark.parametrize(("n_rays", "n_samples"), [(1, 1), (3, 5), (4, 32), (9, 33), (2, 100)])
def test_kernel_against_twin(n_rays: int, n_samples: int) -> None:
    check(rays(n_rays, n_samples), ALL, last_width=0.5)


@pytest.mark.parametrize("parts", [("features",), ("weights",), ("depth", "opacity"), ("features", "weights")])
def test_gradients_of_some_outputs_alone(parts: tuple[str, ...]) -> None:
    check(rays(5, 12), parts, last_width=0.5)


def test_bins_noise_and_densities_that_are_activated_already() -> None:
    inputs = rays(5, 12)
    bins = random(5, 13, seed=6).sort(dim=-1).values
    noise = random(5, 12, seed=7) - 0.5
    check({**inputs, "bins": bins, "noise": noise}, ALL)
    check({**inputs, "densities": inputs["densities"].abs()}, ALL, relu=False, last_width=0.5)


def test_one_background_for_all_and_other_widths_of_features() -> None:
    for n_channels in (1, 3, 5):
        inputs = rays(3, 7, n_channels)
        check({**inputs, "background": torch.ones(1, device=DEVICE)}, ALL, last_width=0.5)
        check({**inputs, "background": random(n_channels)}, ALL, last_width=0.5)


def test_wide_features_run_in_plain_torch() -> None:
    inputs = rays(2, 4, MOST_CHANNELS + 1)
    with triton_kernels():
        found = composite(**inputs)
    with torch_twins():
        expected = composite(**inputs)
    assert torch.equal(found.features, expected.features)


@pytest.mark.filterwarnings("ignore:overflow encountered")  # NumPy's, in the interpreter
def test_an_endless_last_interval_takes_what_is_left_and_keeps_gradients_finite() -> None:
    """A density of 1e-3 behind the last sample ends the ray; with densities up to 1e25 there, tau is infinite."""
    inputs = rays(4, 6)
    for last in (1e-12, 1e-3, 1e3, 1e25):
        inputs["densities"][:, -1] = last
        with triton_kernels():
            found, gradients = results(inputs, ALL)
        assert all(torch.isfinite(part).all() for part in found)
        assert all(torch.isfinite(gradient).all() for gradient in gradients)
        if last >= 1e-3:
            torch.testing.assert_close(found.opacity, torch.ones_like(found.opacity))
            torch.testing.assert_close(found.weights.sum(dim=-1), torch.ones_like(found.opacity))
            check(inputs, ALL)


def test_empty_space_has_no_gradient_but_of_densities_above_zero() -> None:
    inputs = rays(2, 5)
    inputs["densities"] = torch.full_like(inputs["densities"], -1.0)
    with triton_kernels():
        found, gradients = results(inputs, ALL)
    torch.testing.assert_close(found.features, inputs["background"])
    assert not found.opacity.any() and not gradients[0].any()


def test_a_direction_of_zero_length_sees_nothing() -> None:
    inputs = rays(2, 5)
    inputs["directions"] = torch.zeros_like(inputs["directions"])
    check(inputs, ALL)


def test_thin_samples_keep_their_precision() -> None:
    """1 - exp(-tau) of tau = 1e-9 is 1e-9, where the difference alone would be 0 in float32."""
    inputs = rays(1, 4)
    inputs["densities"] = torch.full_like(inputs["densities"], 1e-9)
    inputs["lengths"] = torch.arange(4.0, device=DEVICE)[None]
    inputs["directions"] = torch.tensor([[0.0, 0.0, 1.0]], device=DEVICE)
    with triton_kernels():
        weights = composite(**inputs, last_width=1.0).weights
    torch.testing.assert_close(weights, torch.full_like(weights, 1e-9), rtol=1e-6, atol=0.0)


def test_slices_of_a_joint_output_are_read_in_place() -> None:
    """Densities and colours as columns of one tensor, as networks give them."""
    inputs = rays(3, 6)
    joint = random(3, 6, 4, seed=8)
    check({**inputs, "densities": joint[..., 3], "features": joint[..., :3]}, ALL, last_width=0.5)


def test_what_else_needs_a_gradient_gets_it() -> None:
    inputs = rays(2, 5)
    inputs["background"] = inputs["background"].clone().requires_grad_()
    with triton_kernels():
        composite(**inputs).features.sum().backward()
    assert inputs["background"].grad is not None


def test_no_rays() -> None:
    with triton_kernels():
        found, gradients = results(rays(0, 5), ALL)
    assert found.features.shape == (0, 3) and gradients[0].shape == (0, 5)


@pytest.mark.gpu
@pytest.mark.parametrize(("n_rays", "n_samples"), [(1024, 64), (1024, 192), (4099, 192), (65536, 257)])
def test_on_a_gpu_at_the_sizes_of_training(n_rays: int, n_samples: int) -> None:
    check(rays(n_rays, n_samples), ALL, atol=1e-5, last_width=0.1)
    check(rays(n_rays, n_samples), ("features",), atol=1e-5)


@pytest.mark.gpu
def test_on_a_gpu_from_bfloat16() -> None:
    inputs = rays(513, 192)
    half = {name: inputs[name].bfloat16() for name in ("densities", "features")}
    with triton_kernels():
        found, gradients = results({**inputs, **half}, ("features",))
    with torch_twins():
        expected, expected_gradients = results({**inputs, **half}, ("features",))
    torch.testing.assert_close(found.features, expected.features, rtol=1e-5, atol=1e-5)
    for gradient, twin in zip(gradients, expected_gradients, strict=True):
        assert gradient.dtype is torch.bfloat16
        torch.testing.assert_close(gradient.float(), twin.float(), rtol=2e-2, atol=1e-3 * float(twin.abs().max()))


@pytest.mark.gpu
def test_on_a_gpu_in_a_captured_graph() -> None:
    inputs = rays(1024, 192)
    leaves = {name: inputs[name].clone().requires_grad_() for name in ("densities", "features")}

    def step() -> tuple[Tensor, ...]:
        seen = composite(**{**inputs, **leaves})
        return seen.features, *torch.autograd.grad(seen.features.square().sum(), list(leaves.values()))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # the backward pass runs on the stream of the forward: not on the default one
        expected = [part.clone() for part in step()]
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        found = step()
    graph.replay()
    torch.cuda.synchronize()
    for part, of_graph in zip(expected, found, strict=True):
        torch.testing.assert_close(of_graph, part, rtol=0.0, atol=0.0)
