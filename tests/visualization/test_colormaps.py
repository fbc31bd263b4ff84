"""Ranges and colours of depth, disparity and masks."""

import pytest
import torch

from nerf_trainer.visualization.colormaps import colorize, grey, to_bytes, value_range


def test_the_range_is_that_of_the_middle_of_opaque_values():
    values = torch.arange(101.0)
    opacity = torch.ones(101)
    low, high = value_range(values, opacity)
    assert (low, high) == pytest.approx((2.0, 98.0))
    transparent = torch.cat([values, torch.full((50,), 1e6)]), torch.cat([opacity, torch.zeros(50)])
    assert value_range(*transparent) == pytest.approx((2.0, 98.0))


def test_what_is_not_finite_does_not_count():
    values = torch.tensor([1.0, 2.0, 3.0, float("nan"), float("inf")])
    low, high = value_range(values, torch.ones(5))
    assert 1.0 <= low < high <= 3.0


@pytest.mark.parametrize("values", [torch.full((4,), 3.0), torch.zeros(4)])
def test_a_constant_has_a_range_around_it(values):
    low, high = value_range(values, torch.ones(4))
    assert low < values[0] < high


def test_nothing_opaque_has_a_range():
    assert value_range(torch.rand(10), torch.zeros(10)) == (0.0, 1.0)


def test_many_values_are_thinned_and_not_refused():
    n = 2**21 + 3
    low, high = value_range(torch.arange(n).float(), torch.ones(n))
    assert low == pytest.approx(0.02 * n, rel=1e-3)
    assert high == pytest.approx(0.98 * n, rel=1e-3)


def test_colours_run_from_end_to_end_and_stay_there():
    values = torch.tensor([[-5.0, 2.0, 3.0, 4.0, 99.0]])
    colors = colorize(values, 2.0, 4.0)
    assert colors.shape == (1, 5, 3)
    assert torch.equal(colors[0, 0], colors[0, 1])
    assert torch.equal(colors[0, 3], colors[0, 4])
    # viridis: dark violet to yellow
    assert colors[0, 1].tolist() == [68, 1, 84]
    assert colors[0, 3].tolist() == [253, 231, 37]


def test_brightness_rises_along_the_map():
    colors = colorize(torch.linspace(0.0, 1.0, 32)[None], 0.0, 1.0).float()
    luminance = colors[0] @ torch.tensor([0.2126, 0.7152, 0.0722])
    assert (luminance.diff() > 0).all()


def test_transparent_pixels_show_the_background():
    values, opacity = torch.zeros(1, 3), torch.tensor([[1.0, 0.5, 0.0]])
    colors = colorize(values, 0.0, 1.0, opacity, background=1.0)[0].float()
    assert colors[2].tolist() == [255, 255, 255]
    assert (colors[1] - (colors[0] + 255) / 2).abs().max() <= 1
    unknown = colorize(torch.full((1, 1), float("nan")), 0.0, 1.0, torch.zeros(1, 1))
    assert unknown.flatten().tolist() == [255, 255, 255]


def test_masks_are_grey():
    assert grey(torch.tensor([[0.0, 0.5, 2.0]]))[0].tolist() == [[0] * 3, [128] * 3, [255] * 3]


def test_bytes_are_rounded_and_clamped():
    values = torch.tensor([-1.0, 0.0, 0.5 / 255, 1.49 / 255, 1.0, 7.0, float("nan"), float("inf")])
    assert to_bytes(values).tolist() == [0, 0, 0, 1, 255, 255, 0, 255]
