"""Which files a frame of transforms.json names: image, mask and depth, whole or shrunk, inside the scene's folder.

Paths are relative to the folder of the JSON file, and may have backslashes. An image's suffix may be left out. Shrunk
copies lie in a folder beside theirs, as nerfstudio makes them: images_2/a.jpg is images/a.jpg at half the size.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from nerf_trainer.data.files import JsonNode, ScenePaths, shown
from nerf_trainer.data.images import SUFFIXES
from nerf_trainer.data.photographs import Photograph

_TRIED_SUFFIXES = (*SUFFIXES, *(suffix.upper() for suffix in SUFFIXES))
"""What is tried after a file_path that names nothing as it is."""


@dataclass(frozen=True)
class NamedFiles:
    """The files of one frame, as written."""

    frame: JsonNode
    """The frame's object."""
    number: int
    """The frame's number within its file."""
    image: str
    """`file_path`."""
    mask: str | None
    """`mask_path`."""
    depth: str | None
    """`depth_file_path` (nerfstudio) or `depth_path` (instant-ngp)."""
    depth_scale: float
    """World units of one step of the depth image."""
    time: float | None
    """`time`."""

    @classmethod
    def of(cls, frame: JsonNode, number: int, depth: tuple[str, float] | None, with_mask: bool) -> "NamedFiles":
        """Read from a frame.

        Args:
            depth: the key of the depth image and the scale of its steps; None where depth is not read.
        """
        has_depth = depth is not None and depth[0] in frame
        return cls(
            frame=frame,
            number=number,
            image=_plain(frame.member("file_path")),
            mask=_plain(frame.member("mask_path")) if with_mask and "mask_path" in frame else None,
            depth=_plain(frame.member(depth[0])) if depth is not None and has_depth else None,
            depth_scale=depth[1] if depth is not None else 1.0,
            time=frame.member("time").number("a finite number (a time)") if "time" in frame else None,
        )

    @property
    def all(self) -> list[str]:
        """Those that there are."""
        return [path for path in (self.image, self.mask, self.depth) if path is not None]


@dataclass(frozen=True)
class FrameFiles:
    """Finds the files of the frames of one JSON file."""

    paths: ScenePaths
    """Where the scene's files are, which none may leave."""
    folder: Path
    """The folder of the JSON file."""

    def missing_shrunk(self, frames: Sequence[NamedFiles], factor: int) -> list[str]:
        """The folders of shrunk copies that would be needed and are not there; empty where all can be read shrunk."""
        folders = {path.rpartition("/")[0] for frame in frames for path in frame.all}
        needed = {_shrunk_folder(folder, factor) for folder in folders}
        return sorted(folder for folder in needed if not os.path.isdir(self.folder / folder))

    def photograph(self, named: NamedFiles, shrunk_by: int) -> Photograph:
        """The files of a frame, where they lie (missing ones where they should).

        Raises:
            DataError: a path leaves the scene's folder.
        """
        where = f"{named.frame.where}.file_path"
        return Photograph(
            path=self._image(_shrunk(named.image, shrunk_by), where),
            where=where,
            number=named.number,
            mask_path=self._other(named, "mask_path", named.mask, shrunk_by),
            depth_path=self._other(named, "depth", named.depth, shrunk_by),
            depth_scale=named.depth_scale,
            timestamp=named.time,
        )

    def _other(self, named: NamedFiles, key: str, written: str | None, shrunk_by: int) -> Path | None:
        if written is None:
            return None
        return self.paths.resolve(os.path.join(self.folder, _shrunk(written, shrunk_by)), f"{named.frame.where}.{key}")

    def _image(self, written: str, where: str) -> Path:
        written = os.path.join(self.folder, written)
        return self.paths.find(written, where, _TRIED_SUFFIXES) or self.paths.resolve(written, where)


def dynamic_mask_notices(photographs: Sequence[Photograph]) -> list[str]:
    """A notice of instant-ngp's masks of what moves, which lie beside the images and are not read."""
    folders = sorted({os.path.dirname(photograph.path) for photograph in photographs})
    found = [path for folder in folders if os.path.isdir(folder) for path in Path(folder).glob("dynamic_mask_*.png")]
    if not found:
        return []
    return [
        f"{shown(found[0])} and {len(found) - 1} more: instant-ngp's dynamic masks are not read; invert them (white is"
        " what may be used) and name them by mask_path"
    ]


def _plain(node: JsonNode) -> str:
    """A path as this system writes it."""
    return node.text().replace("\\", "/")


def _shrunk(written: str, factor: int) -> str:
    """The path of the copy that is `factor` times smaller: the outermost folder gets _N after its name."""
    if factor == 1:
        return written
    folder, _, name = written.rpartition("/")
    return f"{_shrunk_folder(folder, factor)}/{name}"


@lru_cache(maxsize=1024)
def _shrunk_folder(folder: str, factor: int) -> str:
    outermost, *rest = PurePosixPath(folder).parts or ("images",)
    return str(PurePosixPath(f"{outermost}_{factor}", *rest))
