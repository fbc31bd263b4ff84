"""Rays in normalised device coordinates (Mildenhall et al. 2020, appendix C), for photographs from the front.

The projection maps what a camera at the origin sees along -z, from the near plane z = -n to infinity, onto the cube
[-1, 1]^3. Depth becomes linear in disparity: even samples along a ray lie dense in front and reach to infinity.

Symbols: o, d are a ray's origin and direction in the world (x right, y up, z back), n the near plane's distance, a the
projection's constants for x and y: the cotangents of half the angles of view, 2 f / W and 2 f / H.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.config import registry
from nerf_trainer.errors import ConfigError
from nerf_trainer.frames import FrameContents
from nerf_trainer.rays.bundle import RayBundle
from nerf_trainer.rays.samplers import PinholeRaySampler

LEAST_COSINE = 0.05
"""Rays have to lie this far within the half-space that the projection maps: within 87 degrees of -z."""


def ndc_points(
    points: Float[Tensor, "*n 3"], cotangents: Float[Tensor, "2"], near: float = 1.0
) -> Float[Tensor, "*n 3"]:
    """World points in NDC: (-a_x x / z, -a_y y / z, 1 + 2 n / z) (appendix C, the far plane at infinity).

    Args:
        points: with z < 0.
        cotangents: a.
        near: n.
    """
    x, y, z = points.unbind(-1)
    return torch.stack([-cotangents[0] * x / z, -cotangents[1] * y / z, 1.0 + 2.0 * near / z], dim=-1)


def ndc_rays(
    origins: Float[Tensor, "*rays 3"],
    directions: Float[Tensor, "*rays 3"],
    cotangents: Float[Tensor, "2"],
    near: float = 1.0,
) -> tuple[Float[Tensor, "*rays 3"], Float[Tensor, "*rays 3"]]:
    """Rays whose points o' + t' d', t' from 0 to 1, are the projections of the world's rays' from the near plane to
    infinity (appendix C).

    With the origin moved to the near plane, o <- o - (n + o_z) d / d_z, so that o_z = -n:

        o' = (a_x o_x / n, a_y o_y / n, -1)    d' = (-a_x (d_x / d_z + o_x / n), -a_y (d_y / d_z + o_y / n), 2)

    and the point at distance t from the moved origin is at t' = 1 - o_z / (o_z + t d_z).

    Args:
        directions: of any length, with d_z < 0.
        cotangents: a.
        near: n.

    Returns:
        Origins o' and directions d', not of unit length.
    """
    slope = directions[..., :2] / directions[..., 2:]
    at_near = (origins[..., :2] - (near + origins[..., 2:]) * slope) / near
    one = torch.ones_like(slope[..., :1])
    start = torch.cat([cotangents * at_near, -one], dim=-1)
    return start, torch.cat([-cotangents * (slope + at_near), 2.0 * one], dim=-1)


@registry.register
class NDCRaySampler(PinholeRaySampler):
    """Samples along rays in normalised device coordinates: for photographs from the front, in a world whose views look
    down -z (LlffDatasetMapProvider with recenter and bd_factor), whatever lies far behind.

    Lengths go from 0 at the near plane to 1 at infinity. The projection is one for the scene, taken from the training
    views (`learn_views`) and kept with the weights; without either, rays are NaN.
    """

    near_plane: float = 1.0
    """Distance of the near plane from the world's origin along -z, world units: nothing nearer is seen."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.near_plane > 0.0:
            raise ConfigError(f"near_plane: {self.near_plane}, expected a distance above 0, in world units")
        for name, asked in (
            ("cast_ray_bundle_as_cone", self.cast_ray_bundle_as_cone),
            ("linear_in_disparity", self.linear_in_disparity),
        ):
            if asked:
                raise ConfigError(
                    f"{name}: true, expected false with NDCRaySampler: NDC bends cones out of shape, and is linear in"
                    " disparity by itself"
                )
        self._cotangents = torch.nn.Buffer(torch.full((2,), torch.nan))  # until views or a checkpoint say

    def learn_views(self, views: Callable[[], Cameras]) -> None:
        """Take the projection from the training views, where no checkpoint brought it: the mean of their a.

        Raises:
            ConfigError: not all of them look down -z from behind the near plane, or that cuts off what most of them
                see.
        """
        cameras = views()
        self._require_facing(cameras)
        self._require_in_sight(cameras)
        if bool(self._cotangents.isnan().any()):
            wh = cameras.image_size_hw.flip(-1).to(cameras.focal)
            self._cotangents.copy_((2.0 * cameras.focal.double() / wh).mean(dim=0))

    def notices(self, contents: FrameContents) -> tuple[str, ...]:
        compared = (
            ("raysampler_class_type: NDCRaySampler measures depth in NDC; the photographs' depth is not compared",)
            if contents.depth_map
            else ()
        )
        return (*super().notices(contents), *compared)

    @property
    def lengths_are_metric(self) -> bool:
        return False

    def bounds(
        self, cameras: Cameras, camera_index: Int[Tensor, "*rays"]
    ) -> tuple[Float[Tensor, "*rays"], Float[Tensor, "*rays"]]:
        near = torch.zeros(camera_index.shape, device=cameras.device)
        return near, torch.ones_like(near)

    def grid(
        self, cameras: Cameras, grid_hw: tuple[int, int], training: bool = False, with_lengths: bool = True
    ) -> RayBundle:
        """Rays (B, H, W) through `grid_hw` evenly spread pixels of every view.

        Raises:
            ConfigError: in evaluation, a view doesn't look down -z from behind the near plane.
        """
        if not training:
            self._require_facing(cameras)
        return super().grid(cameras, grid_hw, training, with_lengths)

    def _through(self, cameras: Cameras, camera_index: Int[Tensor, "*rays"], xy: Float[Tensor, "*rays 2"]) -> RayBundle:
        rays = super()._through(cameras, camera_index, xy)
        origins, directions = ndc_rays(rays.origins, rays.directions, self._cotangents, self.near_plane)
        return replace(rays, origins=origins, directions=directions)

    def _require_facing(self, cameras: Cameras) -> None:
        """Refuse views that the projection does not map."""
        is_mapped = (_farthest_from_axis(cameras) < -LEAST_COSINE) & (cameras.centers[:, 2] > -self.near_plane)
        if bool(is_mapped.all()):
            return
        raise ConfigError(
            f"raysampler_class_type: NDCRaySampler needs views that look down -z from behind the plane z ="
            f" {-self.near_plane:g}, found {int((~is_mapped).sum())} of {len(cameras)} that don't; for photographs from"
            " the front set recenter=true (LLFF) and trajectory_type=spiral, else use CameraBoundsRaySampler or"
            " NearFarRaySampler"
        )

    def _require_in_sight(self, cameras: Cameras) -> None:
        """Refuse a near plane beyond the middle (the geometric mean) of the depths that most views see."""
        if cameras.bounds is None:
            return
        depth = (self.near_plane + cameras.centers[:, 2]) / -cameras.forward_axes[:, 2]
        middle = cameras.bounds.prod(dim=-1).sqrt()
        if (depth > middle).double().mean() <= 0.5:
            return
        near, far = cameras.bounds[:, 0].min().item(), cameras.bounds[:, 1].max().item()
        raise ConfigError(
            f"near_plane: {self.near_plane:g} of NDCRaySampler cuts off most of what the views see, {near:.3g} to"
            f" {far:.3g} before them, expected a plane nearer than that; set bd_factor=0.75 and spherify=false (LLFF),"
            " or lower near_plane"
        )


def _farthest_from_axis(cameras: Cameras) -> Float[Tensor, "B"]:
    """The largest z of the unit directions through the corners of each view; of a pinhole's, the largest of all."""
    wh = cameras.image_size_hw.flip(-1).to(cameras.focal)
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], device=cameras.device)
    xy = corners.to(wh) * wh[:, None]
    index = torch.arange(len(cameras), device=cameras.device)[:, None].expand(-1, 4)
    _, directions = cameras.pixel_rays(xy, index)
    return directions[..., 2].amax(dim=1)
