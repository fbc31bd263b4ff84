"""FrameData: one batch of posed frames. PixelStore: every training pixel of a scene, on the device."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.ops.pixel_rays import gather, locate
from nerf_trainer.ops.reference.pixel_rays import central, pixel_index


@dataclass(frozen=True)
class PixelStore:
    """All pixels of N images, flat, so that images may differ in size. Straight (not premultiplied) alpha."""

    rgba: UInt8[Tensor, "P 4"]
    """Colours in the files' own colour space and alpha; alpha is 255 where an image has none."""
    ends: Int[Tensor, "N"]
    """One past the last pixel of each image: the running sum of the images' pixel counts."""
    sizes_hw: Int[Tensor, "N 2"]
    """Image sizes (height, width), on the store's device."""
    has_alpha: bool = True
    """Whether any image has an alpha channel; without, nothing is known of what is foreground."""
    drawable: Int[Tensor, "V"] | None = None
    """Which of the P pixels may be drawn, in rising order; None where all may."""

    @classmethod
    def from_images(
        cls,
        images: Sequence[UInt8[Tensor, "_ _ 4"]],
        device: torch.device | str = "cpu",
        has_alpha: bool = True,
        valid: Sequence[Bool[Tensor, "_ _"] | None] = (),
    ) -> "PixelStore":
        """Pack RGBA images, which may differ in size, in the order of their cameras.

        Args:
            valid: which pixels of each image may be drawn, None for all of it; () for all of all.

        Raises:
            ValueError: there are masks, and no pixel may be drawn.
        """
        sizes = torch.tensor([image.shape[:2] for image in images])
        rgba = torch.empty(int(sizes.prod(dim=1).sum()), 4, dtype=torch.uint8, device=device)
        ends = sizes.prod(dim=1).cumsum(dim=0)
        for image, end in zip(images, ends.tolist(), strict=True):
            flat = image.reshape(-1, 4)
            rgba[end - flat.shape[0] : end] = flat.to(device)
        drawable = drawable_pixels(valid, ends)
        return cls(
            rgba=rgba,
            ends=ends.to(device),
            sizes_hw=sizes.to(device),
            has_alpha=has_alpha,
            drawable=None if drawable is None else drawable.to(device),
        )

    @property
    def n_images(self) -> int:
        return self.ends.shape[0]

    @property
    def n_pixels(self) -> int:
        return self.rgba.shape[0]

    def to(self, device: torch.device | str) -> Self:
        drawable = None if self.drawable is None else self.drawable.to(device)
        rgba, ends, sizes_hw = self.rgba.to(device), self.ends.to(device), self.sizes_hw.to(device)
        return replace(self, rgba=rgba, ends=ends, sizes_hw=sizes_hw, drawable=drawable)

    def draw(
        self, n: int, generator: torch.Generator, center_fraction: float = 1.0
    ) -> tuple[Int[Tensor, "n"], Float[Tensor, "n 2"]]:
        """Draw pixels uniformly, with replacement, across all images; no read-back to the host.

        Args:
            center_fraction: restrict to the central part of each image, this fraction of its height and width. Where
                some pixels may not be drawn, a draw that would become one of these stays where it was before.

        Returns:
            camera index and pixel centre (x, y) of each draw.
        """
        if self.drawable is None:
            index = torch.randint(self.n_pixels, (n,), generator=generator, device=self.rgba.device)
            return locate(index, self.ends, self.sizes_hw, center_fraction)
        among = torch.randint(self.drawable.shape[0], (n,), generator=generator, device=self.rgba.device)
        index = self.drawable.index_select(0, among).long()
        camera, xy = locate(index, self.ends, self.sizes_hw)
        if center_fraction < 1.0:
            moved = central(xy, self.sizes_hw.index_select(0, camera), center_fraction)
            xy = torch.where(self._among(self.drawable, camera, moved)[:, None], moved, xy)
        return camera, xy

    def _among(
        self, places: Int[Tensor, "V"], camera_index: Int[Tensor, "n"], xy: Float[Tensor, "n 2"]
    ) -> Bool[Tensor, "n"]:
        """Whether pixels are at some of these places of the store, which are in rising order."""
        index = pixel_index(camera_index, xy, self.ends, self.sizes_hw).to(places.dtype)
        return places[torch.searchsorted(places, index).clamp(max=places.shape[0] - 1)] == index

    def gather(
        self, camera_index: Int[Tensor, "*rays"], xy: Float[Tensor, "*rays 2"]
    ) -> tuple[Float[Tensor, "*rays 3"], Float[Tensor, "*rays 1"] | None]:
        """Colours in [0, 1] (straight, not composited) and alpha in [0, 1] of the pixels that `xy` falls into.

        Alpha is None where no image has any.
        """
        rgb, alpha = gather(self.rgba, self.ends, self.sizes_hw, camera_index, xy)
        return rgb, alpha if self.has_alpha else None


def drawable_pixels(valid: Sequence[Bool[Tensor, "_ _"] | None], ends: Int[Tensor, "N"]) -> Int[Tensor, "V"] | None:
    """The places in a `PixelStore` of the pixels that masks leave, in host memory; None where there is no mask.

    Args:
        valid: a mask for each image, None for all of it.
        ends: one past each image's last pixel.

    Raises:
        ValueError: there are masks, and they leave nothing.
    """
    if all(mask is None for mask in valid):
        return None
    starts = [0, *ends.tolist()]
    dtype = torch.int32 if starts[-1] < 2**31 else torch.int64
    parts = [
        torch.arange(start, end, dtype=dtype) if mask is None else (mask.flatten().nonzero()[:, 0] + start).to(dtype)
        for mask, start, end in zip(valid, starts[:-1], starts[1:], strict=True)
    ]
    drawable = torch.cat(parts)
    if len(drawable) == 0:
        raise ValueError("the masks leave no pixel to draw")
    return drawable


@dataclass(frozen=True)
class PointCloud:
    """Points on the surfaces of a scene, in host memory."""

    points: Float[Tensor, "P 3"]
    """World coordinates."""
    colors: UInt8[Tensor, "P 3"] | None = None
    """Their colours, where they are known."""


@dataclass(frozen=True)
class FrameContents:
    """What the batches of a split may hold besides cameras."""

    image_rgb: bool = True
    """Colours."""
    fg_probability: bool = True
    """What is foreground, for some frames at least."""
    depth_map: bool = True
    """Depth, for some frames at least."""
    mask_crop: bool = False
    """Which pixels count, for some frames at least."""
    is_resident: bool = False
    """Whether a batch is a whole scene as a `PixelStore`."""
    sequence_names: tuple[str, ...] = ()
    """The distinct sequences of the frames, in evaluation of the targets, sorted; the same on every rank."""
    fewest_source_views: int | None = None
    """Fewest views of its own sequence that the target, a batch's first frame, has beside it in any batch; None where
    that is not known."""


@dataclass(frozen=True)
class FrameData:
    """A batch of B posed frames of one or more sequences.

    Images come as tensors, or, for a scene that stays on the device, as a `PixelStore` that holds them all.
    """

    cameras: Cameras
    """The frames' views."""
    image_rgb: Float[Tensor, "B 3 H W"] | None = None
    """Colours in [0, 1], the file's own colour space, straight (not composited on any background)."""
    fg_probability: Float[Tensor, "B 1 H W"] | None = None
    """How much of the pixel is foreground, in [0, 1]: an alpha channel or a mask file."""
    mask_crop: Float[Tensor, "B 1 H W"] | None = None
    """1 where a pixel counts; 0 where it was padded to a common size, or a mask says not to use it."""
    depth_map: Float[Tensor, "B 1 H W"] | None = None
    """Depth along the view axis, world units; 0 where unknown."""
    depth_mask: Float[Tensor, "B 1 H W"] | None = None
    """1 where depth_map can be trusted."""
    pixels: PixelStore | None = None
    """All pixels of all frames, instead of images."""
    sequence_name: tuple[str, ...] = ()
    """The sequence each frame belongs to."""
    frame_number: tuple[int, ...] = ()
    """Each frame's number, unique within its split's file (in a dataset of sequences, within its sequence). In test
    splits a target and a source view may bear the same number; the image path tells them apart."""
    frame_type: tuple[str, ...] = ()
    """known or unseen (CO3D's words for what may and may not be trained on)."""
    frame_timestamp: Float[Tensor, "B"] | None = None
    """Time since the sequence began, in the dataset's unit: seconds, or 1 for its whole length."""
    image_path: tuple[str, ...] = ()
    """Where each image came from, for reports."""
    sequence_category: tuple[str, ...] = ()
    """The kind of object that each frame's sequence shows, where the dataset says so."""
    point_cloud: tuple[PointCloud | None, ...] = ()
    """The points of each frame's sequence, where they were asked for; None for one without. They stay on the host."""

    def __len__(self) -> int:
        return len(self.cameras)

    def __getitem__(self, index: slice) -> Self:
        """Some of the frames. Resident pixels stay whole: they belong to the scene, not to the batch."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "pixels"}
        return replace(self, **{name: value[index] for name, value in values.items() if value is not None})

    def select(self, indices: Sequence[int]) -> Self:
        """The frames of these numbers, in this order; images must be in host memory. Resident pixels stay whole."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "pixels"}
        chosen = {
            name: value[list(indices)] if isinstance(value, Tensor | Cameras) else tuple(value[i] for i in indices)
            for name, value in values.items()
            if value is not None and len(value) > 0
        }
        return replace(self, **chosen)

    def to(self, device: torch.device | str) -> Self:
        """The same frames on `device`."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        movable = {n: v.to(device) for n, v in values.items() if isinstance(v, Tensor | Cameras | PixelStore)}
        return replace(self, **movable)

    @classmethod
    def collate(cls, frames: Sequence["FrameData"]) -> "FrameData":
        """One batch out of single frames of the same size; what any of them lacks, the batch lacks.

        Depth and mask_crop are the exceptions, for source views seldom have what targets have: where others have
        depth, it is 0, unknown; where others have mask_crop, it is 1, every pixel counts.
        """
        batch: dict[str, object] = {}
        for f in fields(cls):
            values = [getattr(frame, f.name) for frame in frames]
            if f.name in ("depth_map", "depth_mask"):
                values = _filled(values, 0.0)
            if f.name == "mask_crop":
                values = _filled(values, 1.0)
            if any(v is None for v in values) or f.name == "pixels":
                batch[f.name] = None
            elif isinstance(values[0], Cameras):
                batch[f.name] = Cameras.cat(values)
            elif isinstance(values[0], Tensor):
                batch[f.name] = torch.cat(values)
            else:
                batch[f.name] = sum(values, ())
        return cls(**batch)  # type: ignore[arg-type]


def _filled(maps: list[Any], value: float) -> list[Any]:
    """`value` everywhere in the place of maps that are None, if any is there to tell the size."""
    there = next((m for m in maps if m is not None), None)
    return maps if there is None else [torch.full_like(there, value) if m is None else m for m in maps]
