"""Traced surfaces against exact ones."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from nerf_trainer.errors import ConfigError
from nerf_trainer.geometry.spheres import ray_sphere
from nerf_trainer.rays.samplers import AdaptiveRaySampler
from nerf_trainer.renderers import sphere_tracing
from nerf_trainer.renderers.sphere_tracing import RayTracing, SurfaceHits
from tests.scene_kit import orbit

RADIUS, HALF = 0.8, torch.tensor([0.5, 0.7, 0.4])
BOUND = 2.0
ORIGIN = torch.zeros(3)


def sphere(points: Tensor) -> Tensor:
    return points.norm(dim=-1) - RADIUS


def box(points: Tensor) -> Tensor:
    """The exact signed distance of an axis-aligned box with half sides HALF."""
    beyond = points.abs() - HALF
    return beyond.clamp(min=0.0).norm(dim=-1) + beyond.amax(dim=-1).clamp(max=0.0)


def along(sdf: Callable[[Tensor], Tensor], origins: Tensor, directions: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda rows, t: sdf(origins[rows, None] + t[..., None] * directions[rows, None])


def view_rays(distance: float = 4.0, n_views: int = 4, size: int = 36) -> tuple[Tensor, Tensor]:
    """Rays of several cameras over the whole of the bounding sphere."""
    cameras = orbit(n_views, distance=distance, focal=0.9 * size, size=size)
    rays = AdaptiveRaySampler(scene_extent=BOUND).grid(cameras, (size, size), with_lengths=False)
    return rays.origins.reshape(-1, 3), rays.directions.reshape(-1, 3)


def trace(sdf: Callable[[Tensor], Tensor], origins: Tensor, directions: Tensor, **options: object) -> SurfaceHits:
    search = bool(options.pop("search_lowest", False))
    center = options.pop("center", ORIGIN)
    assert isinstance(center, Tensor)
    distance = along(sdf, origins, directions)
    return RayTracing(**options)(distance, origins, directions, center, BOUND, search)


def exact_sphere(origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Depth, whether the ray hits, and the cosine between the ray and the normal, in float64."""
    enter, _, meets = ray_sphere(origins.double(), directions.double(), ORIGIN.double(), RADIUS)
    normals = (origins + enter[:, None] * directions) / RADIUS
    return enter, meets, (normals * directions).sum(dim=-1).abs()


def exact_box(origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same by the slab method."""
    o, d, half = origins.double(), directions.double(), HALF.double()
    slabs = torch.stack([(-half - o) / d, (half - o) / d])
    enter, axis = slabs.amin(dim=0).max(dim=-1)
    leave = slabs.amax(dim=0).amin(dim=-1)
    return enter, (enter < leave) & (leave > 0.0), d.abs().gather(-1, axis[:, None])[:, 0]


@pytest.mark.parametrize("distance", [4.0, 1.5])
@pytest.mark.parametrize(("sdf", "exact"), [(sphere, exact_sphere), (box, exact_box)])
def test_depths_and_masks_of_several_cameras(sdf, exact, distance: float) -> None:
    """Cameras outside (4.0) and inside (1.5) the bounding sphere of radius 2.

    A point counts as surface from f = 5e-5: along the ray that is 5e-5 / cos too early where a ray meets the surface at
    an angle.
    """
    origins, directions = view_rays(distance)
    found = trace(sdf, origins, directions)
    depth, hit, cosine = exact(origins, directions)
    least = sdf(origins[:, None] + torch.linspace(0.0, 8.0, 1601)[:, None] * directions[:, None]).amin(dim=-1)
    clear = least.abs() > 1e-3  # rays that neither just hit nor just miss
    assert clear.float().mean() > 0.98 and 0.05 < hit.float().mean() < 0.99
    assert torch.equal(found.hit[clear], hit[clear])
    both = found.hit & hit
    error = (found.lengths - depth).abs()[both]
    straight = cosine[both] > 0.5
    assert straight.sum() > 200
    assert error[straight].max() < 1e-4
    assert (error * cosine[both]).max() < 1e-4
    assert (found.lengths[~found.hit] == 0.0).all()


def test_grazing_rays() -> None:
    """Parallel rays at 0.1 % to 5 % of the radius from the sphere's edge, on both sides of it."""
    off = torch.tensor([0.001, 0.002, 0.005, 0.01, 0.02, 0.05])
    heights = torch.cat([RADIUS * (1.0 - off), RADIUS * (1.0 + off)])
    origins = torch.stack([torch.zeros(12), heights, torch.full((12,), -3.0)], dim=-1)
    directions = torch.tensor([0.0, 0.0, 1.0]).expand(12, 3)
    found = trace(sphere, origins, directions)
    assert found.hit.tolist() == [True] * 6 + [False] * 6
    half_chord = (RADIUS**2 - heights[:6] ** 2).sqrt()
    cosine = half_chord / RADIUS
    assert ((found.lengths[:6] - (3.0 - half_chord)).abs() * cosine).max() < 1e-4
    passed_at = sphere(origins + found.lowest[:, None] * directions)[6:]
    torch.testing.assert_close(passed_at, RADIUS * off, rtol=0.0, atol=2e-3)


def test_a_thin_plate_is_found_by_the_sampler() -> None:
    """Sphere tracing creeps along a plate that rays meet at 6 degrees: 10 steps don't reach it, samples do."""

    def plate(points: Tensor) -> Tensor:
        return points[..., 1].abs() - 0.05

    direction = normalize(torch.tensor([[0.0, -0.1, 1.0]]), dim=-1)
    origins = torch.tensor([[0.0, 0.2, -1.5]])
    expected = 0.15 / -direction[0, 1].item()
    assert trace(plate, origins, direction, sphere_tracing_iters=10).lengths.item() == pytest.approx(expected, abs=1e-4)


def test_distances_that_are_too_long_or_too_short() -> None:
    """Learned distances are off by a factor; the surface is where it is. (From a factor of 2 on steps pass through.)"""
    origins, directions = view_rays(n_views=2, size=24)
    depth, hit, cosine = exact_sphere(origins, directions)
    straight = hit & (cosine > 0.3)
    for factor in (0.3, 1.7):
        found = trace(lambda x, s=factor: s * sphere(x), origins, directions, line_step_iters=3)
        assert found.hit[straight].all()
        assert ((found.lengths - depth).abs() * cosine * factor)[straight].max() < 1e-4
        assert not found.hit[~hit].any()


def test_the_search_finds_the_deepest_place() -> None:
    """Of rays through the sphere, the middle of the chord; of rays past it, the point nearest to the centre."""
    origins, directions = view_rays(n_views=2, size=24)
    found = trace(sphere, origins, directions, search_lowest=True)
    b = -(origins * directions).sum(dim=-1)
    # At distance e from the nearest point f is sqrt(h^2 + e^2) - r, and one of 100 strata of the way is at most 0.04.
    nearest = (origins + b[:, None] * directions).norm(dim=-1)
    at_lowest = (origins + found.lowest[:, None] * directions).norm(dim=-1)
    assert ((at_lowest - nearest) <= (nearest.square() + 0.04**2).sqrt() - nearest + 1e-5).all()
    missed_sphere = nearest > BOUND
    assert missed_sphere.any()
    torch.testing.assert_close(found.lowest[missed_sphere], b[missed_sphere])


def test_searching_changes_no_hit_and_is_repeatable() -> None:
    origins, directions = view_rays(n_views=1)
    plain, searched = (trace(sphere, origins, directions, search_lowest=search) for search in (False, True))
    assert torch.equal(plain.hit, searched.hit) and torch.equal(plain.lengths, searched.lengths)
    again = trace(sphere, origins, directions, search_lowest=True)
    assert torch.equal(searched.lowest, again.lowest)


def test_a_sphere_elsewhere_traces_alike() -> None:
    origins, directions = view_rays(n_views=2, size=24)
    center = torch.tensor([8.0, -4.0, 2.0])
    here = trace(sphere, origins, directions)
    there = trace(lambda x: sphere(x - center), origins + center, directions, center=center)
    _, hit, cosine = exact_sphere(origins, directions)
    straight = hit & (cosine > 0.3)
    assert (here.hit != there.hit).sum() <= 2
    torch.testing.assert_close(here.lengths[straight], there.lengths[straight], rtol=0.0, atol=2e-4)


def test_rays_that_start_inside_or_look_away() -> None:
    """Inside the object a ray meets it at once; one that looks away from the bounding sphere meets nothing."""
    origins = torch.tensor([[0.0, 0.0, 0.1], [0.0, 0.0, 5.0]])
    directions = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    found = trace(sphere, origins, directions, search_lowest=True)
    assert found.hit.tolist() == [True, False] and found.lengths.tolist() == [0.0, 0.0]
    assert found.lowest[1] == 0.0


def test_no_rays_and_no_hits() -> None:
    origins, directions = view_rays(n_views=1, size=8)
    assert trace(sphere, origins[:0], directions[:0], search_lowest=True).hit.shape == (0,)
    assert not trace(lambda x: sphere(x) + 10.0, origins, directions, search_lowest=True).hit.any()


def test_pieces_give_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    origins, directions = view_rays(n_views=1, size=24)
    whole = trace(box, origins, directions, search_lowest=True)
    monkeypatch.setattr(sphere_tracing, "POINTS_AT_ONCE", 700)
    pieces = trace(box, origins, directions, search_lowest=True)
    assert torch.equal(whole.lengths, pieces.lengths) and torch.equal(whole.lowest, pieces.lowest)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sdf_threshold": 0.0}, "sdf_threshold: 0.0"),
        ({"line_search_step": 1.0}, "line_search_step: 1.0"),
        ({"n_steps": 1}, "n_steps: 1"),
        ({"sphere_tracing_iters": 0}, "sphere_tracing_iters: 0"),
    ],
)
def test_options_are_checked(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RayTracing(**options)
