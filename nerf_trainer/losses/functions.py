"""Losses and image distances: tensors in, a scalar out.

Every function takes rays of shape (*rays C) and, where pixels may count unequally, `weights` of shape (*rays 1):
0 leaves a pixel out, None counts all alike. The first ray dimension is the group: the rays of one image. Weighted means
divide by the sum of the weights, held above `MIN_WEIGHT`: a batch without any counted pixel gives 0 and not NaN.
Nothing here reads a value back to the host or indexes by a mask: a captured training step may contain all of it.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

MIN_WEIGHT = 1e-5
"""Floor of a sum of weights that is divided by."""
MIN_MSE = 1e-10
"""Floor of the mean squared error inside a PSNR: identical images score 100 dB, and not infinity."""
HUBER_SCALE = 0.03
"""Colour difference at which `huber` turns from quadratic to linear."""
BCE_MARGIN = 0.01
"""Distance from 0 and 1 that predicted masks keep inside a cross entropy."""
BETA_OFFSET = 0.1
"""Offset of the logarithms in `beta_prior`."""
MASK_THRESHOLD = 0.5
"""Foreground probability above which a pixel belongs to the foreground."""


def weighted_mean(
    values: Float[Tensor, "*rays C"], weights: Float[Tensor, "*rays 1"] | None = None
) -> Float[Tensor, ""]:
    """Mean over rays and channels, each ray counted by its weight: sum(w v) / (C sum(w))."""
    if weights is None:
        return values.mean()
    return (values * weights).sum() / (weights.sum() * values.shape[-1]).clamp(min=MIN_WEIGHT)


def mse(
    predicted: Float[Tensor, "*rays C"],
    target: Float[Tensor, "*rays C"],
    weights: Float[Tensor, "*rays 1"] | None = None,
) -> Float[Tensor, ""]:
    """Mean squared error over rays and channels."""
    if weights is None:
        return torch.nn.functional.mse_loss(predicted, target)
    return weighted_mean((predicted - target).square(), weights)


def l1(
    predicted: Float[Tensor, "*rays C"],
    target: Float[Tensor, "*rays C"],
    weights: Float[Tensor, "*rays 1"] | None = None,
) -> Float[Tensor, ""]:
    """Mean absolute error over rays and channels."""
    return weighted_mean((predicted - target).abs(), weights)


def huber(
    predicted: Float[Tensor, "*rays C"],
    target: Float[Tensor, "*rays C"],
    weights: Float[Tensor, "*rays 1"] | None = None,
    scale: float = HUBER_SCALE,
) -> Float[Tensor, ""]:
    """Smooth Huber loss s (sqrt(1 + d^2 / s^2) - 1) of each ray's root-mean-square difference d over channels.

    About d^2 / (2 s) where d is far below the scale s, and d - s far above (the pseudo-Huber loss; Charbonnier et al.,
    Deterministic edge-preserving regularization in computed imaging, 1997).
    """
    squared = (predicted - target).square().mean(dim=-1, keepdim=True)
    return weighted_mean(scale * ((1 + squared / scale**2).sqrt() - 1), weights)


def psnr(error: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Peak signal-to-noise ratio in dB of a mean squared error of colours in [0, 1]: -10 log10(mse), 100 at most."""
    return -10 * error.clamp(min=MIN_MSE).log10()


def iou(
    predicted: Float[Tensor, "group *rays 1"],
    target: Float[Tensor, "group *rays 1"],
    weights: Float[Tensor, "group *rays 1"] | None = None,
) -> Float[Tensor, ""]:
    """Soft intersection over union of masks in [0, 1], sum(p t) / sum(p + t - p t), averaged over groups.

    Two empty masks agree: their ratio is 1.
    """
    intersection = predicted * target
    union = predicted + target - intersection
    if weights is not None:
        intersection, union = intersection * weights, union * weights
    return ((_group_sum(intersection) + MIN_WEIGHT) / (_group_sum(union) + MIN_WEIGHT)).mean()


def neg_iou(
    predicted: Float[Tensor, "group *rays 1"],
    target: Float[Tensor, "group *rays 1"],
    weights: Float[Tensor, "group *rays 1"] | None = None,
) -> Float[Tensor, ""]:
    """1 - `iou`: 0 where the masks agree."""
    return 1 - iou(predicted, target, weights)


def mask_bce(
    predicted: Float[Tensor, "*rays 1"],
    target: Float[Tensor, "*rays 1"],
    weights: Float[Tensor, "*rays 1"] | None = None,
) -> Float[Tensor, ""]:
    """Binary cross entropy of masks, foreground and background counted alike however many pixels each has.

    The mean of the two classes' mean entropies, or the mean of the one class that is there. Predictions are clamped to
    [0.01, 0.99]: a pixel beyond that has no gradient.
    """
    p = predicted.clamp(BCE_MARGIN, 1 - BCE_MARGIN)
    entropy = -(target * p.log() + (1 - target) * (1 - p).log())
    foreground = (target > MASK_THRESHOLD).to(entropy.dtype)
    background = 1 - foreground
    if weights is not None:
        foreground, background = foreground * weights, background * weights
    counts = torch.stack([foreground.sum(), background.sum()])
    sums = torch.stack([(entropy * foreground).sum(), (entropy * background).sum()])
    n_classes = (counts > 0).to(entropy.dtype).sum()
    return (sums / counts.clamp(min=MIN_WEIGHT)).sum() / n_classes.clamp(min=1)


def beta_prior(masks: Float[Tensor, "*rays 1"], weights: Float[Tensor, "*rays 1"] | None = None) -> Float[Tensor, ""]:
    """Push masks towards 0 or 1: mean of log(0.1 + p) + log(0.1 + 1 - p), shifted so that it is 0 at both ends.

    Largest, log(0.6^2 / 0.11) = 1.186, at p = 0.5 (Lombardi et al., Neural Volumes, 2019, section 5: a Beta(0.5, 0.5)
    prior on the opacity of a ray).
    """
    at_ends = math.log(BETA_OFFSET) + math.log(BETA_OFFSET + 1)
    return weighted_mean((BETA_OFFSET + masks).log() + (BETA_OFFSET + 1 - masks).log() - at_ends, weights)


def best_scale(
    predicted: Float[Tensor, "group *rays 1"],
    target: Float[Tensor, "group *rays 1"],
    weights: Float[Tensor, "group *rays 1"],
) -> Float[Tensor, "group"]:
    """The factor s of each group that minimises sum(w (s p - t)^2): s = sum(w p t) / sum(w p^2)."""
    return _group_sum(weights * predicted * target) / _group_sum(weights * predicted.square()).clamp(min=1e-8)


def depth_abs(
    predicted: Float[Tensor, "group *rays 1"],
    target: Float[Tensor, "group *rays 1"],
    weights: Float[Tensor, "group *rays 1"] | None = None,
    align_scale: bool = True,
) -> Float[Tensor, ""]:
    """Mean absolute depth error, in the target's units, after each group's best scaling.

    A pixel counts where its target depth is above 0 (0 is unknown) and its weight above 0.5. The prediction of each
    group is first multiplied by its `best_scale`, for absolute scale can't be known from images; the error is averaged
    within each group, then over the groups that have any depth.

    Args:
        align_scale: False compares depths as they are.
    """
    valid = (target > 0).to(predicted.dtype)
    if weights is not None:
        valid = valid * (weights > MASK_THRESHOLD).to(predicted.dtype)
    if align_scale:
        scale = best_scale(predicted, target, valid)
        predicted = predicted * scale.reshape(-1, *[1] * (predicted.ndim - 1))
    n_valid = _group_sum(valid)
    errors = _group_sum(valid * (predicted - target).abs()) / n_valid.clamp(min=1)
    return errors.sum() / (n_valid > 0).to(errors.dtype).sum().clamp(min=1)


def depth_negative(depths: Float[Tensor, "*rays 1"]) -> Float[Tensor, ""]:
    """Mean of min(depth, 0)^2: renderers that step along a ray may end up behind the camera."""
    return depths.clamp(max=0).square().mean()


def eikonal(gradients: Float[Tensor, "*points 3"]) -> Float[Tensor, ""]:
    """Mean of (|g| - 1)^2: a signed distance has gradients of unit length.

    Gropp et al., Implicit Geometric Regularization for Learning Shapes, 2020, equation 2.
    """
    return ((gradients.square().sum(dim=-1) + 1e-12).sqrt() - 1).square().mean()


def _group_sum(values: Float[Tensor, "group *rays 1"]) -> Float[Tensor, "group"]:
    return values.flatten(start_dim=1).sum(dim=1)
