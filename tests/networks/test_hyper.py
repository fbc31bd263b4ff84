"""Generated networks are networks like any other; each code has its own."""

import pytest
import torch
from torch import nn

from nerf_trainer.networks.hyper import GeneratedMLP, HyperMLP, RowGroups

WIDTHS = [5, 7, 4]


def hyper(**options) -> HyperMLP:
    torch.manual_seed(0)
    return HyperMLP(**({"code_dim": 3, "hidden_dim": 8, "n_hidden_layers": 1, "widths": WIDTHS} | options))


def explicit(network: GeneratedMLP, group: int) -> nn.Sequential:
    """The same network out of torch's own layers."""
    layers: list[nn.Module] = []
    for weight, bias in zip(network.weights, network.biases, strict=True):
        n_out, n_in = weight.shape[1:]
        linear = nn.Linear(n_in, n_out)
        linear.weight.data, linear.bias.data = weight[group].detach(), bias[group, 0].detach()
        layers += [linear, nn.LayerNorm(n_out, elementwise_affine=False), nn.ReLU()]
    return nn.Sequential(*layers)


def test_a_generated_network_equals_the_explicit_one() -> None:
    network, x = hyper()(torch.randn(2, 3)), torch.randn(2, 6, 5)
    assert [tuple(w.shape) for w in network.weights] == [(2, 7, 5), (2, 4, 7)]
    out = network(x)
    for group in range(2):
        torch.testing.assert_close(out[group], explicit(network, group)(x[group]))


def test_two_codes_give_what_each_gives_alone() -> None:
    module, codes, x = hyper(), torch.randn(2, 3), torch.randn(2, 6, 5)
    together = module(codes)(x)
    for i in range(2):
        torch.testing.assert_close(together[i : i + 1], module(codes[i : i + 1])(x[i : i + 1]))
    assert (together[0] - module(codes[1:])(x[:1])[0]).abs().max() > 1e-2


def test_number_of_parameters_by_hand() -> None:
    """For each generated layer: two normed layers (weights, biases, norm), and the last linear one."""
    trunk = (3 * 8 + 8 + 2 * 8) + (8 * 8 + 8 + 2 * 8)
    last = sum((8 + 1) * (n_in + 1) * n_out for n_in, n_out in ((5, 7), (7, 4)))
    assert sum(p.numel() for p in hyper().parameters()) == 2 * trunk + last


def test_the_last_layers_begin_small() -> None:
    """Kaiming's deviation for 256 inputs, sqrt(2 / 256), times a tenth."""
    module = hyper(hidden_dim=256, widths=[64, 64])
    last = module.generators[0][-1]
    assert last.weight.std().item() == pytest.approx(0.1 * (2 / 256) ** 0.5, rel=0.02)


def test_generated_weights_are_in_float32_under_autocast() -> None:
    module, codes = hyper(), torch.randn(2, 3)
    plain = module(codes)
    with torch.autocast("cpu", torch.bfloat16):
        network = module(codes)
        out = network(torch.randn(2, 6, 5))
    for weight, expected in zip(network.weights, plain.weights, strict=True):
        assert torch.equal(weight, expected)
    out.float().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_gradients_reach_each_code_from_its_own_rows() -> None:
    codes = torch.randn(2, 3, requires_grad=True)
    hyper()(codes)(torch.randn(2, 6, 5))[1].square().sum().backward()
    assert codes.grad is not None and codes.grad[0].abs().max() == 0.0 and codes.grad[1].abs().max() > 0.0


@pytest.mark.parametrize("wrong", [{"code_dim": 0}, {"widths": [3]}, {"widths": [3, 0]}, {"n_hidden_layers": -1}])
def test_impossible_sizes_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="expected positive widths"):
        hyper(**wrong)


def test_rows_in_any_order_come_back_in_theirs() -> None:
    index = torch.tensor([2, 0, 2, 2, 0, 3])
    groups, rows = RowGroups.of(index, 4), torch.arange(12.0).reshape(6, 2)
    spread = groups.spread(rows)
    assert spread.shape == (4, 3, 2) and groups.capacity == 3
    assert spread[0].tolist() == [[2.0, 3.0], [8.0, 9.0], [0.0, 0.0]]
    assert spread[1].abs().max() == 0.0
    assert spread[2].tolist() == [[0.0, 1.0], [4.0, 5.0], [6.0, 7.0]]
    assert torch.equal(groups.gather(spread), rows)
    factor = torch.tensor([1.0, 10.0, 100.0, 1000.0])
    torch.testing.assert_close(groups.gather(spread * factor[:, None, None]), rows * factor[index][:, None])


def test_rows_of_one_group_only() -> None:
    groups = RowGroups.of(torch.zeros(5, dtype=torch.int64), 1)
    assert groups.capacity == 5 and torch.equal(groups.slots, torch.arange(5))
