"""Feature aggregators: their arithmetic, what they leave out, and that the order of views is nothing to them."""

from dataclasses import replace

import pytest
import torch

from nerf_trainer.conditioning.feature_aggregators import (
    AngleWeightedIdentityFeatureAggregator,
    AngleWeightedReductionFeatureAggregator,
    FeatureAggregatorBase,
    IdentityFeatureAggregator,
    ReductionFeatureAggregator,
    ReductionFunction,
)
from nerf_trainer.conditioning.view_sampler import SampledViews
from nerf_trainer.errors import ConfigError
from tests.conditioning.view_kit import sampled_views

AVG, STD, STD_AVG, MAX = ReductionFunction.AVG, ReductionFunction.STD, ReductionFunction.STD_AVG, ReductionFunction.MAX
ALL = (AVG, STD, STD_AVG, MAX)
REDUCTIONS = [ReductionFeatureAggregator, AngleWeightedReductionFeatureAggregator]
IDENTITIES = [IdentityFeatureAggregator, AngleWeightedIdentityFeatureAggregator]
AGGREGATORS = REDUCTIONS + IDENTITIES
SHOWN = torch.tensor([[[1.0, 10.0], [2.0, 20.0], [6.0, 60.0]]])
"""What three views show of one point, in two channels."""


def aggregator(cls: type, dims: tuple[int, ...] = (2,), **options) -> FeatureAggregatorBase:
    return cls(feature_dims=dims, **options)


def mask(*values: float) -> torch.Tensor:
    return torch.tensor([values])


def drawn(n: int = 6, n_views: int = 4, dims: tuple[int, ...] = (3, 1)) -> SampledViews:
    """Random features, weights, targets and angles; some views see nothing."""
    torch.manual_seed(0)
    seen = (torch.rand(n, n_views) < 0.7).float()
    return sampled_views(
        *(torch.randn(n, n_views, dim) for dim in dims),
        valid=seen * torch.rand(n, n_views),
        is_target=torch.nn.functional.one_hot(torch.arange(n) % n_views, n_views).bool(),
        cosines=torch.rand(n, n_views) * 2 - 1,
    )


# --- arithmetic ---------------------------------------------------------------------------------------------------


def test_mean_and_deviation_of_all_views():
    std = ((1 - 3) ** 2 + (2 - 3) ** 2 + (6 - 3) ** 2) / 3
    pooled = aggregator(ReductionFeatureAggregator)(sampled_views(SHOWN))
    torch.testing.assert_close(pooled, torch.tensor([[3.0, 30.0, std**0.5, 10 * std**0.5]]))


def test_views_that_see_nothing_do_not_count():
    pooled = aggregator(ReductionFeatureAggregator, reduction_functions=ALL)(
        sampled_views(SHOWN, valid=mask(1.0, 1.0, 0.0))
    )
    torch.testing.assert_close(pooled, torch.tensor([[1.5, 15.0, 0.5, 5.0, 2.75, 2.0, 20.0]]))


def test_the_largest_may_be_negative():
    pooled = aggregator(ReductionFeatureAggregator, reduction_functions=(MAX,))(
        sampled_views(-SHOWN, valid=mask(0.0, 1.0, 1.0))
    )
    assert pooled.tolist() == [[-2.0, -20.0]]


def test_views_count_by_their_foreground():
    pooled = aggregator(ReductionFeatureAggregator, reduction_functions=(AVG, MAX))(
        sampled_views(SHOWN, valid=mask(1.0, 0.5, 0.0))
    )
    torch.testing.assert_close(pooled, torch.tensor([[(1 + 0.5 * 2) / 1.5, (10 + 0.5 * 20) / 1.5, 2.0, 20.0]]))


@pytest.mark.parametrize("gamma", [1.0, 2.5])
def test_angles_weigh_the_mean(gamma):
    # The weights' bases are 1.1, 0.6 and 0.1.
    w = [1.1**gamma, 0.6**gamma, 0.1**gamma]
    mean = (w[0] * 1 + w[1] * 2 + w[2] * 6) / sum(w)
    variance = (w[0] * (1 - mean) ** 2 + w[1] * (2 - mean) ** 2 + w[2] * (6 - mean) ** 2) / sum(w)
    sampled = sampled_views(SHOWN[..., :1], cosines=torch.tensor([[1.0, 0.0, -1.0]]))
    pooled = aggregator(AngleWeightedReductionFeatureAggregator, (1,), weight_by_ray_angle_gamma=gamma)(sampled)
    torch.testing.assert_close(pooled, torch.tensor([[mean, variance**0.5]]))


def test_identity_keeps_what_views_show():
    pooled = aggregator(IdentityFeatureAggregator)(sampled_views(SHOWN, valid=mask(1.0, 0.5, 0.0)))
    assert pooled.tolist() == [[[1.0, 10.0], [1.0, 10.0], [0.0, 0.0]]]


def test_weighted_identity_scales_what_views_show():
    sampled = sampled_views(SHOWN, valid=mask(1.0, 1.0, 0.0), cosines=torch.tensor([[1.0, 0.0, 1.0]]))
    pooled = aggregator(AngleWeightedIdentityFeatureAggregator, min_ray_angle_weight=0.5)(sampled)
    torch.testing.assert_close(pooled, torch.tensor([[[1.5, 15.0], [2.0, 20.0], [0.0, 0.0]]]))


def test_statistics_come_map_by_map():
    sampled = sampled_views(SHOWN, SHOWN[..., :1] + 100)
    pooled = aggregator(ReductionFeatureAggregator, (2, 1), reduction_functions=(MAX, AVG))(sampled)
    assert pooled.tolist() == [[3.0, 30.0, 6.0, 60.0, 103.0, 106.0]]


@pytest.mark.parametrize("angles", [False, True])
def test_it_is_the_slow_way_round(angles):
    """Each statistic against loops in float64 over points, views and channels."""
    sampled = drawn()
    cls = AngleWeightedReductionFeatureAggregator if angles else ReductionFeatureAggregator
    options = {"weight_by_ray_angle_gamma": 1.7, "min_ray_angle_weight": 0.3} if angles else {}
    pooled = aggregator(cls, (3, 1), reduction_functions=ALL, **options)(sampled)
    for n in range(6):
        expected: list[float] = []
        for features in sampled.features:
            of_map: dict[ReductionFunction, list[float]] = {function: [] for function in ALL}
            for c in range(features.shape[-1]):
                weighed: list[tuple[float, float]] = []
                for v in range(4):
                    weight = sampled.valid[n, v, 0].item() * (not sampled.is_target[n, v].item())
                    if angles:
                        weight *= (0.5 + 0.5 * sampled.cosines[n, v].item() + 0.3) ** 1.7
                    if weight > 0:
                        weighed.append((weight, features[n, v, c].item()))
                total = sum(w for w, _ in weighed)
                mean = sum(w * x for w, x in weighed) / total
                variance = sum(w * (x - mean) ** 2 for w, x in weighed) / total
                of_map[AVG].append(mean)
                of_map[STD].append(max(variance, 1e-4) ** 0.5)
                of_map[MAX].append(max(x for _, x in weighed))
            of_map[STD_AVG] = [sum(of_map[STD]) / len(of_map[STD])]
            expected += [value for function in ALL for value in of_map[function]]
        torch.testing.assert_close(
            pooled[n].double(), torch.tensor(expected, dtype=torch.float64), atol=1e-5, rtol=1e-5
        )


# --- the target view ----------------------------------------------------------------------------------------------

FIRST_IS_TARGET = torch.tensor([[True, False, False]])


@pytest.mark.parametrize("hidden", [False, True])
def test_an_excluded_target_has_no_weight(hidden):
    pooled = aggregator(
        ReductionFeatureAggregator, reduction_functions=(AVG, MAX), exclude_target_view_mask_features=hidden
    )(sampled_views(SHOWN, is_target=FIRST_IS_TARGET))
    assert pooled.tolist() == [[4.0, 40.0, 6.0, 60.0]]


def test_a_target_may_count_with_its_features_hidden():
    """The reference's meaning of the two options: zeros that count as a view's."""
    pooled = aggregator(ReductionFeatureAggregator, reduction_functions=(AVG, MAX), exclude_target_view=False)(
        sampled_views(-SHOWN, is_target=FIRST_IS_TARGET)
    )
    torch.testing.assert_close(pooled, torch.tensor([[-8.0 / 3, -80.0 / 3, 0.0, 0.0]]))


@pytest.mark.parametrize("cls", REDUCTIONS)
def test_a_target_that_is_not_excluded_counts(cls):
    keep = {"exclude_target_view": False, "exclude_target_view_mask_features": False}
    sampled = sampled_views(SHOWN, is_target=FIRST_IS_TARGET)
    torch.testing.assert_close(aggregator(cls, **keep)(sampled), aggregator(cls)(sampled_views(SHOWN)))


@pytest.mark.parametrize("cls", IDENTITIES)
@pytest.mark.parametrize(("excluded", "hidden"), [(True, True), (True, False), (False, True), (False, False)])
def test_where_views_are_kept_the_target_is_zeros(cls, excluded, hidden):
    options = {"exclude_target_view": excluded, "exclude_target_view_mask_features": hidden}
    pooled = aggregator(cls, **options)(sampled_views(SHOWN, is_target=FIRST_IS_TARGET))
    assert (pooled[0, 0] == 0).all().item() == (excluded or hidden)
    assert (pooled[0, 1:] > 0).all()


@pytest.mark.parametrize("cls", AGGREGATORS)
def test_an_excluded_target_changes_nothing(cls):
    sampled = drawn()
    told = [torch.where(sampled.is_target[..., None], 1e3, features) for features in sampled.features]
    of = aggregator(cls, (3, 1))
    assert torch.equal(of(replace(sampled, features=tuple(told))), of(sampled))


# --- all of them --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", AGGREGATORS)
def test_widths_are_as_announced(cls):
    of = aggregator(cls, (3, 1))
    pooled = of(drawn())
    assert pooled.shape == ((6, 4, of.pooled_dim) if of.keeps_views else (6, of.pooled_dim))
    assert of.keeps_views == (cls in IDENTITIES)


@pytest.mark.parametrize("functions", [(AVG,), (STD,), (STD_AVG,), (MAX,), ALL, (STD_AVG, STD), (MAX, MAX, AVG)])
@pytest.mark.parametrize("cls", REDUCTIONS)
def test_widths_of_each_choice_of_statistics(cls, functions):
    of = aggregator(cls, (3, 1), reduction_functions=functions)
    assert of(drawn()).shape == (6, of.pooled_dim)
    assert of.pooled_dim == sum(2 if function is STD_AVG else 4 for function in set(functions))


@pytest.mark.parametrize("cls", AGGREGATORS)
def test_the_order_of_views_does_not_matter(cls):
    sampled = drawn()
    order = torch.tensor([2, 0, 3, 1])
    shuffled = SampledViews(
        features=tuple(features[:, order] for features in sampled.features),
        valid=sampled.valid[:, order],
        is_target=sampled.is_target[:, order],
        cosines=sampled.cosines[:, order],
    )
    of = aggregator(cls, (3, 1), **({"reduction_functions": ALL} if cls in REDUCTIONS else {}))
    pooled = of(sampled)
    torch.testing.assert_close(of(shuffled), pooled[:, order] if of.keeps_views else pooled)


@pytest.mark.parametrize("cls", AGGREGATORS)
@pytest.mark.parametrize("case", ["none sees it", "only the target sees it", "one sees it", "all show the same"])
def test_extremes_are_finite_in_both_directions(cls, case):
    features = (torch.full((2, 3, 2), 5.0)).requires_grad_()
    cosines = torch.tensor([[1.0, -1.0, -1.0]]).repeat(2, 1).requires_grad_()
    valid = torch.zeros(2, 3)
    valid[:, : {"none sees it": 0, "only the target sees it": 1, "one sees it": 2, "all show the same": 3}[case]] = 1.0
    sampled = sampled_views(features, valid=valid, is_target=FIRST_IS_TARGET.repeat(2, 1), cosines=cosines)
    options = {"reduction_functions": ALL} if cls in REDUCTIONS else {}
    if cls in (AngleWeightedReductionFeatureAggregator, AngleWeightedIdentityFeatureAggregator):
        options |= {"min_ray_angle_weight": 0.1, "weight_by_ray_angle_gamma": 0.5}
    pooled = aggregator(cls, **options)(sampled)
    assert pooled.isfinite().all()
    if case in ("none sees it", "only the target sees it"):
        assert (pooled == 0).all()
    pooled.sum().backward()
    assert features.grad.isfinite().all()
    assert cosines.grad is None or cosines.grad.isfinite().all()


def test_a_weight_of_zero_has_a_finite_slope():
    cosines = torch.tensor([[-1.0, -1.0 - 1e-6, 0.0]]).requires_grad_()
    of = aggregator(AngleWeightedReductionFeatureAggregator, min_ray_angle_weight=0.0, weight_by_ray_angle_gamma=0.5)
    of(sampled_views(SHOWN, cosines=cosines)).sum().backward()
    assert cosines.grad.isfinite().all()


@pytest.mark.parametrize("cls", AGGREGATORS)
def test_under_autocast_sums_keep_their_precision(cls):
    sampled = drawn()
    of = aggregator(cls, (3, 1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = of(sampled)
    torch.testing.assert_close(cast, of(sampled))


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", AGGREGATORS)
def test_separate_outputs_are_refused(cls):
    with pytest.raises(ConfigError, match="concatenate_output: false, expected true"):
        aggregator(cls, concatenate_output=False)


@pytest.mark.parametrize("cls", REDUCTIONS)
def test_no_statistics_are_refused(cls):
    with pytest.raises(ConfigError, match="expected at least one of AVG, STD, STD_AVG, MAX"):
        aggregator(cls, reduction_functions=())


def test_negative_weights_are_refused():
    for cls in (AngleWeightedReductionFeatureAggregator, AngleWeightedIdentityFeatureAggregator):
        with pytest.raises(ConfigError, match=r"min_ray_angle_weight: -0\.1"):
            aggregator(cls, min_ray_angle_weight=-0.1)
