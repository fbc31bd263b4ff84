"""ModelDBIR: depth-based image rendering. The source views' pixels, put where their depth says, seen from elsewhere.

Nothing is learned. It is the baseline that tells how far given depth alone goes.
"""

from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import interpolate

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.config import registry
from nerf_trainer.errors import ConfigError, DataError
from nerf_trainer.frames import FrameData
from nerf_trainer.models.base import ImplicitronModelBase, Predictions, Targets
from nerf_trainer.models.photographs import over
from nerf_trainer.ops.splat import splat_points
from nerf_trainer.randomness import RandomStream
from nerf_trainer.rays.pixels import full_grid
from nerf_trainer.renderers.base import RendererOutput

MASK_THRESHOLD = 0.5
"""Foreground probability, and trust in depth, above which a pixel is a source, and its depth a target."""


@registry.register
class ModelDBIR(ImplicitronModelBase):
    """Splats the source views' pixels, unprojected by their depth, into the target view: the batch's first frame.

    A pixel is a source where its depth is known, and where a foreground mask, `depth_mask` and `mask_crop`, as far as
    the data has them, are above 0.5. It has no parameters: it can only be evaluated.
    """

    render_image_width: int | None = 256
    """Width of rendered views, pixels; null renders each view at its own size."""
    render_image_height: int | None = 256
    """Height of rendered views, pixels; null renders each view at its own size."""
    bg_color: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Background colour, in [0, 1], behind renderings and photographs."""
    mask_images: bool = True
    """Composite photographs on `bg_color` by their foreground probability."""
    mask_threshold: float | None = 0.5
    """Foreground probability above which a pixel of a photograph is taken whole; null blends by the probability."""
    max_points: int = -1
    """Draw at most this many points, chosen at random; 0 or less draws all."""
    point_radius: float = 0.01
    """Radius of a point as drawn, in halves of the rendered view's shorter side; at least a pixel of the rendered view,
    or of the source views stretched to its size."""

    def __post_init__(self) -> None:
        sizes = (("render_image_width", self.render_image_width), ("render_image_height", self.render_image_height))
        for name, size in sizes:
            if size is not None and size < 1:
                raise ConfigError(f"{name}: {size}, expected a whole number of pixels of at least 1, or null")
        if self.point_radius <= 0.0:
            raise ConfigError(f"point_radius: {self.point_radius}, expected a value above 0")
        self._subset = RandomStream("points")
        self._bg_color = torch.nn.Buffer(torch.tensor(self.bg_color), persistent=False)

    def forward(self, frames: FrameData) -> Predictions:
        """Render the batch's first view from all others; its features, depths and masks are (1, H, W).

        Raises:
            DataError: the batch has no source views, or these have no images or no depth.
        """
        images, depth = _require_sources(frames)
        target = frames[:1]
        height, width = target.cameras.image_size_hw[0].tolist()
        size_hw = (self.render_image_height or height, self.render_image_width or width)
        with torch.autocast(frames.cameras.device.type, enabled=False):
            is_point = depth[:, 0] > 0.0
            for mask in (frames.fg_probability, frames.depth_mask, frames.mask_crop):
                is_point = is_point if mask is None else is_point & (mask[1:, 0] > MASK_THRESHOLD)
            points, colors = self._drawn(*unprojected(frames.cameras[1:], images, depth, is_point))
            along_axis = _cosines(target.cameras, size_hw)
            pixel = max(1.0, *(rendered / own for rendered, own in zip(size_hw, images.shape[-2:], strict=True)))
            radius = max(pixel, 0.5 * self.point_radius * min(size_hw))
            rendered = self._render(target.cameras, points, colors, size_hw, radius)
            rendered = replace(rendered, depths=rendered.depths / along_axis)
            targets = self._targets(target, size_hw, along_axis)
        return Predictions(rendered=rendered, targets=targets)

    @property
    def looks_at_source_views(self) -> bool:
        return True

    def _drawn(
        self, points: Float[Tensor, "n 3"], colors: Float[Tensor, "n 3"]
    ) -> tuple[Float[Tensor, "m 3"], Float[Tensor, "m 3"]]:
        """At most `max_points` of the points."""
        if self.max_points <= 0 or len(points) <= self.max_points:
            return points, colors
        order = torch.randperm(len(points), generator=self._subset.on(points.device), device=points.device)
        chosen = order[: self.max_points]
        return points[chosen], colors[chosen]

    def _render(
        self,
        camera: Cameras,
        points: Float[Tensor, "n 3"],
        colors: Float[Tensor, "n 3"],
        size_hw: tuple[int, int],
        radius: float,
    ) -> RendererOutput:
        """The points as discs of `radius` pixels on the background; depths are along the view axis."""
        xy, depth = camera.project(points[None])
        scale = xy.new_tensor(size_hw).flip(0) / camera.image_size_hw[0].flip(0).to(xy)
        splat = splat_points(xy[0] * scale, depth[0], colors, size_hw, radius)
        features = splat.features + (1.0 - splat.opacity) * self._bg_color
        return RendererOutput(features=features, depths=splat.depth, masks=splat.opacity)

    def _targets(self, target: FrameData, size_hw: tuple[int, int], along_axis: Float[Tensor, "1 H W 1"]) -> Targets:
        """The photograph at the rendered size, on the background as far as it is masked; its depth along rays."""
        rgb, alpha = _resized(target.image_rgb, size_hw), _resized(target.fg_probability, size_hw)
        depth = _resized(target.depth_map, size_hw, "nearest-exact")
        if rgb is not None:
            behind = self._bg_color.expand_as(rgb)
            rgb = over(rgb, alpha if self.mask_images else None, behind, self.mask_threshold)
        if depth is not None and alpha is not None:
            depth = depth * (alpha > MASK_THRESHOLD)
        return Targets(
            rgb=rgb,
            fg_probability=alpha,
            depth=None if depth is None else depth / along_axis,
            mask_crop=_resized(target.mask_crop, size_hw),
        )


def unprojected(
    cameras: Cameras,
    images: Float[Tensor, "B C H W"],
    depth: Float[Tensor, "B 1 H W"],
    is_point: Bool[Tensor, "B H W"],
) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n C"]]:
    """The world points of the pixels that `is_point` marks, and their colours.

    Args:
        depth: along the view axis, world units.
    """
    height, width = images.shape[-2:]
    y, x = torch.meshgrid(*(torch.arange(n, device=images.device) + 0.5 for n in (height, width)), indexing="ij")
    xy = torch.stack([x, y], dim=-1).expand(len(cameras), height, width, 2)
    return cameras.unproject(xy, depth[:, 0])[is_point], images.permute(0, 2, 3, 1)[is_point]


def _require_sources(frames: FrameData) -> tuple[Float[Tensor, "S 3 H W"], Float[Tensor, "S 1 H W"]]:
    """Images and depth of the source views."""
    if len(frames) < 2:
        raise DataError(
            "ModelDBIR: found a batch without source views, expected views with depth to draw the target from; set"
            " n_known_frames_for_test=N of the dataset, or another model"
        )
    if frames.image_rgb is None:
        raise DataError("ModelDBIR: found a batch without images, expected those of the source views")
    if frames.depth_map is None or not bool((frames.depth_map[1:] > 0.0).any()):
        raise DataError(
            "ModelDBIR: found source views without depth, expected a depth map of each; set load_depth=true, and put"
            " depth beside the training images"
        )
    return frames.image_rgb[1:].float(), frames.depth_map[1:].float()


def _cosines(camera: Cameras, size_hw: tuple[int, int]) -> Float[Tensor, "1 H W 1"]:
    """Of the angles between a view's axis and the rays of its pixels: what divides depth to give the distance."""
    xy = full_grid(camera, size_hw)
    _, directions = camera.pixel_rays(xy, torch.zeros(xy.shape[:-1], dtype=torch.int64, device=camera.device))
    return (directions * camera.forward_axes[:, None, None]).sum(dim=-1, keepdim=True)


def _resized(
    image: Float[Tensor, "1 C _ _"] | None, size_hw: tuple[int, int], mode: str = "bilinear"
) -> Float[Tensor, "1 H W C"] | None:
    """An image at the pixels of a view of another size, as models that render rays look it up."""
    if image is None:
        return None
    if tuple(image.shape[-2:]) != size_hw:
        image = interpolate(image.float(), size_hw, mode=mode)
    return image.float().permute(0, 2, 3, 1)
