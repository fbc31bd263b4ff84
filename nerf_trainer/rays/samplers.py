"""Ray samplers: which rays a batch is rendered along, and where their first samples lie."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from enum import Enum

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.config import ReplaceableBase, registry
from nerf_trainer.errors import ConfigError
from nerf_trainer.frames import FrameContents, PixelStore
from nerf_trainer.ops.ray_sampling import place
from nerf_trainer.ops.stepfun import midpoints
from nerf_trainer.randomness import RandomStream
from nerf_trainer.rays.bundle import RayBundle
from nerf_trainer.rays.pixels import central_mask, draw_pixels, full_grid
from nerf_trainer.schedules import Change, Scheduled

DEFAULT_RAYS_PER_IMAGE = 1024
"""Rays of each image of a training batch, where nothing else is said."""


class RenderSamplingMode(Enum):
    """Which pixels of a view are rendered."""

    mask_sample = "mask_sample"
    """Pixels drawn at random, from the valid region where a mask is given."""
    full_grid = "full_grid"
    """Every pixel."""


class RaySamplerBase(ReplaceableBase, torch.nn.Module):
    """Makes the rays of a batch."""

    @abstractmethod
    def draw(
        self,
        cameras: Cameras,
        pixels: PixelStore | None = None,
        mask: Float[Tensor, "B 1 H W"] | None = None,
        with_lengths: bool = True,
    ) -> RayBundle:
        """Rays through pixels drawn at random, for training.

        Args:
            cameras: the batch's views.
            pixels: the scene's pixels, where they are resident: the draw is then across all of them.
            mask: relative probability of each pixel; None is uniform.
            with_lengths: place samples along the rays; without, the rays have only their bounds.
        """

    @abstractmethod
    def grid(
        self, cameras: Cameras, grid_hw: tuple[int, int], training: bool = False, with_lengths: bool = True
    ) -> RayBundle:
        """Rays (B, H, W) through `grid_hw` evenly spread pixels of every view, with samples along them or without."""

    def notices(self, contents: FrameContents) -> tuple[str, ...]:
        """What a user should know of drawing from batches that hold this, one line each."""
        return ()

    def learn_views(self, views: Callable[[], Cameras]) -> None:
        """Told once before training, after a checkpoint is loaded.

        Args:
            views: gives the training views, in host memory; may take a while, so that it is called only where needed.

        Raises:
            ConfigError: this sampler can't place samples along their rays.
        """

    def nearest(self, cameras: Cameras) -> Float[Tensor, "B"]:
        """The distance from each view, world units, before which none of its samples lie; 0 where that is not known."""
        return torch.zeros(len(cameras), device=cameras.device)

    @property
    def lengths_are_metric(self) -> bool:
        """Whether lengths along rays are world units, and samples lie in the world; not so in NDC."""
        return True

    @property
    def fewest_lengths(self) -> int | None:
        """The fewest samples that a ray gets, training or evaluation; None where that is not known beforehand."""
        return None

    @property
    def capturable(self) -> bool:
        """Whether a step with this sampler can be captured: no read-back, no branch on a value, fixed shapes."""
        return False

    @property
    def casts_cones(self) -> bool:
        """Whether rays have bins and radii, for fields that integrate over conical frusta."""
        return False

    @property
    def scene_radius(self) -> float | None:
        """Radius of the sphere that holds the scene, where the sampler knows one."""
        return None

    @property
    def sphere_center(self) -> tuple[float, float, float]:
        """Centre of the sphere that holds the scene, world units; the origin where the sampler knows none."""
        return (0.0, 0.0, 0.0)


class PinholeRaySampler(RaySamplerBase, Scheduled):
    """What the samplers share: pixel draws, sample placement, cones and the centre-crop warm-up."""

    n_pts_per_ray_training: int = 64
    """Samples a ray while training; may be 0 under a renderer that finds its own, as those of surfaces do."""
    n_pts_per_ray_evaluation: int = 64
    """Samples a ray in evaluation; may be 0 likewise."""
    n_rays_per_image_sampled_from_mask: int | None = DEFAULT_RAYS_PER_IMAGE
    """Rays drawn in each image of a training batch; of a resident scene, which is one batch, in all."""
    n_rays_total_training: int | None = None
    """Rays drawn across all images of a training batch, or of the whole scene when its pixels are resident; with it
    `n_rays_per_image_sampled_from_mask` has to be null or its default."""
    stratified_point_sampling_training: bool = True
    """Move samples at random within their strata while training."""
    stratified_point_sampling_evaluation: bool = False
    """Move samples at random within their strata in evaluation."""
    cast_ray_bundle_as_cone: bool = False
    """Give rays bins and radii, for fields that integrate over conical frusta (mip-NeRF)."""
    linear_in_disparity: bool = False
    """Space samples evenly in inverse distance; near must be positive."""
    precrop_steps: int = 0
    """Draw from the images' centre for this many first steps, which keeps a mostly empty scene from a dead start."""
    precrop_fraction: float = 0.5
    """The part of the height and width that the centre has."""

    def __post_init__(self) -> None:
        self._check_counts()
        if not 0.0 < self.precrop_fraction <= 1.0:
            raise ConfigError(f"precrop_fraction: {self.precrop_fraction}, expected a value above 0 and at most 1")
        self._pixel_draws = RandomStream("pixels")
        self._jitter = RandomStream("jitter")
        self._center_fraction = self.precrop_fraction if self.precrop_steps > 0 else 1.0

    def _check_counts(self) -> None:
        total, per_image = self.n_rays_total_training, self.n_rays_per_image_sampled_from_mask
        if total is None and per_image is None:
            raise ConfigError(
                "n_rays_total_training and n_rays_per_image_sampled_from_mask are both null; set one of them"
            )
        if total is not None and per_image not in (None, DEFAULT_RAYS_PER_IMAGE):
            raise ConfigError(
                f"n_rays_per_image_sampled_from_mask: {per_image} together with n_rays_total_training: {total};"
                " expected one or the other: set n_rays_per_image_sampled_from_mask to null"
            )
        for name, n, least in (
            ("n_pts_per_ray_training", self.n_pts_per_ray_training, 0),
            ("n_pts_per_ray_evaluation", self.n_pts_per_ray_evaluation, 0),
            ("n_rays_per_image_sampled_from_mask", per_image, 1),
            ("n_rays_total_training", total, 1),
        ):
            if n is not None and n < least:
                raise ConfigError(f"{name}: {n}, expected a whole number of at least {least}")

    def notices(self, contents: FrameContents) -> tuple[str, ...]:
        if not contents.is_resident or self.n_rays_total_training is not None:
            return ()
        n = self.n_rays_per_image_sampled_from_mask
        return (
            f"n_rays_per_image_sampled_from_mask: a resident scene is one batch, so that a step has {n} rays across all"
            f" images; set n_rays_total_training={n} to say so",
        )

    @property
    def fewest_lengths(self) -> int | None:
        return min(self.n_pts_per_ray_training, self.n_pts_per_ray_evaluation)

    @property
    def capturable(self) -> bool:
        return True

    @property
    def casts_cones(self) -> bool:
        return self.cast_ray_bundle_as_cone

    @abstractmethod
    def bounds(
        self, cameras: Cameras, camera_index: Int[Tensor, "*rays"]
    ) -> tuple[Float[Tensor, "*rays"], Float[Tensor, "*rays"]]:
        """Where sampling begins and ends along each ray, world units."""

    def nearest(self, cameras: Cameras) -> Float[Tensor, "B"]:
        near, _ = self.bounds(cameras, torch.arange(len(cameras), device=cameras.device))
        return near

    def advance(self, epoch: int, step: int) -> Change:
        """End the centre-crop warm-up when its steps are over."""
        fraction = self.precrop_fraction if step < self.precrop_steps else 1.0
        changed = fraction != self._center_fraction
        self._center_fraction = fraction
        return Change(recapture=changed)

    def draw(
        self,
        cameras: Cameras,
        pixels: PixelStore | None = None,
        mask: Float[Tensor, "B 1 H W"] | None = None,
        with_lengths: bool = True,
    ) -> RayBundle:
        generator = self._pixel_draws.on(cameras.device)
        total = self.n_rays_total_training
        if pixels is not None:
            n = total or (self.n_rays_per_image_sampled_from_mask or 0)
            camera_index, xy = pixels.draw(n, generator, self._center_fraction)
            rays = self._through(cameras, camera_index[None], xy[None])
            return self._place(rays, training=True) if with_lengths else rays
        batch, (height, width) = len(cameras), self._common_size(cameras, mask)
        weights = torch.ones(batch, height, width, device=cameras.device) if mask is None else mask[:, 0].float()
        if self._center_fraction < 1.0:
            weights = weights * central_mask(height, width, self._center_fraction, cameras.device)
        groups = weights.reshape(1 if total else batch, -1)
        index = draw_pixels(groups, total or self.n_rays_per_image_sampled_from_mask or 0, generator)
        first = torch.zeros_like(index) if total else torch.arange(batch, device=index.device)[:, None]
        camera_index = first + index // (height * width)
        within = index % (height * width)
        xy = torch.stack([within % width, within // width], dim=-1) + 0.5
        rays = self._through(cameras, camera_index, xy)
        return self._place(rays, training=True) if with_lengths else rays

    def grid(
        self, cameras: Cameras, grid_hw: tuple[int, int], training: bool = False, with_lengths: bool = True
    ) -> RayBundle:
        xy = full_grid(cameras, grid_hw)
        index = torch.arange(len(cameras), device=cameras.device)[:, None, None].expand(xy.shape[:-1])
        rays = self._through(cameras, index, xy)
        return self._place(rays, training) if with_lengths else rays

    def _common_size(self, cameras: Cameras, mask: Tensor | None) -> tuple[int, int]:
        if mask is not None:
            return mask.shape[-2], mask.shape[-1]
        height, width = cameras.image_size_hw[0].tolist()
        return height, width

    def _through(self, cameras: Cameras, camera_index: Int[Tensor, "*rays"], xy: Float[Tensor, "*rays 2"]) -> RayBundle:
        origins, directions = cameras.pixel_rays(xy, camera_index)
        near, far = self.bounds(cameras, camera_index)
        return RayBundle(
            origins=origins,
            directions=directions,
            view_directions=directions,
            near=near,
            far=far,
            xy=xy,
            camera_index=camera_index,
            radii=self._radii(cameras, camera_index, xy, directions) if self.cast_ray_bundle_as_cone else None,
        )

    def _radii(
        self,
        cameras: Cameras,
        camera_index: Int[Tensor, "*rays"],
        xy: Float[Tensor, "*rays 2"],
        directions: Float[Tensor, "*rays 3"],
    ) -> Float[Tensor, "*rays"]:
        """Radius at unit distance of a cone with a pixel's variance, (dx + dy) / sqrt(12) (Barron et al. 2021, 3.1).

        dx and dy are a pixel's extent on the plane at depth 1, which a ray off the axis meets at a distance above 1.
        """
        if cameras.lenses is not None:
            return cameras.pixel_extents(xy, camera_index).sum(dim=-1) / 12**0.5
        extent = (1.0 / cameras.focal).sum(dim=-1)[camera_index] / 12**0.5
        return extent * (directions * cameras.forward_axes[camera_index]).sum(dim=-1)

    def _place(self, rays: RayBundle, training: bool) -> RayBundle:
        """Put the first samples along the rays."""
        n = self.n_pts_per_ray_training if training else self.n_pts_per_ray_evaluation
        stratified = self.stratified_point_sampling_training if training else self.stratified_point_sampling_evaluation
        generator = self._jitter.on(rays.near.device) if stratified else None
        if not self.cast_ray_bundle_as_cone:
            return replace(rays, lengths=place(rays.near, rays.far, n, generator, self.linear_in_disparity))
        bins = place(rays.near, rays.far, n + 1, generator, self.linear_in_disparity)
        return replace(rays, lengths=midpoints(bins), bins=bins)


@registry.register
class AdaptiveRaySampler(PinholeRaySampler):
    """Samples within a sphere around the scene's centre, as each camera sees it."""

    scene_extent: float = 8.0
    """Radius of the sphere, world units."""
    scene_center: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Centre of the sphere, world units."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scene_extent <= 0.0:
            raise ConfigError(f"scene_extent: {self.scene_extent}, expected a radius above 0, in world units")
        self._center = torch.nn.Buffer(torch.tensor(self.scene_center), persistent=False)

    def bounds(
        self, cameras: Cameras, camera_index: Int[Tensor, "*rays"]
    ) -> tuple[Float[Tensor, "*rays"], Float[Tensor, "*rays"]]:
        distance = torch.linalg.vector_norm(cameras.centers - self._center, dim=-1)
        distance = distance.clamp(min=self.scene_extent + 1e-3)
        return (distance - self.scene_extent)[camera_index], (distance + self.scene_extent)[camera_index]

    @property
    def scene_radius(self) -> float | None:
        return self.scene_extent

    @property
    def sphere_center(self) -> tuple[float, float, float]:
        return self.scene_center


@registry.register
class NearFarRaySampler(PinholeRaySampler):
    """Samples between two distances from the camera, the same for all views but for `begin_at_camera_bounds`."""

    min_depth: float = 0.1
    """Distance of the first sample, world units."""
    max_depth: float = 8.0
    """Distance of the last sample, world units."""
    begin_at_camera_bounds: bool = False
    """Begin at a camera's own nearest depth where the dataset knows it (COLMAP's points, LLFF), if that is farther than
    `min_depth`: at that distance along every ray, which is nearer than the depth where a ray is oblique."""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_sample = self.n_pts_per_ray_training == self.n_pts_per_ray_evaluation == 1
        may_be_equal = one_sample and not self.cast_ray_bundle_as_cone
        in_order = 0.0 <= self.min_depth < self.max_depth or (may_be_equal and 0.0 <= self.min_depth == self.max_depth)
        if not in_order or (self.linear_in_disparity and self.min_depth == 0.0):
            raise ConfigError(
                f"min_depth, max_depth: {self.min_depth}, {self.max_depth}, expected 0 <= min_depth < max_depth"
                " (0 < min_depth with linear_in_disparity; they may be equal where n_pts_per_ray_training and"
                " n_pts_per_ray_evaluation are 1 and no cones are cast)"
            )

    def learn_views(self, views: Callable[[], Cameras]) -> None:
        """Nothing is kept.

        Raises:
            ConfigError: a view's nearest depth lies behind `max_depth`.
        """
        if not self.begin_at_camera_bounds:
            return
        bounds = views().bounds
        if bounds is not None and (nearest := bounds[:, 0].max().item()) >= self.max_depth:
            raise ConfigError(
                f"max_depth: {self.max_depth}, but a view sees nothing nearer than {nearest:.4g}; raise max_depth, or"
                " set begin_at_camera_bounds: false"
            )

    def bounds(
        self, cameras: Cameras, camera_index: Int[Tensor, "*rays"]
    ) -> tuple[Float[Tensor, "*rays"], Float[Tensor, "*rays"]]:
        shape = camera_index.shape
        far = torch.full(shape, self.max_depth, device=cameras.device)
        if self.begin_at_camera_bounds and cameras.bounds is not None:
            return cameras.bounds[:, 0].clamp(self.min_depth, self.max_depth)[camera_index], far
        return torch.full(shape, self.min_depth, device=cameras.device), far
