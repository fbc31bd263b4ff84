"""The small scene of the tiny-NeRF notebooks: `tiny_nerf_data.npz`, or a file of the same kind.

An archive as numpy.savez writes it (https://github.com/bmild/nerf, tiny_nerf.ipynb), with three arrays:

- `images` (N, H, W, 3): colours in [0, 1] as floating-point numbers, or 8-bit ones; a fourth channel is alpha;
- `poses` (N, 4, 4): camera to world, axes x right, y up, z back as Blender's;
- `focal`: the focal length in pixels, one for all. The principal point is the images' middle.

The original holds 106 views of NeRF-synthetic's lego in 100 x 100 pixels on black, of which the notebooks train on the
first 100 and look at view 101.
"""

import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.config import registry
from nerf_trainer.data.files import LARGEST_NUMBER, require_regular_file, shown
from nerf_trainer.data.npy_arrays import ArrayHeader, ByteStream, read_array_header
from nerf_trainer.data.poses import NOTABLE_SKEW, camera_from_opengl, checked_rotation, skew_notices
from nerf_trainer.data.single_scene import NumberedViewsDataset, batches_with_known
from nerf_trainer.data.splits import KNOWN, UNSEEN, DatasetMap, DatasetMapProviderBase
from nerf_trainer.errors import ConfigError, DataError, require_at_least
from nerf_trainer.frames import FrameContents

_END = b"PK\x05\x06"
_END_BYTES = 22
_LONG_END = b"PK\x06\x07"
"""Stands 20 bytes before the end where a longer one, of archives from 2 GB on, says how large the directory is."""
_MAX_DIRECTORY = 2**16
"""Largest directory of an archive that is read: three arrays take some 200 bytes of it."""
_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Ways of packing that numpy.savez and savez_compressed use; others may ask for any amount of memory."""
_DAMAGED = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError)
"""What zipfile raises of members that can't be unpacked."""
_AT_ONCE = 2**24
"""Numbers of images that are converted at once."""
_ROUNDING = 1e-3
"""By how much colours may lie outside of [0, 1]."""


@dataclass(frozen=True)
class TinyScene:
    """What the file holds, in the project's conventions; N views of one size."""

    file: Path
    """The file."""
    rgba: UInt8[Tensor, "N H W 4"]
    """Pixels, straight alpha, 255 where the file has none."""
    has_alpha: bool
    """Whether the file has a fourth channel."""
    cameras: Cameras
    """The views."""
    notices: tuple[str, ...]
    """What the user should know of them."""


class TinyNerfDataset(NumberedViewsDataset):
    """Some views of the file, as a split.

    Args:
        scene: all views.
        indices, frame_types, eval_batches: as in the base class.
    """

    def __init__(
        self,
        scene: TinyScene,
        indices: Sequence[int],
        frame_types: Sequence[str],
        eval_batches: list[list[int]] | None = None,
    ) -> None:
        names = [f"{scene.file}/view_{view:03d}" for view in range(len(scene.rgba))]
        super().__init__(scene.cameras, names, indices, frame_types, eval_batches)
        self._scene = scene

    def rgba(self, index: int) -> UInt8[Tensor, "H W 4"]:
        return self._scene.rgba[self._indices[index]]

    @property
    def contents(self) -> FrameContents:
        return FrameContents(
            fg_probability=self._scene.has_alpha,
            depth_map=False,
            mask_crop=False,
            sequence_names=tuple(sorted(self.sequence_names)),
        )


@registry.register
class TinyNerfDatasetMapProvider(DatasetMapProviderBase):
    """The scene of a tiny_nerf_data.npz, divided as the notebooks divide it; val and test are the same views."""

    data_file: str
    """The file, as tiny_nerf_data.npz."""
    n_train_views: int = 100
    """How many views are trained on, from the file's first."""
    first_test_view: int = 101
    """The first view of val and test, counted from 0."""
    n_test_views: int = 1
    """How many views val and test have; 0 for neither."""
    n_known_frames_for_test: int | None = None
    """How many training views each val and test view comes with as source views; null for none."""
    max_megabytes: float = 1024.0
    """Largest file, and largest array that it unpacks to, in millions of bytes; checked before it is read."""

    def __post_init__(self) -> None:
        for name, value, least in (
            ("n_train_views", self.n_train_views, 1),
            ("first_test_view", self.first_test_view, 0),
            ("n_test_views", self.n_test_views, 0),
            ("n_known_frames_for_test", self.n_known_frames_for_test or 0, 0),
        ):
            require_at_least(name, value, least)

    def get_dataset_map(self) -> DatasetMap:
        """Raises: as the base class says, and a ConfigError where the options name views that the file has not."""
        scene = read_tiny_scene(Path(os.path.expanduser(self.data_file)), self.max_megabytes)
        test = range(self.first_test_view, self.first_test_view + self.n_test_views)
        n_views, where = len(scene.rgba), shown(scene.file)
        if self.n_train_views > n_views:
            raise ConfigError(f"n_train_views: found {self.n_train_views}, expected at most the {n_views} of {where}")
        if test and test[-1] >= n_views:
            raise ConfigError(
                f"first_test_view, n_test_views: found views {test[0]} to {test[-1]}, expected at most {n_views - 1},"
                f" the last of {where}; lower them and n_train_views, or set n_test_views=0"
            )
        train = range(self.n_train_views)
        shared = sorted(set(train) & set(test))
        notices = scene.notices
        if shared:
            notices += (f"{where}: {len(shared)} test images are trained on too, the first is view {shared[0]}",)
        held_out = self._held_out(scene, train, test)
        return DatasetMap(
            train=TinyNerfDataset(scene, train, [KNOWN] * len(train)), val=held_out, test=held_out, notices=notices
        )

    def _held_out(self, scene: TinyScene, train: Sequence[int], test: Sequence[int]) -> TinyNerfDataset | None:
        if not test:
            return None
        n_known = self.n_known_frames_for_test
        sources = [] if n_known is None else list(train)
        kinds = [UNSEEN] * len(test) + [KNOWN] * len(sources)
        return TinyNerfDataset(scene, [*test, *sources], kinds, batches_with_known(test, len(train), n_known))


def read_tiny_scene(file: Path, max_megabytes: float) -> TinyScene:
    """Read all views of a file.

    Args:
        file: the archive.
        max_megabytes: largest file, and largest array, in millions of bytes.

    Raises:
        DataError: it is missing, damaged, no such archive or too large; shapes that don't belong together, colours
            outside of [0, 1], poses or a focal length that can't be.
    """
    with _opened(file, max_megabytes) as archive:
        rgba, has_alpha = _images(archive)
        poses, skews = _poses(archive, len(rgba))
        focal = _focal(archive)
    R, T = camera_from_opengl(poses)
    n, height, width = rgba.shape[:3]
    cameras = Cameras(
        R=R.float(),
        T=T.float(),
        focal=torch.full((n, 2), focal),
        principal_point=torch.tensor([width / 2, height / 2]).repeat(n, 1),
        image_size_hw=torch.tensor([height, width]).repeat(n, 1),
    )
    return TinyScene(file, rgba, has_alpha, cameras, tuple(skew_notices(shown(file), skews)))


def count_views(file: Path, max_megabytes: float = 1024.0) -> int:
    """How many views a file holds, by the header of its images.

    Raises:
        DataError: as `read_tiny_scene`, as far as that shows without the numbers.
    """
    with _opened(file, max_megabytes) as archive, archive.array("images") as (header, _):
        return header.shape[0] if header.shape else 0


@dataclass(frozen=True)
class _Archive:
    """An archive of arrays, whose members are read from it one after the other."""

    file: Path
    content: zipfile.ZipFile
    max_bytes: float

    def wrong(self, place: str, expected: str, found: str) -> DataError:
        return DataError(
            f"{shown(self.file)}: {place}: expected {expected}, found {found}; restore the file or write it again"
        )

    @contextmanager
    def array(self, name: str) -> Iterator[tuple[ArrayHeader, ByteStream]]:
        """The header of an array and the stream of its numbers, of which there are as many bytes as the header says.

        Raises:
            DataError: there is none, it is too large, or it is damaged.
        """
        wrong = partial(self.wrong, name)
        found = [info for info in self.content.infolist() if info.filename == f"{name}.npy"]
        if len(found) != 1:
            there = ", ".join(info.filename.removesuffix(".npy") for info in self.content.infolist()[:6]) or "nothing"
            raise wrong("one array of this name", f"{len(found)} (there are {shown(there)[:80]})")
        if found[0].compress_type not in _PACKED:
            raise wrong("an array stored or deflated, as numpy.savez does", f"method {found[0].compress_type}")
        if found[0].file_size > self.max_bytes:
            size = f"{found[0].file_size / 1e6:.0f} MB"
            raise wrong(f"at most {self.max_bytes / 1e6:g} MB (max_megabytes)", size)
        try:
            with self.content.open(found[0]) as stream:
                header = read_array_header(stream, wrong)
                if header.dtype.hasobject:
                    raise wrong("numbers", "pickled objects, which are never read")
                unread = found[0].file_size - stream.tell()
                if header.n_bytes != unread:
                    raise wrong(f"{header.n_bytes} bytes for shape {shown(header.shape)[:40]}", f"{unread} bytes")
                yield header, stream
        except _DAMAGED as error:
            raise wrong("an array", f"a damaged one ({shown(error)[:80]})") from error

    def numbers(self, name: str, expected: str, shapes: Sequence[tuple[int, ...]]) -> Float[np.ndarray, "..."]:
        """A small array in float64, of one of the shapes, its numbers finite."""
        with self.array(name) as (header, stream):
            if header.shape not in shapes:
                raise self.wrong(name, expected, f"shape {shown(header.shape)[:40]}")
            if header.dtype.kind not in "fiu":
                raise self.wrong(name, "numbers", f"{shown(header.dtype)[:40]}")
            order = "F" if header.by_columns else "C"
            read = np.frombuffer(_rest(stream, header.n_bytes), header.dtype).reshape(header.shape, order=order)
        numbers = read.astype(np.float64)
        if not (np.abs(numbers) <= LARGEST_NUMBER).all():
            bad = np.argwhere(~(np.abs(numbers) <= LARGEST_NUMBER))[0]
            raise self.wrong(f"{name}[{bad[0]}]" if len(bad) else name, "finite numbers", "others")
        return numbers


@contextmanager
def _opened(file: Path, max_megabytes: float) -> Iterator[_Archive]:
    """The archive, its size and that of its directory accepted."""
    where = shown(file)
    if not os.path.exists(file):
        raise DataError(
            f"data_file: found nothing at {where}, expected a tiny_nerf_data.npz; fix the path, download that of the"
            " tiny-NeRF notebooks, or make one (examples/make_tiny_nerf_data.py)"
        )
    size = require_regular_file(file, "data_file").st_size
    if size > max_megabytes * 1e6:
        raise DataError(
            f"{where}: found {size / 1e6:.0f} MB, expected at most {max_megabytes:g}; raise max_megabytes, or write"
            " fewer or smaller images"
        )
    with open(file, "rb") as stream:
        stream.seek(max(0, size - 20 - _END_BYTES))
        ends = stream.read()
        end = ends[-_END_BYTES:]
        directory = int.from_bytes(end[12:16], "little")
        if ends.startswith(_LONG_END) or not end.startswith(_END) or directory > _MAX_DIRECTORY:
            found = f"a directory of {directory} bytes" if end.startswith(_END) else "another file, or a part of one"
            found = "a directory in ZIP64" if ends.startswith(_LONG_END) else found
            raise DataError(
                f"{where}: found {found}, expected an archive as numpy.savez writes it (images, poses, focal); download"
                " or write it again"
            )
        stream.seek(0)
        try:
            content = zipfile.ZipFile(stream)
        except Exception as error:  # whatever the parser raises on foreign bytes means that the file is bad
            raise DataError(
                f"{where}: found a damaged archive ({shown(error)[:80]}), expected one as numpy.savez writes it;"
                " download or write it again"
            ) from error
        with content:
            yield _Archive(file, content, max_megabytes * 1e6)


def _rest(stream: ByteStream, n: int) -> bytes:
    """The last `n` bytes of a member, whose sum is checked with its end."""
    content = stream.read(n)
    if len(content) != n or stream.read(1):
        raise ValueError(f"found {len(content)} of {n} bytes")
    return content


def _images(archive: _Archive) -> tuple[UInt8[Tensor, "N H W 4"], bool]:
    """All pixels in 8 bits, and whether there is an alpha channel."""
    with archive.array("images") as (header, stream):
        shape, dtype = header.shape, header.dtype
        if len(shape) != 4 or shape[3] not in (3, 4) or min(shape) < 1:
            raise archive.wrong("images", "shape (N, H, W, 3) or (N, H, W, 4)", shown(shape)[:60])
        if not (dtype.kind == "f" or dtype == np.uint8):
            raise archive.wrong("images", "floating-point numbers in [0, 1], or uint8", f"{dtype}")
        if header.by_columns:
            raise archive.wrong("images", "rows in order (numpy.ascontiguousarray)", "Fortran's order")
        n, height, width, n_channels = shape
        pixels = np.full((n, height, width, 4), 255, np.uint8)
        per_view = height * width * n_channels
        step = max(1, _AT_ONCE // per_view)
        for first in range(0, n, step):
            views = min(step, n - first)
            n_bytes = views * per_view * dtype.itemsize
            raw = _rest(stream, n_bytes) if first + views == n else stream.read(n_bytes)
            block = np.frombuffer(raw, dtype).reshape(views, height, width, n_channels)
            pixels[first : first + views, ..., :n_channels] = _in_8_bits(block, archive, first)
    return torch.from_numpy(pixels), n_channels == 4


def _in_8_bits(block: np.ndarray, archive: _Archive, first: int) -> UInt8[np.ndarray, "n H W C"]:
    """Colours in 8 bits; `first` is the number of the block's first view."""
    if block.dtype == np.uint8:
        return block
    low, high = block.min(axis=(1, 2, 3)), block.max(axis=(1, 2, 3))
    bad = ~((low >= -_ROUNDING) & (high <= 1 + _ROUNDING))
    if bad.any():
        i = int(bad.argmax())
        found = f"{float(low[i]):.4g} to {float(high[i]):.4g}"
        raise archive.wrong(f"images[{first + i}]", "colours in [0, 1] (divide those up to 255 by 255)", found)
    return np.round(np.clip(block.astype(np.float32), 0, 1) * 255).astype(np.uint8)


def _poses(archive: _Archive, n_views: int) -> tuple[Float[Tensor, "N 4 4"], list[float]]:
    """Camera-to-world matrices in float64, rotations and translations, and how skew each was as written."""
    expected = f"shape ({n_views}, 4, 4), a pose for each image"
    poses = torch.from_numpy(archive.numbers("poses", expected, [(n_views, 4, 4)]))
    skews = []
    for i, pose in enumerate(poses):
        wrong = partial(archive.wrong, f"poses[{i}]")
        bottom = pose[3].tolist()
        if any(abs(found - entry) > NOTABLE_SKEW for found, entry in zip(bottom, (0, 0, 0, 1), strict=True)):
            raise wrong("a bottom row of 0 0 0 1", " ".join(f"{value:.4g}" for value in bottom))
        pose[:3, :3], skew = checked_rotation(pose[:3, :3], wrong)
        skews.append(skew)
    return poses, skews


def _focal(archive: _Archive) -> float:
    focal = float(archive.numbers("focal", "one number", [(), (1,)]).reshape(()))
    if not focal > 0:
        raise archive.wrong("focal", "a focal length above 0, in pixels", f"{focal:g}")
    return focal
