"""View sampling: the features of source views at points in the world.

V: source views; B: target views; N, *n: points; C: channels of a map. A point is projected into every source view,
and every feature map, which covers the whole image whatever its size, is interpolated where the point falls. This is
how pixelNeRF (Yu et al. 2021, section 4.2) and NeRFormer (Reizenstein et al. 2021, section 4.1) look at source views.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import grid_sample, normalize

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.config import Configurable
from nerf_trainer.rays.bundle import RayBundle

MIN_DEPTH = 1e-6
"""Depth along the view axis, world units, from which a point is in front of a view."""


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
    left out; 0 elsewhere. With masked sampling times the foreground probability there."""
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

    def forward(self, source: SourceViews, ray_bundle: RayBundle) -> SampledViews:
        """What the source views show of `ray_bundle.points`, `*n` being (*rays S).

        The bundle's `camera_index` points into the rows of `source.same_sequence` and `source.is_target`. Computed in
        float32 under any autocast; gradients reach the maps and the points.
        """
        with torch.autocast(ray_bundle.origins.device.type, enabled=False):
            points = ray_bundle.points.float()
            ahead = points.shape[:-1]
            flat = points.reshape(-1, 3)
            local, seen = project_into_images(source.cameras, flat)
            features = tuple(_look_up(m, local, self.sampling_mode).unflatten(0, ahead) for m in source.maps)
            target = ray_bundle.camera_index[..., None].expand(ahead)
            valid = seen.T.unflatten(0, ahead) & source.same_sequence[target]
            weight = valid[..., None].to(flat.dtype)
            if source.mask_crop is not None:
                weight = weight * _look_up(source.mask_crop, local, "nearest").unflatten(0, ahead)
            if self.masked_sampling and source.fg_probability is not None:
                weight = weight * _look_up(source.fg_probability, local, self.sampling_mode).unflatten(0, ahead)
            directions = ray_bundle.view_directions.float()[..., None, :].expand_as(points)
            return SampledViews(
                features=features,
                valid=weight,
                is_target=source.is_target[target],
                cosines=viewing_cosines(source.cameras, flat, directions.reshape(-1, 3)).unflatten(0, ahead),
            )


def _look_up(maps: Float[Tensor, "V C h w"], local: Float[Tensor, "V N 2"], mode: str) -> Float[Tensor, "N V C"]:
    """Values of each view's map; those at the border's pixel centres go on to the border and beyond."""
    sampled = grid_sample(maps.float(), local[:, None], mode, "border", align_corners=False)
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
    xy = cameras.plane_to_pixels(torch.where(in_front, in_view[..., :2], 0.0) / torch.where(in_front, depth, 1.0))
    size = cameras.image_size_hw.flip(-1).to(xy.dtype).to(xy.device, non_blocking=True)
    local = 2.0 * xy / size[:, None] - 1.0
    return local, in_front[..., 0] & (local.abs() <= 1.0).all(dim=-1)


def viewing_cosines(
    cameras: Cameras, points: Float[Tensor, "N 3"], directions: Float[Tensor, "N 3"]
) -> Float[Tensor, "N V"]:
    """Cosine between each point's unit direction and that from each view's centre to the point; 0 at the centre."""
    from_views = normalize(points[:, None] - cameras.centers, dim=-1, eps=MIN_DEPTH)
    return (from_views * directions[:, None]).sum(dim=-1)
