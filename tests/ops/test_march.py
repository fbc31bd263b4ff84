"""Marching: chords worked out by hand, a search step by step in float64, budgets, and kernel against twin."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nerf_trainer.ops.march import Marched, march
from nerf_trainer.ops.occupancy_bits import OccupiedCells, unpack_cells
from nerf_trainer.ops.ray_steps import BoundedRays, Steps
from tests.ops.kernel_kit import device_for_kernels, torch_twins, triton_kernels
from tests.ops.march_kit import check_row, grid, random_grid, random_rays, ray

NOTHING, EVERYTHING = torch.zeros(8, 8, 8, dtype=torch.bool), torch.ones(8, 8, 8, dtype=torch.bool)


def lengths(marched: Marched) -> Tensor:
    return marched.ends - marched.starts


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_an_empty_grid_has_no_samples() -> None:
    rays = random_rays(20, generator())
    for budget in (None, 7):
        marched = march(rays, grid(NOTHING), Steps(0.1), budget)
        check_row(marched, 20, budget)
        assert marched.n_used == 0 and marched.complete.all() and (marched.count == 0).all()


def test_no_rays() -> None:
    none = BoundedRays(*(value[:0] for value in random_rays(6, generator())))
    for budget in (None, 3):
        check_row(march(none, grid(EVERYTHING), Steps(0.1), budget), 0, budget)


def test_a_full_grid_has_even_samples_from_face_to_face() -> None:
    marched = march(ray((-3.0, 0.1, 0.2), (1.0, 0.0, 0.0)), grid(EVERYTHING), Steps(0.125))
    torch.testing.assert_close(marched.starts, 2.0 + 0.125 * torch.arange(16))
    torch.testing.assert_close(marched.ends, 2.125 + 0.125 * torch.arange(16))


def test_a_shift_moves_all_samples_of_a_ray() -> None:
    rays = ray((-3.0, 0.1, 0.2), (1.0, 0.0, 0.0))._replace(jitter=torch.tensor([0.25]))
    marched = march(rays, grid(EVERYTHING), Steps(0.125))
    torch.testing.assert_close(marched.starts, 2.0 + 0.125 * (0.25 + torch.arange(16)))


def test_one_cell() -> None:
    """Cell (5, 2, 7) of 8 is the box from (0.25, -0.5, 0.75) to (0.5, -0.25, 1)."""
    occupied = NOTHING.clone()
    occupied[5, 2, 7] = True
    through = march(ray((-2.0, -0.4, 0.9), (1.0, 0.0, 0.0)), grid(occupied), Steps(0.01))
    assert through.starts[0] >= 2.245 and through.ends[-1] <= 2.505
    assert lengths(through).sum().item() == pytest.approx(0.25, abs=0.0101)
    beside = march(ray((-2.0, -0.6, 0.9), (1.0, 0.0, 0.0)), grid(occupied), Steps(0.01))
    assert beside.n_used == 0


def test_a_slab_across() -> None:
    """The chord of a slab of thickness 0.5 at 60 degrees is 1."""
    occupied = NOTHING.clone()
    occupied[:, :, 3:5] = True
    direction = (math.sin(math.pi / 3), 0.0, math.cos(math.pi / 3))
    rays = ray((-2.0 * direction[0], 0.01, -2.0 * direction[2]), direction)
    marched = march(rays, grid(occupied), Steps(0.003))
    assert lengths(marched).sum().item() == pytest.approx(0.5 / direction[2], abs=0.0031)


def test_a_sphere() -> None:
    """Chords of a sphere of radius 0.7, but for the cells on its surface (half diagonals of 0.027)."""
    axis = (torch.arange(64) + 0.5) / 32 - 1.0
    occupied = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).norm(dim=0) < 0.7
    heights = torch.linspace(-0.6, 0.6, 13)
    n = len(heights)
    origins = torch.stack([torch.full((n,), -2.0), heights, torch.full((n,), 1e-3)], dim=-1)
    rays = BoundedRays(
        origins, torch.tensor([1.0, 0.0, 0.0]).expand(n, 3), torch.zeros(n), torch.full((n,), 9.0), torch.zeros(n)
    )
    marched = march(rays, grid(occupied), Steps(0.002))
    found = torch.zeros(n).index_add(0, marched.ray_index, lengths(marched))
    at = [(0.7**2 - (abs(h) + s) ** 2) for h in heights.tolist() for s in (0.06, -0.06)]
    chords = torch.tensor([2.0 * math.sqrt(max(c, 0.0)) for c in at]).view(n, 2)
    assert ((found > chords[:, 0] - 0.07) & (found < chords[:, 1] + 0.07)).all()


@pytest.mark.parametrize(
    ("origin", "near", "far", "begins", "ends"),
    [
        (-3.0, 0.0, 100.0, 2.0, 4.0),  # from outside
        (0.0, 0.0, 100.0, 0.0, 1.0),  # from inside
        (3.0, 0.0, 100.0, None, None),  # the box lies behind
        (-3.0, 2.5, 3.0, 2.5, 3.0),  # near and far within
        (-3.0, 5.0, 9.0, None, None),  # near beyond
        (-3.0, 0.0, 1.5, None, None),  # far before
        (-3.0, 3.0, 3.0, None, None),  # nothing between near and far
    ],
)
def test_where_rays_begin_and_end(
    origin: float, near: float, far: float, begins: float | None, ends: float | None
) -> None:
    marched = march(ray((origin, 0.1, 0.1), (1.0, 0.0, 0.0), near, far), grid(EVERYTHING), Steps(0.03125))
    if begins is None:
        assert marched.n_used == 0
    else:
        assert (marched.starts[0].item(), marched.ends[-1].item()) == pytest.approx((begins, ends))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_along_axes_and_beside_the_box(axis: int) -> None:
    direction = [0.0, 0.0, 0.0]
    direction[axis] = -2.0
    origin = [0.3, 0.3, 0.3]
    assert lengths(march(ray(tuple(origin), tuple(direction)), grid(EVERYTHING), Steps(0.01))).sum() > 0.64
    origin[(axis + 1) % 3] = 1.5
    assert march(ray(tuple(origin), tuple(direction)), grid(EVERYTHING), Steps(0.01)).n_used == 0


def test_a_ray_without_direction_has_no_samples() -> None:
    assert march(ray((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)), grid(EVERYTHING), Steps(0.01)).n_used == 0


def test_steps_are_as_wide_in_the_world_however_long_directions_are() -> None:
    """Rays in normalised device coordinates: lengths from 0 to 1, directions of any norm."""
    unit = march(ray((-0.5, 0.1, -1.0), (0.0, 0.0, 1.0), 0.0, 2.0), grid(EVERYTHING), Steps(0.1))
    long = march(ray((-0.5, 0.1, -1.0), (0.0, 0.0, 2.0), 0.0, 1.0), grid(EVERYTHING), Steps(0.1))
    assert unit.n_used == long.n_used == 20
    torch.testing.assert_close(2.0 * long.starts, unit.starts)


def test_a_ray_ends_after_the_most_samples() -> None:
    marched = march(ray((-3.0, 0.1, 0.1), (1.0, 0.0, 0.0)), grid(EVERYTHING), Steps(0.01, most=7))
    assert marched.count.tolist() == [7] and marched.complete.all()
    torch.testing.assert_close(marched.starts, 2.0 + 0.01 * torch.arange(7))


def test_the_cascade_of_a_place_is_the_smallest_that_holds_it() -> None:
    """Of three cascades only the second is occupied: along x it counts from 1 to 2 on both sides."""
    occupied = torch.zeros(3, 32, 32, 32, dtype=torch.bool)
    occupied[1] = True
    marched = march(ray((-9.0, 0.1, 0.1), (1.0, 0.0, 0.0)), grid(occupied), Steps(0.01))
    middle = 0.5 * (marched.starts + marched.ends) - 9.0
    assert ((middle.abs() > 0.99) & (middle.abs() < 2.01)).all()
    assert lengths(marched).sum().item() == pytest.approx(2.0, abs=0.02)


def test_steps_grow_in_a_cone() -> None:
    """In proportion to the distance between the smallest and the largest: here from 0.5 on and up to 4."""
    occupied = torch.ones(5, 32, 32, 32, dtype=torch.bool)
    marched = march(ray((0.0, 0.1, 0.1), (1.0, 0.0, 0.0)), grid(occupied), Steps(0.01, 1 / 50, 0.08))
    middle = 0.5 * (marched.starts + marched.ends)
    torch.testing.assert_close(marched.starts[1:], marched.ends[:-1])
    torch.testing.assert_close(lengths(marched), (middle / 50).clamp(0.01, 0.08), rtol=0.02, atol=0.0)
    assert marched.ends[-1].item() == pytest.approx(16.0, abs=0.08)


def test_a_cone_counts_in_world_units() -> None:
    """Twice as long a direction and half as long lengths are the same ray."""
    occupied = torch.ones(5, 32, 32, 32, dtype=torch.bool)
    one, two = (
        march(ray((0.0, 0.1, 0.1), (s, 0.0, 0.0), 1.0 / s, 100.0), grid(occupied), Steps(0.01, 1 / 50, 0.08))
        for s in (1.0, 2.0)
    )
    torch.testing.assert_close(2.0 * two.ends, one.ends)


def test_contracted_space() -> None:
    """The cell of a far place is that of 2 - 1/r: cells of x from 1.5 to 1.75 of 2 are places from 2 to 4."""
    occupied = torch.zeros(32, 32, 32, dtype=torch.bool)
    occupied[28:30] = True
    marched = march(
        ray((0.0, 0.1, 0.1), (1.0, 0.0, 0.0), 0.0, 1e3), grid(occupied, contracted=True), Steps(0.01, 1 / 50, 1e3)
    )
    assert marched.starts[0].item() == pytest.approx(2.0, abs=0.05)
    assert marched.ends[-1].item() == pytest.approx(4.0, abs=0.1)


def searched(rays: BoundedRays, cells: OccupiedCells, step: float, occupied: Tensor) -> list[list[float]]:
    """Starts of each ray's samples, step by step in float64, for several cascades and steps of one width."""
    found = []
    half, center = 0.5 * torch.tensor(cells.extents).double(), torch.tensor(cells.center).double()
    n = cells.resolution
    for o, d, near, far, u in zip(*(value.double() for value in rays), strict=True):
        place, ahead = (o - center) / half, d / half
        if d.norm() == 0.0:
            found.append([])
            continue
        faces = torch.stack([(-cells.reach - place) / ahead, (cells.reach - place) / ahead]).nan_to_num(nan=-math.inf)
        t_in = max(near.item(), faces.amin(0).max().item())
        t_out = min(far.item(), faces.amax(0).min().item())
        dt, starts, i = step / d.norm().item(), [], 0
        while (t := t_in + (i + u.item() + 0.5) * dt) < t_out:
            p = place + t * ahead
            k = max(0, math.ceil(math.log2(max(p.abs().max().item(), 1e-9))))
            cell = ((p / 2.0**k + 1.0) * (n / 2)).floor().long().clamp(0, n - 1).tolist()
            if k < cells.n_cascades and occupied[k, cell[0], cell[1], cell[2]]:
                starts.append(t - 0.5 * dt)
            i += 1
        found.append(starts)
    return found


@pytest.mark.parametrize("n_cascades", [1, 3])
def test_a_search_step_by_step(n_cascades: int) -> None:
    cells = random_grid(32, n_cascades, 0.1, generator())
    rays = random_rays(40, generator(1))
    expected = searched(rays, cells, 0.03, unpack_cells(cells.bits).view(-1, 32, 32, 32))
    marched = march(rays, cells, Steps(0.03))
    check_row(marched, 40, None)
    for r, starts in enumerate(expected):
        first, n = int(marched.first[r]), int(marched.count[r])
        torch.testing.assert_close(marched.starts[first : first + n], torch.tensor(starts), rtol=1e-5, atol=1e-5)
    assert marched.n_used > 100


@pytest.mark.parametrize(
    ("budget", "counts", "complete"),
    [
        (48, [16, 0, 16, 16], [True, True, True, True]),  # exactly full
        (47, [16, 0, 16, 0], [True, True, True, False]),  # one too few
        (33, [16, 0, 16, 0], [True, True, True, False]),
        (16, [16, 0, 0, 0], [True, True, False, False]),
        (15, [0, 0, 0, 0], [False, False, False, False]),  # the first is too long
        (100, [16, 0, 16, 16], [True, True, True, True]),
    ],
)
def test_budgets(budget: int, counts: list[int], complete: list[bool]) -> None:
    n = 4
    directions = torch.tensor([1.0, 0.0, 0.0]).repeat(n, 1)
    directions[1] *= -1.0
    rays = BoundedRays(
        torch.tensor([-3.0, 0.1, 0.1]).expand(n, 3), directions, torch.zeros(n), torch.full((n,), 9.0), torch.zeros(n)
    )
    marched = march(rays, grid(EVERYTHING), Steps(0.125), budget)
    check_row(marched, n, budget)
    assert marched.count.tolist() == counts and marched.complete.tolist() == complete


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    n_rays=st.integers(1, 30),
    part=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    budget=st.one_of(st.none(), st.integers(0, 600)),
    cone=st.sampled_from([0.0, 1 / 20]),
    n_cascades=st.integers(1, 3),
    most=st.integers(1, 40),
)
def test_what_holds_of_every_row(
    seed: int, n_rays: int, part: float, budget: int | None, cone: float, n_cascades: int, most: int
) -> None:
    random = generator(seed)
    cells, rays = random_grid(32, n_cascades, part, random), random_rays(n_rays, random)
    marched = march(rays, cells, Steps(0.05, cone, 0.4, most), budget)
    check_row(marched, n_rays, budget)
    used = int(marched.n_used)
    assert int(marched.count.max()) <= most and marched.starts[:used].isfinite().all()
    middle = 0.5 * (marched.starts + marched.ends)[:used]
    assert (middle >= rays.near[marched.ray_index[:used]]).all()
    assert (middle < rays.far[marched.ray_index[:used]]).all()


def on(device: str, cells: OccupiedCells) -> OccupiedCells:
    return replace(cells, bits=cells.bits.to(device), blocks=cells.blocks.to(device))


def compare(rays: BoundedRays, cells: OccupiedCells, steps: Steps, budget: int | None) -> int:
    """Kernel against twin. The same samples, but for rays that graze cells, at most 1 in 10,000; the same places to
    the last bit without a cone."""
    with torch_twins():
        expected = march(rays, cells, steps, budget)
    with triton_kernels():
        found = march(rays, cells, steps, budget)
    check_row(found, len(rays.near), budget)
    other = int((found.count != expected.count).sum())
    assert other <= len(rays.near) / 10_000
    if other == 0:
        tolerance = 0.0 if steps.cone_angle == 0.0 else 1e-5
        for name in ("first", "count", "complete", "ray_index"):
            assert torch.equal(getattr(found, name), getattr(expected, name)), name
        torch.testing.assert_close(found.starts, expected.starts, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(found.ends, expected.ends, rtol=tolerance, atol=tolerance)
    return int(expected.n_used)


@pytest.mark.parametrize(
    ("n_rays", "n_cascades", "cone", "contracted", "budget"),
    [
        (33, 1, 0.0, False, None),
        (7, 1, 0.0, False, 20),
        (16, 2, 1 / 10, False, None),
        (5, 1, 1 / 10, True, 30),
    ],
)
def test_the_kernel_finds_the_samples_of_its_twin(
    n_rays: int, n_cascades: int, cone: float, contracted: bool, budget: int | None
) -> None:
    random = generator(3)
    cells = random_grid(32, n_cascades, 0.3, random, contracted=contracted)
    rays = random_rays(n_rays, random, far=2.0)
    assert compare(rays, cells, Steps(0.25, cone, 1.0, most=8), budget) > 5


@pytest.mark.parametrize(("cone", "budget"), [(0.0, None), (0.0, 6), (1 / 10, None)])
def test_marching_once_and_twice_is_the_same(cone: float, budget: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    device = device_for_kernels()
    random = generator(6)
    cells = on(device, random_grid(32, 1, 0.8, random))
    rays = BoundedRays(*(value.to(device) for value in random_rays(9, random, far=3.0)))
    found = []
    with triton_kernels():
        from nerf_trainer.ops.kernels import march as module

        monkeypatch.setattr(module, "TAKEN_AT_ONCE", 2)
        for most_notes in (module.MOST_NOTES, 0):
            monkeypatch.setattr(module, "MOST_NOTES", most_notes)
            found.append(march(rays, cells, Steps(0.2, cone, 1.0, most=8), budget))
    assert found[0].count.max() > module.TAKEN_AT_ONCE
    for name, value in vars(found[0]).items():
        assert torch.equal(value, getattr(found[1], name)), name


@pytest.mark.gpu
@pytest.mark.parametrize("notes", [True, False])
@pytest.mark.parametrize("budget", [None, 2**18, 2**16])
@pytest.mark.parametrize(
    ("n_cascades", "cone", "contracted"),
    [(1, 0.0, False), (3, 0.0, False), (5, 1 / 256, False), (1, 1 / 256, True)],
)
def test_the_kernel_on_a_device(
    n_cascades: int,
    cone: float,
    contracted: bool,
    budget: int | None,
    notes: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not notes:
        monkeypatch.setattr("nerf_trainer.ops.kernels.march.MOST_NOTES", 0)
    random = generator(4)
    cells = on("cuda", random_grid(128, n_cascades, 0.05, random, clump=8, contracted=contracted))
    rays = BoundedRays(*(value.cuda() for value in random_rays(2**15 + 5, random)))
    assert compare(rays, cells, Steps(3.4e-3 * (1 if cone else n_cascades), cone, 0.2), budget) > 1000


@pytest.mark.gpu
def test_a_captured_march_follows_what_is_occupied() -> None:
    random = generator(5)
    grids = [on("cuda", random_grid(64, 1, part, random)) for part in (0.02, 0.2, 0.0)]
    rays = BoundedRays(*(value.cuda() for value in random_rays(4096, random)))
    cells = replace(grids[0], bits=grids[0].bits.clone(), blocks=grids[0].blocks.clone())
    with triton_kernels():
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            march(rays, cells, Steps(0.01), 2**16)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            replayed = march(rays, cells, Steps(0.01), 2**16)
        for other in grids:
            cells.bits.copy_(other.bits)
            cells.blocks.copy_(other.blocks)
            graph.replay()
            expected = march(rays, other, Steps(0.01), 2**16)
            check_row(replayed, 4096, 2**16)
            assert torch.equal(replayed.count, expected.count) and torch.equal(replayed.starts, expected.starts)
