"""Small multi-layer perceptrons without biases, fused (Mueller et al. 2021, "Real-time neural radiance caching for path
tracing", section 3.3, and Mueller et al. 2022, Instant-NGP).

N: rows (samples); X, E: columns of the input and of what follows them; O: outputs; P: weights of all layers.
"""

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from nerf_trainer.ops.reference.small_mlp import small_mlp_reference


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

    Args:
        x: the input, of any floating type.
        weights: the layers' matrices (out, in), flattened, one after another.
        widths: of the input (X + E), each hidden layer and the output.
        extra: columns that follow those of `x`, so that nobody need concatenate them.
        n_used: rows from this one on are padding: their outputs are zero, and they give no gradient.
    """
    return small_mlp_reference(x, weights, widths, extra, n_used, product_dtype(x.device.type))


def product_dtype(device_type: str) -> torch.dtype:
    """What products are taken in on such a device: autocast's type within autocast, else float32."""
    if torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return torch.float32
