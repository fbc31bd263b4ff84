"""Small scenes and models that several tests share."""

import torch
from torch.nn.functional import normalize

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.fields.base import FieldInputs, FieldOutputs, ImplicitFunctionBase
from nerf_trainer.rays.bundle import RayBundle


def orbit(n: int, distance: float = 4.0, size: int = 16, focal: float | None = None) -> Cameras:
    """n views on a tilted circle around the origin, all looking at it; z is up."""
    angles = torch.arange(n) * (6.2832 / n)
    height = torch.full((n,), 0.3 * distance)
    centers = normalize(torch.stack([angles.cos() * distance, angles.sin() * distance, height], dim=-1)) * distance
    forward = normalize(-centers)
    right = normalize(torch.linalg.cross(forward, torch.tensor([0.0, 0.0, 1.0]).expand(n, 3)))
    R = torch.stack([right, torch.linalg.cross(forward, right), forward], dim=1)
    return Cameras(
        R=R,
        T=-(R @ centers[..., None])[..., 0],
        focal=torch.full((n, 2), focal or 1.2 * size),
        principal_point=torch.full((n, 2), size / 2),
        image_size_hw=torch.full((n, 2), size),
    )


def straight_rays(n: int = 3, near: float = 0.0, far: float = 4.0, n_samples: int = 0) -> RayBundle:
    """One group of n rays from the origin along +z; samples evenly from near to far where asked for."""
    directions = torch.tensor([0.0, 0.0, 1.0]).expand(1, n, 3)
    rays = RayBundle(
        origins=torch.zeros(1, n, 3),
        directions=directions,
        view_directions=directions,
        near=torch.full((1, n), near),
        far=torch.full((1, n), far),
        xy=torch.zeros(1, n, 2),
        camera_index=torch.zeros(1, n, dtype=torch.int64),
    )
    return rays if n_samples == 0 else rays.with_lengths(torch.linspace(near, far, n_samples).expand(1, n, n_samples))


class BallField(ImplicitFunctionBase):
    """A ball around the origin of constant density; its colour is the position, shifted into [0, 1]."""

    radius: float = 1.0
    density: float = 30.0

    def forward(self, ray_bundle: RayBundle, inputs: FieldInputs) -> FieldOutputs:
        points = ray_bundle.points
        inside = (points.norm(dim=-1, keepdim=True) < self.radius).to(points.dtype)
        return FieldOutputs(densities=inside * self.density, features=(points / 4 + 0.5).clamp(0.0, 1.0))
