"""Where the skips of an MLP enter, and what a normed one computes."""

import pytest
import torch

from nerf_trainer.networks.mlp import NormedMLP, SkipMLP


def test_widths_follow_the_skips() -> None:
    mlp = SkipMLP(63, 256, 8, skips=(5,))
    assert [layer.in_features for layer in mlp.layers] == [63, 256, 256, 256, 256, 319, 256, 256]


def test_forward_by_hand() -> None:
    mlp = SkipMLP(2, 3, 2, skips=(1,))
    x = torch.tensor([[1.0, -2.0]])
    first = (x @ mlp.layers[0].weight.T + mlp.layers[0].bias).clamp(min=0)
    second = (torch.cat([first, x], dim=-1) @ mlp.layers[1].weight.T + mlp.layers[1].bias).clamp(min=0)
    torch.testing.assert_close(mlp(x), second)


@pytest.mark.parametrize("skips", [(0,), (4,), (-1,)])
def test_impossible_skips_are_refused(skips: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="skips go from 1"):
        SkipMLP(3, 8, 4, skips)


def test_a_normed_mlp_by_hand() -> None:
    mlp = NormedMLP([2, 3, 4])
    x = torch.tensor([[1.0, -2.0], [0.5, 4.0]], dtype=torch.float64)
    mlp.double()
    assert sum(p.numel() for p in mlp.parameters()) == (2 * 3 + 3 + 2 * 3) + (3 * 4 + 4 + 2 * 4)
    with torch.no_grad():
        mlp[0][1].weight.copy_(torch.tensor([2.0, 1.0, -1.0]))
        mlp[0][1].bias.copy_(torch.tensor([0.0, 0.5, 1.0]))
    expected = x
    for linear, norm, _ in mlp:
        y = expected @ linear.weight.T + linear.bias
        deviation = y - y.mean(dim=-1, keepdim=True)
        y = deviation / (deviation.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
        expected = (y * norm.weight + norm.bias).clamp(min=0)
    torch.testing.assert_close(mlp(x), expected)
