"""Conical frusta: what lies between two distances inside a ray's cone, as a Gaussian with the frustum's moments.

A ray is origin + t direction; its cone's apex is the origin, and its radius at t is t times the ray's radius. Symbols
of Barron et al. 2021 (mip-NeRF), for the interval from t_0 to t_1 of a ray with 0 <= t_0 <= t_1:

    t_mu = (t_0 + t_1) / 2, t_delta = (t_1 - t_0) / 2, and here s = t_delta / t_mu, in [0, 1]

Equation 7 divides t_delta^4 by (3 t_mu^2 + t_delta^2)^2; written in s no power of a distance is divided by another, so
that neither tiny nor large distances run out of float32.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def frustum_moments(
    bins: Float[Tensor, "*r S_plus_1"], radii: Float[Tensor, "*r"]
) -> tuple[Float[Tensor, "*r S"], Float[Tensor, "*r S"], Float[Tensor, "*r S"]]:
    """Moments of points spread evenly over each frustum's volume (equation 7).

    Args:
        bins: edges of the frusta along each ray, at least 0 and not decreasing.
        radii: radius of each ray's cone at t = 1.

    Returns:
        The mean of t (not before the interval's midpoint: a cone widens), the variance of t, and the variance across
        the ray, along each axis perpendicular to it, in squared world units.
    """
    t_mu = 0.5 * (bins[..., 1:] + bins[..., :-1])
    t_delta = 0.5 * (bins[..., 1:] - bins[..., :-1])
    # Where t_mu is 0 so is t_delta, and the frustum is the apex.
    ss = (t_delta / t_mu.clamp(min=torch.finfo(t_mu.dtype).tiny)).square()
    t_mean = t_mu * (3.0 + 3.0 * ss) / (3.0 + ss)
    t_variance = t_delta.square() * (1.0 / 3.0 - (4.0 / 15.0) * ss * (12.0 - ss) / (3.0 + ss).square())
    across = 0.25 + (5.0 / 12.0) * ss - (4.0 / 15.0) * ss.square() / (3.0 + ss)
    return t_mean, t_variance, (radii[..., None] * t_mu).square() * across


def frustum_variances(
    directions: Float[Tensor, "*r 3"], t_variance: Float[Tensor, "*r S"], r_variance: Float[Tensor, "*r S"]
) -> Float[Tensor, "*r S 3"]:
    """The diagonal of each frustum's covariance, in the axes of `directions` (equation 16).

    Covariance (equation 8): t_variance d d^T + r_variance (I - d d^T / |d|^2). Turned directions give the diagonal of
    the turned covariance R Sigma R^T, of which the diagonal of Sigma alone could not be told.

    Args:
        directions: d, of unit length but for NDC rays; not 0.
        t_variance, r_variance: of `frustum_moments`.
    """
    dd = directions.square()
    across = 1.0 - dd / dd.sum(dim=-1, keepdim=True)
    return t_variance[..., None] * dd[..., None, :] + r_variance[..., None] * across[..., None, :]
