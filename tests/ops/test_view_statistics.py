"""Statistics over views: their arithmetic and their slopes."""

import pytest
import torch

from nerf_trainer.ops.view_statistics import max_over_views, mean_over_views, seen_by_any, std_over_views

VALUES = torch.tensor([[1.0], [3.0], [7.0]])


def test_weighted_mean_and_deviation():
    weights = torch.tensor([0.5, 0.5, 1.0])
    mean = mean_over_views(VALUES, weights)
    assert mean.item() == (0.5 * 1 + 0.5 * 3 + 1 * 7) / 2
    expected = ((0.5 * (1 - 4.5) ** 2 + 0.5 * (3 - 4.5) ** 2 + (7 - 4.5) ** 2) / 2) ** 0.5
    torch.testing.assert_close(std_over_views(VALUES, weights, mean), torch.tensor([expected]))


def test_a_far_offset_does_not_cost_the_deviation_its_digits():
    weights = torch.ones(3)
    far = VALUES + 4096.0
    spread = std_over_views(far, weights, mean_over_views(far, weights))
    torch.testing.assert_close(spread, std_over_views(VALUES, weights, mean_over_views(VALUES, weights)))


def test_what_is_barely_seen_is_near_zero():
    weights = torch.tensor([0.001, 0.0, 0.0])
    torch.testing.assert_close(mean_over_views(VALUES, weights), torch.tensor([0.001 * 1 / 0.01]))


def test_the_largest_of_those_that_count():
    assert max_over_views(VALUES, torch.tensor([1.0, 0.01, 0.0])).item() == 3.0
    assert max_over_views(-VALUES, torch.tensor([0.0, 0.01, 1.0])).item() == -3.0
    assert max_over_views(-VALUES, torch.zeros(3)).item() == 0.0


def test_a_view_counts_from_a_small_weight_on():
    weights = torch.tensor([[0.0, 0.0], [1e-5, 0.0], [0.0, 2e-4]])
    assert seen_by_any(weights).tolist() == [[False], [False], [True]]


@pytest.mark.parametrize(
    ("statistic", "weights"),
    [
        (mean_over_views, [0.2, 1.0, 0.7, 0.0]),
        pytest.param(mean_over_views, [0.002, 0.001, 0.0, 0.0], id="barely seen"),
        (lambda x, w: std_over_views(x, w, mean_over_views(x, w)), [0.2, 1.0, 0.7, 0.0]),
        (lambda x, w: max_over_views(x, w.detach()) + 0 * w.sum(), [0.2, 1.0, 0.7, 0.0]),
    ],
)
def test_gradients_are_those_of_finite_differences(statistic, weights):
    torch.manual_seed(0)
    values = torch.randn(2, 4, 3, dtype=torch.float64).requires_grad_()
    w = torch.tensor([weights, weights[::-1]], dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(statistic, (values, w))


def test_equal_views_have_the_least_deviation_and_a_slope_of_zero():
    values = torch.full((4, 2), 3.0).requires_grad_()
    weights = torch.ones(4)
    spread = std_over_views(values, weights, mean_over_views(values, weights))
    torch.testing.assert_close(spread, torch.full((2,), 0.01))
    spread.sum().backward()
    assert values.grad is not None and (values.grad == 0).all()
