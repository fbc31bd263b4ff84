"""`ops.pixel_rays` in Triton: a thread for each pixel."""

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int, UInt8
from torch import Tensor

BLOCK = 128
"""Pixels of a program."""
SMALLEST = 1e-12
"""Least length that a direction is divided by, as torch's `normalize` has it."""


@triton.jit
def _locate_kernel(
    index,
    ends,
    sizes_hw,
    camera_out,
    xy_out,
    n,
    N,
    fraction,
    STEPS: tl.constexpr,
    CENTRAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = i < n
    place = tl.load(index + i, mask=there, other=0)
    camera = tl.zeros([BLOCK], tl.int32)  # how many images end at or before the place: bisection
    for step in tl.static_range(STEPS):
        more = camera + (1 << (STEPS - 1 - step))
        end = tl.load(ends + more - 1, mask=there & (more <= N), other=0)
        camera = tl.where((more <= N) & (end <= place), more, camera)
    camera = tl.minimum(camera, N - 1)
    height = tl.load(sizes_hw + 2 * camera, mask=there, other=1)
    width = tl.load(sizes_hw + 2 * camera + 1, mask=there, other=1)
    within = place - (tl.load(ends + camera, mask=there, other=1) - height * width)
    x, y = (within % width).to(tl.float32) + 0.5, (within // width).to(tl.float32) + 0.5
    if CENTRAL:
        margin = 0.5 - 0.5 * fraction
        x = tl.floor(x * fraction + width.to(tl.float32) * margin) + 0.5
        y = tl.floor(y * fraction + height.to(tl.float32) * margin) + 0.5
    tl.store(camera_out + i, camera.to(tl.int64), mask=there)
    tl.store(xy_out + 2 * i, x, mask=there)
    tl.store(xy_out + 2 * i + 1, y, mask=there)


@triton.jit
def _gather_kernel(rgba, ends, sizes_hw, camera_index, xy, rgb_out, alpha_out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = i < n
    camera = tl.load(camera_index + i, mask=there, other=0)
    column = tl.load(xy + 2 * i, mask=there, other=0.0).to(tl.int64)
    row = tl.load(xy + 2 * i + 1, mask=there, other=0.0).to(tl.int64)
    height = tl.load(sizes_hw + 2 * camera, mask=there, other=1)
    width = tl.load(sizes_hw + 2 * camera + 1, mask=there, other=1)
    pixel = rgba + 4 * (tl.load(ends + camera, mask=there, other=0) + (row - height) * width + column)
    for c in tl.static_range(3):  # pyright: ignore[reportGeneralTypeIssues]
        value = tl.load(pixel + c, mask=there, other=0).to(tl.float32)
        tl.store(rgb_out + 3 * i + c, tl.div_rn(value, 255.0), mask=there)
    alpha = tl.load(pixel + 3, mask=there, other=0).to(tl.float32)
    tl.store(alpha_out + i, tl.div_rn(alpha, 255.0), mask=there)


@triton.jit
def _through_pixels_kernel(
    xy, camera_index, R, T, focal, principal_point, origins, directions, n, SMALLEST: tl.constexpr, BLOCK: tl.constexpr
):
    """directions are R^T (u, v, 1) on the plane at depth 1, origins -R^T T."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = i < n
    camera = tl.load(camera_index + i, mask=there, other=0)
    x = tl.load(xy + 2 * i, mask=there, other=0.0) - tl.load(principal_point + 2 * camera, mask=there, other=0.0)
    y = tl.load(xy + 2 * i + 1, mask=there, other=0.0)
    y -= tl.load(principal_point + 2 * camera + 1, mask=there, other=0.0)
    u = tl.div_rn(x, tl.load(focal + 2 * camera, mask=there, other=1.0))
    v = tl.div_rn(y, tl.load(focal + 2 * camera + 1, mask=there, other=1.0))
    of_camera, t = R + 9 * camera, T + 3 * camera
    tx, ty = tl.load(t, mask=there, other=0.0), tl.load(t + 1, mask=there, other=0.0)
    tz = tl.load(t + 2, mask=there, other=0.0)
    square = tl.zeros([BLOCK], tl.float32)
    # A column of R is a row of its transpose.
    for j in tl.static_range(3):  # pyright: ignore[reportGeneralTypeIssues]
        r0, r1 = tl.load(of_camera + j, mask=there, other=0.0), tl.load(of_camera + 3 + j, mask=there, other=0.0)
        r2 = tl.load(of_camera + 6 + j, mask=there, other=0.0)
        tl.store(origins + 3 * i + j, -(r0 * tx + r1 * ty + r2 * tz), mask=there)
        d = r0 * u + r1 * v + r2
        square += d * d
    norm = tl.maximum(tl.sqrt_rn(square), SMALLEST)
    for j in tl.static_range(3):
        r0, r1 = tl.load(of_camera + j, mask=there, other=0.0), tl.load(of_camera + 3 + j, mask=there, other=0.0)
        r2 = tl.load(of_camera + 6 + j, mask=there, other=0.0)
        tl.store(directions + 3 * i + j, tl.div_rn(r0 * u + r1 * v + r2, norm), mask=there)


def locate(
    index: Int[Tensor, "n"], ends: Int[Tensor, "N"], sizes_hw: Int[Tensor, "N 2"], center_fraction: float
) -> tuple[Int[Tensor, "n"], Float[Tensor, "n 2"]]:
    n = len(index)
    camera = torch.empty(n, dtype=torch.int64, device=index.device)
    xy = torch.empty(n, 2, device=index.device)
    if n > 0:
        launch: Any = _locate_kernel[(triton.cdiv(n, BLOCK),)]
        launch(
            index.contiguous(),
            ends.contiguous(),
            sizes_hw.contiguous(),
            camera,
            xy,
            n,
            len(ends),
            float(center_fraction),
            STEPS=max(1, len(ends).bit_length()),
            CENTRAL=center_fraction < 1.0,
            BLOCK=BLOCK,
            num_warps=4,
        )
    return camera, xy


def gather(
    rgba: UInt8[Tensor, "P 4"],
    ends: Int[Tensor, "N"],
    sizes_hw: Int[Tensor, "N 2"],
    camera_index: Int[Tensor, "n"],
    xy: Float[Tensor, "n 2"],
) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n"]]:
    n = len(camera_index)
    rgb, alpha = torch.empty(n, 3, device=rgba.device), torch.empty(n, device=rgba.device)
    if n > 0:
        launch: Any = _gather_kernel[(triton.cdiv(n, BLOCK),)]
        tensors = (rgba, ends, sizes_hw, camera_index, xy)
        launch(*(tensor.contiguous() for tensor in tensors), rgb, alpha, n, BLOCK=BLOCK, num_warps=4)
    return rgb, alpha


def through_pixels(
    xy: Float[Tensor, "n 2"],
    camera_index: Int[Tensor, "n"],
    R: Float[Tensor, "B 3 3"],
    T: Float[Tensor, "B 3"],
    focal: Float[Tensor, "B 2"],
    principal_point: Float[Tensor, "B 2"],
) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n 3"]]:
    n = len(camera_index)
    origins, directions = torch.empty(n, 3, device=xy.device), torch.empty(n, 3, device=xy.device)
    if n > 0:
        launch: Any = _through_pixels_kernel[(triton.cdiv(n, BLOCK),)]
        tensors = (xy, camera_index, R, T, focal, principal_point)
        launch(
            *(tensor.contiguous() for tensor in tensors),
            origins,
            directions,
            n,
            SMALLEST=SMALLEST,
            BLOCK=BLOCK,
            num_warps=4,
        )
    return origins, directions
