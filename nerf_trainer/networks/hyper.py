"""Hyper networks: networks whose output is the weights of another network.

Symbols: G is the number of codes and so of generated networks, m the rows that go through each of them, D a width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from nerf_trainer.networks.mlp import NormedMLP
from nerf_trainer.ops.precision import full_float32

LAST_LAYER_SCALE = 0.1
"""Shrinks the last layer of a hyper network at first, so that the generated weights begin near those of its bias."""


@dataclass(frozen=True)
class GeneratedMLP:
    """G networks of the same form side by side: linear layers, then a layer norm without weights and ReLU."""

    weights: tuple[Float[Tensor, "G _ _"], ...]
    """Each layer's weights, (G, output, input)."""
    biases: tuple[Float[Tensor, "G 1 _"], ...]
    """Each layer's biases, (G, 1, output)."""

    def __call__(self, x: Float[Tensor, "G m D"]) -> Float[Tensor, "G m E"]:
        """Rows (G, m, D), group by group, through the group's own network."""
        for weight, bias in zip(self.weights, self.biases, strict=True):
            y = torch.baddbmm(bias, x, weight.mT)
            x = torch.relu_(functional.layer_norm(y, y.shape[-1:]))
        return x


class HyperMLP(nn.Module):
    """Generates the weights of perceptrons from codes (Sitzmann et al. 2019, section 3.3).

    Each generated layer has a network of its own: normed layers, then a linear one that gives weights and biases.

    Args:
        code_dim: width of a code.
        hidden_dim: width of the generating networks.
        n_hidden_layers: their hidden layers beyond the first.
        widths: widths of the generated network, from its input to its output.

    Raises:
        ValueError: a width is below 1, there is no layer to generate, or a negative number of hidden layers.
    """

    def __init__(self, code_dim: int, hidden_dim: int, n_hidden_layers: int, widths: Sequence[int]) -> None:
        super().__init__()
        if len(widths) < 2 or min(code_dim, hidden_dim, *widths) < 1 or n_hidden_layers < 0:
            raise ValueError(
                f"codes of width {code_dim}, {hidden_dim} hidden units, {n_hidden_layers} more hidden layers, generated"
                f" widths {list(widths)}: expected positive widths and at least one layer"
            )
        self._sizes = list(pairwise(widths))
        trunk = [code_dim, *[hidden_dim] * (n_hidden_layers + 1)]
        self.generators = nn.ModuleList(
            nn.Sequential(NormedMLP(trunk), _last_layer(hidden_dim, (n_in + 1) * n_out)) for n_in, n_out in self._sizes
        )

    def forward(self, codes: Float[Tensor, "G C"]) -> GeneratedMLP:
        """The networks of the codes, in float32 under autocast and with TF32 too: what they generate are parameters."""
        weights, biases = [], []
        with full_float32(codes.device.type):
            for (n_in, n_out), generator in zip(self._sizes, self.generators, strict=True):
                weight, bias = generator(codes.float()).split([n_in * n_out, n_out], dim=-1)
                weights.append(weight.reshape(-1, n_out, n_in))
                biases.append(bias[:, None])
        return GeneratedMLP(weights=tuple(weights), biases=tuple(biases))


def _last_layer(input_dim: int, output_dim: int) -> nn.Linear:
    linear = nn.Linear(input_dim, output_dim)
    nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
    with torch.no_grad():
        linear.weight *= LAST_LAYER_SCALE
    return linear


@dataclass(frozen=True)
class RowGroups:
    """Which of G networks each of n rows goes through, for rows in any order.

    Groups are padded to the size of the largest.
    """

    slots: Int[Tensor, "n"]
    """Where each row lies among the G times `capacity` rows of all groups."""
    n_groups: int
    """The number of groups G."""
    capacity: int
    """Rows of each group, padding included."""

    @classmethod
    def of(cls, index: Int[Tensor, "n"], n_groups: int) -> Self:
        """Groups from each row's group, in [0, n_groups). Reads the size of the largest back to the host."""
        counts = torch.bincount(index, minlength=n_groups)
        order = torch.argsort(index, stable=True)
        starts = torch.cumsum(counts, dim=0) - counts
        rank = torch.empty_like(index)
        rank[order] = torch.arange(index.shape[0], device=index.device) - starts[index[order]]
        capacity = max(1, int(counts.max().item()))
        return cls(slots=index * capacity + rank, n_groups=n_groups, capacity=capacity)

    def spread(self, rows: Float[Tensor, "n D"]) -> Float[Tensor, "G m D"]:
        """The rows of each group beside each other, zeros after them; m is the capacity."""
        padded = rows.new_zeros(self.n_groups * self.capacity, rows.shape[-1])
        return padded.index_copy(0, self.slots, rows).reshape(self.n_groups, self.capacity, -1)

    def gather(self, groups: Float[Tensor, "G m E"]) -> Float[Tensor, "n E"]:
        """The inverse of `spread`: each row's own result, in the order of the rows."""
        return groups.flatten(0, 1)[self.slots]
