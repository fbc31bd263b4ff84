"""What the panes of a live preview show: a rendered view beside its photograph, and sheets of photographs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from nerf_trainer.models.base import Predictions, Targets
from nerf_trainer.visualization.colormaps import colorize, grey, to_bytes, value_range
from nerf_trainer.visualization.flyaround import pictures

_GAP = 6
"""Pixels of white between pictures."""
_SMALLEST, _LARGEST = 224, 448
"""Longer sides, pixels, that pictures of a pane are stretched or shrunk to where they are outside of these."""
_TILE = 144
_COLUMNS = 5

Picture = UInt8[np.ndarray, "_ _ 3"]


@dataclass(frozen=True)
class Pane:
    """One window of a view."""

    name: str
    """The window's own: what a later pane of the same name replaces."""
    title: str
    """What is seen, from left to right."""
    picture: Picture
    """The picture, in host memory."""


def view_panes(predictions: Predictions) -> list[Pane]:
    """Image, mask and depth of the first view of a whole-view rendering, each beside its photograph where there is one.

    Rendered and measured depth are shown in the same colours, from the nearest to the farthest that was measured.
    """
    targets = predictions.targets
    depth_seen = None if targets.depth is None or not bool((targets.depth[0] > 0).any()) else targets.depth[0, ..., 0]
    near_far = None if depth_seen is None else value_range(depth_seen.float().cpu(), (depth_seen > 0).float().cpu())
    shown = pictures(predictions, near_far)
    rendered = {"image": shown.images_render, "mask": shown.masks_render, "depth": shown.depths_render}
    seen = _seen(targets, depth_seen, near_far)
    panes = []
    for name, picture in rendered.items():
        of_target = seen.get(name)
        row = [picture.numpy()] if of_target is None else [picture.numpy(), of_target]
        title = f"{name}: rendered" if of_target is None else f"{name}: rendered, photographed"
        panes.append(Pane(name, title, beside(row)))
    return panes


def _seen(
    targets: Targets, depth: Float[Tensor, "H W"] | None, near_far: tuple[float, float] | None
) -> dict[str, Picture]:
    """What there is of the first view's photograph, by the name of the pane."""
    seen = {}
    if targets.rgb is not None:
        seen["image"] = to_bytes(targets.rgb[0]).cpu().numpy()
    if targets.fg_probability is not None:
        seen["mask"] = grey(targets.fg_probability[0, ..., 0]).cpu().numpy()
    if depth is not None and near_far is not None:
        depth = depth.float().cpu()
        seen["depth"] = colorize(depth, *near_far, opacity=(depth > 0).float()).numpy()
    return seen


def photographs(images: Float[Tensor, "V 3 H W"]) -> list[Picture]:
    """Images with colours in [0, 1] as pictures in host memory."""
    return list(to_bytes(images.permute(0, 2, 3, 1)).cpu().numpy())


def beside(row: Sequence[Picture]) -> Picture:
    """Pictures of the same size next to each other, none of them too small to see or larger than a pane should be."""
    fitted = [_fitted(picture, _SMALLEST, _LARGEST) for picture in row]
    return _placed(fitted, len(fitted))


def sheet(tiles: Sequence[Picture]) -> Picture:
    """Small copies of at least one picture, in rows of five."""
    return _placed([_fitted(picture, _TILE, _TILE) for picture in tiles], _COLUMNS)


def _fitted(picture: Picture, smallest: int, largest: int) -> Picture:
    """The picture with its longer side between two lengths; a stretched one keeps its pixels' edges."""
    height, width = picture.shape[:2]
    longer = max(height, width)
    if smallest <= longer <= largest:
        return picture
    scale = (smallest if longer < smallest else largest) / longer
    size = max(1, round(scale * width)), max(1, round(scale * height))
    how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX
    return np.asarray(Image.fromarray(picture).resize(size, how))


def _placed(tiles: Sequence[Picture], columns: int) -> Picture:
    """Tiles in rows on white, each at the top left of its cell."""
    columns = min(columns, len(tiles))
    cell_h, cell_w = (max(tile.shape[axis] for tile in tiles) + _GAP for axis in (0, 1))
    rows = -(-len(tiles) // columns)
    page = np.full((rows * cell_h - _GAP, columns * cell_w - _GAP, 3), 255, np.uint8)
    for i, tile in enumerate(tiles):
        y, x = (i // columns) * cell_h, (i % columns) * cell_w
        page[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
    return page
