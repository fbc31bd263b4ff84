"""Similarities: a scale, a rotation and a shift, which map one frame of reference onto another."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Similarity:
    """y = scale * (rotation x) + translation, in float64."""

    scale: float
    """Above 0."""
    rotation: Float[Tensor, "3 3"]
    """Orthonormal, determinant 1."""
    translation: Float[Tensor, "3"]
    """In the units of y."""

    @classmethod
    def identity(cls) -> "Similarity":
        """The one that moves nothing."""
        return cls(1.0, torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))

    @property
    def is_identity(self) -> bool:
        eye = torch.eye(3, dtype=torch.float64)
        return self.scale == 1.0 and bool((self.rotation == eye).all()) and bool((self.translation == 0).all())

    def points(self, x: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3"]:
        """Points mapped, in their own dtype. Each product is summed on its own: no matrix unit rounds it."""
        wide = x.double()
        turned = (wide[..., None, :] * self.rotation.to(x.device)).sum(dim=-1)
        return (self.scale * turned + self.translation.to(x.device)).to(x.dtype)

    def views(
        self, R: Float[Tensor, "N 3 3"], T: Float[Tensor, "N 3"]
    ) -> tuple[Float[Tensor, "N 3 3"], Float[Tensor, "N 3"]]:
        """World-to-camera R and T of the same views of the mapped world, in their own dtype.

        With y = s Q x + t: R' = R Q^T and T' = s T - R' t; depths become s times as large, pixels stay.
        """
        Q, t = self.rotation, self.translation
        turned = R.double() @ Q.T
        shifted = self.scale * T.double() - (turned @ t[:, None])[..., 0]
        return turned.to(R.dtype), shifted.to(T.dtype)

    def inverse(self) -> "Similarity":
        """The one that undoes this: x = (1 / s) Q^T (y - t)."""
        back = self.rotation.T
        return Similarity(1.0 / self.scale, back, -(back @ self.translation) / self.scale)

    def after(self, first: "Similarity") -> "Similarity":
        """The one that does `first` and then this."""
        return Similarity(
            self.scale * first.scale,
            self.rotation @ first.rotation,
            self.scale * (self.rotation @ first.translation) + self.translation,
        )

    def matrix(self) -> Float[Tensor, "4 4"]:
        """As a matrix for homogeneous column vectors."""
        matrix = torch.eye(4, dtype=torch.float64)
        matrix[:3, :3], matrix[:3, 3] = self.scale * self.rotation, self.translation
        return matrix
