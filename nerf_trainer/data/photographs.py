"""Photographs of one scene: what every format that lists image files has in common.

A provider reads its format's files into `Photograph`s and cameras, has the images `scan`ned (headers only), and
divides the frames with `divided`.
"""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import torch
from jaxtyping import Int, Num
from torch import Tensor

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.data.files import shown
from nerf_trainer.data.images import MAX_MEGAPIXELS, ImageHeader, read_depth, read_header, read_rgba
from nerf_trainer.data.single_scene import MaskRole, SceneFrame, SingleSceneDataset
from nerf_trainer.data.splits import KNOWN, MOST_BAD_FRAMES, UNSEEN, DatasetMap, DatasetMapProviderBase, left_out
from nerf_trainer.errors import ConfigError, DataError, require_at_least

_AT_ONCE = 16
"""Images that a thread looks at before it asks for more."""


@dataclass(frozen=True)
class Photograph:
    """What a dataset's files say of one frame, before its image is looked at."""

    path: Path
    """The image, found inside the dataset's folder (`files.resolve_inside`)."""
    where: str
    """The place in the dataset that names it, for messages."""
    number: int
    """The frame's number, unique within its split's file."""
    mask_path: Path | None = None
    """An image of the same size whose grey (or alpha) is the mask, white inside."""
    depth_path: Path | None = None
    """A 16-bit depth image of the same size."""
    depth_scale: float = 1.0
    """World units of one step of the depth image."""
    timestamp: float | None = None
    """Time since the sequence began."""


@dataclass(frozen=True)
class Scan:
    """The photographs that are fit to be read."""

    kept: tuple[int, ...]
    """Which of the photographs these are, by their place in the list that was scanned."""
    photographs: tuple[Photograph, ...]
    """Those kept."""
    headers: tuple[ImageHeader, ...]
    """What their image files say of themselves."""
    notices: tuple[str, ...]
    """What was left out, one line each."""


class PhotographOptions(DatasetMapProviderBase):
    """How the image files of a scene are read, whatever the format."""

    n_known_frames_for_test: int | None = None
    """How many training frames each val and test view comes with as source views; null for none."""
    max_megapixels: float = MAX_MEGAPIXELS
    """Largest image accepted, in millions of pixels; checked before it is decoded."""
    allow_external: bool = False
    """Accept files outside of base_dir, as links or by their paths."""

    _leaves_out = False
    _most_bad = MOST_BAD_FRAMES

    def __post_init__(self) -> None:
        require_at_least("n_known_frames_for_test", self.n_known_frames_for_test or 0, 0)

    def leave_out_bad_frames(self, most: float = MOST_BAD_FRAMES) -> None:
        self._leaves_out, self._most_bad = True, most

    def scan(self, scene: str, photographs: Sequence[Photograph]) -> Scan:
        """Look at the headers of all images and masks; with on_bad_frame=skip, decode them too.

        Args:
            scene: the scene's name or file, for messages.
            photographs: the frames as the files list them.

        Raises:
            DataError: a file is missing, damaged, no image, too large or of another size than its image; with
                on_bad_frame=skip only where that is too large a part of the frames (`leave_out_bad_frames`).
        """
        check = self._decoded if self._leaves_out else self._header
        runs = [photographs[i : i + _AT_ONCE] for i in range(0, len(photographs), _AT_ONCE)]
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
            found = list(chain.from_iterable(threads.map(lambda run: [_attempt(check, one) for one in run], runs)))
        problems = [result for result in found if isinstance(result, DataError)]
        if problems and not self._leaves_out:
            raise problems[0]
        notices = left_out(scene, problems, len(found), self._most_bad)
        headers = {i: result for i, result in enumerate(found) if isinstance(result, ImageHeader)}
        return Scan(
            kept=tuple(headers),
            photographs=tuple(photographs[i] for i in headers),
            headers=tuple(headers.values()),
            notices=notices,
        )

    def _header(self, photograph: Photograph) -> ImageHeader:
        header = read_header(photograph.path, photograph.where, self.max_megapixels)
        for path, kind in ((photograph.mask_path, "mask"), (photograph.depth_path, "depth")):
            if path is None:
                continue
            of_map = read_header(path, f"{photograph.where} ({kind})", self.max_megapixels)
            if of_map.size_hw != header.size_hw:
                height, width = of_map.size_hw
                raise DataError(
                    f"{photograph.where}: found a {kind} of {width}x{height} pixels (width x height) at {shown(path)},"
                    f" expected {header.size_hw[1]}x{header.size_hw[0]} as the image has; export it again"
                )
        return header

    def _decoded(self, photograph: Photograph) -> ImageHeader:
        header = self._header(photograph)
        for path in (photograph.path, photograph.mask_path):
            if path is not None:
                read_rgba(path, photograph.where, self.max_megapixels)
        if photograph.depth_path is not None:
            read_depth(photograph.depth_path, photograph.depth_scale, photograph.where, self.max_megapixels)
        return header

    def dataset(
        self,
        scan: Scan,
        cameras: Cameras,
        downscale_factor: int = 1,
        mask_role: MaskRole = MaskRole.FOREGROUND,
    ) -> SingleSceneDataset:
        """The scanned frames, all known, with the views of those frames (for the size after downscaling)."""
        frames = [
            SceneFrame(
                path=photograph.path,
                number=photograph.number,
                has_alpha=header.has_alpha,
                mask_path=photograph.mask_path,
                depth_path=photograph.depth_path,
                depth_scale=photograph.depth_scale,
                timestamp=photograph.timestamp,
            )
            for photograph, header in zip(scan.photographs, scan.headers, strict=True)
        ]
        return SingleSceneDataset(
            frames, cameras, downscale_factor, max_megapixels=self.max_megapixels, mask_role=mask_role
        )

    def divided(
        self, scene: str, frames: SingleSceneDataset, train: Sequence[int], val: Sequence[int], test: Sequence[int]
    ) -> DatasetMap:
        """The splits by the frames' indices, source views added to val and test; no val or test where empty.

        Raises:
            DataError: there is nothing to train on.
        """
        if not train:
            raise DataError(f"{shown(scene)}: found no training frame among {len(frames)}, expected at least one")
        known = frames.subset(train, KNOWN)
        held_out = (
            frames.subset(chosen, UNSEEN).with_known_frames(known, self.n_known_frames_for_test) if chosen else None
            for chosen in (val, test)
        )
        of_val, of_test = held_out
        return DatasetMap(
            train=known,
            val=of_val,
            test=of_test,
            notices=tuple(repeats(scene, known, frames.subset(test, UNSEEN) if test else None)),
        )


def downscaled_hw(headers: Sequence[ImageHeader], factor: int, scene: str) -> Int[Tensor, "N 2"]:
    """The images' sizes (height, width) once blocks of factor x factor pixels are averaged.

    Raises:
        ConfigError: an image is smaller than a block.
    """
    sizes = torch.tensor([header.size_hw for header in headers]) // factor
    if int(sizes.min()) == 0:
        raise ConfigError(f"downscale_factor: found {factor}, larger than the images of {shown(scene)}; lower it")
    return sizes


def require_shape(where: str, found_hw: Sequence[int], solved_hw: Sequence[int], solved: str) -> None:
    """Refuse an image that is not what its pose was solved for in another size; each side may be rounded by a pixel.

    Args:
        where: the place in the dataset that names the image, for messages.
        found_hw: the image's height and width.
        solved_hw: those that its intrinsics are for.
        solved: what has those, for messages: "cameras.bin is written for".

    Raises:
        DataError: the image was cut, turned, or is another.
    """
    (height, width), (full_height, full_width) = found_hw, solved_hw
    if abs(height - full_height * width / full_width) > 1.0 + full_height / full_width:
        turned = " (turned by a quarter?)" if (height > width) != (full_height > full_width) else ""
        raise DataError(
            f"{where}: found {width}x{height} pixels (width x height){turned}, expected the shape of the"
            f" {full_width}x{full_height} that {solved}; use the photographs that the poses were solved for, or shrink"
            " them without cutting"
        )


def as_read(
    views: Cameras, solved_hw: Num[Tensor, "N 2"], headers: Sequence[ImageHeader], factor: int, scene: str
) -> Cameras:
    """The views in float32, with the intrinsics of the images as they are read.

    Args:
        views: posed views with intrinsics for images of the sizes `solved_hw`.
        solved_hw: heights and widths, pixels.
        headers: the images that there are.
        factor: by how much they have yet to be shrunk.
        scene: the scene's name or file, for messages.

    Raises:
        ConfigError: an image is smaller than a block of factor x factor pixels.
    """
    size_hw = downscaled_hw(headers, factor, scene)
    wh = torch.tensor([header.size_hw[::-1] for header in headers], dtype=torch.float64)
    scale = wh / solved_hw.double().flip(-1) / factor
    return replace(
        views,
        R=views.R.float(),
        T=views.T.float(),
        focal=(views.focal * scale).float(),
        principal_point=(views.principal_point * scale).float(),
        image_size_hw=size_hw,
        bounds=None if views.bounds is None else views.bounds.float(),
    )


def repeats(scene: str, train: SingleSceneDataset, test: SingleSceneDataset | None) -> list[str]:
    """A notice when images stand twice in a split, or test images are trained on: results would mean less."""
    notices = []
    for name, split in (("train", train), ("test", test)):
        twice = [path for path, n in Counter(split.image_paths if split else ()).items() if n > 1]
        if twice:
            notices.append(f"{scene}: {len(twice)} images stand twice in {name}, the first is {twice[0]}")
    shared = sorted(set(train.image_paths) & set(test.image_paths if test else ()))
    if shared:
        notices.append(f"{scene}: {len(shared)} test images are trained on too, the first is {shared[0]}")
    return notices


def _attempt(check: Callable[[Photograph], ImageHeader], photograph: Photograph) -> ImageHeader | DataError:
    try:
        return check(photograph)
    except DataError as error:
        return error
