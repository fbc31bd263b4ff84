"""Frames of a dataset in CO3D's format: decoded, masked, cropped and resized as its options say."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from nerf_trainer.config import Configurable
from nerf_trainer.data.co3d.annotations import FrameAnnotation
from nerf_trainer.data.co3d.shaping import Box, Window, mask_box, shape_colors, shape_map, window
from nerf_trainer.data.files import resolve_inside, shown
from nerf_trainer.data.images import MAX_MEGAPIXELS, read_depth, read_header, read_mask, read_rgba
from nerf_trainer.errors import ConfigError, DataError

_DECIDED = 127
"""A mask's byte above it is inside where that must be decided."""


class FrameShaping(Configurable):
    """What is read of each frame, and how it is masked, cropped and resized."""

    load_images: bool = True
    """Read colours."""
    load_depths: bool = True
    """Read depth maps, where there are any."""
    load_depth_masks: bool = True
    """Read which depths can be trusted, where that is told; otherwise all that are known are."""
    load_masks: bool = True
    """Read foreground masks; the alpha of an image stands in for a mask that there is not."""
    load_point_clouds: bool = False
    """Read the point clouds of the frames' sequences (extra `mesh`)."""
    max_points: int = 0
    """Points kept of a point cloud, drawn at random; 0 for all."""
    mask_images: bool = False
    """Multiply the colours by the foreground probability."""
    mask_depths: bool = False
    """Forget the depth of what is not foreground (a probability of at most 0.5)."""
    image_height: int | None = 800
    """Height of frames, pixels; with a width. What is shown keeps its aspect and fills the frame from the top left."""
    image_width: int | None = 800
    """Width of frames, pixels; null for either keeps the crops' own sizes."""
    box_crop: bool = True
    """Crop around the foreground: the annotation's bounding box, or that of the mask."""
    box_crop_mask_thr: float = 0.4
    """Foreground probability above which a pixel is in the mask's box; lowered where no pixel is."""
    box_crop_context: float = 0.3
    """By what part of its size the box is widened, half of it on each side."""
    max_megapixels: float = MAX_MEGAPIXELS
    """Largest image accepted, in millions of pixels; checked before it is decoded."""
    allow_external: bool = False
    """Accept files outside of dataset_root, as links or by their paths."""

    def __post_init__(self) -> None:
        for name, side in (("image_height", self.image_height), ("image_width", self.image_width)):
            if side is not None and side < 1:
                raise ConfigError(f"{name}: found {side}, expected a size in pixels, or null for the crops' own sizes")
        if not 0.0 <= self.box_crop_mask_thr < 1.0:
            raise ConfigError(f"box_crop_mask_thr: found {self.box_crop_mask_thr}, expected at least 0 and below 1")
        if not 0.0 <= self.box_crop_context <= 100.0:
            raise ConfigError(f"box_crop_context: found {self.box_crop_context}, expected between 0 and 100")
        if self.max_points < 0:
            raise ConfigError(f"max_points: found {self.max_points}, expected a number of points, or 0 for all")
        masking = {"mask_images": self.mask_images, "mask_depths": self.mask_depths}
        for name in [name for name, wanted in masking.items() if wanted and not self.load_masks]:
            raise ConfigError(f"{name}: found true with load_masks: false, expected masks to be loaded; set it to true")

    @property
    def frame_hw(self) -> tuple[int, int] | None:
        """The size of all frames; None where each has its own."""
        if self.image_height is None or self.image_width is None:
            return None
        return self.image_height, self.image_width


@dataclass(frozen=True)
class ShapedFrame:
    """What is read of one frame."""

    rgb: UInt8[Tensor, "3 H W"] | None
    """Colours."""
    foreground: UInt8[Tensor, "H W"] | None
    """Foreground probability times 255."""
    depth: Float[Tensor, "H W"] | None
    """Depth along the view axis, world units; 0 where unknown."""
    depth_mask: Bool[Tensor, "H W"] | None
    """Where the depth can be trusted."""


@dataclass(frozen=True)
class FrameReader:
    """Reads frames from their files."""

    shaping: FrameShaping
    """What is read, and how it is shaped."""
    root: Path
    """The folder that the annotations' paths are relative to."""
    index: str
    """The file of the annotations, for messages."""

    def path(self, frame: FrameAnnotation, relative: str, kind: str) -> Path:
        """Where a file of a frame is.

        Raises:
            DataError: it lies outside of the root.
        """
        return resolve_inside(self.root, relative, self.where(frame, kind), self.shaping.allow_external)

    def where(self, frame: FrameAnnotation, kind: str) -> str:
        """A frame and what of it, for messages."""
        return f"{shown(self.index)}: {kind} of frame {frame.frame_number} of {shown(frame.sequence_name)[:60]}"

    def needs_mask(self, frame: FrameAnnotation) -> bool:
        """Whether the frame's window is known only once its mask is decoded."""
        return self.shaping.box_crop and (frame.mask is None or frame.mask.bounding_box_xywh is None)

    def window(self, frame: FrameAnnotation) -> Window:
        """Which part of its image a frame shows; decodes the mask where the annotation has no box.

        Raises:
            DataError: there is no mask either, it is damaged, or the box lies outside of the image.
        """
        return self._window(frame, self._foreground(frame, None) if self.needs_mask(frame) else None)

    def read(self, frame: FrameAnnotation) -> tuple[ShapedFrame, Window]:
        """Decode a frame.

        Raises:
            DataError: a file is missing, damaged, too large or of another size than the annotation says.
        """
        options = self.shaping
        image = self._image(frame) if options.load_images else None
        wants_mask = options.load_masks or self.needs_mask(frame)
        mask = self._foreground(frame, image) if wants_mask else None
        through = self._window(frame, mask)
        rgb, foreground = None, mask if options.load_masks else None
        if image is not None:
            colors = image[..., :3]
            if options.mask_images:
                colors = _times(colors, self._required(frame, foreground, "mask_images"))
            rgb = shape_colors(colors.permute(2, 0, 1), through)
        shaped = None if foreground is None else shape_map(foreground, through)
        depth, depth_mask = self._depth(frame, shaped, through)
        return ShapedFrame(rgb, shaped, depth, depth_mask), through

    def _window(self, frame: FrameAnnotation, mask: UInt8[Tensor, "H W"] | None) -> Window:
        options = self.shaping
        box = self._box(frame, mask) if options.box_crop else None
        try:
            return window(frame.image.size, box, options.box_crop_context, options.frame_hw)
        except ValueError as error:
            height, width = frame.image.size
            raise DataError(
                f"{self.where(frame, 'mask.bounding_box_xywh')}: found {box}, expected a box within the image of"
                f" {width}x{height} pixels (width x height); fix the annotation or set box_crop=false"
            ) from error

    def _box(self, frame: FrameAnnotation, mask: UInt8[Tensor, "H W"] | None) -> Box:
        annotated = None if frame.mask is None else frame.mask.bounding_box_xywh
        if annotated is not None:
            return annotated
        return mask_box(self._required(frame, mask, "box_crop"), self.shaping.box_crop_mask_thr)

    def _required(self, frame: FrameAnnotation, mask: UInt8[Tensor, "H W"] | None, option: str) -> UInt8[Tensor, "H W"]:
        if mask is None:
            raise DataError(
                f"{self.where(frame, 'mask')}: found neither a mask nor an image with alpha, expected one for {option};"
                f" set {option}=false"
            )
        return mask

    def _image(self, frame: FrameAnnotation) -> UInt8[Tensor, "H W 4"]:
        path = self.path(frame, frame.image.path, "image")
        pixels = read_rgba(path, self.where(frame, "image"), self.shaping.max_megapixels)
        self._check_size(frame, tuple(pixels.shape[:2]), path, "image")
        return pixels

    def _foreground(self, frame: FrameAnnotation, image: UInt8[Tensor, "H W 4"] | None) -> UInt8[Tensor, "H W"] | None:
        """The mask's probabilities times 255, or the image's alpha if it has one."""
        if frame.mask is not None:
            path = self.path(frame, frame.mask.path, "mask")
            mask = read_mask(path, self.where(frame, "mask"), self.shaping.max_megapixels)
            self._check_size(frame, tuple(mask.shape), path, "mask")
            return mask
        if not self.has_alpha(frame):
            return None
        return (self._image(frame) if image is None else image)[..., 3]

    def has_alpha(self, frame: FrameAnnotation) -> bool:
        """Whether the frame's image has an alpha channel; looks at its header."""
        path = self.path(frame, frame.image.path, "image")
        return read_header(path, self.where(frame, "image"), self.shaping.max_megapixels).has_alpha

    def _depth(
        self, frame: FrameAnnotation, foreground: UInt8[Tensor, "H W"] | None, through: Window
    ) -> tuple[Float[Tensor, "H W"] | None, Bool[Tensor, "H W"] | None]:
        options, annotation = self.shaping, frame.depth
        if not options.load_depths or annotation is None:
            return None, None
        where = self.where(frame, "depth")
        path = self.path(frame, annotation.path, "depth")
        depth = half_float_depth(path, annotation.scale_adjustment, where, options.max_megapixels)
        depth = shape_map(depth, through)
        if options.mask_depths:
            depth = depth * (self._required(frame, foreground, "mask_depths") > _DECIDED)
        if annotation.mask_path is None or not options.load_depth_masks:
            return depth, depth > 0
        mask_path = self.path(frame, annotation.mask_path, "depth mask")
        trusted = read_mask(mask_path, self.where(frame, "depth mask"), options.max_megapixels)
        return depth, (shape_map(trusted, through) > 0) & (depth > 0)

    def _check_size(self, frame: FrameAnnotation, found: tuple[int, ...], path: Path, kind: str) -> None:
        if found != frame.image.size:
            height, width = frame.image.size
            raise DataError(
                f"{self.where(frame, kind)}: found {found[1]}x{found[0]} pixels (width x height) at {shown(path)},"
                f" expected {width}x{height} as image.size says; restore the file"
            )


def half_float_depth(path: Path, scale: float, where: str, max_megapixels: float) -> Float[Tensor, "H W"]:
    """A depth map as CO3D stores it: a 16-bit PNG whose values are the bit patterns of half-precision floats.

    Args:
        path: the file.
        scale: world units of one stored unit.
        where: what it is, for messages.
        max_megapixels: largest image accepted, in millions of pixels.

    Returns:
        depth in world units; 0 where it is not positive or not finite, which is unknown.

    Raises:
        DataError: as `images.read_depth`.
    """
    bits = read_depth(path, 1.0, where, max_megapixels).numpy()
    if bits.max(initial=0.0) > np.iinfo(np.uint16).max:
        raise DataError(f"{where}: found values beyond 16 bits in {shown(path)}, expected 16-bit grey; export it again")
    depth = torch.from_numpy(bits.astype(np.uint16).view(np.float16).astype(np.float32)) * scale
    return torch.where((depth > 0) & torch.isfinite(depth), depth, 0.0)


def _times(colors: UInt8[Tensor, "H W 3"], mask: UInt8[Tensor, "H W"]) -> UInt8[Tensor, "H W 3"]:
    """Colours times probability, rounded."""
    return (colors.float() * (mask[..., None].float() / 255)).round().to(torch.uint8)
