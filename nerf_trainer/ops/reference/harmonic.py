"""`ops.harmonic` in plain torch; autograd differentiates it, twice too."""

import torch
from jaxtyping import Float
from torch import Tensor


def harmonics(x: Float[Tensor, "*n D"], frequencies: Float[Tensor, "K"], append_input: bool) -> Float[Tensor, "*n E"]:
    """See `ops.harmonic.harmonics`; float32, or float64 as `x`."""
    with torch.autocast(x.device.type, enabled=False):
        x = x if x.dtype is torch.float64 else x.float()
        phases = (x[..., None] * frequencies).flatten(-2)
        parts = [phases.sin(), phases.cos()]
        return torch.cat([*parts, x] if append_input else parts, dim=-1)
