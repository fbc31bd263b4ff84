"""A transformer over a grid of tokens: what each of V source views says of each of S samples along a ray.

NeRFormer's network (Reizenstein et al. 2021, CO3D, section 4.3): a layer lets the views of one sample attend to each
other (pool attention), then the samples of one ray, view by view (ray attention). Neither knows an order: exchanging
views changes nothing, and where a sample lies is in its token alone.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from nerf_trainer.networks.mlp import xavier_linear

N_HEADS = 4
"""Heads of every attention; widths are multiples of it."""
SHORT = 32
"""Sets of up to so many tokens attend by plain products: fused kernels, made for long sequences, are slower there."""
LARGEST_BATCH = 32_768
"""Sets that go to a fused kernel at once: beyond 65,535 they refuse, on CUDA."""


def layer_widths(hidden_dim: int, n_layers: int, dim_down_factor: float) -> list[int]:
    """Widths before the first layer and behind each: every one smaller than the one before by the factor."""
    return [round(hidden_dim / dim_down_factor**i) for i in range(n_layers + 1)]


def attention(
    queries: Float[Tensor, "N H L d"], keys: Float[Tensor, "N H L d"], values: Float[Tensor, "N H L d"]
) -> Float[Tensor, "N H L d"]:
    """softmax(Q K^T / sqrt(d)) V for each set and head (Vaswani et al. 2017, equation 1), for any number of sets."""
    if queries.shape[-2] > SHORT:
        pieces = zip(*(t.split(LARGEST_BATCH) for t in (queries, keys, values)), strict=True)
        attended = [scaled_dot_product_attention(q, k, v) for q, k, v in pieces]
        return attended[0] if len(attended) == 1 else torch.cat(attended)
    scores = (queries * queries.shape[-1] ** -0.5) @ keys.mT
    accurate = torch.promote_types(scores.dtype, torch.float32)
    return torch.softmax(scores, dim=-1, dtype=accurate).to(values.dtype) @ values


class AttentionLayer(nn.Module):
    """Self-attention among L tokens, then a perceptron; a residual and a layer norm after each (Vaswani et al. 2017).

    Args:
        input_dim: width of the tokens, a multiple of `N_HEADS`.
        output_dim: width of the tokens that come out, at most `input_dim`; a narrower residual keeps the first
            channels.
        feedforward_dim: width of the perceptron's hidden layer.
    """

    def __init__(self, input_dim: int, output_dim: int, feedforward_dim: int) -> None:
        super().__init__()
        if input_dim < 1 or input_dim % N_HEADS or not 0 < output_dim <= input_dim:
            raise ValueError(
                f"attention from {input_dim} to {output_dim} channels; expected a multiple of {N_HEADS}, and no more"
                " channels after it than before"
            )
        self.queries_keys_values = xavier_linear(input_dim, 3 * input_dim)
        self.attended = nn.Linear(input_dim, input_dim)
        nn.init.zeros_(self.queries_keys_values.bias)
        nn.init.zeros_(self.attended.bias)
        self.norm_attention = nn.LayerNorm(input_dim)
        self.feedforward = nn.Sequential(
            nn.Linear(input_dim, feedforward_dim), nn.ReLU(inplace=True), nn.Linear(feedforward_dim, output_dim)
        )
        self.norm_feedforward = nn.LayerNorm(output_dim)
        self._output_dim = output_dim

    def forward(self, x: Float[Tensor, "N L D"]) -> Float[Tensor, "N L E"]:
        x = self.norm_attention(x + self._attend(x))
        return self.norm_feedforward(x[..., : self._output_dim] + self.feedforward(x))

    def _attend(self, x: Float[Tensor, "N L D"]) -> Float[Tensor, "N L D"]:
        heads = self.queries_keys_values(x).unflatten(-1, (3, N_HEADS, -1))
        queries, keys, values = heads.permute(2, 0, 3, 1, 4)
        return self.attended(attention(queries, keys, values).transpose(1, 2).flatten(-2))


class TransformerWithInputSkips(nn.Module):
    """Layers of pool and ray attention; then one token a sample, as a weighted mean of its views'.

    A view's weight is the softmax, over the views, of its token's first channel.

    Args:
        input_dim: width of the input.
        output_dim: width of the output.
        hidden_dim: width of the tokens before the first layer, and of the perceptron within every one.
        n_layers: number of layers, each of a pool and a ray attention.
        input_skips: indices of layers, from 1, that have the input, through a linear layer, added to their tokens.
        dim_down_factor: how much narrower a layer leaves the tokens; at least 1.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        hidden_dim: int,
        n_layers: int,
        input_skips: Sequence[int] = (),
        dim_down_factor: float = 1.0,
    ) -> None:
        super().__init__()
        if n_layers < 1 or any(not 0 < skip < n_layers for skip in input_skips):
            raise ValueError(
                f"{n_layers} layers with input skips at {sorted(input_skips)}: skips go from 1 to n_layers - 1"
            )
        widths = layer_widths(hidden_dim, n_layers, dim_down_factor)
        self.first = xavier_linear(input_dim, hidden_dim)
        self.pool_layers = nn.ModuleList(
            AttentionLayer(width, narrower, hidden_dim) for width, narrower in pairwise(widths)
        )
        self.ray_layers = nn.ModuleList(AttentionLayer(width, width, hidden_dim) for width in widths[1:])
        self.skips = nn.ModuleDict({str(i): nn.Linear(input_dim, widths[i]) for i in sorted(set(input_skips))})
        self.last = xavier_linear(widths[-1], output_dim)

    def forward(self, x: Float[Tensor, "*n S V D"]) -> Float[Tensor, "*n S E"]:
        grid = x.reshape(-1, *x.shape[-3:])
        n_rays, n_samples, n_views, _ = grid.shape
        y = self.first(grid)
        for i, (pool, ray) in enumerate(zip(self.pool_layers, self.ray_layers, strict=True)):
            if str(i) in self.skips:
                y = y + self.skips[str(i)](grid)
            y = pool(y.reshape(n_rays * n_samples, n_views, -1))
            y = y.unflatten(0, (n_rays, n_samples)).transpose(1, 2)
            y = ray(y.reshape(n_rays * n_views, n_samples, -1))
            y = y.unflatten(0, (n_rays, n_views)).transpose(1, 2)
        weights = torch.softmax(y[..., :1], dim=-2, dtype=torch.promote_types(y.dtype, torch.float32))
        return self.last((weights * y).sum(dim=-2)).reshape(*x.shape[:-2], -1)
