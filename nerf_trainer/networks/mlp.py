"""Multi-layer perceptrons."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn


def xavier_linear(input_dim: int, output_dim: int) -> nn.Linear:
    """A linear layer with Xavier-uniform weights (Glorot and Bengio 2010); biases as torch draws them."""
    linear = nn.Linear(input_dim, output_dim)
    nn.init.xavier_uniform_(linear.weight)
    return linear


def kaiming_linear(input_dim: int, output_dim: int) -> nn.Linear:
    """A linear layer with Kaiming-normal weights for a ReLU (He et al. 2015); biases as torch draws them."""
    linear = nn.Linear(input_dim, output_dim)
    nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
    return linear


class NormedMLP(nn.Sequential):
    """Linear layers, each followed by a layer norm and ReLU: the building block of scene representation networks.

    Args:
        widths: widths from the input to the output, one more than there are layers.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        layers = [
            nn.Sequential(kaiming_linear(n_in, n_out), nn.LayerNorm(n_out), nn.ReLU(inplace=True))
            for n_in, n_out in pairwise(widths)
        ]
        super().__init__(*layers)


class SkipMLP(nn.Module):
    """Linear layers with ReLU after each; the input is appended again before the layers named in `skips`.

    Args:
        input_dim: width of the input.
        hidden_dim: width of every layer.
        n_layers: number of layers.
        skips: indices of layers, from 0, that see the input beside the previous layer's output.
    """

    def __init__(self, input_dim: int, hidden_dim: int, n_layers: int, skips: Sequence[int] = ()) -> None:
        super().__init__()
        self.skips = frozenset(skips)
        if n_layers < 1 or 0 in self.skips or any(not 0 < s < n_layers for s in self.skips):
            raise ValueError(f"{n_layers} layers with input skips at {sorted(skips)}: skips go from 1 to n_layers - 1")
        widths = [input_dim, *[hidden_dim] * (n_layers - 1)]
        self.layers = nn.ModuleList(
            xavier_linear(width + (input_dim if i in self.skips else 0), hidden_dim) for i, width in enumerate(widths)
        )

    def forward(self, x: Float[Tensor, "*n D"]) -> Float[Tensor, "*n H"]:
        # As a matrix: a layer's output is then no view, and its ReLU in place costs no copy in the backward.
        flat = x.reshape(-1, x.shape[-1])
        y = flat
        for i, layer in enumerate(self.layers):
            if i in self.skips:
                y = torch.cat([y, flat.to(y.dtype)], dim=-1)
            y = torch.relu_(layer(y))
        return y.reshape(*x.shape[:-1], -1)
