"""Sampling along rays, against arithmetic and analytic inverses."""

import pytest
import torch

from nerf_trainer.ops.stepfun import blur_weights, jitter, midpoints, sample_pdf, spaced


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_spaced_evenly_in_distance() -> None:
    t = spaced(torch.tensor([2.0]), torch.tensor([6.0]), 5)
    torch.testing.assert_close(t, torch.tensor([[2.0, 3.0, 4.0, 5.0, 6.0]]))


def test_spaced_evenly_in_disparity() -> None:
    t = spaced(torch.tensor([1.0]), torch.tensor([4.0]), 4, in_disparity=True)
    # inverse distances 1, 3/4, 1/2, 1/4
    torch.testing.assert_close(t, torch.tensor([[1.0, 4.0 / 3.0, 2.0, 4.0]]))


def test_jitter_keeps_each_sample_in_its_stratum_and_halves_the_outer_ones() -> None:
    t = torch.linspace(0.0, 4.0, 5).expand(20_000, 5).contiguous()
    moved = jitter(t, generator())
    lower, upper = torch.tensor([0.0, 0.5, 1.5, 2.5, 3.5]), torch.tensor([0.5, 1.5, 2.5, 3.5, 4.0])
    assert (moved >= lower).all() and (moved <= upper).all()
    torch.testing.assert_close(moved.mean(dim=0), (lower + upper) / 2, atol=0.01, rtol=0.0)
    # a uniform number on an interval of width h has variance h^2 / 12
    torch.testing.assert_close(moved.var(dim=0), (upper - lower) ** 2 / 12, atol=2e-3, rtol=0.0)


@pytest.mark.parametrize("random", [False, True])
def test_sample_pdf_follows_the_analytic_inverse(random: bool) -> None:
    """Density proportional to t on [0, 1] has the distribution function t^2, whose inverse is sqrt(u)."""
    n_bins, n = 400, 1000
    edges = torch.linspace(0.0, 1.0, n_bins + 1, dtype=torch.float64)[None]
    samples = sample_pdf(edges, midpoints(edges), n, generator() if random else None, eps=0.0)[0].sort().values
    if random:
        assert samples.square().mean() == pytest.approx(0.5, abs=0.02)  # u = t^2 is uniform
    else:
        torch.testing.assert_close(samples, torch.linspace(0.0, 1.0, n, dtype=torch.float64).sqrt(), atol=3e-3, rtol=0)


def test_sample_pdf_by_hand() -> None:
    """Weights 1 and 3 over [0, 1] and [1, 3]: a quarter lies below 1, so u = 1/2 is a third into [1, 3]."""
    edges, weights = torch.tensor([[0.0, 1.0, 3.0]]), torch.tensor([[1.0, 3.0]])
    samples = sample_pdf(edges, weights, 5, eps=0.0)  # u = 0, 1/4, 1/2, 3/4, 1
    torch.testing.assert_close(samples, torch.tensor([[0.0, 1.0, 1.0 + 2.0 / 3.0, 1.0 + 4.0 / 3.0, 3.0]]))


def test_sample_pdf_of_an_empty_ray_is_even_and_stays_inside() -> None:
    edges = torch.tensor([[2.0, 3.0, 5.0, 6.0]])
    samples = sample_pdf(edges, torch.zeros(1, 3), 200, generator())
    assert samples.min() >= 2.0 and samples.max() <= 6.0
    inside = ((samples >= 3.0) & (samples <= 5.0)).float().mean()
    assert inside == pytest.approx(1 / 3, abs=0.1)  # each interval is as likely as the others


def test_sample_pdf_never_lands_in_an_interval_without_weight() -> None:
    edges = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    samples = sample_pdf(edges, torch.tensor([[1.0, 0.0, 1.0]]), 500, generator(), eps=0.0)
    assert not ((samples > 1.0 + 1e-5) & (samples < 2.0 - 1e-5)).any()


def test_sample_pdf_stops_gradients() -> None:
    weights = torch.rand(2, 4, requires_grad=True)
    assert not sample_pdf(torch.linspace(0, 1, 5).expand(2, 5), weights, 3).requires_grad


def test_blur_weights_by_hand() -> None:
    # neighbours' maxima of (0 0 4 0), ends repeated: 0 0 4 4 0; means of those: 0 2 4 2
    torch.testing.assert_close(blur_weights(torch.tensor([[0.0, 0.0, 4.0, 0.0]])), torch.tensor([[0.0, 2.0, 4.0, 2.0]]))
