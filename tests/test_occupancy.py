"""OccupancyGrid: what updates make of densities, what no camera sees, samples as rays, and its state."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nerf_trainer.errors import ConfigError
from nerf_trainer.geometry.contraction import Norm, contract
from nerf_trainer.occupancy import OccupancyGrid
from nerf_trainer.ops.occupancy_bits import cell_coordinates, occupied_blocks, unpack_cells
from nerf_trainer.randomness import seed_streams
from nerf_trainer.rays.bundle import RayBundle
from tests.scene_kit import orbit, straight_rays


def small(**options: object) -> OccupancyGrid:
    grid = OccupancyGrid(**{"resolution": 16, "step_size": 0.05, **options})  # type: ignore[arg-type]
    seed_streams(grid, 0)
    return grid


def ball(radius: float, density: float = 20.0) -> Callable[[Tensor], Tensor]:
    return lambda points: density * (points.norm(dim=-1, keepdim=True) < radius).float()


def even(density: float) -> Callable[[Tensor], Tensor]:
    return lambda points: torch.full_like(points[:, :1], density)


def centers(grid: OccupancyGrid) -> Tensor:
    """Of the cells (C, cells, 3), in the coordinates of the innermost box."""
    cells = cell_coordinates(torch.arange(grid.resolution**3), grid.resolution)
    local = (cells + 0.5) * (2.0 / grid.resolution) - 1.0
    return torch.stack([local * 2.0**k for k in range(grid.n_cascades)])


# what an update does


def test_all_is_occupied_before_the_first_update() -> None:
    assert small().fraction_occupied() == 1.0
    assert small(resolution=32, n_cascades=3).fraction_occupied() == 1.0


def test_an_update_finds_a_ball() -> None:
    """Cells within are occupied, cells outside are not; on the surface both may be (half diagonal 0.11)."""
    grid = small()
    grid.update(0, ball(0.6))
    occupied, distance = unpack_cells(grid.bits), centers(grid).norm(dim=-1)
    assert occupied[distance < 0.49].all() and not occupied[distance > 0.71].any()
    assert torch.equal(grid.blocks, occupied_blocks(grid.bits))


def test_each_cell_is_asked_once_within_itself_while_warming_up() -> None:
    asked: list[Tensor] = []

    def density(points: Tensor) -> Tensor:
        asked.append(points)
        return torch.ones_like(points[:, :1])

    grid = small(translation=(1.0, 2.0, 3.0), extents=(2.0, 4.0, 6.0))
    grid.update(16, density)
    local = (torch.cat(asked) - torch.tensor([1.0, 2.0, 3.0])) / torch.tensor([1.0, 2.0, 3.0])
    cells = ((local + 1.0) * 8.0).floor().long()
    assert torch.equal(cells, cell_coordinates(torch.arange(16**3), 16))
    within = (local + 1.0) * 8.0 - cells
    assert 0.45 < within.mean() < 0.55 and within.min() < 0.01 and within.max() > 0.99


def test_points_of_cascades_lie_in_their_cells() -> None:
    asked: list[Tensor] = []

    def density(points: Tensor) -> Tensor:
        asked.append(points)
        return torch.ones_like(points[:, :1])

    small(resolution=32, n_cascades=3).update(0, density)
    for k, points in enumerate(torch.cat(asked).view(3, -1, 3)):
        assert 0.99 * 2.0**k < points.abs().max() <= 2.0**k


def test_densities_fade_and_rise() -> None:
    """The larger of what is found and 0.95 of what was."""
    grid = small()
    grid.update(0, even(10.0))
    assert (grid.densities == 10.0).all()
    grid.update(16, even(4.0))
    torch.testing.assert_close(grid.densities, torch.full_like(grid.densities, 9.5))
    grid.update(32, even(12.0))
    assert (grid.densities == 12.0).all()


def test_the_threshold_is_on_the_thickness_of_a_step() -> None:
    """0.01 of density times 0.05; the mean is far above, as half of the cells have a density of 100."""
    for density, occupied in ((0.19, False), (0.21, True)):
        grid = small()
        grid.update(0, lambda p, d=density: torch.where(p[:, :1] < 0.0, 100.0, d))
        assert unpack_cells(grid.bits)[centers(grid)[..., 0] < 0.0].all()
        assert unpack_cells(grid.bits)[centers(grid)[..., 0] > 0.0].all().item() is occupied


def test_the_mean_is_the_threshold_of_a_thin_fog() -> None:
    grid = small()
    grid.update(0, lambda p: torch.where(p[:, :1] < 0.0, 1e-3, 1e-5))
    assert torch.equal(unpack_cells(grid.bits), centers(grid)[..., 0] < 0.0)


@pytest.mark.parametrize("density", [0.0, 1e-6, 0.013, 1e4])
def test_an_even_density_is_occupied_everywhere(density: float) -> None:
    """The mean of equal numbers may be rounded to above them."""
    grid = small(resolution=32, n_cascades=2)
    grid.update(0, even(density))
    assert grid.fraction_occupied() == 1.0


@pytest.mark.parametrize("options", [{"n_cascades": 5}, {"contraction": True}])
def test_the_fog_that_training_begins_with_is_occupied_within_the_box_too(options: dict[str, object]) -> None:
    """Steps grow with the distance: in the box one is thinner than 0.01, far away thicker, as is the mean."""
    grid = OccupancyGrid(**{"resolution": 32, "cone_angle": 1 / 256, **options})
    assert grid.step * 1.0 < grid.occupancy_threshold
    grid.update(0, even(1.0))
    assert grid.fraction_occupied() == 1.0


@pytest.mark.parametrize("options", [{"n_cascades": 3}, {"contraction": True}])
def test_where_no_view_sees_the_box_cells_around_it_are_judged_by_each_other(options: dict[str, object]) -> None:
    """Views begin beyond the whole box (a near that is too large): its mean says nothing."""
    grid = OccupancyGrid(**{"resolution": 32, "cone_angle": 1 / 256, **options})
    grid.mark_unseen(orbit(3), near=7.0)
    seen = grid.fraction_occupied()
    assert 0.0 < seen < 1.0
    for step in (0, 16):
        grid.update(step, lambda points: (points[:, :1] > 0.0).float())
    assert 0.0 < grid.fraction_occupied() < 0.7 * seen


def test_a_box_that_nothing_is_in_leaves_what_is_around_it() -> None:
    grid = small(resolution=32, n_cascades=2)
    grid.update(0, lambda p: torch.where(p.abs().amax(dim=-1, keepdim=True) < 1.0, 0.0, 1.0))
    found, seen = unpack_cells(grid.bits), grid.densities >= 0.0
    assert found[1][seen[1]].all()


def test_what_is_no_number_is_no_density() -> None:
    grid = small()
    grid.update(0, lambda p: torch.where(p[:, :1] < 0.0, torch.nan, torch.where(p[:, 1:2] < 0.0, -5.0, 7.0)))
    assert set(grid.densities.unique().tolist()) == {0.0, 7.0}


def test_updates_come_when_they_are_due() -> None:
    grid, asked = small(update_interval=8), []

    def density(points: Tensor) -> Tensor:
        asked.append(len(points))
        return torch.ones_like(points[:, :1])

    for step in range(17):
        grid.update(step, density)
    assert asked == [16**3] * 3


def test_later_updates_look_into_a_quarter_half_of_it_occupied() -> None:
    grid, asked = small(warmup_steps=16), []
    grid.update(0, ball(0.3))
    occupied = unpack_cells(grid.bits)[0]

    def density(points: Tensor) -> Tensor:
        asked.append(points)
        return ball(0.3)(points)

    grid.update(16, density)
    (points,) = asked
    assert len(points) == 16**3 // 4
    cells = ((points + 1.0) * 8.0).floor().long()
    number = (cells[:, 0] * 16 + cells[:, 1]) * 16 + cells[:, 2]
    of_all, of_occupied = number.chunk(2)
    assert torch.equal(of_all // 8, torch.arange(16**3 // 8))
    assert (of_occupied.diff() >= 0).all()
    assert occupied[of_occupied].all()
    assert len(of_occupied.unique()) == occupied.sum()
    assert occupied[of_all].float().mean() < 0.1 and len((of_all % 8).unique()) == 8


def test_with_nothing_occupied_all_are_drawn_from() -> None:
    grid = small(warmup_steps=1)
    grid.bits.zero_()
    grid.update(16, ball(2.0))
    drawn = grid.densities[0].nonzero()[:, 0]
    assert len(drawn) > 0.15 * 16**3 and drawn.max() > 0.95 * 16**3


def test_a_density_that_is_asked_twice_is_the_larger() -> None:
    """Many draws of few occupied cells: whatever the order, the result is the same."""
    results = []
    for _ in range(2):
        grid = small(warmup_steps=1)
        grid.bits.zero_()
        grid.bits[0, :2] = 255
        grid.update(16, lambda points: points.sum(dim=-1, keepdim=True).abs())
        results.append(grid.densities.clone())
    assert torch.equal(*results)


def test_updates_follow_from_the_seed() -> None:
    def density(points: Tensor) -> Tensor:
        return points[:, :1].abs()

    results = []
    for seed, rank in ((0, 0), (0, 3), (1, 0)):
        grid = small(warmup_steps=16)
        seed_streams(grid, seed, rank)
        for step in range(0, 64, 16):
            grid.update(step, density)
        results.append(grid.densities.clone())
    assert torch.equal(results[0], results[1]), "ranks of one seed draw the same"
    assert not torch.equal(results[0], results[2])


def test_thickness_counts_the_larger_steps_of_outer_cascades() -> None:
    """With a cone: 0.15 * 0.05 is below the threshold, twice as much above; the mean is above it."""

    def density(points: Tensor) -> Tensor:
        return torch.where(points[:, :1] > 0.0, 50.0, 0.15)

    for cone, occupied in ((0.0, False), (1 / 256, True)):
        grid = small(resolution=32, n_cascades=2, cone_angle=cone)
        grid.update(0, density)
        left = centers(grid)[..., 0] < 0.0
        found = unpack_cells(grid.bits)
        seen = grid.densities >= 0.0
        assert not found[0][left[0]].any()
        assert found[1][left[1] & seen[1]].all().item() is occupied


# what no camera sees


def test_cells_that_no_camera_sees_are_off_for_good() -> None:
    """Cameras far away to all sides with a narrow view: the corners are seen by none, the middle by all."""
    cameras, grid = orbit(8, focal=60.0), small()
    grid.mark_unseen(cameras)
    occupied, place = unpack_cells(grid.bits)[0], centers(grid)[0]
    pixels, depth = cameras.project(place.expand(8, -1, 3))
    seen = ((pixels >= 0.0) & (pixels <= 16.0)).all(dim=-1) & (depth > 0.0)
    assert occupied[seen.any(dim=0)].all()
    assert 0.1 < occupied.float().mean() < 0.9
    off = ~occupied
    for step in (0, 16, 256, 272):
        grid.update(step, even(100.0))
    assert not unpack_cells(grid.bits)[0][off].any() and unpack_cells(grid.bits)[0][~off].all()
    state = grid.bits.clone()
    grid.mark_unseen(cameras)
    assert torch.equal(grid.bits, state)


def test_cells_that_are_too_near_to_every_camera_are_off() -> None:
    grid = small(extents=(12.0, 12.0, 12.0))
    camera = orbit(1, focal=8.0)
    grid.mark_unseen(camera, near=2.0)
    distance = (6.0 * centers(grid)[0] - camera.centers[0]).norm(dim=-1)
    reach = 0.5 * math.hypot(12.0, 12.0, 12.0) / 16
    occupied = unpack_cells(grid.bits)[0]
    assert not occupied[distance + reach < 2.0].any()
    assert occupied[(6.0 * centers(grid)[0]).norm(dim=-1) < 0.5].all()


def test_what_is_too_near_to_one_view_may_be_seen_by_another() -> None:
    """Two views from opposite sides: what is nearer to one than its own distance counts where the other sees it."""
    cameras, place = orbit(2, focal=8.0), 6.0 * centers(small())[0]
    found = []
    for near in ([0.0, 0.0], [2.0, 0.0], [2.0, 100.0]):
        grid = small(extents=(12.0, 12.0, 12.0))
        grid.mark_unseen(cameras, near=torch.tensor(near))
        found.append(unpack_cells(grid.bits)[0])
    reach = 0.5 * math.hypot(12.0, 12.0, 12.0) / 16
    distance = (place[:, None] - cameras.centers).norm(dim=-1)
    before_first = (distance[:, 0] + reach < 2.0) & found[0]
    assert found[1][before_first].any(), "the second view sees it"
    assert not found[2][before_first].any() and found[2].any()


def test_contracted_cells_are_marked() -> None:
    """A camera at x = 4 that looks at the origin sees it, what lies far behind it, and nothing far aside."""
    grid = small(resolution=64, contraction=True, cone_angle=1 / 64)
    grid.mark_unseen(orbit(1, focal=32.0))
    points = torch.tensor([[0.0, 0.0, 0.0], [-9.0, 0.0, -2.7], [3.0, 3.0, 0.0], [0.5, -3.0, 0.0]])
    cells = ((contract(points, Norm.LINF) + 2.0) * 16.0).long()
    occupied = unpack_cells(grid.bits).view(64, 64, 64)
    assert [occupied[tuple(cell)].item() for cell in cells.tolist()] == [True, True, False, False]


# samples


def test_samples_of_a_ball_are_rays_of_one_sample() -> None:
    grid = small(step_size=0.01)
    grid.update(0, ball(0.5))
    random = torch.Generator().manual_seed(0)
    origins = torch.tensor([0.0, 0.0, -3.0]) + 0.2 * torch.randn(2, 5, 3, generator=random)
    directions = torch.nn.functional.normalize(-origins, dim=-1)
    rays = RayBundle(
        origins=origins,
        directions=directions,
        view_directions=directions,
        near=torch.full((2, 5), 1.0),
        far=torch.full((2, 5), 9.0),
        xy=torch.rand(2, 5, 2, generator=random),
        camera_index=torch.arange(2)[:, None].expand(2, 5),
    )
    packed = grid.samples(rays)
    samples, ray = packed.samples, packed.ray_index.long()
    assert samples.ray_shape == (1, len(ray)) and packed.n_used == len(ray) and packed.complete.all()
    middle = 0.5 * (packed.starts + packed.ends)
    torch.testing.assert_close(
        samples.points[0, :, 0], origins.view(-1, 3)[ray] + middle[:, None] * directions.view(-1, 3)[ray]
    )
    assert samples.points.norm(dim=-1).max() < 0.5 + 0.25
    assert torch.equal(samples.camera_index[0], ray // 5)
    assert torch.equal(samples.xy[0], rays.xy.view(-1, 2)[ray])
    chords = torch.zeros(10).index_add(0, ray, packed.ends - packed.starts)
    assert ((chords > 0.75) & (chords < 1.3)).all()


def test_padding_is_finite_and_of_no_ray() -> None:
    packed = small().samples(straight_rays(3, 0.0, 1.0), budget=100)
    assert packed.n_used == 60 and (packed.ray_index[60:] == 3).all()
    assert packed.samples.points.isfinite().all() and packed.samples.ray_shape == (1, 100)
    assert packed.samples.n_used == 60 and small().samples(straight_rays(3, 0.0, 1.0)).samples.n_used is None


def test_rays_that_are_cones_stay_so() -> None:
    rays = replace(straight_rays(3, 0.0, 1.0), radii=torch.tensor([[0.1, 0.2, 0.3]]))
    samples = small().samples(rays).samples
    assert samples.bins is not None and samples.radii is not None and samples.lengths is not None
    torch.testing.assert_close(samples.bins.mean(dim=-1, keepdim=True), samples.lengths)
    assert torch.equal(samples.radii[0, ::20], rays.radii[0])  # type: ignore[index]


def test_training_shifts_each_ray_by_up_to_a_step() -> None:
    rays = straight_rays(500, 0.0, 0.5)
    packed = small().samples(rays, None, torch.Generator().manual_seed(0))
    shift = packed.starts[packed.first.long()]
    assert 0.0 <= shift.min() < 0.005 and 0.045 < shift.max() < 0.05 and 0.02 < shift.mean() < 0.03
    assert small().samples(rays).starts[0] == 0.0


def test_rays_go_on_where_they_ended() -> None:
    grid = small(step_size=0.013)
    grid.update(0, lambda p: 20.0 * (torch.sin(9.0 * p[:, 2:]) > 0.0).float())
    rays = straight_rays(1, 0.0, 1.0)
    whole = grid.samples(rays)
    starts, near = [], 0.0
    for _ in range(100):
        part = grid.samples(replace(rays, near=torch.full((1, 1), near)), max_samples=7)
        starts.append(part.starts)
        if len(part.starts) < 7:
            break
        near = part.ends[-1].item()
    torch.testing.assert_close(torch.cat(starts), whole.starts, rtol=0.0, atol=1e-5)
    assert len(whole.starts) > 20


def test_far_away_is_reached_in_cascades_and_contracted() -> None:
    rays = straight_rays(1, 0.1, 100.0)
    cascades = small(resolution=32, n_cascades=4, cone_angle=1 / 32).samples(rays)
    assert cascades.ends.max().item() == pytest.approx(8.0, abs=0.5)
    contracted = small(resolution=32, contraction=True, cone_angle=1 / 32).samples(rays)
    assert contracted.ends.max().item() == pytest.approx(100.0, rel=0.05) and len(contracted.ends) < 300


# state


def test_the_state_is_taken_up_to_the_bit() -> None:
    grid, other = small(warmup_steps=16), small(warmup_steps=16)
    for step in (0, 16):
        grid.update(step, ball(0.5))
    state = grid.state_dict()
    assert set(state) == {"densities", "bits"}
    other.load_state_dict(state)
    for name in ("densities", "bits", "blocks"):
        assert torch.equal(other.get_buffer(name), grid.get_buffer(name)), name
    other._draws.restore(grid._draws.state())
    for each in (grid, other):
        each.update(32, ball(0.4))
    assert torch.equal(grid.densities, other.densities) and torch.equal(grid.bits, other.bits)


def test_buffers_stay_where_they_are() -> None:
    """A captured step reads the same memory for ever."""
    grid = small()
    places = {name: buffer.data_ptr() for name, buffer in grid.named_buffers()}
    grid.mark_unseen(orbit(3))
    grid.update(0, ball(0.5))
    grid.update(512, ball(0.5))
    assert places == {name: buffer.data_ptr() for name, buffer in grid.named_buffers()}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"resolution": 12}, "resolution: 12; expected a multiple of 8"),
        ({"resolution": 0}, "resolution: 0"),
        ({"resolution": 8, "n_cascades": 2}, "expected a multiple of 32"),
        ({"n_cascades": 0}, "n_cascades: 0"),
        ({"contraction": True, "resolution": 32, "n_cascades": 2}, "n_cascades: 2 with contraction=true"),
        ({"contraction": True, "resolution": 32}, "cone_angle: 0.0"),
        ({"extents": (1.0, 0.0, 1.0)}, "extents"),
        ({"step_size": 0.0}, "step_size: 0.0"),
        ({"cone_angle": -1.0}, "cone_angle: -1.0"),
        ({"max_samples_per_ray": 0}, "max_samples_per_ray: 0"),
        ({"update_interval": 0}, "update_interval: 0"),
        ({"warmup_steps": 0}, "warmup_steps: 0"),
        ({"decay": 1.5}, "decay: 1.5"),
        ({"occupancy_threshold": -0.1}, "occupancy_threshold: -0.1"),
    ],
)
def test_options_without_a_meaning_are_refused(options: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        small(**options)


def test_the_step_is_a_1024th_of_the_diagonal() -> None:
    assert OccupancyGrid(resolution=8, extents=(2.0, 3.0, 6.0)).step == pytest.approx(7.0 / 1024)


@pytest.mark.gpu
def test_updates_on_a_device_wait_for_nothing() -> None:
    grid = OccupancyGrid(resolution=64, n_cascades=2, warmup_steps=16).cuda()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in (0, 16, 32):
            grid.update(step, lambda points: 20.0 * (points.norm(dim=-1, keepdim=True) < 0.5).float())
        fraction = grid.fraction_occupied()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert 0.01 < fraction < 0.2


@pytest.mark.gpu
def test_samples_within_a_captured_step() -> None:
    """Replays follow the grid, draw new shifts, and wait for nothing."""
    grid = OccupancyGrid(resolution=64).cuda()
    rays = straight_rays(4096, 0.0, 1.0)
    moved = {name: getattr(rays, name).cuda() for name in ("origins", "directions", "near", "far", "xy")}
    rays = replace(rays, **moved, view_directions=moved["directions"], camera_index=rays.camera_index.cuda())
    generator = torch.Generator("cuda").manual_seed(0)
    grid.samples(rays, 2**20, generator)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(generator)
    with torch.cuda.graph(graph):
        packed = grid.samples(rays, 2**20, generator)
    graph.replay()
    before, shift = int(packed.n_used), packed.starts[0].item()
    grid.update(0, lambda points: 50.0 * (points[:, 2:] < 0.5).float())
    graph.replay()
    assert 0 < int(packed.n_used) < 0.6 * before and packed.starts[0].item() != shift
