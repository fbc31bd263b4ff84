"""Sampling of grids in vector-matrix factors (Chen et al. 2022, TensoRF, equations 4 and 9).

M: points; C: components of all modes, or 1. A mode is a plane (nodes of its two axes, components) and the line across
it (nodes, components).
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from nerf_trainer.ops.backend import uses_triton
from nerf_trainer.ops.deterministic import must_be_deterministic
from nerf_trainer.ops.grid_sample import Mode, Padding
from nerf_trainer.ops.reference.vm_sample import vm_components_reference


def vm_components(
    planes: Sequence[Float[Tensor, "_ _ _"] | None],
    lines: Sequence[Float[Tensor, "_ _"] | None],
    local: Float[Tensor, "M 3"],
    mode: Mode = "bilinear",
    padding: Padding = "zeros",
    align_corners: bool = True,
    summed: bool = False,
) -> Float[Tensor, "M C"]:
    """plane_xy[x, y] line_z[z], plane_yz[y, z] line_x[x] and plane_xz[x, z] line_y[y] at points, side by side.

    Linear interpolation of float32 values runs in one kernel each way on a GPU, where the points want no gradient; its
    sums of gradients come in an order that changes. Everything else goes factor by factor.

    Args:
        planes: the xy, the yz and the xz plane, channels last; None where a mode has no components.
        lines: the lines across them, along z, x and y; None at the same places.
        local: points in local coordinates, [-1, 1] on the grid; see `ops.grid_sample` for these and what follows.
        mode: how to interpolate.
        padding: what is beyond the outermost nodes.
        align_corners: whether -1 and 1 are nodes.
        summed: give the sum of all components instead.
    """
    factors = [factor for pair in zip(planes, lines, strict=True) for factor in pair if factor is not None]
    fused = (
        uses_triton(local)
        and mode == "bilinear"
        and padding != "reflection"
        and not local.requires_grad
        and not must_be_deterministic(local)
        and len(factors) == 2 * len(planes)
        and all(f.dtype is torch.float32 and min(f.shape[:-1]) > 1 and f.numel() < 2**31 for f in factors)
    )
    if not fused:
        return vm_components_reference(planes, lines, local, mode, padding, align_corners, summed)
    options = (padding == "border", align_corners, summed)
    contiguous = [factor.contiguous() for factor in factors]
    return _VMComponents.apply(local.float().contiguous(), options, *contiguous)


class _VMComponents(torch.autograd.Function):
    """The kernels of `ops/kernels/vm_sample`; backward samples the factors again."""

    @staticmethod
    def forward(ctx: Any, local: Tensor, options: tuple[bool, bool, bool], *factors: Tensor) -> Tensor:
        from nerf_trainer.ops.kernels.vm_sample import vm_components_forward

        ctx.save_for_backward(local, *factors)
        ctx.options = options
        return vm_components_forward(local, factors, *options)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        from nerf_trainer.ops.kernels.vm_sample import vm_components_backward

        local, *factors = ctx.saved_tensors
        return None, None, *vm_components_backward(grad_outputs[0].contiguous(), local, factors, *ctx.options)
