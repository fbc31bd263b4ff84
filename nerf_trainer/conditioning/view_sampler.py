"""View sampling: the features of source views at points in the world.

V: source views; B: target views; N, *n: points; C: channels of a map. A point is projected into every source view,
and every feature map, which covers the whole image whatever its size, is interpolated where the point falls. This is
how pixelNeRF (Yu et al. 2021, section 4.2) and NeRFormer (Reizenstein et al. 2021, section 4.1) look at source views.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import grid_sample, normalize

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.config import Configurable
from nerf_trainer.ops.deterministic import must_be_deterministic
from nerf_trainer.ops.grid_sample import Padding, interpolate_grid
from nerf_trainer.rays.bundle import RayBundle

MIN_DEPTH = 1e-6
"""Depth along the view axis, world units, from which a point is in front of a view."""
LEAST_DIVISOR = 1e-2
"""Least depth, in front or behind, that a point is divided by where views count that don't see it."""


class Unseen(Enum):
    """What a source view says of a point that it does not see, behind it or outside its image."""

    left_out = "left_out"
    """Nothing: the view doesn't count there. Maps go on as they are at the border of the image."""
    counted_as_zeros = "counted_as_zeros"
    """Zeros, which count: maps are zeros around the image, and a point behind a view is looked up where the line
    through it and the view's centre meets the image. Models that Implicitron trained see source views so."""


@dataclass(frozen=True)
class SourceViews:
    """The V source views of a batch and what was extracted from them; the first B of them may be the targets."""

    maps: tuple[Float[Tensor, "V _ _ _"], ...]
    """Feature maps (V C h w), each over the whole of its image."""
    cameras: Cameras
    """The views."""
    fg_probability: Float[Tensor, "V 1 H W"] | None
    """Foreground probability in [0, 1], where the data has it."""
    mask_crop: Float[Tensor, "V 1 H W"] | None
    """1 where an image holds real pixels, 0 where it was padded; None where none was."""
    same_sequence: Bool[Tensor, "B V"]
    """Which source views show the sequence of each target view."""
    is_target: Bool[Tensor, "B V"]
    """Which source view is the target view itself."""


@dataclass(frozen=True)
class SampledViews:
    """What V source views show of points, `*n` of them."""

    features: tuple[Float[Tensor, "*n V _"], ...]
    """Features of each map. Finite where a view is not valid, but without meaning there: weigh them by `valid`."""
    valid: Float[Tensor, "*n V 1"]
    """1 where the view shows the point's sequence and has the point in front of it and within its image, the padding
    left out; 0 elsewhere. With masked sampling times the foreground probability there. `Unseen` says otherwise of
    models that came from elsewhere."""
    is_target: Bool[Tensor, "*n V"]
    """Which source view is the point's own target view."""
    cosines: Float[Tensor, "*n V"]
    """Cosine of the angle between the ray through the point and the direction from which the source view sees it."""


class ViewSampler(Configurable, torch.nn.Module):
    """Projects the samples of rays into source views and interpolates feature maps there."""

    masked_sampling: bool = False
    """Count a source view only as far as the point falls on its foreground, where the data has masks. What an image was
    padded with never counts."""
    sampling_mode: Literal["bilinear", "nearest"] = "bilinear"
    """How maps are interpolated."""
    unseen: Unseen = Unseen.left_out
    """What a view that does not see a point says of it: left_out, or counted_as_zeros as in Implicitron, where masked
    sampling counts a view as far as the point falls on real pixels, and what is padding counts without it."""

    def forward(self, source: SourceViews, ray_bundle: RayBundle) -> SampledViews:
        """What the source views show of `ray_bundle.points`, `*n` being (*rays S).

        The bundle's `camera_index` points into the rows of `source.same_sequence` and `source.is_target`. Computed in
        float32 under any autocast; gradients reach the maps and the points.
        """
        with torch.autocast(ray_bundle.origins.device.type, enabled=False):
            points = ray_bundle.points.float()
            ahead = points.shape[:-1]
            flat = points.reshape(-1, 3)
            target = ray_bundle.camera_index[..., None].expand(ahead)
            if self.unseen is Unseen.left_out:
                local, counts = self._seen(source, flat)
                padding = "border"
            else:
                local, counts = self._all(source, flat)
                padding = "zeros"
            features = tuple(_look_up(m, local, self.sampling_mode, padding).unflatten(0, ahead) for m in source.maps)
            weight = source.same_sequence[target][..., None] * counts.unflatten(0, ahead)
            directions = ray_bundle.view_directions.float()[..., None, :].expand_as(points)
            return SampledViews(
                features=features,
                valid=weight,
                is_target=source.is_target[target],
                cosines=viewing_cosines(source.cameras, flat, directions.reshape(-1, 3)).unflatten(0, ahead),
            )

    def _seen(
        self, source: SourceViews, points: Float[Tensor, "N 3"]
    ) -> tuple[Float[Tensor, "V N 2"], Float[Tensor, "N V 1"]]:
        """Where points fall in the images, and what each view counts, sequences apart, if only views that see a point
        do."""
        local, seen = project_into_images(source.cameras, points)
        weight = seen.T[..., None].to(points.dtype)
        if source.mask_crop is not None:
            weight = weight * _look_up(source.mask_crop, local, "nearest", "border")
        if self.masked_sampling and source.fg_probability is not None:
            weight = weight * _look_up(source.fg_probability, local, self.sampling_mode, "border")
        return local, weight

    def _all(
        self, source: SourceViews, points: Float[Tensor, "N 3"]
    ) -> tuple[Float[Tensor, "V N 2"], Float[Tensor, "N V 1"]]:
        """The same if all views do."""
        in_view = source.cameras.transform_to_camera(points.expand(len(source.cameras), -1, -1))
        depth = in_view[..., 2:]
        divisor = torch.where(depth < 0.0, -1.0, 1.0) * depth.abs().clamp(min=LEAST_DIVISOR)
        local = _in_image(source.cameras, in_view[..., :2] / divisor)
        if self.masked_sampling and source.mask_crop is not None:
            return local, _look_up(source.mask_crop, local, self.sampling_mode, "zeros")
        return local, points.new_ones(len(points), len(source.cameras), 1)


def _look_up(
    maps: Float[Tensor, "V C h w"], local: Float[Tensor, "V N 2"], mode: str, padding: str
) -> Float[Tensor, "N V C"]:
    """Values of each view's map; those at the border's pixel centres go on to the border and beyond where the padding
    is "border", and fall off to zeros where it is "zeros"."""
    if maps.requires_grad and mode == "bilinear" and must_be_deterministic(maps):
        beyond: Padding = "border" if padding == "border" else "zeros"
        grids = maps.float().permute(0, 3, 2, 1)  # x before y, channels last
        of_views = [
            interpolate_grid(grid, places, "bilinear", beyond, align_corners=False)
            for grid, places in zip(grids, local, strict=True)
        ]
        return torch.stack(of_views, dim=1)
    sampled = grid_sample(maps.float(), local[:, None], mode, padding, align_corners=False)
    return sampled[:, :, 0].permute(2, 0, 1)


def project_into_images(
    cameras: Cameras, points: Float[Tensor, "N 3"]
) -> tuple[Float[Tensor, "V N 2"], Bool[Tensor, "V N"]]:
    """The same points in every view, as places in its image.

    Returns:
        (x, y), the image spanning [-1, 1] along both, finite for any point; and whether the view has the point in
        front of it and inside its image.
    """
    in_view = cameras.transform_to_camera(points.expand(len(cameras), -1, -1))
    depth = in_view[..., 2:]
    in_front = depth > MIN_DEPTH
    local = _in_image(cameras, torch.where(in_front, in_view[..., :2], 0.0) / torch.where(in_front, depth, 1.0))
    return local, in_front[..., 0] & (local.abs() <= 1.0).all(dim=-1)


def _in_image(cameras: Cameras, plane: Float[Tensor, "V N 2"]) -> Float[Tensor, "V N 2"]:
    """Places on each view's plane at depth 1 as places in its image, which spans [-1, 1] along both axes."""
    xy = cameras.plane_to_pixels(plane)
    size = cameras.image_size_hw.flip(-1).to(xy.dtype).to(xy.device, non_blocking=True)
    return 2.0 * xy / size[:, None] - 1.0


def viewing_cosines(
    cameras: Cameras, points: Float[Tensor, "N 3"], directions: Float[Tensor, "N 3"]
) -> Float[Tensor, "N V"]:
    """Cosine between each point's unit direction and that from each view's centre to the point; 0 at the centre."""
    from_views = normalize(points[:, None] - cameras.centers, dim=-1, eps=MIN_DEPTH)
    return (from_views * directions[:, None]).sum(dim=-1)
