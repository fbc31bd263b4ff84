"""How good photographs are, frame by frame: sharp or blurred, well exposed, and which of them are the same.

- Sharpness is the variance of the Laplacian (Pech-Pacheco et al., 2000) of the brightness. It depends on what is seen,
  so that a frame is only compared with its neighbours in the sequence.
- Likeness is the difference hash (Krawetz, 2013) with 256 bits, each whether one of 17 x 16 averaged cells is brighter
  than its left neighbour. Copies that were compressed or scaled differ in a few bits.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import conv2d, interpolate

_BLURRED = 0.3
"""A frame with less than this part of its neighbours' sharpness is blurred."""
_NEIGHBOURS = 4
"""Frames on either side that one is compared with."""
_N_BITS = 256
_UNLIKE = 0.08
"""Images look the same if at most this part of the bits that are set in either hash differs."""
_FLAT_BITS = 32
"""Hashes with fewer bits set are of images without features, all of which look the same."""


@dataclass(frozen=True)
class ImageQuality:
    """What one photograph's pixels say of it."""

    sharpness: float
    """Variance of the Laplacian of the brightness in [0, 255], over opaque pixels; 0 for a flat image."""
    digest: str
    """SHA-256 of its size and pixels, in hexadecimal."""
    likeness: int
    """The difference hash, 256 bits."""
    brightness: float
    """Mean over the opaque pixels, in [0, 1]."""
    burnt: float
    """Part of the opaque pixels with all colours at 255."""
    black: float
    """Part of the opaque pixels with all colours at most 2."""
    opaque: float
    """Mean alpha, in [0, 1]."""


def measure(rgba: UInt8[Tensor, "H W 4"]) -> ImageQuality:
    """Measure a photograph."""
    rgb, alpha = rgba[..., :3], rgba[..., 3]
    solid = alpha > 127
    grey = (rgb.float() @ torch.tensor([0.299, 0.587, 0.114])) if solid.any() else torch.zeros(alpha.shape)
    n = max(1, int(solid.sum()))
    flat = torch.where(solid, grey, grey[solid].mean() if solid.any() else grey.mean())
    digest = hashlib.sha256(f"{tuple(rgba.shape)}".encode() + rgba.contiguous().numpy().tobytes()).hexdigest()
    return ImageQuality(
        sharpness=_laplacian_variance(flat, solid),
        digest=digest,
        likeness=_difference_hash(flat),
        brightness=float(grey[solid].mean() / 255) if solid.any() else 0.0,
        burnt=int(((rgb == 255).all(dim=-1) & solid).sum()) / n,
        black=int(((rgb <= 2).all(dim=-1) & solid).sum()) / n,
        opaque=float(alpha.float().mean() / 255),
    )


def blurred(sharpness: Sequence[float]) -> list[int]:
    """Frames that are much less sharp than their neighbours, given each frame's sharpness in the order of capture.

    A frame is compared with the median of the four on either side. With fewer than five frames none is judged.
    """
    values = torch.tensor(list(sharpness), dtype=torch.float64)
    if len(values) < 5:
        return []
    found = []
    for i in range(len(values)):
        first = max(0, min(i - _NEIGHBOURS, len(values) - 2 * _NEIGHBOURS - 1))
        around = [j for j in range(first, min(len(values), first + 2 * _NEIGHBOURS + 1)) if j != i]
        if values[i] < _BLURRED * values[around].median():
            found.append(i)
    return found


def same_pixels(qualities: Sequence[ImageQuality]) -> list[list[int]]:
    """Groups of frames with exactly the same pixels."""
    groups: dict[str, list[int]] = defaultdict(list)
    for i, quality in enumerate(qualities):
        groups[quality.digest].append(i)
    return [group for group in groups.values() if len(group) > 1]


def look_alike(qualities: Sequence[ImageQuality]) -> list[tuple[int, int]]:
    """Pairs of frames that are not the same but look it, by their difference hashes; images without features left
    out. Each frame is paired with the first that it is like."""
    bits = [[(q.likeness >> bit) & 1 for bit in range(_N_BITS)] for q in qualities]
    hashes = torch.tensor(bits, dtype=torch.bool).reshape(-1, _N_BITS)
    telling = hashes.sum(dim=1) >= _FLAT_BITS
    pairs = []
    for i in range(1, len(hashes)):
        different = (hashes[:i] ^ hashes[i]).sum(dim=1)
        either = (hashes[:i] | hashes[i]).sum(dim=1)
        near = ((different <= _UNLIKE * either) & telling[:i] & telling[i]).nonzero()[:, 0].tolist()
        near = [j for j in near if qualities[j].digest != qualities[i].digest]
        if near:
            pairs.append((near[0], i))
    return pairs


def _laplacian_variance(grey: Float[Tensor, "H W"], solid: Tensor) -> float:
    if min(grey.shape) < 3:
        return 0.0
    kernel = torch.tensor([[[[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]]]])
    response = conv2d(grey[None, None], kernel)[0, 0]
    inner = response[solid[1:-1, 1:-1]]
    return float(inner.var()) if inner.numel() > 1 else 0.0


def _difference_hash(grey: Float[Tensor, "H W"]) -> int:
    cells = interpolate(grey[None, None], size=(16, 17), mode="area")[0, 0]
    bits = (cells[:, 1:] > cells[:, :-1] + 0.5).flatten().tolist()
    return sum(1 << i for i, bit in enumerate(bits) if bit)
