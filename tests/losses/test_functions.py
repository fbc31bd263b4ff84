"""Losses against arithmetic, and against plain loops in float64."""

import math

import pytest
import torch

from nerf_trainer.losses import functions


def rays(*values: float, groups: int = 1) -> torch.Tensor:
    """Values as rays of one channel, (groups, n, 1)."""
    return torch.tensor(values, dtype=torch.float64).reshape(groups, -1, 1)


def random_rays(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_weighted_mean_counts_each_ray_by_its_weight_and_each_channel_alike():
    values = torch.tensor([[[1.0, 3.0], [10.0, 20.0], [5.0, 7.0]]])
    weights = torch.tensor([[[1.0], [0.0], [0.5]]])
    assert functions.weighted_mean(values, weights) == pytest.approx((1 * (1 + 3) + 0.5 * (5 + 7)) / (2 * 1.5))
    assert functions.weighted_mean(values) == pytest.approx(46 / 6)


def test_mean_of_nothing_is_zero():
    assert functions.mse(rays(1.0, 2.0), rays(0.0, 0.0), rays(0.0, 0.0)) == 0


def test_mse_and_l1_are_means_over_channels():
    predicted = torch.tensor([[[0.5, 0.5, 0.5], [1.0, 0.0, 0.0]]])
    target = torch.tensor([[[0.5, 0.5, 0.5], [0.0, 0.0, 0.0]]])
    assert functions.mse(predicted, target) == pytest.approx(1 / 6)
    assert functions.l1(predicted, target) == pytest.approx(1 / 6)
    assert functions.l1(predicted, target, torch.tensor([[[0.0], [1.0]]])) == pytest.approx(1 / 3)


def test_huber_is_quadratic_near_and_linear_far():
    scale = 0.03
    exact = scale * (math.sqrt(1 + (0.4 / scale) ** 2) - 1)
    assert functions.huber(rays(0.4), rays(0.0)) == pytest.approx(exact)
    assert functions.huber(rays(1e-4), rays(0.0)) == pytest.approx(1e-8 / (2 * scale), rel=1e-4)
    assert functions.huber(rays(50.0), rays(0.0)) == pytest.approx(50 - scale, rel=1e-5)


def test_huber_takes_the_root_mean_square_over_channels():
    difference = torch.tensor([[[0.1, 0.2, 0.3]]], dtype=torch.float64)
    squared = (0.01 + 0.04 + 0.09) / 3
    expected = 0.03 * (math.sqrt(1 + squared / 0.03**2) - 1)
    assert functions.huber(difference, torch.zeros_like(difference)) == pytest.approx(expected)


def test_psnr():
    assert functions.psnr(torch.tensor(0.01)) == pytest.approx(20)
    assert functions.psnr(torch.tensor(1.0)) == pytest.approx(0)


def test_perfect_prediction_scores_100_db_with_finite_gradients():
    predicted = rays(0.2, 0.7).requires_grad_()
    error = functions.mse(predicted, rays(0.2, 0.7))
    decibels = functions.psnr(error)
    decibels.backward()
    assert error.item() == 0
    assert decibels.item() == pytest.approx(100)
    assert predicted.grad is not None and predicted.grad.isfinite().all()


def test_iou_of_hard_masks_counts_pixels_in_each_group():
    predicted = rays(1, 1, 0, 0, 1, 0, 0, 0, groups=2)
    target = rays(1, 0, 1, 0, 1, 0, 0, 0, groups=2)
    assert functions.iou(predicted, target) == pytest.approx((1 / 3 + 1) / 2, abs=1e-4)
    assert functions.neg_iou(predicted, target) == pytest.approx(1 - (1 / 3 + 1) / 2, abs=1e-4)


def test_iou_leaves_out_pixels_of_weight_zero():
    assert functions.iou(rays(1, 1), rays(1, 0), rays(1, 0)) == pytest.approx(1)


def test_iou_of_two_empty_masks_is_one():
    assert functions.iou(rays(0, 0), rays(0, 0)) == pytest.approx(1)


def test_mask_bce_balances_the_classes():
    predicted, target = rays(0.8, 0.1, 0.3, 0.2), rays(1, 0, 0, 0)
    background = -(math.log(0.9) + math.log(0.7) + math.log(0.8)) / 3
    assert functions.mask_bce(predicted, target) == pytest.approx((-math.log(0.8) + background) / 2)


def test_mask_bce_with_one_class_is_the_mean_of_that_class():
    assert functions.mask_bce(rays(0.8, 0.6), rays(1, 1)) == pytest.approx(-(math.log(0.8) + math.log(0.6)) / 2)
    assert functions.mask_bce(rays(0.8, 0.6), rays(1, 0), rays(1, 0)) == pytest.approx(-math.log(0.8))
    assert functions.mask_bce(rays(0.8), rays(1), rays(0)) == 0


def test_mask_bce_clamps_predictions():
    assert functions.mask_bce(rays(0.0), rays(1)) == pytest.approx(-math.log(0.01))
    assert functions.mask_bce(rays(1.0), rays(1)) == pytest.approx(-math.log(0.99))


def test_beta_prior_is_zero_at_the_ends_and_largest_between():
    assert functions.beta_prior(rays(0.0, 1.0)) == pytest.approx(0, abs=1e-12)
    assert functions.beta_prior(rays(0.5)) == pytest.approx(math.log(0.6**2 / 0.11))
    assert functions.beta_prior(rays(0.5, 0.0), rays(0.0, 1.0)) == pytest.approx(0, abs=1e-12)


def test_best_scale_minimises_the_squared_error():
    predicted, target = random_rays(3, 20, 1), random_rays(3, 20, 1, seed=1)
    weights = (random_rays(3, 20, 1, seed=2) > 0.3).double()
    scale = functions.best_scale(predicted, target, weights)
    for group in range(3):
        rows = (weights[group] * predicted[group], weights[group] * target[group])
        assert scale[group] == pytest.approx(torch.linalg.lstsq(*rows).solution.item())


def test_depth_abs_ignores_the_scale_of_each_group():
    target = random_rays(2, 10, 1) + 1
    predicted = target * torch.tensor([2.0, 0.1]).reshape(2, 1, 1)
    assert functions.depth_abs(predicted, target) == pytest.approx(0, abs=1e-12)
    expected = (target[0].mean() + 0.9 * target[1].mean()) / 2
    assert functions.depth_abs(predicted, target, align_scale=False) == pytest.approx(expected.item())


def test_depth_abs_is_the_mean_error_after_scaling():
    scale = (1 * 2 + 2 * 2) / (1 + 4)
    expected = (abs(scale * 1 - 2) + abs(scale * 2 - 2)) / 2
    assert functions.depth_abs(rays(1, 2), rays(2, 2)) == pytest.approx(expected)


def test_depth_abs_skips_unknown_depths_and_groups_without_any():
    predicted, target = rays(1, 5, 3, 4, groups=2), rays(2, 0, 0, 0, groups=2)
    assert functions.depth_abs(predicted, target, align_scale=False) == pytest.approx(1)
    assert functions.depth_abs(predicted, rays(0, 0, 0, 0, groups=2)) == 0


def test_depth_abs_counts_pixels_above_half_weight():
    predicted, target, weights = rays(1, 1, 1), rays(2, 4, 8), rays(0.6, 0.5, 0.0)
    assert functions.depth_abs(predicted, target, weights, align_scale=False) == pytest.approx(1)


def test_depth_negative_sees_only_what_is_behind():
    assert functions.depth_negative(rays(-2.0, 3.0, -1.0, 0.0)) == pytest.approx((4 + 1) / 4)


def test_eikonal():
    gradients = torch.tensor([[0.0, 0.6, 0.8], [0.0, 0.0, 3.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    assert functions.eikonal(gradients) == pytest.approx((0 + 4 + 1) / 3, abs=1e-5)
    gradients.requires_grad_()
    functions.eikonal(gradients).backward()
    assert gradients.grad is not None and gradients.grad.isfinite().all()


@pytest.mark.parametrize("name", ["mse", "l1", "huber", "iou", "neg_iou", "mask_bce", "depth_abs"])
def test_gradients_with_targets(name: str):
    loss = getattr(functions, name)
    predicted = (0.1 + 0.8 * random_rays(2, 6, 1)).requires_grad_()
    target, weights = random_rays(2, 6, 1, seed=1), (random_rays(2, 6, 1, seed=2) > 0.4).double()
    assert torch.autograd.gradcheck(lambda p: loss(p, target, weights), predicted)


@pytest.mark.parametrize("name", ["beta_prior", "depth_negative", "psnr"])
def test_gradients_without_targets(name: str):
    values = (random_rays(2, 6, 1) * 0.8 + 0.1) * (-1 if name == "depth_negative" else 1)
    assert torch.autograd.gradcheck(getattr(functions, name), values.requires_grad_())


def test_gradients_of_eikonal():
    assert torch.autograd.gradcheck(functions.eikonal, (random_rays(5, 3) + 0.1).requires_grad_())


@pytest.mark.parametrize("name", ["mse", "l1", "huber", "iou", "mask_bce", "depth_abs"])
@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_finite_at_extremes(name: str, value: float, weight: float):
    predicted = torch.full((2, 3, 1), value, requires_grad=True)
    for target in (0.0, 1.0):
        loss = getattr(functions, name)(predicted, torch.full((2, 3, 1), target), torch.full((2, 3, 1), weight))
        (gradient,) = torch.autograd.grad(loss, predicted)
        assert loss.isfinite() and gradient.isfinite().all()
