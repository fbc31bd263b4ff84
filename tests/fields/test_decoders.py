"""Decoders: arithmetic, sums of harmonics, and widths that are told."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from nerf_trainer.config import Factory
from nerf_trainer.errors import ConfigError
from nerf_trainer.fields.decoders import (
    ElementwiseDecoder,
    MLPDecoder,
    SmallMLPDecoder,
    SphericalHarmonicsDecoder,
)
from nerf_trainer.networks.input_skips import Activation, MLPWithInputSkips
from nerf_trainer.ops.spherical_harmonics import spherical_harmonics


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        (Activation.IDENTITY, [-5.0, 1.0]),
        (Activation.RELU, [0.0, 1.0]),
        (Activation.SOFTPLUS, [math.log1p(math.exp(-5.0)), math.log1p(math.e)]),
        (Activation.SIGMOID, [1 / (1 + math.exp(5.0)), 1 / (1 + math.exp(-1.0))]),
    ],
)
def test_elementwise_decoder_scales_shifts_and_activates(operation: Activation, expected: list[float]) -> None:
    decoder = ElementwiseDecoder(input_dim=1, output_dim=1, scale=2.0, shift=-3.0, operation=operation)
    value = decoder(torch.tensor([[-1.0], [2.0]]), None)
    torch.testing.assert_close(value[:, 0], torch.tensor(expected))


def test_elementwise_decoder_multiplies_what_was_activated() -> None:
    decoder = ElementwiseDecoder(
        input_dim=1, output_dim=1, shift=-10.0, operation=Activation.SOFTPLUS, gain=25.0
    )  # the density of TensoRF
    expected = [25.0 * math.log1p(math.exp(-10.0)), 25.0 * math.log(2.0)]
    torch.testing.assert_close(decoder(torch.tensor([[0.0], [10.0]]), None)[:, 0], torch.tensor(expected))


def test_small_mlp_decoder_has_layers_without_biases_and_an_activation() -> None:
    decoder = SmallMLPDecoder(input_dim=2, output_dim=1, hidden_dim=3, n_hidden=1, operation=Activation.SIGMOID)
    (weights,) = decoder.parameters()
    first, last = weights[:6].view(3, 2), weights[6:]
    x = torch.tensor([[0.5, -2.0], [0.0, 0.0]])
    expected = torch.sigmoid(torch.relu(x @ first.T) @ last)
    torch.testing.assert_close(decoder(x, None)[:, 0], expected)
    with pytest.raises(ConfigError, match="n_hidden: 16, 0; expected at least 1"):
        SmallMLPDecoder(input_dim=2, output_dim=1, hidden_dim=16, n_hidden=0)


def test_mlp_decoder_is_as_wide_as_it_is_told() -> None:
    decoder = MLPDecoder(input_dim=7, output_dim=3, network=Factory.of(MLPWithInputSkips, output_dim=99, skip_dim=5))
    assert decoder(torch.randn(4, 7), None).shape == (4, 3)


@pytest.mark.parametrize("degree", [0, 1, 2])
def test_spherical_harmonics_decoder_sums_each_channel_s_coefficients(degree: int) -> None:
    k = (degree + 1) ** 2
    decoder = SphericalHarmonicsDecoder(input_dim=2 * k, output_dim=2, degree=degree, operation=Activation.IDENTITY)
    coefficients = torch.randn(5, 2, k)
    directions = normalize(torch.randn(5, 3), dim=-1)
    expected = (coefficients * spherical_harmonics(directions, degree + 1)[:, None]).sum(-1)
    torch.testing.assert_close(decoder(coefficients.flatten(1), directions), expected)
    assert decoder.wants_directions == (degree > 0)


def test_widths_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="12 coefficients"):
        SphericalHarmonicsDecoder(input_dim=11, output_dim=3, degree=1)
    with pytest.raises(ConfigError, match="degree: 3"):
        SphericalHarmonicsDecoder(input_dim=48, output_dim=3, degree=3)
    with pytest.raises(ConfigError, match="40 features for 1 output"):
        ElementwiseDecoder(input_dim=40, output_dim=1)


def network(**options: object) -> MLPWithInputSkips:
    return MLPWithInputSkips(input_dim=6, final_dim=None, **options)


def test_a_skip_brings_the_input_again() -> None:
    net = network(n_layers=3, hidden_dim=8, output_dim=2, input_skips=(2,))
    assert [layer.in_features for layer in net.layers] == [6, 8, 8 + 6]
    x = torch.randn(4, 6)
    first, second, third = net.layers
    hidden = second(first(x).relu()).relu()
    torch.testing.assert_close(net(x), third(torch.cat([hidden, x], dim=-1)).relu())


def test_an_affine_skip_shifts_and_scales() -> None:
    net = network(n_layers=2, hidden_dim=8, output_dim=2, input_skips=(1,), skip_affine_trans=True)
    assert [layer.in_features for layer in net.layers] == [6, 8]
    x = torch.randn(4, 6)
    hidden = net.layers[0](x).relu()
    shift, log_scale = net.affines["1"](x).chunk(2, dim=-1)
    torch.testing.assert_close(net(x), net.layers[1]((hidden - shift) / log_scale.exp()).relu())


def test_last_layer_options() -> None:
    net = network(n_layers=1, output_dim=3, last_layer_bias_init=0.25, last_activation=Activation.IDENTITY)
    torch.testing.assert_close(net(torch.zeros(1, 6)), torch.full((1, 3), 0.25))
    with pytest.raises(ConfigError, match="no skip to layer 0"):
        network(input_skips=(0,))
