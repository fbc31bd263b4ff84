"""Feature aggregators: from what each source view shows of a point to what is known of it.

*n: points; V: source views. Reizenstein et al., Common Objects in 3D, 2021, section 4.1 pools the mean and the
standard deviation; views whose line of sight is near the ray's may count more.
"""

from abc import abstractmethod
from collections.abc import Sequence
from enum import Enum

import torch
from jaxtyping import Float
from torch import Tensor

from nerf_trainer.conditioning.view_sampler import SampledViews
from nerf_trainer.config import ReplaceableBase, registry, runtime
from nerf_trainer.errors import ConfigError
from nerf_trainer.ops.view_statistics import max_over_views, mean_over_views, seen_by_any, std_over_views

_MIN_BASE = 1e-6
"""Least base of the power of an angle weight, whose slope is infinite at 0 for exponents below 1."""


class ReductionFunction(Enum):
    """What is kept of the source views, in the order in which it is concatenated."""

    AVG = "avg"
    """Weighted mean."""
    STD = "std"
    """Weighted standard deviation, at least 0.01."""
    STD_AVG = "std_avg"
    """Mean of the standard deviations of a map's channels: one number a map."""
    MAX = "max"
    """Maximum over the views that count, whatever their weights."""


class FeatureAggregatorBase(ReplaceableBase, torch.nn.Module):
    """Makes pooled features of sampled ones; the order of the source views does not matter."""

    feature_dims: tuple[int, ...] = runtime()
    """Width of each of the sampled features."""
    exclude_target_view: bool = True
    """Leave the target view out where it is among the source views: in evaluation it would show what is asked for."""
    exclude_target_view_mask_features: bool = True
    """Set what the target view shows to 0 even where it counts."""
    concatenate_output: bool = True
    """One tensor of all maps' features; read for the sake of old configurations, only true works."""

    def __post_init__(self) -> None:
        if not self.concatenate_output:
            raise ConfigError("concatenate_output: false, expected true: fields take all features as one tensor")

    @property
    @abstractmethod
    def pooled_dim(self) -> int:
        """Width P of what `forward` gives."""

    @property
    def keeps_views(self) -> bool:
        """Whether `forward` keeps the dimension of source views."""
        return False

    @abstractmethod
    def forward(self, sampled: SampledViews) -> Tensor:
        """Pooled features (*n P), or (*n V P) for an aggregator that keeps views."""


@registry.register
class IdentityFeatureAggregator(FeatureAggregatorBase):
    """Keeps every source view's features, 0 where the view does not see the point; for fields that attend to views."""

    @property
    def pooled_dim(self) -> int:
        return sum(self.feature_dims)

    @property
    def keeps_views(self) -> bool:
        return True

    def forward(self, sampled: SampledViews) -> Float[Tensor, "*n V P"]:
        hide = self.exclude_target_view or self.exclude_target_view_mask_features
        return torch.cat(sampled.features, dim=-1) * _weights(sampled, hide)[..., None]


@registry.register
class AngleWeightedIdentityFeatureAggregator(FeatureAggregatorBase):
    """Keeps every source view's features, times (0.5 + 0.5 cos + min_ray_angle_weight)^weight_by_ray_angle_gamma.

    cos is the cosine between the ray and the source view's line of sight to the point.
    """

    weight_by_ray_angle_gamma: float = 1.0
    """Exponent of the angle weight; larger ones prefer the views nearest to the ray."""
    min_ray_angle_weight: float = 0.1
    """Added to the base of the power; what a view from the opposite side counts when the exponent is 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_min_weight(self.min_ray_angle_weight)

    @property
    def pooled_dim(self) -> int:
        return sum(self.feature_dims)

    @property
    def keeps_views(self) -> bool:
        return True

    def forward(self, sampled: SampledViews) -> Float[Tensor, "*n V P"]:
        hide = self.exclude_target_view or self.exclude_target_view_mask_features
        angle = _angle_weights(sampled, self.min_ray_angle_weight, self.weight_by_ray_angle_gamma)
        return torch.cat(sampled.features, dim=-1) * (_weights(sampled, hide) * angle)[..., None]


@registry.register
class ReductionFeatureAggregator(FeatureAggregatorBase):
    """Reduces the source views to a few statistics; all views that see a point count the same."""

    reduction_functions: tuple[ReductionFunction, ...] = (ReductionFunction.AVG, ReductionFunction.STD)
    """The statistics. Of each map they come in the order AVG, STD, STD_AVG, MAX, whatever the order here."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._functions = _in_order(self.reduction_functions)

    @property
    def pooled_dim(self) -> int:
        return _reduced_dim(self._functions, self.feature_dims)

    def forward(self, sampled: SampledViews) -> Float[Tensor, "*n P"]:
        hide = self.exclude_target_view_mask_features and not self.exclude_target_view
        return _reduce(sampled, _weights(sampled, self.exclude_target_view), hide, self._functions)


@registry.register
class AngleWeightedReductionFeatureAggregator(FeatureAggregatorBase):
    """Reduces the source views to a few statistics, views near the ray counting more.

    The weight is (0.5 + 0.5 cos + min_ray_angle_weight)^weight_by_ray_angle_gamma, cos the cosine between the ray and
    the source view's line of sight to the point.
    """

    reduction_functions: tuple[ReductionFunction, ...] = (ReductionFunction.AVG, ReductionFunction.STD)
    """The statistics. Of each map they come in the order AVG, STD, STD_AVG, MAX, whatever the order here."""
    weight_by_ray_angle_gamma: float = 1.0
    """Exponent of the angle weight; larger ones prefer the views nearest to the ray."""
    min_ray_angle_weight: float = 0.1
    """Added to the base of the power; what a view from the opposite side counts when the exponent is 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_min_weight(self.min_ray_angle_weight)
        self._functions = _in_order(self.reduction_functions)

    @property
    def pooled_dim(self) -> int:
        return _reduced_dim(self._functions, self.feature_dims)

    def forward(self, sampled: SampledViews) -> Float[Tensor, "*n P"]:
        hide = self.exclude_target_view_mask_features and not self.exclude_target_view
        angle = _angle_weights(sampled, self.min_ray_angle_weight, self.weight_by_ray_angle_gamma)
        return _reduce(sampled, _weights(sampled, self.exclude_target_view) * angle, hide, self._functions)


def _weights(sampled: SampledViews, without_target: bool) -> Float[Tensor, "*n V"]:
    """What each view counts before angles do."""
    valid = sampled.valid[..., 0]
    return valid * ~sampled.is_target if without_target else valid


def _angle_weights(sampled: SampledViews, least: float, gamma: float) -> Float[Tensor, "*n V"]:
    return (0.5 + 0.5 * sampled.cosines + least).clamp(min=_MIN_BASE) ** gamma


def _reduce(
    sampled: SampledViews, weights: Float[Tensor, "*n V"], hide_target: bool, functions: Sequence[ReductionFunction]
) -> Float[Tensor, "*n P"]:
    """The statistics of each map, map by map; 0 where no view counts."""
    parts: list[Tensor] = []
    for features in sampled.features:
        values = features * ~sampled.is_target[..., None] if hide_target else features
        mean = mean_over_views(values, weights)
        std = mean
        if ReductionFunction.STD in functions or ReductionFunction.STD_AVG in functions:
            std = std_over_views(values, weights, mean)
        for function in functions:
            if function is ReductionFunction.AVG:
                parts.append(mean)
            elif function is ReductionFunction.STD:
                parts.append(std)
            elif function is ReductionFunction.STD_AVG:
                parts.append(std.mean(dim=-1, keepdim=True))
            else:
                parts.append(max_over_views(values, weights))
    return torch.cat(parts, dim=-1) * seen_by_any(weights)


def _in_order(functions: Sequence[ReductionFunction]) -> tuple[ReductionFunction, ...]:
    """Each function once, in the order of the enumeration.

    Raises:
        ConfigError: there is none.
    """
    if not functions:
        names = ", ".join(function.name for function in ReductionFunction)
        raise ConfigError(f"reduction_functions: [], expected at least one of {names}")
    return tuple(function for function in ReductionFunction if function in functions)


def _reduced_dim(functions: Sequence[ReductionFunction], feature_dims: Sequence[int]) -> int:
    return sum(1 if function is ReductionFunction.STD_AVG else dim for dim in feature_dims for function in functions)


def _check_min_weight(least: float) -> None:
    if least < 0.0:
        raise ConfigError(f"min_ray_angle_weight: {least}, expected at least 0, so that no weight is negative")
