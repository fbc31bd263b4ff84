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


def test_the_written_gradients_are_those_of_the_recorded_operations() -> None:
    """Weights and opacity together, one channel and several, and colours that all samples of a ray share."""
    draw = torch.Generator().manual_seed(4)
    tau = torch.rand(2, 3, 9, dtype=torch.float64, generator=draw).requires_grad_()
    behind = torch.exp(-tau.cumsum(dim=-1))
    before = torch.cat([torch.ones_like(behind[..., :1]), behind[..., :-1]], dim=-1)
    for n_channels in (1, 2, 3, 4, 5):
        own = torch.rand(2, 3, 9, n_channels, dtype=torch.float64, generator=draw).requires_grad_()
        shared = torch.rand(2, 3, 1, n_channels, dtype=torch.float64, generator=draw).requires_grad_()
        for values in (own, shared):
            upstream = torch.rand(2, 3, n_channels, dtype=torch.float64, generator=draw)
            weights, opacity = emission_absorption_weights(tau)
            ours = (accumulate(weights, values.expand_as(own)) * upstream).sum() + opacity.square().sum()
            recorded = ((before - behind)[..., None] * values).sum(dim=-2)
            theirs = (recorded * upstream).sum() + (1.0 - behind[..., -1]).square().sum()
            torch.testing.assert_close(ours, theirs)
            expected = torch.autograd.grad(theirs, (tau, values), retain_graph=True)
            torch.testing.assert_close(torch.autograd.grad(ours, (tau, values)), expected)


def test_only_the_opacity_counts_or_only_the_colours() -> None:
    tau = torch.tensor([[0.5, 0.25]], dtype=torch.float64, requires_grad=True)
    _, opacity = emission_absorption_weights(tau)
    (gradient,) = torch.autograd.grad(opacity.sum(), tau)
    torch.testing.assert_close(gradient, torch.full_like(tau, math.exp(-0.75)))
    colors = torch.ones(1, 2, 3, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(accumulate(tau.detach(), colors).sum(), colors)
    torch.testing.assert_close(gradient, tau.detach()[..., None].expand(1, 2, 3))


@pytest.mark.parametrize("scale", [0.0, 1e-12, 1e4, 1e30])
def test_gradients_stay_finite_at_extremes(scale: float) -> None:
    tau = (torch.rand(3, 8, generator=torch.Generator().manual_seed(3)) * scale).requires_grad_()
    weights, opacity = emission_absorption_weights(tau)
    (weights.square().sum() + opacity.sum()).backward()
    assert tau.grad is not None and tau.grad.isfinite().all()
