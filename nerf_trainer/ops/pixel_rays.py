"""From drawn numbers to pixels, their colours and the rays through them, each in one kernel.

Images of different sizes lie one behind the other in a row of P pixels: `ends` (N) is one past the last pixel of each,
`sizes_hw` (N 2) their heights and widths. Pixel centres are at +0.5, pixels are (x, y).
"""

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from nerf_trainer.ops.backend import uses_triton
from nerf_trainer.ops.reference import pixel_rays as reference


def locate(
    index: Int[Tensor, "n"], ends: Int[Tensor, "N"], sizes_hw: Int[Tensor, "N 2"], center_fraction: float = 1.0
) -> tuple[Int[Tensor, "n"], Float[Tensor, "n 2"]]:
    """The image and the pixel centre of places in the row.

    Args:
        index: places, at least 0 and below P.
        center_fraction: below 1, the pixel moves to the same place of its image's central part, which has this fraction
            of the height and the width.
    """
    if not uses_triton(index):
        return reference.locate(index, ends, sizes_hw, center_fraction)
    from nerf_trainer.ops.kernels import pixel_rays as kernels

    return kernels.locate(index, ends, sizes_hw, center_fraction)


def gather(
    rgba: UInt8[Tensor, "P 4"],
    ends: Int[Tensor, "N"],
    sizes_hw: Int[Tensor, "N 2"],
    camera_index: Int[Tensor, "*rays"],
    xy: Float[Tensor, "*rays 2"],
) -> tuple[Float[Tensor, "*rays 3"], Float[Tensor, "*rays 1"]]:
    """Colours and alpha, in [0, 1], of the pixels that `xy` falls into."""
    if not uses_triton(rgba):
        return reference.gather(rgba, ends, sizes_hw, camera_index, xy)
    from nerf_trainer.ops.kernels import pixel_rays as kernels

    rgb, alpha = kernels.gather(rgba, ends, sizes_hw, camera_index.reshape(-1), xy.reshape(-1, 2))
    return rgb.reshape(*camera_index.shape, 3), alpha.reshape(*camera_index.shape, 1)


def through_pixels(
    xy: Float[Tensor, "*rays 2"],
    camera_index: Int[Tensor, "*rays"],
    R: Float[Tensor, "B 3 3"],
    T: Float[Tensor, "B 3"],
    focal: Float[Tensor, "B 2"],
    principal_point: Float[Tensor, "B 2"],
) -> tuple[Float[Tensor, "*rays 3"], Float[Tensor, "*rays 3"]]:
    """Rays of pinhole views through pixels: origins (the camera centres) and unit directions, both in the world.

    Cameras are as in `cameras.cameras`: X_camera = R X_world + T, focal lengths and principal points in pixels. The
    kernel is for float32 and cameras that need no gradient.
    """
    given = (xy, R, T, focal, principal_point)
    is_plain = all(tensor.dtype is torch.float32 and not tensor.requires_grad for tensor in given)
    if not (uses_triton(xy) and is_plain):
        return reference.through_pixels(xy, camera_index, R, T, focal, principal_point)
    from nerf_trainer.ops.kernels import pixel_rays as kernels

    origins, directions = kernels.through_pixels(
        xy.reshape(-1, 2), camera_index.reshape(-1), R, T, focal, principal_point
    )
    return origins.reshape(*camera_index.shape, 3), directions.reshape(*camera_index.shape, 3)
