"""Lens distortion: from the plane at depth 1 that a pinhole camera sees to the one that a lens shows, and back.

Two models, as OpenCV, COLMAP and nerfstudio define them, with (u, v) on the plane at depth 1 in camera axes:

- OPENCV (Brown 1966): r^2 = u^2 + v^2, radial = 1 + k1 r^2 + k2 r^4 + k3 r^6 + k4 r^8,
  u' = u radial + 2 p1 u v + p2 (r^2 + 2 u^2),  v' = v radial + p1 (r^2 + 2 v^2) + 2 p2 u v;
- OPENCV_FISHEYE (Kannala and Brandt 2006): theta = atan(r),
  theta' = theta (1 + k1 theta^2 + k2 theta^4 + k3 theta^6 + k4 theta^8), (u', v') = (u, v) theta' / r.

The pixel is focal * (u', v') + principal_point.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class Lenses:
    """The distortion of B views; all zero and no fisheye is a pinhole."""

    radial: Float[Tensor, "B 4"]
    """k1, k2, k3, k4."""
    tangential: Float[Tensor, "B 2"]
    """p1, p2; zero for a fisheye."""
    fisheye: Bool[Tensor, "B"]
    """Whether the model is OPENCV_FISHEYE."""

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
        )
