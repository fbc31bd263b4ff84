"""The harmonic encoding, written out."""

import math

import pytest
import torch

from nerf_trainer.networks.encodings import HarmonicEmbedding


def test_log_bands_by_hand() -> None:
    x = torch.tensor([[0.3, -0.7]])
    embedded = HarmonicEmbedding(n_harmonic_functions=3)(x)
    phases = [scale * value for value in (0.3, -0.7) for scale in (1.0, 2.0, 4.0)]
    expected = [math.sin(p) for p in phases] + [math.cos(p) for p in phases] + [0.3, -0.7]
    torch.testing.assert_close(embedded, torch.tensor([expected]))


def test_linear_bands_by_hand() -> None:
    embedded = HarmonicEmbedding(n_harmonic_functions=3, logspace=False, append_input=False)(torch.tensor([[0.5]]))
    expected = [f(0.5 * scale) for f in (math.sin, math.cos) for scale in (1.0, 2.5, 4.0)]
    torch.testing.assert_close(embedded, torch.tensor([expected]))


@pytest.mark.parametrize(("n", "append"), [(0, True), (0, False), (10, True), (4, False)])
def test_width(n: int, append: bool) -> None:
    module = HarmonicEmbedding(n_harmonic_functions=n, append_input=append)
    assert module(torch.zeros(5, 3)).shape == (5, module.output_dim(3)) == (5, 3 * (2 * n + append))


def test_stays_in_float32_under_autocast() -> None:
    x = torch.full((1, 3), 3.14159)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embedded = HarmonicEmbedding(n_harmonic_functions=10)(x)
    torch.testing.assert_close(embedded, HarmonicEmbedding(n_harmonic_functions=10)(x))


def test_gradcheck() -> None:
    module = HarmonicEmbedding(n_harmonic_functions=2)
    x = torch.rand(2, 3, requires_grad=True)
    module(x).sum().backward()
    # d/dx [sin x + sin 2x + cos x + cos 2x + x]
    expected = x.cos() + 2 * (2 * x).cos() - x.sin() - 2 * (2 * x).sin() + 1
    torch.testing.assert_close(x.grad, expected.detach())


def test_of_gaussians_by_hand() -> None:
    """Each sine and cosine times exp(-f^2 v / 2); the means are appended as they are."""
    module = HarmonicEmbedding(n_harmonic_functions=3)
    mean, variance = (0.3, -0.7), (0.05, 0.2)
    kept = [math.exp(-0.5 * f * f * v) for v in variance for f in (1.0, 2.0, 4.0)]
    phases = [f * m for m in mean for f in (1.0, 2.0, 4.0)]
    expected = [k * math.sin(p) for k, p in zip(kept, phases, strict=True)]
    expected += [k * math.cos(p) for k, p in zip(kept, phases, strict=True)] + list(mean)
    torch.testing.assert_close(module(torch.tensor([mean]), torch.tensor([variance])), torch.tensor([expected]))


def test_of_gaussians_is_the_mean_over_drawn_points() -> None:
    module = HarmonicEmbedding(n_harmonic_functions=4, omega_0=0.8)
    mean, variance = torch.tensor([0.4, -1.3]), torch.tensor([0.09, 0.6])
    n = 500_000
    normal = torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    points = mean + variance.sqrt() * normal
    phases = (points[..., None] * (0.8 * 2.0 ** torch.arange(4))).flatten(-2)
    drawn = torch.cat([phases.sin(), phases.cos(), points], dim=-1)
    # The mean of n numbers of standard deviation at most 1 is off by more than 4.5 / sqrt(n) about once in 10^5.
    torch.testing.assert_close(module(mean, variance).double(), drawn.mean(dim=0), atol=4.5 / n**0.5, rtol=0.0)


def test_of_gaussians_without_width_is_that_of_points() -> None:
    module, x = HarmonicEmbedding(n_harmonic_functions=10), torch.randn(7, 3)
    assert torch.equal(module(x, torch.zeros_like(x)), module(x))
    torch.testing.assert_close(module(x, torch.full_like(x, 1e-12)), module(x), atol=1e-6, rtol=0.0)


def test_of_wide_gaussians_keeps_the_slow_waves_alone() -> None:
    module = HarmonicEmbedding(n_harmonic_functions=16, append_input=False)
    x = torch.tensor([[0.5]], requires_grad=True)
    variance = torch.tensor([[1.0]], requires_grad=True)
    embedded = module(x, variance)
    sines, cosines = embedded.chunk(2, dim=-1)
    amplitudes = (sines.square() + cosines.square()).sqrt()[0]
    torch.testing.assert_close(amplitudes[:3], torch.tensor([math.exp(-0.5), math.exp(-2.0), math.exp(-8.0)]))
    assert (amplitudes[4:] < 1e-10).all()
    (embedded.sum() + module(x, variance * 1e30).sum()).backward()
    assert x.grad is not None and x.grad.isfinite().all()
    assert variance.grad is not None and variance.grad.isfinite().all()
