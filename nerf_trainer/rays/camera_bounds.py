"""Samples between the depths that the dataset knows for each camera (LLFF, COLMAP)."""

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.config import registry
from nerf_trainer.errors import ConfigError
from nerf_trainer.rays.bundle import RayBundle
from nerf_trainer.rays.samplers import PinholeRaySampler

LEAST_COSINE = 0.1
"""Rays farther than this from a view's axis (84 degrees, only a fisheye's) are sampled as if they were this far."""


@registry.register
class CameraBoundsRaySampler(PinholeRaySampler):
    """Samples between each camera's own nearest and farthest depth.

    A dataset's bounds are depths along the view's axis. A ray at an angle to the axis reaches a depth at the depth over
    the cosine, so that each view's samples lie between two planes.
    """

    near_factor: float = 0.9
    """Sampling begins at this times a camera's nearest depth."""
    far_factor: float = 1.0
    """Sampling ends at this times a camera's farthest depth."""

    def __post_init__(self) -> None:
        super().__post_init__()
        lowest = 0.0 if not self.linear_in_disparity else torch.finfo(torch.float32).tiny
        if not (lowest <= self.near_factor <= 1.0 <= self.far_factor < float("inf")):
            raise ConfigError(
                f"near_factor, far_factor: {self.near_factor}, {self.far_factor}, expected 0 <= near_factor <= 1 <="
                " far_factor (0 < near_factor with linear_in_disparity)"
            )

    def learn_views(self, views: Callable[[], Cameras]) -> None:
        """Nothing is kept.

        Raises:
            ConfigError: the training views have no bounds.
        """
        _bounds(views())

    def bounds(
        self, cameras: Cameras, camera_index: Int[Tensor, "*rays"]
    ) -> tuple[Float[Tensor, "*rays"], Float[Tensor, "*rays"]]:
        near, far = _bounds(cameras)[camera_index].unbind(-1)
        return near * self.near_factor, far * self.far_factor

    def _through(self, cameras: Cameras, camera_index: Int[Tensor, "*rays"], xy: Float[Tensor, "*rays 2"]) -> RayBundle:
        rays = super()._through(cameras, camera_index, xy)
        along_axis = (rays.directions * cameras.forward_axes[camera_index]).sum(dim=-1).clamp(min=LEAST_COSINE)
        return replace(rays, near=rays.near / along_axis, far=rays.far / along_axis)


def _bounds(cameras: Cameras) -> Float[Tensor, "B 2"]:
    if cameras.bounds is None:
        raise ConfigError(
            "raysampler_class_type: CameraBoundsRaySampler, but the dataset knows no bounds of its cameras; use"
            " NearFarRaySampler or AdaptiveRaySampler"
        )
    return cameras.bounds
