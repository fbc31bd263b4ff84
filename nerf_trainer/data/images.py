"""Image files as tensors: 8-bit RGBA with straight alpha, in the file's own colour space.

The pixels are taken as they are stored: an EXIF orientation is not applied, because camera poses are solved for the
stored pixels, and turning an image without its camera would tear the two apart.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from nerf_trainer.data.files import require_regular_file, shown
from nerf_trainer.errors import DataError

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")
"""Formats that are read; others (among them those that Pillow hands to other programs) are refused."""

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
"""What the names of image files end in, in any case."""

_ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")

MAX_MEGAPIXELS = 50.0
"""Default limit on an image's size, checked in its header before anything is decoded."""


@dataclass(frozen=True)
class ImageHeader:
    """What an image file says of itself before it is decoded."""

    size_hw: tuple[int, int]
    """Height and width in pixels."""
    has_alpha: bool
    """Whether there is an alpha channel or a transparent colour."""


def read_header(path: Path, where: str, max_megapixels: float = MAX_MEGAPIXELS) -> ImageHeader:
    """Size and kind of an image file, without decoding it.

    Args:
        path: the file.
        where: the place in the dataset that names the file, for messages.
        max_megapixels: largest image accepted, in millions of pixels.

    Raises:
        DataError: no plain file, not an image of the `FORMATS`, or larger than `max_megapixels`.
    """
    with _open(path, where, max_megapixels) as image:
        alpha = image.mode in _ALPHA_MODES or "transparency" in image.info
        return ImageHeader(size_hw=(image.height, image.width), has_alpha=alpha)


def read_rgba(path: Path, where: str = "image", max_megapixels: float = MAX_MEGAPIXELS) -> UInt8[Tensor, "H W 4"]:
    """Decode an image file: grey, palette, CMYK, 16-bit and premultiplied ones are converted, missing alpha is 255.

    Args: as `read_header`.

    Raises:
        DataError: as `read_header`, and for a damaged file.
    """
    with _open(path, where, max_megapixels) as image:
        pixels = _decode(image, path, where)
    return torch.from_numpy(pixels)


def read_mask(path: Path, where: str = "mask", max_megapixels: float = MAX_MEGAPIXELS) -> UInt8[Tensor, "H W"]:
    """Decode a mask: the alpha of an image that has one, else its grey; 255 is inside.

    Args: as `read_header`.

    Raises:
        DataError: as `read_rgba`.
    """
    rgba = read_rgba(path, where, max_megapixels)
    if bool((rgba[..., 3] < 255).any()):
        return rgba[..., 3]
    return rgba[..., :3].float().mean(dim=-1).round().to(torch.uint8)


def read_depth(
    path: Path, scale: float, where: str = "depth", max_megapixels: float = MAX_MEGAPIXELS
) -> Float[Tensor, "H W"]:
    """Decode a 16-bit grey image whose values times `scale` are depths in world units; 0 where unknown.

    Raises:
        DataError: as `read_rgba`, or the image is not 16-bit grey.
    """
    with _open(path, where, max_megapixels) as image:
        if image.mode not in ("I;16", "I"):
            raise DataError(f"{where}: found mode {image.mode} in {shown(path)}, expected 16-bit grey; export it again")
        steps = _loaded(image, path, where)
    return torch.from_numpy(steps.astype(np.float32)) * scale


def downscale_rgba(image: UInt8[Tensor, "H W 4"], factor: int) -> UInt8[Tensor, "h w 4"]:
    """Average blocks of factor x factor pixels; rows and columns that fill no block are cut at the end.

    Colours are averaged weighted by their alpha (that is, premultiplied), so that compositing the result on any
    background equals averaging the composite, and edges do not darken; the result is straight again. Where a block is
    all transparent, its colours are averaged as they are.
    """
    if factor == 1:
        return image
    blocks = _blocks(image.float(), factor)
    rgb, alpha = blocks[..., :3], blocks[..., 3:]
    weight = torch.where(alpha.sum(dim=2, keepdim=True) > 0, alpha, torch.ones_like(alpha))
    mean_rgb = (rgb * weight).sum(dim=2) / weight.sum(dim=2)
    return torch.cat([mean_rgb, alpha.mean(dim=2)], dim=-1).round().to(torch.uint8)


def downscale_depth(depth: Float[Tensor, "H W"], factor: int) -> Float[Tensor, "h w"]:
    """Average blocks of factor x factor depths; a block with an unknown (0) depth is unknown."""
    if factor == 1:
        return depth
    blocks = _blocks(depth[..., None], factor)[..., 0]
    return blocks.mean(dim=2) * (blocks > 0).all(dim=2)


def _blocks(image: Float[Tensor, "H W C"], factor: int) -> Float[Tensor, "h w n C"]:
    height, width = image.shape[0] // factor, image.shape[1] // factor
    whole = image[: height * factor, : width * factor]
    blocks = whole.reshape(height, factor, width, factor, -1).transpose(1, 2)
    return blocks.reshape(height, width, factor * factor, -1)


def _open(path: Path, where: str, max_megapixels: float) -> Image.Image:
    """The image file with its header read, its size and kind accepted."""
    require_regular_file(path, where)
    try:
        image = Image.open(path, formats=FORMATS)
    except Exception as error:  # whatever a decoder raises on foreign bytes means that the file is bad
        raise _unreadable(path, where, error) from error
    n_pixels = image.width * image.height
    if n_pixels > max_megapixels * 1e6:
        image.close()
        raise DataError(
            f"{where}: found {image.width}x{image.height} = {n_pixels / 1e6:.0f} megapixels in {shown(path)}, "
            f"expected at most {max_megapixels:g}; downscale the image or raise max_megapixels"
        )
    return image


def _decode(image: Image.Image, path: Path, where: str) -> np.ndarray:
    """Pixels (H, W, 4) uint8."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        grey = (_loaded(image, path, where).astype(np.uint32) + 128) // 257  # 65535 becomes 255
        opaque = np.full_like(grey, 255)
        return np.stack([grey, grey, grey, opaque], axis=-1).astype(np.uint8)
    if image.mode in ("I", "F"):
        raise DataError(f"{where}: found 32 bits a pixel in {shown(path)}, expected 8 or 16; convert it to PNG")
    try:
        direct = image.mode in (*_ALPHA_MODES, "P", "L", "RGB", "1")
        return np.array((image if direct else image.convert("RGB")).convert("RGBA"))
    except Exception as error:  # as in _open
        raise _unreadable(path, where, error) from error


def _loaded(image: Image.Image, path: Path, where: str) -> np.ndarray:
    try:
        return np.array(image)
    except Exception as error:  # as in _open
        raise _unreadable(path, where, error) from error


def _unreadable(path: Path, where: str, error: Exception) -> DataError:
    if isinstance(error, Image.DecompressionBombError):
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        return DataError(
            f"{where}: found more than {most:.0f} megapixels in {shown(path)}, which Pillow refuses; downscale it"
        )
    if isinstance(error, Image.UnidentifiedImageError):
        found = "no image"
    else:
        found = f"a damaged image ({shown(error)[:80]})"
    return DataError(f"{where}: found {found} in {shown(path)}, expected {', '.join(FORMATS)}; restore the file")
