"""Statistics of what several views show of a point, each view with its weight.

V: views; C: channels; w_v >= 0: weight of view v; x_v: what it shows; W = sum_v w_v, at least MIN_TOTAL.

    mean = sum_v w_v x_v / W        std = sqrt(max(sum_v w_v (x_v - mean)^2 / W, MIN_VARIANCE))

A view counts when its weight is above MIN_WEIGHT. Where no view counts, all statistics are 0, with gradients of 0.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

MIN_TOTAL = 1e-2
"""Least sum of weights that a mean is divided by: a point that is barely seen has a mean near 0."""
MIN_VARIANCE = 1e-4
"""Least variance: the square root has no finite slope at 0."""
MIN_WEIGHT = 1e-4
"""Weight above which a view counts."""


def seen_by_any(weights: Float[Tensor, "*n V"]) -> Bool[Tensor, "*n 1"]:
    """Whether any view counts."""
    return (weights > MIN_WEIGHT).any(dim=-1, keepdim=True)


def mean_over_views(values: Float[Tensor, "*n V C"], weights: Float[Tensor, "*n V"]) -> Float[Tensor, "*n C"]:
    """Weighted mean, not yet set to 0 where no view counts."""
    total = weights.sum(dim=-1, keepdim=True).clamp(min=MIN_TOTAL)
    return (values * weights[..., None]).sum(dim=-2) / total


def std_over_views(
    values: Float[Tensor, "*n V C"], weights: Float[Tensor, "*n V"], mean: Float[Tensor, "*n C"]
) -> Float[Tensor, "*n C"]:
    """Weighted standard deviation around `mean`, not yet set to 0 where no view counts."""
    return mean_over_views((values - mean[..., None, :]).square(), weights).clamp(min=MIN_VARIANCE).sqrt()


def max_over_views(values: Float[Tensor, "*n V C"], weights: Float[Tensor, "*n V"]) -> Float[Tensor, "*n C"]:
    """Largest value among the views that count, of each channel by itself; 0 where none does."""
    counts = (weights > MIN_WEIGHT)[..., None]
    largest = torch.where(counts, values, torch.finfo(values.dtype).min).amax(dim=-2)
    return torch.where(counts.any(dim=-2), largest, 0.0)
