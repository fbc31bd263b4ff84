"""`ops.pixel_rays` in plain torch."""

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from nerf_trainer.geometry.rotation import rotate


def locate(
    index: Int[Tensor, "n"], ends: Int[Tensor, "N"], sizes_hw: Int[Tensor, "N 2"], center_fraction: float
) -> tuple[Int[Tensor, "n"], Float[Tensor, "n 2"]]:
    """See `ops.pixel_rays.locate`."""
    camera = torch.searchsorted(ends, index, right=True)
    size = sizes_hw.index_select(0, camera)
    within = index - (ends.index_select(0, camera) - size[:, 0] * size[:, 1])
    rows, columns = within // size[:, 1], within % size[:, 1]
    xy = torch.stack([columns, rows], dim=-1) + 0.5
    return camera, central(xy, size, center_fraction) if center_fraction < 1.0 else xy


def central(xy: Float[Tensor, "n 2"], sizes_hw: Int[Tensor, "n 2"], center_fraction: float) -> Float[Tensor, "n 2"]:
    """Pixels of whole images moved to the pixels at the same places of their central parts."""
    return (xy * center_fraction + sizes_hw.flip(-1) * (0.5 - 0.5 * center_fraction)).floor() + 0.5


def pixel_index(
    camera_index: Int[Tensor, "*rays"],
    xy: Float[Tensor, "*rays 2"],
    ends: Int[Tensor, "N"],
    sizes_hw: Int[Tensor, "N 2"],
) -> Int[Tensor, "*rays"]:
    """Where in a store the pixels are that `xy` falls into."""
    camera = camera_index.flatten()
    height, width = sizes_hw.index_select(0, camera).unbind(-1)
    columns, rows = xy.long().reshape(-1, 2).unbind(-1)
    return (ends.index_select(0, camera) + (rows - height) * width + columns).reshape(camera_index.shape)


def gather(
    rgba: UInt8[Tensor, "P 4"],
    ends: Int[Tensor, "N"],
    sizes_hw: Int[Tensor, "N 2"],
    camera_index: Int[Tensor, "*rays"],
    xy: Float[Tensor, "*rays 2"],
) -> tuple[Float[Tensor, "*rays 3"], Float[Tensor, "*rays 1"]]:
    """See `ops.pixel_rays.gather`."""
    index = pixel_index(camera_index, xy, ends, sizes_hw)
    values = rgba.index_select(0, index.flatten()).reshape(*index.shape, 4).float() / 255
    return values[..., :3], values[..., 3:]


def through_pixels(
    xy: Float[Tensor, "*rays 2"],
    camera_index: Int[Tensor, "*rays"],
    R: Float[Tensor, "B 3 3"],
    T: Float[Tensor, "B 3"],
    focal: Float[Tensor, "B 2"],
    principal_point: Float[Tensor, "B 2"],
) -> tuple[Float[Tensor, "*rays 3"], Float[Tensor, "*rays 3"]]:
    """See `ops.pixel_rays.through_pixels`."""
    plane = (xy - of_rays(principal_point, camera_index)) / of_rays(focal, camera_index)
    seen = torch.cat([plane, torch.ones_like(plane[..., :1])], dim=-1)
    directions = rotate(of_rays(R.mT.contiguous(), camera_index), seen)
    centers = -rotate(R.mT, T)
    return of_rays(centers, camera_index), torch.nn.functional.normalize(directions, dim=-1)


def of_rays(values: Float[Tensor, "B *value"], camera_index: Int[Tensor, "*rays"]) -> Float[Tensor, "..."]:
    """The values (*rays, *value) of each ray's view: what indexing gives, in a third of the time on the CPU."""
    chosen = values.index_select(0, camera_index.flatten())
    return chosen.reshape(*camera_index.shape, *values.shape[1:])
