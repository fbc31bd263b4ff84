"""Lens distortion: from the plane at depth 1 that a pinhole camera sees to the one that a lens shows, and back.

Two models, as OpenCV, COLMAP and nerfstudio define them, with (u, v) on the plane at depth 1 in camera axes:

- OPENCV (Brown 1966): r^2 = u^2 + v^2, radial = 1 + k1 r^2 + k2 r^4 + k3 r^6 + k4 r^8,
  u' = u radial + 2 p1 u v + p2 (r^2 + 2 u^2),  v' = v radial + p1 (r^2 + 2 v^2) + 2 p2 u v;
- OPENCV_FISHEYE (Kannala and Brandt 2006): theta = atan(r),
  theta' = theta (1 + k1 theta^2 + k2 theta^4 + k3 theta^6 + k4 theta^8), (u', v') = (u, v) theta' / r.

The pixel is focal * (u', v') + principal_point.

Both are g(t) = t (1 + k1 t^2 + k2 t^4 + k3 t^6 + k4 t^8), of t = r or t = theta, and invertible for as long as g rises:
up to the lens's reach. Beyond it a polynomial folds back and would show what is far outside inside the image; there
the map is carried on in proportion instead, (u', v') growing as t does.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor

MAX_PLANE = 100.0
"""Farthest place on the plane at depth 1 that is distorted by the formula, 89.4 degrees off the axis."""

_BRACKETED_STEPS = 10
"""Steps of Newton's method along the radius; it halves the bracket where a step would leave it."""
_PLANE_STEPS = 2
"""Steps in both dimensions after that, for the tangential part: they leave 2e-8 pixels of the lenses that are sold."""
_SMALLEST_SLOPE = 1e-3
"""Below it a step is as if the slope were this: at the reach the slope is 0."""


_VALUE = (1.0, 1.0, 1.0, 1.0)
"""Factors of the coefficients in g(t) / t = 1 + k1 t^2 + k2 t^4 + k3 t^6 + k4 t^8."""
_SLOPE = (3.0, 5.0, 7.0, 9.0)
"""Factors of the coefficients in g'(t) = 1 + 3 k1 t^2 + 5 k2 t^4 + 7 k3 t^6 + 9 k4 t^8."""


@dataclass(frozen=True)
class Lenses:
    """The distortion of B views; all zero and no fisheye is a pinhole. (A fisheye of zeros has theta' = theta.)"""

    radial: Float[Tensor, "B 4"]
    """k1, k2, k3, k4."""
    tangential: Float[Tensor, "B 2"]
    """p1, p2; zero for a fisheye."""
    fisheye: Bool[Tensor, "B"]
    """Whether the model is OPENCV_FISHEYE."""
    reach: Float[Tensor, "B"]
    """The largest r (of a fisheye: theta) up to which the formula rises (`of` works it out)."""

    @classmethod
    def of(cls, radial: Float[Tensor, "B 4"], tangential: Float[Tensor, "B 2"], fisheye: Bool[Tensor, "B"]) -> "Lenses":
        """Lenses of these coefficients, which are as the fields say."""
        return cls(radial, tangential, fisheye, _reach(radial, fisheye))

    def __len__(self) -> int:
        return self.radial.shape[0]

    def __getitem__(self, index: slice | Sequence[int] | Tensor) -> Self:
        return type(self)(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def to(self, device: torch.device | str) -> Self:
        """The same lenses on `device`."""
        return type(self)(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    @classmethod
    def cat(cls, batches: Sequence["Lenses"]) -> "Lenses":
        """One batch out of several."""
        return cls(**{f.name: torch.cat([getattr(b, f.name) for b in batches]) for f in fields(cls)})

    @classmethod
    def pinholes(cls, n: int, device: torch.device | str = "cpu") -> "Lenses":
        """n lenses that distort nothing."""
        return cls(
            radial=torch.zeros(n, 4, device=device),
            tangential=torch.zeros(n, 2, device=device),
            fisheye=torch.zeros(n, dtype=torch.bool, device=device),
            reach=torch.full((n,), MAX_PLANE, device=device),
        )

    def distort(self, points: Float[Tensor, "B *n 3"]) -> Float[Tensor, "B *n 2"]:
        """Where each lens shows points, or directions, in its camera's own axes: (u', v').

        A fisheye sees behind itself too; for the other model a point with z <= 0 gives a place without meaning.
        """
        flat = points.reshape(len(self), -1, 3)
        fisheye, reach = self.fisheye[:, None], self.reach[:, None]
        z = torch.where(fisheye, torch.ones_like(flat[..., 2]), flat[..., 2])
        u, v = flat[..., 0] / z, flat[..., 1] / z
        r = (u * u + v * v).clamp(min=1e-24).sqrt()
        t = torch.where(fisheye, torch.atan2(r, flat[..., 2]), r)
        within = torch.where(t > reach, reach / t, torch.ones_like(t))
        on_plane = self._brown(u * within, v * within)
        bent = (t / r) * _polynomial(_times(self.radial, _VALUE), (t * within).square())
        shown = torch.where(
            fisheye[..., None],
            torch.stack([u * bent, v * bent], dim=-1),
            torch.stack(on_plane, dim=-1) / within[..., None],
        )
        return shown.reshape(*points.shape[:-1], 2)

    def undistort(self, shown: Float[Tensor, "B *n 2"]) -> Float[Tensor, "B *n 3"]:
        """The directions, in the camera's own axes, that each lens shows at (u', v'): the inverse of `distort`.

        (u, v, 1) of the first model, of unit length for a fisheye: (sin t cos f, sin t sin f, cos t). What is shown
        nowhere, beyond the reach, gets a direction at the reach. The number of steps is fixed and nothing is read
        back, so that a training step can be captured.
        """
        flat = shown.reshape(len(self), -1, 2)
        fisheye = self.fisheye[:, None]
        distance = flat.square().sum(dim=-1).clamp(min=1e-24).sqrt()
        t = self._radius(distance)
        u, v = self._refined(flat, flat * (t / distance)[..., None])
        around = torch.cat([flat * (t.sin() / distance)[..., None], t.cos()[..., None]], dim=-1)
        ahead = torch.stack([u, v, torch.ones_like(u)], dim=-1)
        return torch.where(fisheye[..., None], around, ahead).reshape(*shown.shape[:-1], 3)

    def _brown(self, u: Float[Tensor, "B n"], v: Float[Tensor, "B n"]) -> tuple[Tensor, Tensor]:
        """(u', v') of the first model, by its formula."""
        p1, p2 = self.tangential[:, :1], self.tangential[:, 1:]
        r2 = u * u + v * v
        radial = _polynomial(_times(self.radial, _VALUE), r2)
        return (
            u * radial + 2.0 * p1 * u * v + p2 * (r2 + 2.0 * u * u),
            v * radial + p1 * (r2 + 2.0 * v * v) + 2.0 * p2 * u * v,
        )

    def _radius(self, distance: Float[Tensor, "B n"]) -> Float[Tensor, "B n"]:
        """t with g(t) = distance, at most the reach: Newton's method within a bracket that only shrinks."""
        reach = self.reach[:, None].expand_as(distance)
        t, low, high = torch.minimum(distance, reach), torch.zeros_like(distance), reach
        of_value, of_slope = _times(self.radial, _VALUE), _times(self.radial, _SLOPE)
        for _ in range(_BRACKETED_STEPS):
            square = t * t
            excess = t * _polynomial(of_value, square) - distance
            slope = _polynomial(of_slope, square).clamp(min=_SMALLEST_SLOPE)
            high, low = torch.where(excess > 0, t, high), torch.where(excess > 0, low, t)
            tried = t - excess / slope
            t = torch.where((tried >= low) & (tried <= high), tried, 0.5 * (low + high))
        return t

    def _refined(self, shown: Float[Tensor, "B n 2"], start: Float[Tensor, "B n 2"]) -> tuple[Tensor, Tensor]:
        """(u, v) of the first model, from a start that is right but for the tangential part.

        The Jacobian of the formula is symmetric, [[a, b], [b, c]].
        """
        p1, p2 = self.tangential[:, :1], self.tangential[:, 1:]
        reach = self.reach[:, None]
        (wanted_u, wanted_v), (u, v) = shown.unbind(dim=-1), start.unbind(dim=-1)
        for _ in range(_PLANE_STEPS):
            r2 = u * u + v * v
            radial = _polynomial(_times(self.radial, _VALUE), r2)
            change = 2.0 * _per_square(self.radial, r2)
            a = radial + change * u * u + 2.0 * p1 * v + 6.0 * p2 * u
            b = change * u * v + 2.0 * (p1 * u + p2 * v)
            c = radial + change * v * v + 6.0 * p1 * v + 2.0 * p2 * u
            now_u, now_v = self._brown(u, v)
            off_u, off_v = now_u - wanted_u, now_v - wanted_v
            determinant = (a * c - b * b).clamp(min=_SMALLEST_SLOPE)
            u, v = u - (c * off_u - b * off_v) / determinant, v - (a * off_v - b * off_u) / determinant
            inward = (reach / (u * u + v * v).sqrt().clamp(min=1e-12)).clamp(max=1.0)
            u, v = u * inward, v * inward
        return u, v


_Coefficients = tuple[Tensor, Tensor, Tensor, Tensor]
"""Four of (B, 1)."""


def _times(k: Float[Tensor, "B 4"], factors: tuple[float, float, float, float]) -> _Coefficients:
    """f1 k1, f2 k2, f3 k3, f4 k4."""
    k1, k2, k3, k4 = (column if f == 1.0 else f * column for f, column in zip(factors, k.split(1, dim=1), strict=True))
    return k1, k2, k3, k4


def _polynomial(coefficients: _Coefficients, s: Float[Tensor, "B n"]) -> Float[Tensor, "B n"]:
    """1 + c1 s + c2 s^2 + c3 s^3 + c4 s^4."""
    c1, c2, c3, c4 = coefficients
    return 1.0 + s * torch.addcmul(c1, s, torch.addcmul(c2, s, torch.addcmul(c3, s, c4)))


def _per_square(k: Float[Tensor, "B 4"], s: Float[Tensor, "B n"]) -> Float[Tensor, "B n"]:
    """The derivative of the radial factor by s = r^2: k1 + 2 k2 s + 3 k3 s^2 + 4 k4 s^3."""
    k1, k2, k3, k4 = _times(k, (1.0, 2.0, 3.0, 4.0))
    return torch.addcmul(k1, s, torch.addcmul(k2, s, torch.addcmul(k3, s, k4)))


def _reach(radial: Float[Tensor, "B 4"], fisheye: Bool[Tensor, "B"]) -> Float[Tensor, "B"]:
    """The smallest t > 0 with g'(t) = 0, or the largest t that there is: pi for a fisheye, else `MAX_PLANE`.

    With q = 1 / t^2 the roots of g' are those of q^4 + 3 k1 q^3 + 5 k2 q^2 + 7 k3 q + 9 k4, the eigenvalues of its
    companion matrix; the largest positive real q is the smallest t.
    """
    distinct, place = radial.double().cpu().unique(dim=0, return_inverse=True)
    companion = torch.diag(torch.ones(3, dtype=torch.float64), -1).repeat(len(distinct), 1, 1)
    companion[:, 0] = -distinct * torch.tensor(_SLOPE, dtype=torch.float64)
    q = torch.linalg.eigvals(companion)
    is_real = q.imag.abs() <= 1e-9 * (1.0 + q.abs())
    largest = torch.where(is_real, q.real, 0.0).clamp(min=MAX_PLANE**-2).amax(dim=1)
    most = torch.where(fisheye.cpu(), math.pi, MAX_PLANE)
    return torch.minimum(largest.rsqrt()[place], most).to(radial)
