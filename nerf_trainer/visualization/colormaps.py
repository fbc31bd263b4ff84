"""Depth, disparity and masks as pictures."""

from functools import cache

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

_OPAQUE = 0.5
_MAX_VALUES = 2**20
_NAME = "viridis"
"""A perceptually uniform map (Smith and van der Walt, 2015): equal differences look equally large."""


def value_range(values: Float[Tensor, "*n"], opacity: Float[Tensor, "*n"]) -> tuple[float, float]:
    """The 2 % and 98 % quantiles of `values` where the scene is opaque, so that stray pixels don't set the range.

    Args:
        values: any finite or infinite numbers; those that are not finite are left out.
        opacity: in [0, 1]; above one half is opaque.

    Returns:
        low < high; (0, 1) where nothing is opaque.
    """
    kept = values[(opacity > _OPAQUE) & values.isfinite()].float()
    if kept.numel() == 0:
        return 0.0, 1.0
    kept = kept[:: -(-kept.numel() // _MAX_VALUES)]  # torch.quantile takes 16 million values at most
    low, high = torch.quantile(kept, torch.tensor([0.02, 0.98], device=kept.device)).tolist()
    slack = 1e-6 + 1e-3 * abs(low)
    return (low, high) if high - low > slack else (low - slack, high + slack)


def colorize(
    values: Float[Tensor, "H W"],
    low: float,
    high: float,
    opacity: Float[Tensor, "H W"] | None = None,
    background: float = 1.0,
) -> UInt8[Tensor, "H W 3"]:
    """`values` from `low` (dark blue) to `high` (yellow), clamped, over a grey background where they are transparent.

    Args:
        opacity: in [0, 1]; None is opaque everywhere.
        background: grey in [0, 1].
    """
    scaled = ((values.float() - low) / (high - low)).nan_to_num(0.0, 1.0, 0.0).clamp(0.0, 1.0)
    colors = _table().to(values.device)[(scaled * 255.0).round().long()]
    if opacity is not None:
        alpha = opacity.float().nan_to_num(0.0).clamp(0.0, 1.0)[..., None]
        colors = colors * alpha + background * (1.0 - alpha)
    return to_bytes(colors)


def grey(values: Float[Tensor, "H W"]) -> UInt8[Tensor, "H W 3"]:
    """Values in [0, 1], black to white; others are clamped."""
    return to_bytes(values[..., None].expand(*values.shape, 3))


def to_bytes(values: Float[Tensor, "*n"]) -> UInt8[Tensor, "*n"]:
    """[0, 1] as 0 to 255, rounded to nearest; other values are clamped, what is no number is 0."""
    return (values.float().nan_to_num(0.0, 1.0, 0.0).clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)


@cache
def _table() -> Float[Tensor, "256 3"]:
    # Importing matplotlib takes a while, and many commands never colour anything.
    from matplotlib import colormaps

    return torch.tensor([colormaps[_NAME](i)[:3] for i in range(256)], dtype=torch.float32)
