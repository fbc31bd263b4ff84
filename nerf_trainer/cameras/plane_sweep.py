"""Do photographs and poses belong together? Two views of one place look alike only where poses and depth are right.

A plane sweep (Collins, 1996) tries many depths for each pixel of a view, looks up the pixel of a neighbouring view that
sees the point at that depth, and compares the patches around both by their zero-mean normalised cross-correlation
(ZNCC), which is 1 for equal patches whatever their brightness and contrast. With wrong poses no depth fits.
"""

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from nerf_trainer.cameras.cameras import Cameras

SIDE = 72
"""Longer side of the images that are compared, pixels."""
_WINDOW = 7
"""Side of the patches that are compared, pixels."""
_NEAREST, _FARTHEST = 1.0, 60.0
"""Depths that are tried, in distances between the two views: evenly in 1 / depth, so that what is looked up moves by no
more than a pixel from one to the next. Steps of more pixels step over the depth of fine textures."""
_MOST_DEPTHS = 160
_MAX_ANGLE = 35.0
"""Views that look more than this apart, degrees, show too little in common."""
_MIN_BASELINE = 0.15
"""Views that stand nearer than this part of the views' spread show too little parallax."""
_TEXTURE = 0.02
"""Standard deviation within a patch, colours in [0, 1], below which it can't be told from others."""


@dataclass(frozen=True)
class Match:
    """What a sweep of one pair of views found."""

    score: float
    """Mean over the textured patches of the best ZNCC over depths, 0 where none is in view; in [0, 1]."""
    depths: Float[Tensor, "h w"]
    """The depth along the first view's axis at which the patch around each pixel fits best."""
    fits: Float[Tensor, "h w"]
    """How well it fits there: ZNCC, 0 where the patch has too little texture or is in view at no depth."""


def small_grey(rgba: Float[Tensor, "H W 4"], side: int = SIDE) -> Float[Tensor, "h w"]:
    """Brightness of a photograph over mid-grey, shrunk by averaging so that its longer side is `side` pixels."""
    alpha = rgba[..., 3:]
    grey = (rgba[..., :3] * alpha + 0.5 * (1 - alpha)).mean(dim=-1)
    scale = side / max(grey.shape)
    if scale >= 1:
        return grey
    size = (max(1, round(grey.shape[0] * scale)), max(1, round(grey.shape[1] * scale)))
    return interpolate(grey[None, None], size=size, mode="area")[0, 0]


def shrunk(cameras: Cameras, sizes_hw: Sequence[tuple[int, int]]) -> Cameras:
    """The same views for images of other sizes; focal length and principal point scale with each side."""
    sizes = torch.tensor(list(sizes_hw))
    ratio = (sizes / cameras.image_size_hw).flip(-1).to(cameras.focal)
    return replace(
        cameras,
        focal=cameras.focal * ratio,
        principal_point=cameras.principal_point * ratio,
        image_size_hw=sizes,
    )


def neighbours(cameras: Cameras, most: int = 8) -> list[tuple[int, int]]:
    """Pairs of views that should show the same things from a little way apart, at most `most`, spread over the views.

    The second of a pair is the nearest to the first that looks at most 35 degrees apart and stands at least 15 % of the
    views' spread away.
    """
    nearest = _nearest(cameras, 1)
    usable = [i for i, found in enumerate(nearest) if found]
    chosen = torch.linspace(0, len(usable) - 1, min(most, len(usable))).round().long().tolist()
    return [(usable[k], nearest[usable[k]][0]) for k in chosen]


def view_scores(cameras: Cameras, greys: Sequence[Float[Tensor, "_ _"]], most: int = 400) -> dict[int, float]:
    """How well single photographs fit their neighbours': the best score over up to three neighbours, so that one of
    them with a wrong pose does no harm. A view that fits the first of them as most do is not compared further.

    Args:
        cameras: the views, of any size.
        greys: their photographs' brightness, small.
        most: so many views are looked at, spread evenly.

    Returns:
        the scores by the views' indices; views without neighbours or texture have none.
    """
    small = shrunk(cameras, [(g.shape[0], g.shape[1]) for g in greys])
    nearest = _nearest(small, 3)
    step = max(1, -(-len(greys) // most))

    def score(pair: tuple[int, int]) -> float | None:
        found = match(small[list(pair)], greys[pair[0]], greys[pair[1]])
        return None if found is None else found.score

    def scored(pairs: list[tuple[int, int]]) -> dict[tuple[int, int], float]:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
            found = list(threads.map(score, pairs))
        return {pair: value for pair, value in zip(pairs, found, strict=True) if value is not None}

    first = scored([(i, nearest[i][0]) for i in range(0, len(greys), step) if nearest[i]])
    if not first:
        return {}
    usual = torch.tensor(list(first.values())).median().item()
    doubtful = {i for (i, _), value in first.items() if value < usual - 0.05}
    more = scored([(i, j) for i in sorted(doubtful) for j in nearest[i][1:]])
    best: dict[int, float] = {}
    for (i, _), value in (*first.items(), *more.items()):
        best[i] = max(value, best.get(i, 0.0))
    return best


def _nearest(cameras: Cameras, most: int) -> list[list[int]]:
    """Of each view up to `most` others that look about the same way from a little way apart, the nearest first."""
    centers, forward = cameras.centers, cameras.forward_axes
    spread = (centers - centers.mean(dim=0)).norm(dim=-1).mean()
    apart = torch.cdist(centers, centers, compute_mode="donot_use_mm_for_euclid_dist")
    cosine = (forward[:, None] * forward[None]).sum(dim=-1)
    fits = (cosine > torch.tensor(_MAX_ANGLE).deg2rad().cos()) & (apart > _MIN_BASELINE * spread) & (apart > 1e-9)
    distances, order = apart.where(fits, torch.inf).topk(min(most, len(cameras)), largest=False, sorted=True)
    return [
        [j for j, distance in zip(js, ds, strict=True) if distance < torch.inf]
        for js, ds in zip(order.tolist(), distances.tolist(), strict=True)
    ]


def match(cameras: Cameras, first: Float[Tensor, "h w"], second: Float[Tensor, "k l"]) -> Match | None:
    """Sweep the depths of one view and compare it with another.

    Args:
        cameras: the two views, for images of these sizes.
        first: brightness of the first, in [0, 1].
        second: brightness of the second.

    Returns:
        None where the first has too little texture to say anything.
    """
    height, width = first.shape
    textured = _patches(first[None, None])[1].sqrt()[0, 0] > _TEXTURE
    if textured.float().mean() < 0.03 or min(first.shape) < 2 * _WINDOW:
        return None
    baseline = (cameras.centers[0] - cameras.centers[1]).norm()
    # Seen from a baseline b to the side, a point at depth d is moved by focal b / d pixels.
    pixels = cameras.focal.max().item() * (1 / _NEAREST - 1 / _FARTHEST)
    distances = baseline / torch.linspace(1 / _FARTHEST, 1 / _NEAREST, min(_MOST_DEPTHS, math.ceil(pixels) + 1))
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    xy = torch.stack([x, y], dim=-1).reshape(1, -1, 2)
    # A point at depth d is start + d step in the second view's axes: two points of each ray say where all are.
    near = cameras[1].transform_to_camera(cameras[0].unproject(xy, baseline.expand(1, height * width)))
    start = cameras[1].transform_to_camera(cameras[0].centers[None])
    local = start + (near - start) * (distances / baseline)[:, None, None]
    there = cameras[1].plane_to_pixels((local[..., :2] / local[..., 2:])[None])[0]
    looked_up, seen = _look_up(second, there.reshape(-1, height, width, 2), local[..., 2].reshape(-1, height, width))
    best, index = _zncc(first, looked_up).where(seen, 0.0).clamp(min=0).max(dim=0)
    return Match(best[textured].mean().item(), distances[index], best.where(textured, 0.0))


def _look_up(
    image: Float[Tensor, "k l"], xy: Float[Tensor, "n h w 2"], depth: Float[Tensor, "n h w"]
) -> tuple[Float[Tensor, "n h w"], Bool[Tensor, "n h w"]]:
    """Brightness at pixels, and where a whole patch of them lies within the image and before the view."""
    size = torch.tensor([image.shape[1], image.shape[0]], dtype=xy.dtype)
    grid = (xy / size * 2 - 1).nan_to_num(2.0, 2.0, -2.0).clamp(-2, 2)
    values = grid_sample(image.expand(len(xy), 1, -1, -1), grid, align_corners=False, padding_mode="border")[:, 0]
    inside = ((grid.abs() <= 1).all(dim=-1) & (depth > 0)).float()
    return values, _blur(inside[:, None])[:, 0] > 0.99


def _zncc(first: Float[Tensor, "h w"], second: Float[Tensor, "n h w"]) -> Float[Tensor, "n h w"]:
    mean_a, variance_a = _patches(first[None, None])
    mean_b, variance_b = _patches(second[:, None])
    covariance = _blur(first * second[:, None]) - mean_a * mean_b
    return (covariance / (variance_a * variance_b).clamp(min=1e-8).sqrt())[:, 0].clamp(-1, 1)


def _patches(images: Float[Tensor, "n 1 h w"]) -> tuple[Float[Tensor, "n 1 h w"], Float[Tensor, "n 1 h w"]]:
    """Mean and variance of the patch around each pixel."""
    mean = _blur(images)
    return mean, (_blur(images.square()) - mean.square()).clamp(min=0)


def _blur(images: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n 1 h w"]:
    """Means of patches, of what of them lies within the image; products with bands of ones are the fastest way."""
    return _band(images.shape[-2]) @ images @ _band(images.shape[-1]).mT


def _band(n: int) -> Float[Tensor, "n n"]:
    """Row i means over the places within half a patch of i."""
    at = torch.arange(n)
    near = ((at[:, None] - at).abs() <= _WINDOW // 2).float()
    return near / near.sum(dim=1, keepdim=True)
