"""Steps along rays: how far apart samples are.

Symbols: o, d are a ray's origin and direction, w = t |d| the distance along it in world units, t its length; u in
[0, 1) the ray's random shift.

Steps are of one width, w_i = w_in + (i + u) step, where w_in is where the ray comes into the grid, or its near bound.
Or they grow with the distance in a cone, as in Instant-NGP (Mueller et al. 2022, appendix E.1). Here these are evenly
spaced in a coordinate s of the distance, so that any step is found without those before it: w_i = w(s(w_in) + u + i),
with dw/ds = clamp(cone_angle w, step, largest), in closed form

    w = step s                                    up to w_1 = step / cone_angle, where s_1 = 1 / cone_angle,
    w = w_1 exp(cone_angle (s - s_1))             up to w_2 = largest / cone_angle,
    w = w_2 + largest (s - s_2)                   beyond.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class BoundedRays(NamedTuple):
    """R rays to be marched along."""

    origins: Float[Tensor, "R 3"]
    directions: Float[Tensor, "R 3"]
    """Not necessarily of unit length; a direction of 0 has no samples."""
    near: Float[Tensor, "R"]
    """Where the march begins, as a length t."""
    far: Float[Tensor, "R"]
    """Where it ends."""
    jitter: Float[Tensor, "R"]
    """u, the part of a step by which each ray's samples are shifted."""


@dataclass(frozen=True)
class Steps:
    """How far apart samples are."""

    step: float
    """Width of an interval, world units; with a cone the smallest."""
    cone_angle: float = 0.0
    """Growth of the width with the distance; 0 for one width."""
    largest: float = math.inf
    """The largest width, world units; stands for nothing without a cone."""
    most: int = 1024
    """A ray ends after this many samples."""

    def bends(self) -> tuple[float, float, float, float]:
        """w_1, s_1, w_2 and s_2; a cone angle of 0 has none."""
        w1, w2 = self.step / self.cone_angle, self.largest / self.cone_angle
        s1 = 1.0 / self.cone_angle
        return w1, s1, w2, s1 + math.log(w2 / w1) / self.cone_angle
