"""Harmonics from a kernel: the same as plain torch's, and differentiable where the input asks for it."""

from unittest.mock import patch

import pytest
import torch

from nerf_trainer.ops.harmonic import harmonics
from nerf_trainer.ops.reference import harmonic as reference
from tests.ops.kernel_kit import device_for_kernels, torch_twins, triton_kernels

DEVICE = device_for_kernels()


def points(*shape: int) -> torch.Tensor:
    return 8.0 * torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(DEVICE) - 4.0


def check(x: torch.Tensor, n: int, append_input: bool, dtype: torch.dtype = torch.float32) -> None:
    frequencies = 2.0 ** torch.arange(n, dtype=torch.float32, device=DEVICE)
    with torch_twins():
        expected = harmonics(x, frequencies, append_input, dtype)
    with triton_kernels(), patch.object(reference, "harmonics", side_effect=AssertionError("plain torch ran")):
        found = harmonics(x, frequencies, append_input, dtype)
    assert found.dtype is dtype and found.shape == expected.shape
    tolerance = 1e-6 if dtype is torch.float32 else 1e-2
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("append_input", [True, False])
@pytest.mark.parametrize(("shape", "n"), [((1, 3), 10), ((2, 5, 3), 4), ((130, 3), 6), ((7, 1), 3), ((0, 3), 2)])
def test_kernel_against_twin(shape: tuple[int, ...], n: int, append_input: bool) -> None:
    check(points(*shape), n, append_input)


def test_no_frequencies_leave_the_input() -> None:
    x = points(5, 3)
    with triton_kernels():
        assert torch.equal(harmonics(x, torch.empty(0, device=DEVICE)), x)


def test_inputs_with_gradients_are_differentiable_twice() -> None:
    x = points(4, 3).requires_grad_()
    frequencies = torch.ones(1, device=DEVICE)
    with triton_kernels():
        (gradient,) = torch.autograd.grad(harmonics(x, frequencies, False)[:, :3].sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(gradient.sum(), x)
    torch.testing.assert_close(second, -x.detach().sin())


def test_no_gradient_is_asked_for_without_autograd() -> None:
    x = points(4, 3).requires_grad_()
    with torch.no_grad():
        check(x, 4, True)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_at_the_sizes_of_training(dtype: torch.dtype) -> None:
    check(points(1024, 192, 3), 10, True, dtype)
    check(points(1023, 3), 4, True, dtype)
