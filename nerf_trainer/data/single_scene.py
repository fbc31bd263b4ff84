"""One scene: posed images in files, decoded when asked for."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.data.images import (
    MAX_MEGAPIXELS,
    downscale_depth,
    downscale_rgba,
    read_depth,
    read_mask,
    read_rgba,
)
from nerf_trainer.data.splits import KNOWN, DatasetBase
from nerf_trainer.errors import DataError
from nerf_trainer.frames import FrameContents, FrameData
from nerf_trainer.randomness import derive_seed

SINGLE_SEQUENCE = "one_sequence"
"""The sequence name of every frame of a single scene."""


class MaskRole(Enum):
    """What a mask file says of its image."""

    FOREGROUND = "foreground"
    """What belongs to the object: the mask takes the place of the image's alpha."""
    VALID = "valid"
    """Which pixels may be used: the others (people who walk by, the edge of a fisheye) are neither drawn nor scored."""
    IGNORE = "ignore"
    """Nothing: masks are not read."""


@dataclass(frozen=True)
class SceneFrame:
    """Where the pixels of one frame of a single scene are."""

    path: Path
    """The image file."""
    number: int
    """The frame's number, unique within its split's file. Source views of test targets come from another file and may
    bear the same numbers; the path tells them apart."""
    has_alpha: bool
    """Whether the file's alpha says what is foreground."""
    frame_type: str = KNOWN
    """`known` or `unseen`."""
    mask_path: Path | None = None
    """A mask of the image's size, white inside, where there is one."""
    depth_path: Path | None = None
    """A 16-bit depth image of the same size, where there is one."""
    depth_scale: float = 1.0
    """World units of one step of the depth image."""
    timestamp: float | None = None
    """Time since the sequence began, in the dataset's unit, where it is known."""


class SingleSceneDataset(DatasetBase):
    """Frames of one scene, decoded when asked for and then kept, where they all fit a budget.

    Args:
        frames: where the pixels are.
        cameras: the views of the same frames, for the size after downscaling.
        downscale_factor: average blocks of this many pixels squared.
        eval_batches: what `get_eval_batches` gives.
        max_megapixels: largest image file that is decoded, in millions of pixels.
        cache_bytes: decoded images are kept if all of them take no more than this.
        mask_role: what the frames' mask files mean.
    """

    def __init__(
        self,
        frames: Sequence[SceneFrame],
        cameras: Cameras,
        downscale_factor: int = 1,
        eval_batches: list[list[int]] | None = None,
        max_megapixels: float = MAX_MEGAPIXELS,
        cache_bytes: int = 2 * 2**30,
        mask_role: MaskRole = MaskRole.FOREGROUND,
    ) -> None:
        if len(frames) != len(cameras):
            raise ValueError(f"{len(frames)} frames but {len(cameras)} cameras")
        self._frames = tuple(frames)
        self._cameras = cameras
        self._downscale_factor = downscale_factor
        self._eval_batches = eval_batches
        self._max_megapixels = max_megapixels
        self._cache_bytes = cache_bytes
        self._mask_role = mask_role
        self._has_valid = mask_role is MaskRole.VALID and any(frame.mask_path for frame in frames)
        has_depth = any(frame.depth_path is not None for frame in frames)
        self._keep = (8 if has_depth else 4) * self.n_pixels <= cache_bytes
        self._kept: dict[int, UInt8[Tensor, "H W 4"]] = {}
        self._kept_depths: dict[int, Float[Tensor, "H W"]] = {}

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> FrameData:
        frame, camera = self._frames[index], self._cameras[index]
        rgba = self.rgba(index)
        depth, valid = self._depth(index), self.valid(index)
        if self._keep:
            self._kept[index] = rgba
            if depth is not None:
                self._kept_depths[index] = depth
        channels = rgba.permute(2, 0, 1)[None].float() / 255
        return FrameData(
            cameras=camera,
            image_rgb=channels[:, :3],
            fg_probability=channels[:, 3:] if self._has_foreground(frame) else None,
            mask_crop=None if valid is None else valid[None, None].float(),
            depth_map=None if depth is None else depth[None, None],
            depth_mask=None if depth is None else (depth[None, None] > 0).float(),
            sequence_name=(SINGLE_SEQUENCE,),
            frame_number=(frame.number,),
            frame_type=(frame.frame_type,),
            frame_timestamp=None if frame.timestamp is None else torch.tensor([frame.timestamp], dtype=torch.float32),
            image_path=(str(frame.path),),
        )

    def rgba(self, index: int) -> UInt8[Tensor, "H W 4"]:
        if index in self._kept:
            return self._kept[index]
        frame = self._frames[index]
        image = read_rgba(frame.path, f"frame {frame.number}", self._max_megapixels)
        if frame.mask_path is not None and self._mask_role is MaskRole.FOREGROUND:
            image[..., 3] = self._mask(frame.mask_path, frame.number, image)
        image = downscale_rgba(image, self._downscale_factor)
        self._check_size(index, image, frame.path)
        return image

    def valid(self, index: int) -> Bool[Tensor, "H W"] | None:
        if not self._has_valid:
            return None
        frame, factor = self._frames[index], self._downscale_factor
        height, width = self._cameras.image_size_hw[index].tolist()
        if frame.mask_path is None:
            return torch.ones(height, width, dtype=torch.bool)
        mask = self._mask(frame.mask_path, frame.number, torch.empty(height * factor, width * factor))
        blocks = mask[: height * factor, : width * factor].reshape(height, factor, width, factor)
        return (blocks > 127).all(dim=3).all(dim=1)

    def _mask(self, path: Path, number: int, image: Tensor) -> UInt8[Tensor, "H W"]:
        """A mask, which must be of the image's size (cut rows and columns apart)."""
        mask = read_mask(path, f"mask of frame {number}", self._max_megapixels)
        spare = self._downscale_factor - 1
        if any(not 0 <= found - expected <= spare for found, expected in zip(mask.shape, image.shape[:2], strict=True)):
            raise DataError(
                f"{path}: found a mask of {mask.shape[1]}x{mask.shape[0]} pixels (width x height), expected"
                f" {image.shape[1]}x{image.shape[0]} as frame {number} has; export it again"
            )
        return mask

    def _has_foreground(self, frame: SceneFrame) -> bool:
        masked = frame.mask_path is not None and self._mask_role is MaskRole.FOREGROUND
        return frame.has_alpha or masked

    def _depth(self, index: int) -> Float[Tensor, "H W"] | None:
        if index in self._kept_depths:
            return self._kept_depths[index]
        frame = self._frames[index]
        if frame.depth_path is None:
            return None
        where = f"depth of frame {frame.number}"
        depth = read_depth(frame.depth_path, frame.depth_scale, where, self._max_megapixels)
        depth = downscale_depth(depth, self._downscale_factor)
        self._check_size(index, depth, frame.depth_path)
        return depth

    def _check_size(self, index: int, image: Tensor, path: Path) -> None:
        """Refuse an image that is not of its camera's size."""
        height, width = self._cameras.image_size_hw[index].tolist()
        if tuple(image.shape[:2]) != (height, width):
            raise DataError(
                f"{path}: found {image.shape[1]}x{image.shape[0]} pixels (width x height), expected {width}x{height}; "
                "do not change a dataset while it is read, and render depth at the images' size"
            )

    def cameras(self) -> Cameras:
        return self._cameras

    @property
    def frame_sequences(self) -> tuple[str, ...]:
        return (SINGLE_SEQUENCE,) * len(self)

    @property
    def frame_numbers(self) -> tuple[int, ...]:
        return tuple(frame.number for frame in self._frames)

    @property
    def frame_types(self) -> tuple[str, ...]:
        return tuple(frame.frame_type for frame in self._frames)

    @property
    def image_paths(self) -> tuple[str, ...]:
        return tuple(str(frame.path) for frame in self._frames)

    @property
    def frame_timestamps(self) -> tuple[float, ...] | None:
        times = tuple(frame.timestamp for frame in self._frames if frame.timestamp is not None)
        return times if len(times) == len(self) else None

    @property
    def contents(self) -> FrameContents:
        return FrameContents(
            fg_probability=any(self._has_foreground(frame) for frame in self._frames),
            depth_map=any(frame.depth_path is not None for frame in self._frames),
            mask_crop=self._has_valid,
            sequence_names=tuple(sorted(self.sequence_names)),
        )

    def get_eval_batches(self) -> list[list[int]] | None:
        return self._eval_batches

    def with_known_frames(self, known: "SingleSceneDataset", n_known: int | None) -> "SingleSceneDataset":
        """These frames as evaluation targets, with `n_known` frames of `known` as source views of each.

        Which ones depends on the target's number alone, and a smaller `n_known` takes the first of the same order.
        With None each target is evaluated by itself.
        """
        batches = batches_with_known(self.frame_numbers, len(known), n_known)
        if n_known is None:
            return self._with(self._frames, self._cameras, batches)
        sources = [replace(frame, frame_type=KNOWN) for frame in known._frames]
        return self._with([*self._frames, *sources], Cameras.cat([self._cameras, known._cameras]), batches)

    def subset(self, indices: Sequence[int], frame_type: str) -> "SingleSceneDataset":
        """Some of the frames, in the order given and of this type; what evaluation batches there were is dropped."""
        frames = [_of_type(self._frames[i], frame_type) for i in indices]
        return self._with(frames, self._cameras[list(indices)], None)

    def _with(
        self, frames: Sequence[SceneFrame], cameras: Cameras, eval_batches: list[list[int]] | None
    ) -> "SingleSceneDataset":
        return SingleSceneDataset(
            frames,
            cameras,
            self._downscale_factor,
            eval_batches,
            self._max_megapixels,
            self._cache_bytes,
            self._mask_role,
        )


def _of_type(frame: SceneFrame, frame_type: str) -> SceneFrame:
    return frame if frame.frame_type == frame_type else replace(frame, frame_type=frame_type)


def batches_with_known(numbers: Sequence[int], n_frames: int, n_known: int | None) -> list[list[int]]:
    """Evaluation batches: each target, and after it the first `n_known` of the known frames in an order of its own.

    The order depends on the target's number alone.

    Args:
        numbers: the targets' numbers.
        n_frames: how many known frames there are; they follow the targets, so that theirs are the indices from
            len(numbers) on.
        n_known: how many of them each target comes with; None for none.
    """
    if not n_known:
        return [[i] for i in range(len(numbers))]
    batches = []
    for i, number in enumerate(numbers):
        generator = torch.Generator().manual_seed(derive_seed(0, "known frames", number))
        order = torch.randperm(n_frames, generator=generator)[:n_known]
        batches.append([i, *(order + len(numbers)).tolist()])
    return batches


class NumberedViewsDataset(DatasetBase):
    """Some of a scene's numbered views, as a split; where their pixels are is the subclass's.

    Args:
        cameras: all views of the scene.
        names: what stands for the path of each.
        indices: which of them the split has; these are the frames' numbers.
        frame_types: `known` or `unseen`, for each of the split's.
        eval_batches: what `get_eval_batches` gives.
    """

    def __init__(
        self,
        cameras: Cameras,
        names: Sequence[str],
        indices: Sequence[int],
        frame_types: Sequence[str],
        eval_batches: list[list[int]] | None = None,
    ) -> None:
        self._indices = tuple(indices)
        self._cameras = cameras[list(indices)]
        self._names = tuple(names[view] for view in indices)
        self._frame_types = tuple(frame_types)
        self._eval_batches = eval_batches

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> FrameData:
        channels = self.rgba(index).permute(2, 0, 1)[None].float() / 255
        depth = self.depth(index)
        return FrameData(
            cameras=self._cameras[index],
            image_rgb=channels[:, :3],
            fg_probability=channels[:, 3:] if self.contents.fg_probability else None,
            depth_map=None if depth is None else depth[None, None],
            depth_mask=None if depth is None else (depth[None, None] > 0).float(),
            sequence_name=(SINGLE_SEQUENCE,),
            frame_number=(self._indices[index],),
            frame_type=(self._frame_types[index],),
            image_path=(self._names[index],),
        )

    def depth(self, index: int) -> Float[Tensor, "H W"] | None:
        """One view's depth along the axis at pixel centres, world units, 0 where it is unknown; None for no depth."""
        return None

    def cameras(self) -> Cameras:
        return self._cameras

    @property
    def frame_sequences(self) -> tuple[str, ...]:
        return (SINGLE_SEQUENCE,) * len(self)

    @property
    def frame_numbers(self) -> tuple[int, ...]:
        return self._indices

    @property
    def frame_types(self) -> tuple[str, ...]:
        return self._frame_types

    @property
    def image_paths(self) -> tuple[str, ...]:
        return self._names

    def get_eval_batches(self) -> list[list[int]] | None:
        return self._eval_batches
