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
