"""A picture of where a scene's views stand and what they look at: their frusta, seen from aside and from above."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nerf_trainer.cameras.cameras import Cameras

COLORS = {"train": "#3b6ea5", "val": "#c9822b", "test": "#3f8f4f"}
"""Colours of the splits."""
_ODD = "#c0282d"
_ELEVATIONS = ((18, -60, "from aside"), (90, -90, "from above"))
_MAX_POINTS = 4000
_MAX_NAMES = 12
_BOX_NORM = 1.8294640721620434 * 25 / 24
"""Length that Matplotlib's set_box_aspect gives the sides at zoom 1."""


def draw_frusta(
    path: Path,
    cameras: Cameras,
    splits: Sequence[str],
    odd: Mapping[int, str],
    target: Float[Tensor, "3"],
    up: Float[Tensor, "3"],
    title: str,
    points: Float[Tensor, "P 3"] | None = None,
) -> None:
    """Draw the views into a PNG, which appears only when it is whole.

    Args:
        path: the file.
        cameras: B views.
        splits: the split of each.
        odd: short names of the views to point out, by index.
        target: what the views look at; marked.
        up: upwards in the picture.
        title: a line above it.
        points: points of the scene.

    Raises:
        OSError: the file can't be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    frame = _upright(up)
    centers = cameras.centers.double() @ frame.T
    # Many views get small frusta, so that they do not hide each other.
    size = 0.12 * min(1.0, (24 / len(cameras)) ** 0.35) * _extent(centers, target.double() @ frame.T)
    corners = torch.einsum("ij,bkj->bki", frame, _corners(cameras, size))
    extent, corner = _extent(centers, target.double() @ frame.T), centers.amin(dim=0)
    seen = None if points is None else _within(points.double() @ frame.T, centers, target.double() @ frame.T)
    drawn = torch.cat([centers, corners.reshape(-1, 3), (target.double() @ frame.T)[None]])
    drawn = torch.cat([drawn, corner + 0.25 * extent * frame.mT])  # the world's axes and their letters
    figure = Figure(figsize=(15, 7.4))
    figure.suptitle(title, fontsize=13, y=0.975)
    for k, (elevation, azimuth, label) in enumerate(_ELEVATIONS):
        axes: Any = figure.add_axes((0.01 + 0.495 * k, 0.06, 0.485, 0.86), projection="3d")
        axes.set_proj_type("ortho")
        axes.view_init(elev=elevation, azim=azimuth)
        above = elevation == 90
        figure.text(0.01 + 0.495 * (k + 0.5), 0.915, label, fontsize=10, ha="center")
        if seen is not None:
            axes.scatter(*seen.T.numpy(), s=1.2, color="#8a8a8a", alpha=0.45, linewidths=0)
        _draw_views(axes, centers, corners, splits, odd)
        _draw_target(axes, target.double() @ frame.T)
        _draw_world(axes, frame, 0.2 * extent, corner)
        if above:
            axes.set_zticks([])
        _equal(axes, drawn, above)
    _legend(figure, splits, bool(odd), points is not None)
    part = path.with_name(f".{path.stem}-{os.getpid()}.png")
    try:
        FigureCanvasAgg(figure).print_figure(part, format="png", dpi=100)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _upright(up: Float[Tensor, "3"]) -> Float[Tensor, "3 3"]:
    """A rotation that turns `up` to z and else turns as little as can be (Rodrigues), in float64."""
    u = torch.nn.functional.normalize(up.double(), dim=0)
    z = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    if u[2] < -0.999999:
        return torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
    v = torch.linalg.cross(u, z)
    zero = torch.zeros((), dtype=torch.float64)
    rows = ([zero, -v[2], v[1]], [v[2], zero, -v[0]], [-v[1], v[0], zero])
    K = torch.stack([torch.stack(row) for row in rows])
    return torch.eye(3, dtype=torch.float64) + K + K @ K / (1 + u[2])


def _extent(centers: Tensor, target: Tensor) -> float:
    ends = torch.cat([centers, target[None]])
    return max((ends.amax(dim=0) - ends.amin(dim=0)).max().item(), 1e-9)


def _corners(cameras: Cameras, size: float) -> Float[Tensor, "B 4 3"]:
    """The corners of each image on its plane at depth `size` (less where it is wide), clockwise from the top left."""
    height, width = cameras.image_size_hw.to(cameras.focal).unbind(dim=1)
    zero = torch.zeros_like(width)
    xs, ys = torch.stack([zero, width, width, zero], dim=1), torch.stack([zero, zero, height, height], dim=1)
    plane = (torch.stack([xs, ys], dim=-1) - cameras.principal_point[:, None]) / cameras.focal[:, None]
    reach = size / plane.abs().amax(dim=(1, 2), keepdim=True).clamp(min=0.5) * 0.5
    local = torch.cat([plane, torch.ones_like(plane[..., :1])], dim=-1) * reach
    turned = (cameras.R.mT[:, None] * local[..., None, :]).sum(dim=-1)
    return (turned + cameras.centers[:, None]).double()


def _within(points: Tensor, centers: Tensor, target: Tensor) -> Tensor:
    reach = 1.2 * max((centers - target).norm(dim=-1).max().item(), 1e-9)
    near = points[(points - target).norm(dim=-1) < reach]
    return near[:: max(1, len(near) // _MAX_POINTS)]


def _draw_views(axes: Any, centers: Tensor, corners: Tensor, splits: Sequence[str], odd: Mapping[int, str]) -> None:
    from mpl_toolkits.mplot3d.art3d import Line3DCollection, Poly3DCollection

    for split in dict.fromkeys(splits):
        for chosen, color in ((False, COLORS.get(split, "#777777")), (True, _ODD)):
            members = [i for i, s in enumerate(splits) if s == split and (i in odd) == chosen]
            if not members:
                continue
            lines, tops = [], []
            for i in members:
                c, q = centers[i].numpy(), corners[i].numpy()
                lines += [[c, corner] for corner in q] + [[q[k], q[(k + 1) % 4]] for k in range(4)]
                # The roof: a triangle over the upper edge says which way up the picture is.
                top = (q[0] + q[1]) / 2
                tops.append(np.stack([q[0], q[1], top + 0.35 * (top - (q[2] + q[3]) / 2)]))
            width, alpha = (1.6, 1.0) if chosen else (0.8, 0.75)
            axes.add_collection3d(Line3DCollection(lines, colors=color, linewidths=width, alpha=alpha))
            axes.add_collection3d(Poly3DCollection(tops, facecolors=color, alpha=0.9))
    for i, name in list(odd.items())[:_MAX_NAMES]:
        axes.text(*centers[i].tolist(), f"  {name}", color=_ODD, fontsize=9, fontweight="bold", zorder=20)


def _draw_target(axes: Any, target: Tensor) -> None:
    axes.scatter(*[[value] for value in target.tolist()], marker="x", s=70, color="black", linewidths=1.8, zorder=10)


def _draw_world(axes: Any, frame: Tensor, length: float, corner: Tensor) -> None:
    """The world's axes, at the corner of the picture."""
    start = corner.numpy()
    for k, (name, color) in enumerate((("x", "#d62728"), ("y", "#2ca02c"), ("z", "#1f77b4"))):
        end = start + length * frame[:, k].numpy()
        axes.plot(*np.stack([start, end]).T, color=color, linewidth=2)
        axes.text(*end, name, color=color, fontsize=10)


def _equal(axes: Any, points: Tensor, above: bool) -> None:
    """The same scale on all axes, the box as small as what is in it allows, numbers small and few."""
    low, high = points.amin(dim=0), points.amax(dim=0)
    span = (high - low).max()
    middle, half = (low + high) / 2, torch.maximum(high - low, 0.25 * span) / 2 * 1.04
    for set_limits, value, reach in zip(
        (axes.set_xlim, axes.set_ylim, axes.set_zlim), middle.tolist(), half.tolist(), strict=True
    ):
        set_limits(value - reach, value + reach)
    # The sides as they are projected, and the zoom with which they fill the panel; Matplotlib divides by the norm.
    sides = half / half.max()
    width, depth, height = sides.tolist()
    seen_w = width if above else 0.87 * width + 0.5 * depth
    seen_h = depth if above else 0.31 * (0.5 * width + 0.87 * depth) + 0.95 * height
    zoom = min(1.75 / seen_w, 1.5 / seen_h) * sides.norm().item() / _BOX_NORM
    axes.set_box_aspect((width, depth, height), zoom=zoom)
    axes.tick_params(labelsize=7)


def _legend(figure: Any, splits: Sequence[str], has_odd: bool, has_points: bool) -> None:
    from matplotlib.lines import Line2D

    counts = {split: list(splits).count(split) for split in dict.fromkeys(splits)}
    marks = [Line2D([], [], color=COLORS.get(s, "#777777"), linewidth=2, label=f"{s} ({n})") for s, n in counts.items()]
    if has_odd:
        marks.append(Line2D([], [], color=_ODD, linewidth=2, label="out of line"))
    marks.append(Line2D([], [], color="black", marker="x", linestyle="", label="what most views look at"))
    if has_points:
        marks.append(Line2D([], [], color="#8a8a8a", marker=".", linestyle="", label="points"))
    figure.legend(handles=marks, loc="lower center", ncol=len(marks), fontsize=10, frameon=False)
