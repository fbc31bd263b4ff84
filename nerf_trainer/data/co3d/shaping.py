"""From a photograph to the frame that a dataset shows: cropped around the object, resized, pasted into a canvas.

A crop is a box of whole pixels. It is resized, keeping its aspect, to the largest size that fits the canvas, and pasted
at the canvas's top left; what is left is padding, which `mask_crop` tells. Pixel positions count from the image's
corner (centres at +0.5), so that a crop moves them by its left and top and a resize multiplies them by the ratio of the
sizes, per axis and exactly, and the camera with them:

    x' = (x - left) w' / w    hence    f' = f w' / w    and    c' = (c - left) w' / w

How the box is found follows the dataset's reference loader: widened by a part of its size, cut to the image, rounded.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int, Shaped, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from nerf_trainer.cameras.cameras import Cameras

THRESHOLD_STEP = 0.05
"""By how much the threshold of a mask's box is lowered until enough of it is inside."""

Box = tuple[float, float, float, float]
"""Left, top, width and height in pixels of an image."""


@dataclass(frozen=True)
class Window:
    """Which part of an image a frame shows, and where."""

    source_hw: tuple[int, int]
    """The image's size."""
    left_top: tuple[int, int]
    """The crop's first column and row."""
    crop_hw: tuple[int, int]
    """The crop's size, in pixels of the image."""
    content_hw: tuple[int, int]
    """The size that the crop is resized to."""
    frame_hw: tuple[int, int]
    """The frame's size; beyond the content it is padding."""

    @property
    def valid(self) -> Bool[Tensor, "H W"]:
        """Where the frame holds real pixels."""
        inside = torch.zeros(self.frame_hw, dtype=torch.bool)
        inside[: self.content_hw[0], : self.content_hw[1]] = True
        return inside


def window(source_hw: tuple[int, int], box: Box | None, context: float, frame_hw: tuple[int, int] | None) -> Window:
    """The window of an image.

    Args:
        source_hw: the image's size.
        box: what to crop around; None for the whole image.
        context: by what part of its size the box is widened, half of it on each side.
        frame_hw: the size of the frame to paste into; None keeps the crop's own size.

    Raises:
        ValueError: the box is empty or lies outside of the image.
    """
    (left, top), crop_hw = ((0, 0), source_hw) if box is None else _cropped(box, context, source_hw)
    content_hw = crop_hw if frame_hw is None else _fitted(crop_hw, frame_hw)
    return Window(source_hw, (left, top), crop_hw, content_hw, frame_hw or content_hw)


def mask_box(mask: UInt8[Tensor, "H W"], threshold: float) -> Box:
    """The box around what a mask has above a probability; the whole image for a mask without foreground.

    The threshold is lowered in steps of 0.05, down to 0, until more than one pixel is above it.

    Args:
        mask: probability of foreground times 255.
    """
    for n in range(max(0, round(threshold / THRESHOLD_STEP)) + 1):
        inside = mask > 255 * max(0.0, threshold - n * THRESHOLD_STEP)
        rows, columns = inside.any(dim=1).nonzero()[:, 0], inside.any(dim=0).nonzero()[:, 0]
        if int(inside.sum()) > 1:
            left, top = int(columns[0]), int(rows[0])
            return left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top
    return 0, 0, mask.shape[1], mask.shape[0]


def seen_through(cameras: Cameras, windows: Sequence[Window]) -> Cameras:
    """The views of frames, from those of the whole images."""
    left_top = torch.tensor([w.left_top for w in windows], dtype=torch.float64)
    crop_hw = torch.tensor([w.crop_hw for w in windows], dtype=torch.float64)
    scale = (torch.tensor([w.content_hw for w in windows], dtype=torch.float64) / crop_hw).flip(-1)
    return replace(
        cameras,
        focal=(cameras.focal.double() * scale).float(),
        principal_point=((cameras.principal_point.double() - left_top) * scale).float(),
        image_size_hw=torch.tensor([w.frame_hw for w in windows]),
    )


def shape_colors(colors: UInt8[Tensor, "C H W"], through: Window) -> UInt8[Tensor, "C h w"]:
    """Colours of a frame: bilinear, over the whole footprint of a pixel where they are made smaller; padding is 0."""
    (left, top), (height, width) = through.left_top, through.crop_hw
    content = colors[:, top : top + height, left : left + width]
    if through.content_hw != through.crop_hw:
        content = interpolate(content[None], through.content_hw, mode="bilinear", antialias=True)[0]
    return _pasted(content, through)


def shape_map(values: Shaped[Tensor, "H W"], through: Window) -> Shaped[Tensor, "h w"]:
    """A mask or depth of a frame: each pixel has the value at its centre; padding is 0.

    The map may have another size than the image, and spans the same field of view.
    """
    rows, columns = (
        _nearest(through.left_top[1 - a], through.crop_hw[a], through.content_hw[a], through.source_hw[a], size)
        for a, size in enumerate(values.shape)
    )
    return _pasted(values[rows][:, columns][None], through)[0]


def _nearest(start: int, crop: int, content: int, source: int, size: int) -> Int[Tensor, "n"]:
    """Which of a map's rows each row of the content has in its middle, in whole numbers.

    The middle of row i lies at y = start + (i + 1/2) crop / content in the image, in row floor(y size / source).
    """
    doubled = (2 * torch.arange(content) + 1) * crop + 2 * content * start
    return doubled * size // (2 * content * source)


def _pasted(content: Shaped[Tensor, "C h w"], through: Window) -> Shaped[Tensor, "C H W"]:
    if through.frame_hw == through.content_hw:
        return content.contiguous()
    frame = torch.zeros(content.shape[0], *through.frame_hw, dtype=content.dtype)
    frame[:, : through.content_hw[0], : through.content_hw[1]] = content
    return frame


def _cropped(box: Box, context: float, size_hw: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """First column and row, and height and width, of a box widened, cut to the image and rounded."""
    bounds = []
    for start, side, size in zip(box[:2], box[2:], size_hw[::-1], strict=True):
        first, last = start - side * context / 2, start + side * (1 + context / 2)
        if not (math.isfinite(first) and math.isfinite(last) and side > 0 and start < size and start + side > 0):
            raise ValueError("the box is empty or lies outside of the image")
        begin = min(round(max(0.0, first)), size - 1)
        bounds.append((begin, max(begin + 1, round(min(float(size), last)))))
    (left, right), (top, bottom) = bounds
    return (left, top), (bottom - top, right - left)


def _fitted(crop_hw: tuple[int, int], frame_hw: tuple[int, int]) -> tuple[int, int]:
    """The largest size of the crop's aspect within the frame, rounded down, at least 1 pixel."""
    (height, width), (most_h, most_w) = crop_hw, frame_hw
    if height * most_w >= width * most_h:  # as high as the frame
        return most_h, max(1, width * most_h // height)
    return max(1, height * most_w // width), most_w
