"""SSIM against loops over windows in float64."""

import math

import pytest
import torch

from nerf_trainer.evaluation.image_metrics import ssim


def random_images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def slow_ssim(x: list[list[float]], y: list[list[float]]) -> float:
    """The paper's equation 13, window by window, of one channel."""
    weights = [[math.exp(-((i - 5) ** 2 + (j - 5) ** 2) / (2 * 1.5**2)) for j in range(11)] for i in range(11)]
    total = sum(map(sum, weights))
    values = []
    for top in range(len(x) - 10):
        for left in range(len(x[0]) - 10):
            cells = [
                (weights[i][j] / total, x[top + i][left + j], y[top + i][left + j])
                for i in range(11)
                for j in range(11)
            ]
            mean_x = sum(w * a for w, a, _ in cells)
            mean_y = sum(w * b for w, _, b in cells)
            variance_x = sum(w * (a - mean_x) ** 2 for w, a, _ in cells)
            variance_y = sum(w * (b - mean_y) ** 2 for w, _, b in cells)
            covariance = sum(w * (a - mean_x) * (b - mean_y) for w, a, b in cells)
            numerator = (2 * mean_x * mean_y + 0.01**2) * (2 * covariance + 0.03**2)
            values.append(numerator / ((mean_x**2 + mean_y**2 + 0.01**2) * (variance_x + variance_y + 0.03**2)))
    return sum(values) / len(values)


def test_against_the_textbook():
    x, y = random_images(2, 2, 13, 15), random_images(2, 2, 13, 15, seed=1)
    y = 0.7 * x + 0.3 * y
    expected = [sum(slow_ssim(x[b, c].tolist(), y[b, c].tolist()) for c in range(2)) / 2 for b in range(2)]
    assert ssim(x, y).tolist() == pytest.approx(expected, abs=1e-12)


def test_identical_images_score_one():
    x = random_images(3, 3, 20, 20)
    assert ssim(x, x).tolist() == pytest.approx([1, 1, 1])


def test_constant_images_differ_in_luminance_alone():
    x, y = torch.full((1, 3, 16, 16), 0.2), torch.full((1, 3, 16, 16), 0.6)
    assert ssim(x, y).item() == pytest.approx((2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4), abs=1e-5)


def test_symmetric_and_lower_with_more_noise():
    x = random_images(1, 3, 24, 24)
    noise = random_images(1, 3, 24, 24, seed=1) - 0.5
    little, much = ssim(x, x + 0.1 * noise), ssim(x, x + 0.5 * noise)
    assert 0 < much < little < 1
    assert ssim(x + 0.1 * noise, x).item() == pytest.approx(little.item())


def test_windows_with_pixels_that_do_not_count_are_left_out():
    x, y = random_images(2, 3, 14, 20), random_images(2, 3, 14, 20, seed=1)
    counted = torch.ones(2, 1, 14, 20, dtype=torch.float64)
    counted[0, :, :, 13:] = 0  # the first image is padded on the right
    counted[1, :, 0] = 0.4  # the second has a row that is not sure enough
    expected = [ssim(x[:1, :, :, :13], y[:1, :, :, :13]).item(), ssim(x[1:, :, 1:], y[1:, :, 1:]).item()]
    assert ssim(x, y, counted).tolist() == pytest.approx(expected, abs=1e-12)
    assert ssim(x, y, torch.zeros_like(counted)).isnan().all()


def test_gradients():
    x, y = random_images(1, 1, 12, 12), random_images(1, 1, 12, 12, seed=1)
    assert torch.autograd.gradcheck(lambda image: ssim(image, y), x.requires_grad_())


def test_images_below_the_window_are_refused():
    with pytest.raises(ValueError, match="11"):
        ssim(torch.zeros(1, 3, 10, 40), torch.zeros(1, 3, 10, 40))
