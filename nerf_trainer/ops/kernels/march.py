"""Triton's kernel of marching: a ray a thread, empty blocks, bytes and cells crossed at once.

Rays are marched once, which counts their samples and notes which steps they are; where there is no memory for notes,
`most` places a ray, twice: to count samples, and to write them where there is room. Products and sums are not
contracted (`enable_fp_fusion`), so that all of it, and the twin, finds the same steps.
"""
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from nerf_trainer.ops.occupancy_bits import OccupiedCells
from nerf_trainer.ops.ray_steps import BoundedRays, Steps

RAYS = 32
"""Rays of a program, one a thread: the program runs until the last of them is done."""
TAKEN_AT_ONCE = 32
"""Samples of a ray that a program makes of notes at once."""
MOST_NOTES = 2**26
"""Notes that there is memory for, of 4 bytes each; counted are those that rays could have, of which few are written."""
LOG2_E = tl.constexpr(1.4426950408889634)
PARALLEL = tl.constexpr(1e-20)
INWARD = tl.constexpr(2.0**-16)
"""How far before the face of an empty region crossing it ends, in half edges of its cascade: above what rounding moves
a place, so that no sample beyond the face is crossed."""
MARGIN = tl.constexpr(1.0 / 32.0)
"""Likewise in steps, for the rounding of lengths."""


@triton.jit
def _bounds(o, d, reach, t_in, t_out):
    """The part of [t_in, t_out] where a ray lies between the faces of a box along one axis."""
    parallel = tl.abs(d) < PARALLEL
    safe = tl.where(parallel, 1.0, d)
    low = tl.div_rn(-reach - o, safe)
    high = tl.div_rn(reach - o, safe)
    endless = tl.where(tl.abs(o) <= reach, float("inf"), float("-inf"))
    t_in = tl.maximum(t_in, tl.where(parallel, -endless, tl.minimum(low, high)))
    t_out = tl.minimum(t_out, tl.where(parallel, endless, tl.maximum(low, high)))
    return t_in, t_out


@triton.jit
def _load(rays, box, ray, active):
    """Origin and direction in the coordinates of the innermost box, world units per length, shift, entry and exit."""
    origins, directions, near, far, jitter = rays
    center_x, center_y, center_z, per_x, per_y, per_z, reach = box
    dx = tl.load(directions + 3 * ray, mask=active, other=0.0)
    dy = tl.load(directions + 3 * ray + 1, mask=active, other=0.0)
    dz = tl.load(directions + 3 * ray + 2, mask=active, other=0.0)
    speed = tl.sqrt_rn((dx * dx + dy * dy) + dz * dz)
    ox = (tl.load(origins + 3 * ray, mask=active, other=0.0) - center_x) * per_x
    oy = (tl.load(origins + 3 * ray + 1, mask=active, other=0.0) - center_y) * per_y
    oz = (tl.load(origins + 3 * ray + 2, mask=active, other=0.0) - center_z) * per_z
    dx, dy, dz = dx * per_x, dy * per_y, dz * per_z
    t_in = tl.load(near + ray, mask=active, other=0.0)
    t_out = tl.load(far + ray, mask=active, other=0.0)
    t_in, t_out = _bounds(ox, dx, reach, t_in, t_out)
    t_in, t_out = _bounds(oy, dy, reach, t_in, t_out)
    t_in, t_out = _bounds(oz, dz, reach, t_in, t_out)
    return (ox, oy, oz), (dx, dy, dz), speed, tl.load(jitter + ray, mask=active, other=0.0), t_in, t_out


@triton.jit
def _step_of(w, spacing):
    """The coordinate s of a distance."""
    step, w1, s1, w2, s2, largest, rate = spacing
    grown = tl.log2(tl.maximum(w, w1) * (1.0 / w1)) * (1.0 / rate) + s1
    far = (w - w2) * (1.0 / largest) + s2
    return tl.where(w <= w1, w * (1.0 / step), tl.where(w <= w2, grown, far))


@triton.jit
def _edge(i, shift, t_in, dt, s_in, speed, spacing, CONE: tl.constexpr):
    """The length at which step i begins."""
    shifted = i.to(tl.float32) + shift
    if CONE:
        step, w1, s1, w2, s2, largest, rate = spacing
        s = s_in + shifted
        grown = tl.exp2((tl.minimum(s, s2) - s1) * rate) * w1
        w = tl.where(s <= s1, s * step, tl.where(s <= s2, grown, (s - s2) * largest + w2))
        return tl.div_rn(w, speed)
    else:
        return t_in + shifted * dt


@triton.jit
def _cell(p, scale, RESOLUTION: tl.constexpr):
    """A cell's number along one axis, from a place in the coordinates of the innermost box."""
    half: tl.constexpr = 0.5 * RESOLUTION
    at = (p * scale) * half + half
    return tl.minimum(tl.maximum(at, 0.0), RESOLUTION - 1.0).to(tl.int32)


@triton.jit
def _look_up(cells, place, active, CASCADES: tl.constexpr, RESOLUTION: tl.constexpr, CONTRACTED: tl.constexpr):
    """The cell of a place, half an edge of its cascade, whether it is occupied, and how many cells across around it
    are all empty; 0 where rays are no straight lines through the cells."""
    bits, blocks = cells
    px, py, pz = place
    farthest = tl.maximum(tl.maximum(tl.abs(px), tl.abs(py)), tl.abs(pz))
    cascade = tl.zeros_like(px).to(tl.int32)
    scale = tl.zeros_like(px) + 1.0
    size = scale
    if CONTRACTED:
        r = tl.maximum(farthest, 1.0)
        scale = 0.5 * tl.div_rn(2.0 - tl.div_rn(1.0, r), r)
        size = 2.0 * size
    for k in tl.static_range(1, CASCADES):
        outside = farthest > 1.0 * 2 ** (k - 1)
        cascade += outside.to(tl.int32)
        scale = tl.where(outside, 1.0 / 2**k, scale)
        size = tl.where(outside, 1.0 * 2**k, size)
    x, y, z = _cell(px, scale, RESOLUTION), _cell(py, scale, RESOLUTION), _cell(pz, scale, RESOLUTION)
    half: tl.constexpr = RESOLUTION // 2
    eighth: tl.constexpr = RESOLUTION // 8
    in_block = ((cascade * eighth + (x >> 3)) * eighth + (y >> 3)) * eighth + (z >> 3)
    in_bits = ((cascade * half + (x >> 1)) * half + (y >> 1)) * half + (z >> 1)
    block = tl.load(blocks + in_block, mask=active, other=0)
    byte = tl.load(bits + in_bits, mask=active, other=0).to(tl.int32)
    bit = (x & 1) * 4 + (y & 1) * 2 + (z & 1)
    edge = tl.where(block == 0, 8, tl.where(byte == 0, 2, 1))
    if CONTRACTED:
        edge = tl.where(farthest > 1.0, 0, edge)
    return (x, y, z), size, active & (((byte >> bit) & 1) != 0), edge


@triton.jit
def _inverse(d):
    """1 / d; 0 where the ray does not move along the axis."""
    parallel = tl.abs(d) < PARALLEL
    return tl.where(parallel, 0.0, 1.0 / tl.where(parallel, 1.0, d))


@triton.jit
def _exit(cell, edge, o, inverse, size, RESOLUTION: tl.constexpr):
    """The length at which a ray leaves, along one axis, the empty region of `edge` cells around a cell."""
    low = cell & -edge
    forward = inverse > 0.0
    face = tl.where(forward, low + edge, low).to(tl.float32) * (2.0 / RESOLUTION) - 1.0
    face = tl.where(forward, face - INWARD, face + INWARD)
    return tl.where(inverse == 0.0, float("inf"), (face * size - o) * inverse)


@triton.jit
def _first_beyond(cell, edge, origin, inverse, size, RESOLUTION: tl.constexpr):
    """The length at which a ray leaves the empty region of `edge` cells around a cell."""
    x = _exit(cell[0], edge, origin[0], inverse[0], size, RESOLUTION)
    y = _exit(cell[1], edge, origin[1], inverse[1], size, RESOLUTION)
    z = _exit(cell[2], edge, origin[2], inverse[2], size, RESOLUTION)
    return tl.minimum(tl.minimum(x, y), z)


@triton.jit(do_not_specialize=["n_rays", "most"])
def march_kernel(
    rays,
    box,
    spacing,
    cells,
    first,
    count,
    samples,
    notes,
    n_rays,
    most,
    CASCADES: tl.constexpr,
    RESOLUTION: tl.constexpr,
    CONTRACTED: tl.constexpr,
    CONE: tl.constexpr,
    WRITE: tl.constexpr,
    RAYS: tl.constexpr,
):
    ray = tl.program_id(0) * RAYS + tl.arange(0, RAYS)
    active = ray < n_rays
    o, d, speed, shift, t_in, t_out = _load(rays, box, ray, active)
    active = active & (t_in < t_out) & (speed > 0.0)
    speed, t_in = tl.where(active, speed, 1.0), tl.where(active, t_in, 0.0)
    dt = tl.div_rn(spacing[0], speed)
    inverse = (_inverse(d[0]), _inverse(d[1]), _inverse(d[2]))
    per_dt = 1.0 / dt
    s_in = _step_of(t_in * speed, spacing) if CONE else t_in
    i, n = tl.zeros([RAYS], tl.int32), tl.zeros([RAYS], tl.int32)
    limit, place = n + most, ray
    if WRITE:
        limit = tl.load(count + ray, mask=active, other=0)
        place = tl.load(first + ray, mask=active, other=0)
        active = active & (limit > 0)
    while tl.max(active.to(tl.int32), axis=0) > 0:
        start = _edge(i, shift, t_in, dt, s_in, speed, spacing, CONE)
        end = _edge(i + 1, shift, t_in, dt, s_in, speed, spacing, CONE)
        t = 0.5 * (start + end)
        active = active & (t < t_out)
        t = tl.where(active, t, 0.0)
        at = (o[0] + t * d[0], o[1] + t * d[1], o[2] + t * d[2])
        cell, size, kept, edge = _look_up(cells, at, active, CASCADES, RESOLUTION, CONTRACTED)
        if WRITE:
            tl.store(samples[0] + place + n, start, mask=kept)
            tl.store(samples[1] + place + n, end, mask=kept)
            tl.store(samples[2] + place + n, ray, mask=kept)
        if notes is not None:
            tl.store(notes + ray * most + n, i, mask=kept)
        n += kept.to(tl.int32)
        active = active & (n < limit)
        t_exit = _first_beyond(cell, edge, o, inverse, size, RESOLUTION)
        # A step is crossed where its midpoint lies before the exit: without a cone half a step behind its start; with
        # one somewhat more, so that its end is asked for.
        if CONE:
            ahead = _step_of(t_exit * speed, spacing) - s_in - shift - MARGIN
        else:
            ahead = (t_exit - t_in) * per_dt - shift + (0.5 - MARGIN)
        crossed = tl.where(edge > 0, tl.minimum(tl.maximum(ahead, 0.0), 1e9), 0.0).to(tl.int32)
        i = tl.where(kept, i + 1, tl.maximum(i + 1, crossed))
    if not WRITE:
        tl.store(count + ray, n, mask=ray < n_rays)


@triton.jit(do_not_specialize=["most"])
def _take_noted(rays, box, spacing, notes, first, count, samples, most, CONE: tl.constexpr, BLOCK: tl.constexpr):
    # One program for each ray.
    ray = tl.program_id(0)
    n = tl.load(count + ray)
    if n > 0:
        lane = tl.arange(0, BLOCK)
        rays_too = tl.zeros([BLOCK], tl.int32) + ray
        _, _, speed, shift, t_in, _ = _load(rays, box, rays_too, lane < BLOCK)
        dt, s_in = tl.div_rn(spacing[0], speed), t_in
        if CONE:
            s_in = _step_of(t_in * speed, spacing)
        place = tl.load(first + ray)
        done = 0
        while done < n:
            there = done + lane < n
            i = tl.load(notes + ray * most + done + lane, mask=there, other=0)
            to = place + done + lane
            tl.store(samples[0] + to, _edge(i, shift, t_in, dt, s_in, speed, spacing, CONE), mask=there)
            tl.store(samples[1] + to, _edge(i + 1, shift, t_in, dt, s_in, speed, spacing, CONE), mask=there)
            tl.store(samples[2] + to, rays_too, mask=there)
            done += BLOCK


def count_samples(
    rays: BoundedRays, cells: OccupiedCells, steps: Steps
) -> tuple[Int[Tensor, "R"], Int[Tensor, "R most"] | None]:
    """How many samples each ray has, int32, and notes of which steps they are, where there is memory for them."""
    count, n_rays = torch.empty_like(rays.near, dtype=torch.int32), len(rays.near)
    noted = n_rays * steps.most <= MOST_NOTES
    notes = torch.empty(n_rays, steps.most, dtype=torch.int32, device=count.device) if noted else None
    _launch(rays, cells, steps, count, count, (count, count, count), notes, False)
    return count, notes


def write_samples(
    rays: BoundedRays,
    cells: OccupiedCells,
    steps: Steps,
    notes: Int[Tensor, "R most"] | None,
    first: Int[Tensor, "R"],
    count: Int[Tensor, "R"],
    length: int,
) -> tuple[Float[Tensor, "M"], Float[Tensor, "M"], Int[Tensor, "M"]]:
    """Starts, ends and rays of the samples in a row of `length`, each ray's from `first` on.

    Args:
        notes: of `count_samples`.
        count: of it, or 0 where there is no room.
    """
    starts, ends = torch.zeros(2, length, device=rays.near.device).unbind()
    ray_index = torch.full_like(starts, len(rays.near), dtype=torch.int32)
    samples = starts, ends, ray_index
    if notes is None:
        _launch(rays, cells, steps, first, count, samples, None, True)
    elif len(count) > 0:
        _take_noted[(len(count),)](
            *(tuple(rays), _box(cells), _spacing(steps), notes, first, count, samples, steps.most),
            CONE=steps.cone_angle > 0.0,
            BLOCK=TAKEN_AT_ONCE,
            num_warps=1,
            enable_fp_fusion=False,
        )
    return samples


def _box(cells: OccupiedCells) -> tuple[float, ...]:
    """The innermost box as kernels take it."""
    return (*cells.center, *(2.0 / extent for extent in cells.extents), cells.reach)


def _spacing(steps: Steps) -> tuple[float, ...]:
    """How steps grow as kernels take it; what a cone needs stands for nothing without one."""
    cone = steps.cone_angle > 0.0
    bends = steps.bends() if cone else (1.0, 1.0, 1.0, 1.0)
    return (steps.step, *bends, steps.largest if cone else 1.0, steps.cone_angle * LOG2_E.value)


def _launch(
    rays: BoundedRays,
    cells: OccupiedCells,
    steps: Steps,
    first: Int[Tensor, "R"],
    count: Int[Tensor, "R"],
    samples: tuple[Tensor, Tensor, Tensor],
    notes: Int[Tensor, "R most"] | None,
    write: bool,
) -> None:
    """Count samples into `count`, with notes where they are wanted, or write `count` of them from `first` on."""
    n_rays = len(rays.near)
    if n_rays == 0:
        return
    march_kernel[(triton.cdiv(n_rays, RAYS),)](
        tuple(rays),
        _box(cells),
        _spacing(steps),
        (cells.bits, cells.blocks),
        first,
        count,
        samples,
        notes,
        n_rays,
        steps.most,
        CASCADES=cells.n_cascades,
        RESOLUTION=cells.resolution,
        CONTRACTED=cells.contracted,
        CONE=steps.cone_angle > 0.0,
        WRITE=write,
        RAYS=RAYS,
        num_warps=1,
        enable_fp_fusion=False,
    )
