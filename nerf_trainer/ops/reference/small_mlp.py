"""Small multi-layer perceptrons without biases, layer by layer: what the kernels of `ops/kernels/small_mlp` compute."""

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import linear


def small_mlp_reference(
    x: Shaped[Tensor, "N X"],
    weights: Float[Tensor, "P"],
    widths: tuple[int, ...],
    extra: Shaped[Tensor, "N E"] | None,
    n_used: Int[Tensor, ""] | None,
    dtype: torch.dtype,
) -> Float[Tensor, "N O"]:
    """As `nerf_trainer.ops.small_mlp.small_mlp`, with products of `dtype`; differentiable by autograd."""
    padding = None if n_used is None else (torch.arange(x.shape[0], device=x.device) >= n_used)[:, None]
    h = x.to(dtype) if extra is None else torch.cat([x.to(dtype), extra.to(dtype)], dim=-1)
    if padding is not None:
        h = h.masked_fill(padding, 0.0)
    with torch.autocast(x.device.type, enabled=False):
        for i, matrix in enumerate(matrices(weights, widths)):
            h = linear(h if i == 0 else torch.relu(h), matrix.to(dtype))
    return h.float() if padding is None else h.float().masked_fill(padding, 0.0)


def matrices(weights: Float[Tensor, "P"], widths: tuple[int, ...]) -> list[Float[Tensor, "out in"]]:
    """The layers' matrices (out, in), as views of the vector that holds them one after another."""
    shapes = list(zip(widths[1:], widths[:-1], strict=True))
    parts = weights.split([n_out * n_in for n_out, n_in in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
