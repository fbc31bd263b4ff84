"""Volume rendering, against closed forms and a textbook loop in float64."""

import math

import pytest
import torch

from nerf_trainer.ops.compositing import (
    accumulate,
    cumulative_weights,
    emission_absorption_weights,
    interval_widths,
)


def textbook_weights(tau: torch.Tensor) -> torch.Tensor:
    """T_i (1 - exp(-tau_i)) with T_i = prod_{j < i} exp(-tau_j), one sample after the other."""
    weights = torch.zeros_like(tau, dtype=torch.float64)
    for ray in range(tau.shape[0]):
        transmittance = 1.0
        for i in range(tau.shape[1]):
            alpha = 1.0 - math.exp(-float(tau[ray, i]))
            weights[ray, i] = transmittance * alpha
            transmittance *= 1.0 - alpha
    return weights


def test_weights_match_the_textbook() -> None:
    tau = torch.rand(7, 33, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.5
    weights, opacity = emission_absorption_weights(tau)
    torch.testing.assert_close(weights, textbook_weights(tau))
    torch.testing.assert_close(opacity, textbook_weights(tau).sum(dim=-1))


def test_weights_sum_to_one_minus_the_final_transmittance() -> None:
    tau = torch.rand(5, 64, generator=torch.Generator().manual_seed(1))
    weights, opacity = emission_absorption_weights(tau)
    torch.testing.assert_close(weights.sum(dim=-1), 1.0 - torch.exp(-tau.sum(dim=-1)))
    torch.testing.assert_close(opacity, weights.sum(dim=-1))


def test_constant_density_in_closed_form() -> None:
    """Colour c at density s over a length L renders to c (1 - exp(-s L))."""
    density, length, n = 0.7, 3.0, 100
    tau = torch.full((1, n), density * length / n, dtype=torch.float64)
    weights, _ = emission_absorption_weights(tau)
    rendered = accumulate(weights, torch.full((1, n, 1), 0.6, dtype=torch.float64))
    assert rendered.item() == pytest.approx(0.6 * (1.0 - math.exp(-density * length)), rel=1e-10)


def test_an_infinitely_wide_last_interval_takes_what_is_left() -> None:
    tau = torch.tensor([[0.5, 0.2, 1e10 * 0.3]])
    weights, opacity = emission_absorption_weights(tau)
    torch.testing.assert_close(weights[0, 2], torch.tensor(math.exp(-0.7)))
    assert opacity.item() == 1.0


def test_thicker_surfaces_hide_later() -> None:
    tau = torch.full((1, 4), 0.5)
    weights, _ = emission_absorption_weights(tau, surface_thickness=2)
    alpha = 1.0 - math.exp(-0.5)
    expected = [alpha, alpha, alpha * math.exp(-0.5), alpha * math.exp(-1.0)]
    torch.testing.assert_close(weights[0], torch.tensor(expected))


def test_cumulative_weights_by_hand() -> None:
    weights, opacity = cumulative_weights(torch.tensor([[0.3, 0.5, 0.4, 0.9]]))
    torch.testing.assert_close(weights, torch.tensor([[0.3, 0.5, 0.2, 0.0]]))
    torch.testing.assert_close(opacity, torch.tensor([1.0]))


def test_interval_widths() -> None:
    lengths = torch.tensor([[1.0, 1.5, 3.0]])
    torch.testing.assert_close(interval_widths(lengths, 9.0), torch.tensor([[0.5, 1.5, 9.0]]))
    torch.testing.assert_close(interval_widths(lengths, 9.0, replicate_last=True), torch.tensor([[0.5, 1.5, 1.5]]))


@pytest.mark.parametrize("weigh", [emission_absorption_weights, cumulative_weights])
def test_gradcheck(weigh) -> None:
    tau = (
        torch.rand(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 0.1 + 0.01
    ).requires_grad_()
    values = torch.rand(2, 6, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t, v: accumulate(weigh(t)[0], v), (tau, values))


@pytest.mark.parametrize("scale", [0.0, 1e-12, 1e4, 1e30])
def test_gradients_stay_finite_at_extremes(scale: float) -> None:
    tau = (torch.rand(3, 8, generator=torch.Generator().manual_seed(3)) * scale).requires_grad_()
    weights, opacity = emission_absorption_weights(tau)
    (weights.square().sum() + opacity.sum()).backward()
    assert tau.grad is not None and tau.grad.isfinite().all()
