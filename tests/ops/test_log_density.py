"""Densities from their logarithms: values, gradients where they are clamped, and the kernels against the twin."""

import math

import pytest
import torch
from torch import Tensor

from nerf_trainer.ops.log_density import log_density
from tests.ops.kernel_kit import device_for_kernels, torch_twins, triton_kernels


def test_values_and_gradients_are_those_of_the_clamped_exponential() -> None:
    outputs = torch.tensor([[0.0, 7.0], [2.0, 8.0], [100.0, 9.0], [-100.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    outputs.requires_grad_()
    inside = torch.tensor([True, True, True, True, False])
    density, same = log_density(outputs, -1.0, inside)
    expected = [math.exp(-1.0), math.e, math.exp(60.0), math.exp(-101.0), 0.0]
    torch.testing.assert_close(density[:, 0], torch.tensor(expected, dtype=torch.float64))
    assert torch.equal(same, outputs)
    density.sum().backward()
    slopes = [math.exp(-1.0), math.e, math.exp(15.0), math.exp(-15.0), 0.0]
    assert outputs.grad is not None and not outputs.grad[:, 1].any()
    torch.testing.assert_close(outputs.grad[:, 0], torch.tensor(slopes, dtype=torch.float64))


def test_halves_become_float32() -> None:
    assert log_density(torch.zeros(2, 3, dtype=torch.bfloat16))[0].dtype == torch.float32


def both(outputs: Tensor, inside: Tensor | None, with_outputs: bool) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    upstream = [torch.randn(outputs.shape[0], k, generator=generator) for k in (1, outputs.shape[1])]
    results = []
    for implementation in (triton_kernels, torch_twins):
        given = outputs.clone().requires_grad_()
        with implementation():
            density, same = log_density(given, -0.5, inside)
            total = (density * upstream[0].to(given)).sum()
            total = total + (same * upstream[1].to(given)).sum() if with_outputs else total
            results.append((density.detach(), torch.autograd.grad(total, given)[0]))
    return results


@pytest.mark.parametrize(("n", "g"), [(0, 4), (1, 16), (200, 16), (130, 5)])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("with_outputs", [False, True])
def test_kernels_compute_what_the_twin_does(n: int, g: int, masked: bool, with_outputs: bool) -> None:
    device = device_for_kernels()
    outputs = 12.0 * torch.randn(n, g, generator=torch.Generator().manual_seed(1)).to(device)
    inside = outputs[:, -1] > 0 if masked else None
    for ours, theirs in zip(*both(outputs, inside, with_outputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.gpu
def test_kernels_compute_what_the_twin_does_at_full_size() -> None:
    outputs = 5.0 * torch.randn(2**18 + 1, 16, device="cuda")
    for ours, theirs in zip(*both(outputs, outputs[:, 3] > 0, True), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
