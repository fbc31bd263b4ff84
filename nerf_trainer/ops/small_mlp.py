"""Small multi-layer perceptrons without biases, all layers in one kernel.

Mueller et al. 2021, "Real-time neural radiance caching for path tracing", section 4, call them fully fused: a block of
rows passes through all layers without a visit to memory.

N: rows (samples); X, E: columns of the input and of what follows them; O: outputs; P: weights of all layers.
"""

from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.autograd.function import once_differentiable

from nerf_trainer.ops.backend import is_interpreted, uses_triton
from nerf_trainer.ops.reference.small_mlp import small_mlp_reference

MAX_WIDTH = 128
"""Columns that a layer may have for the kernels to take it."""
MAX_WEIGHT_BYTES = 56 * 1024
"""What all weights may take for the kernels to keep them beside a block of rows: 28,672 weights in bfloat16."""


def small_mlp(
    x: Shaped[Tensor, "N X"],
    weights: Float[Tensor, "P"],
    widths: tuple[int, ...],
    extra: Shaped[Tensor, "N E"] | None = None,
    n_used: Int[Tensor, ""] | None = None,
) -> Float[Tensor, "N O"]:
    """W_L relu(... W_1 relu(W_0 [x, extra])): linear layers with ReLU between them, none behind the last.

    Under autocast products are taken in its type, with sums in float32; otherwise in float32, or TF32 where
    `torch.backends.cuda.matmul.allow_tf32` says so. The result is float32: what follows, an exponential or a sigmoid,
    wants it so. Differentiable once, in `x`, `extra` and `weights`.

    The kernels take networks up to `MAX_WIDTH` and `MAX_WEIGHT_BYTES`. Larger ones, and products with all bits of
    float32, for which there are no tensor cores, go layer by layer.

    Args:
        x: the input, of any floating type.
        weights: the layers' matrices (out, in), flattened, one after another.
        widths: of the input (X + E), each hidden layer, all alike, and the output.
        extra: columns that follow those of `x`, so that nobody need concatenate them.
        n_used: rows from this one on are padding: their outputs are zero, and they give no gradient.
    """
    dtype = product_dtype(x.device.type)
    if not (uses_triton(x) and _fits(weights, widths, dtype) and _has_fast_products(dtype)):
        return small_mlp_reference(x, weights, widths, extra, n_used, dtype)
    parts = (_rows(x), None if extra is None else _rows(extra))
    return _SmallMLP.apply(*parts, weights, n_used, widths, dtype)


def product_dtype(device_type: str) -> torch.dtype:
    """What products are taken in on such a device: autocast's type within autocast, else float32."""
    if torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return torch.float32


def _fits(weights: Tensor, widths: tuple[int, ...], dtype: torch.dtype) -> bool:
    return max(widths) <= MAX_WIDTH and weights.numel() * dtype.itemsize <= MAX_WEIGHT_BYTES


def _has_fast_products(dtype: torch.dtype) -> bool:
    return dtype is not torch.float32 or bool(torch.backends.cuda.matmul.allow_tf32) or is_interpreted()


def _rows(values: Tensor) -> Tensor:
    """With the columns of a row side by side in memory."""
    return values if values.stride(-1) == 1 and values.shape[-1] <= values.stride(0) else values.contiguous()


class _SmallMLP(torch.autograd.Function):
    """The kernels of `ops/kernels/small_mlp`; keeps the inputs alone."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        extra: Tensor | None,
        weights: Tensor,
        n_used: Tensor | None,
        widths: tuple[int, ...],
        dtype: torch.dtype,
    ) -> Tensor:
        from nerf_trainer.ops.kernels.small_mlp import small_mlp_forward

        ctx.save_for_backward(x, extra, weights, n_used)
        ctx.widths, ctx.dtype = widths, dtype
        return small_mlp_forward(x, extra, weights, n_used, widths, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        from nerf_trainer.ops.kernels.small_mlp import small_mlp_backward

        x, extra, weights, n_used = ctx.saved_tensors
        wanted = (ctx.needs_input_grad[0], ctx.needs_input_grad[1])
        d_out = _rows(grad_outputs[0])
        dx, d_extra, d_weights = small_mlp_backward(d_out, x, extra, weights, n_used, ctx.widths, ctx.dtype, wanted)
        return dx, d_extra, d_weights, None, None, None
