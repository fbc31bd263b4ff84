"""The network of a radiance field (Mildenhall et al. 2020, figure 7): hidden layers with skips, density, colour.

Symbols are those of `ops.nerf_mlp_shape`. It runs, forward and backward, as few Triton kernels in which a block of
samples goes through all layers, or layer by layer in torch's products. Both have their backward written out, so they
are differentiable once.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from nerf_trainer.ops import nerf_mlp_layers
from nerf_trainer.ops.backend import uses_triton
from nerf_trainer.ops.nerf_mlp_shape import Linear, NerfMLPWeights

MOST_COLUMNS = 256
"""The kernels keep a block of samples, this wide at most, in the registers of one multiprocessor."""
MOST_COLOR_COLUMNS = 128
"""A colour layer's whole matrix lies in shared memory."""
MOST_COLORS = 15
"""Density and colours are one matrix of 16 rows in the kernels."""


def nerf_mlp(
    embedded: Float[Tensor, "N E"], per_ray: Float[Tensor, "R C"] | None, weights: NerfMLPWeights
) -> tuple[Float[Tensor, "N 1"], Float[Tensor, "N K"] | None]:
    """Density and colour before their activations, float32.

    Products are in the precision that autocast, or else `torch.backends.cuda.matmul.allow_tf32`, asks for; they add up
    in float32. Float16 has no kernels.

    Args:
        embedded: encoded positions and what conditions them; samples of a ray follow one another.
        per_ray: what the ray's direction and the bias of the first colour layer add to it; None without colour layers.
        weights: float32.
    """
    dtype = product_dtype(embedded.device.type)
    shape = weights.shape
    fits = shape.width <= MOST_COLUMNS and shape.color_width <= MOST_COLOR_COLUMNS and shape.color_dim <= MOST_COLORS
    # Triton's own products of whole float32 numbers are far slower than the library's.
    exact = embedded.is_cuda and dtype is torch.float32 and not torch.backends.cuda.matmul.allow_tf32
    has_kernels = fits and not exact and dtype in (torch.float32, torch.bfloat16) and embedded.shape[0] > 0
    if has_kernels and uses_triton(embedded):
        from nerf_trainer.ops.kernels import nerf_mlp as kernels

        return kernels.nerf_mlp(embedded, per_ray, weights, dtype)
    return nerf_mlp_layers.nerf_mlp(embedded, per_ray, weights, dtype)


def product_dtype(device_type: str) -> torch.dtype:
    """What autocast makes of the factors of a product; float32 without."""
    if not torch.is_autocast_enabled(device_type):
        return torch.float32
    return torch.get_autocast_dtype(device_type)


def joined(outer: Float[Tensor, "C W"], inner: Linear) -> tuple[Float[Tensor, "C V"], Float[Tensor, "C"]]:
    """The one layer that two make with nothing between them: outer (inner x + bias) = (outer inner) x + outer bias.

    In float32, differentiable.

    Args:
        outer: weights of the second layer.
        inner: weights (W, V) and bias (W) of the first.
    """
    with torch.autocast(outer.device.type, enabled=False):
        return outer @ inner[0], outer @ inner[1]
