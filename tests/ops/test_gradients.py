"""Gradients are changed, values are not."""

import torch

from nerf_trainer.ops.gradients import clamp_gradient


def test_values_pass_and_gradients_are_clamped() -> None:
    x = torch.tensor([1.0, -2.0, 300.0, 4.0], requires_grad=True)
    y = clamp_gradient(x, 10.0)
    torch.testing.assert_close(y, x)
    (y * torch.tensor([3.0, 40.0, -500.0, 10.0])).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [3.0, 10.0, -10.0, 10.0]


def test_a_recurrence_with_a_growing_gradient_stays_in_bounds() -> None:
    """x_n = 3 x_{n-1}: a factor of 3^20 without the clamp, with it 10 before the last factor."""
    x = torch.tensor([1.0], requires_grad=True)
    y = x
    for _ in range(20):
        y = 3.0 * clamp_gradient(y, 10.0)
    y.sum().backward()
    assert x.grad is not None and x.grad.item() == 10.0


def test_without_gradients_it_is_the_identity() -> None:
    x = torch.randn(3)
    with torch.no_grad():
        assert torch.equal(clamp_gradient(x, 0.1), x)
