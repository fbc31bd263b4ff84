"""The small network as a module."""

import math

import pytest
import torch

from nerf_trainer.networks.small_mlp import SmallMLP


def test_it_is_linear_layers_with_relu_between_them() -> None:
    mlp = SmallMLP(3, 2, hidden_dim=4, n_hidden=2)
    first, second, last = (w.view(s) for w, s in zip(mlp.weights.split([12, 16, 8]), [(4, 3), (4, 4), (2, 4)]))
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    expected = (last @ torch.relu(second @ torch.relu(first @ x.T))).T
    torch.testing.assert_close(mlp(x), expected)


def test_weights_are_drawn_uniformly_after_glorot_and_bengio() -> None:
    torch.manual_seed(0)
    mlp = SmallMLP(32, 16, hidden_dim=64, n_hidden=2)
    parts = mlp.weights.detach().split([64 * 32, 64 * 64, 16 * 64])
    for part, fans in zip(parts, (96, 128, 80), strict=True):
        bound = math.sqrt(6.0 / fans)
        assert 0.95 * bound < part.abs().max() <= bound
        assert part.std().item() == pytest.approx(bound / math.sqrt(3.0), rel=0.05)


def test_an_input_in_two_parts() -> None:
    mlp = SmallMLP(7, 3, hidden_dim=16)
    x = torch.randn(6, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(mlp(x[:, :4], extra=x[:, 4:]), mlp(x))


def test_widths_are_checked() -> None:
    with pytest.raises(ValueError, match="0 hidden layers; expected at least 1"):
        SmallMLP(3, 1, n_hidden=0)


def test_the_module_shows_its_widths() -> None:
    assert str(SmallMLP(32, 3, 64, 2)) == "SmallMLP(32 -> 64 -> 64 -> 3)"
