"""Products of planes and the lines across them at points, factor by factor: what `ops/kernels/vm_sample` computes."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from nerf_trainer.ops.grid_sample import Mode, Padding, interpolate_grid

PLANE_AXES = (slice(0, 2), slice(1, 3), slice(0, 3, 2))
"""Axes of the xy, the yz and the xz plane, among x, y and z."""
LINE_AXES = (slice(2, 3), slice(0, 1), slice(1, 2))
"""The axis across each plane."""


def vm_components_reference(
    planes: Sequence[Float[Tensor, "_ _ _"] | None],
    lines: Sequence[Float[Tensor, "_ _"] | None],
    local: Float[Tensor, "M 3"],
    mode: Mode,
    padding: Padding,
    align_corners: bool,
    summed: bool,
) -> Float[Tensor, "M C"]:
    """As `nerf_trainer.ops.vm_sample.vm_components`; differentiable in the points too."""
    products = []
    for plane, line, plane_axes, line_axis in zip(planes, lines, PLANE_AXES, LINE_AXES, strict=True):
        if plane is not None and line is not None:
            on_plane = interpolate_grid(plane, local[:, plane_axes], mode, padding, align_corners)
            products.append(on_plane * interpolate_grid(line, local[:, line_axis], mode, padding, align_corners))
    components = torch.cat(products, dim=-1)
    return components.sum(dim=-1, keepdim=True) if summed else components
