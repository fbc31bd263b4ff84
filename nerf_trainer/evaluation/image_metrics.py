"""Distances between whole images, beside those of `losses.functions`: structural similarity."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv2d, max_pool2d

SSIM_WINDOW = 11
"""Width of the Gaussian window, pixels; smaller images have no SSIM."""
SSIM_SIGMA = 1.5
"""Standard deviation of the Gaussian window, pixels."""
SSIM_K1, SSIM_K2 = 0.01, 0.03
"""The paper's constants, times the range of the values (1) and squared, keep the ratios stable."""


def ssim(
    predicted: Float[Tensor, "B C H W"],
    target: Float[Tensor, "B C H W"],
    counted: Float[Tensor, "B 1 H W"] | None = None,
) -> Float[Tensor, "B"]:
    """Structural similarity of images in [0, 1]: 1 where they agree, near 0 where they have nothing in common.

    The mean over channels and over all windows that lie within the image (Wang et al., Image Quality Assessment: From
    Error Visibility to Structural Similarity, 2004, equation 13, with the paper's 11x11 Gaussian window).

    Args:
        counted: more than 0.5 where a pixel counts; windows with any other pixel are left out, and an image without a
            window gives NaN. None: all count.

    Raises:
        ValueError: the images are smaller than the window.
    """
    if min(predicted.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(
            f"images of {tuple(predicted.shape[-2:])} pixels are smaller than SSIM's window, {SSIM_WINDOW}"
        )
    x, y = predicted.double(), target.double()  # The variances are small differences of squares.
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x = _blur(x * x) - mean_x.square()
    variance_y = _blur(y * y) - mean_y.square()
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = SSIM_K1**2, SSIM_K2**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    similarity = (luminance * structure).mean(dim=1)
    if counted is None:
        return similarity.mean(dim=(1, 2)).to(predicted.dtype)
    whole = 1 - max_pool2d((counted <= 0.5).double(), SSIM_WINDOW, stride=1)[:, 0]
    return ((similarity * whole).sum(dim=(1, 2)) / whole.sum(dim=(1, 2))).to(predicted.dtype)


def _blur(images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C h w"]:
    """Gaussian-weighted means over all windows within each image; h = H - 10, w = W - 10."""
    offsets = torch.arange(SSIM_WINDOW, device=images.device, dtype=images.dtype) - (SSIM_WINDOW - 1) / 2
    kernel = torch.exp(-0.5 * (offsets / SSIM_SIGMA).square())
    kernel = kernel / kernel.sum()
    flat = images.reshape(math.prod(images.shape[:2]), 1, *images.shape[2:])
    blurred = conv2d(conv2d(flat, kernel.reshape(1, 1, -1, 1)), kernel.reshape(1, 1, 1, -1))
    return blurred.reshape(*images.shape[:2], *blurred.shape[2:])
