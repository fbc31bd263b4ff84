"""Where rays start, where they go, and where their samples lie."""

from dataclasses import replace

import pytest
import torch

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.cameras.lenses import Lenses
from nerf_trainer.errors import ConfigError
from nerf_trainer.frames import PixelStore
from nerf_trainer.randomness import seed_streams
from nerf_trainer.rays.bundle import RayBundle
from nerf_trainer.rays.samplers import AdaptiveRaySampler, NearFarRaySampler, RaySamplerBase
from tests.scene_kit import orbit

ONE_SAMPLE = {"n_pts_per_ray_training": 1, "n_pts_per_ray_evaluation": 1}


def two_distances() -> Cameras:
    """Views at distances 2 and 10 from the origin."""
    return Cameras.cat([orbit(4, 2.0)[:1], orbit(4, 10.0)[1:2]])


def test_adaptive_bounds_are_each_cameras_own() -> None:
    sampler = AdaptiveRaySampler(scene_extent=1.0, n_rays_per_image_sampled_from_mask=5)
    rays = sampler.draw(two_distances())
    torch.testing.assert_close(rays.near, torch.tensor([[1.0], [9.0]]).expand(2, 5))
    torch.testing.assert_close(rays.far, torch.tensor([[3.0], [11.0]]).expand(2, 5))


def test_adaptive_bounds_from_inside_the_scene_begin_at_the_camera() -> None:
    rays = AdaptiveRaySampler(scene_extent=8.0, n_rays_per_image_sampled_from_mask=2).draw(orbit(1, 4.0))
    torch.testing.assert_close(rays.near, torch.full((1, 2), 1e-3), atol=1e-5, rtol=0.0)
    torch.testing.assert_close(rays.far, torch.full((1, 2), 16.001))


def test_adaptive_bounds_follow_the_scenes_centre() -> None:
    cameras = orbit(1, 4.0)
    center = tuple(cameras.centers[0].mul(0.5).tolist())
    rays = AdaptiveRaySampler(scene_extent=1.0, scene_center=center).draw(cameras)
    torch.testing.assert_close(rays.near, torch.full_like(rays.near, 1.0))


def test_grid_rays_go_through_every_pixel_centre_in_order() -> None:
    cameras = orbit(2, size=4)
    rays = NearFarRaySampler(min_depth=1.0, max_depth=3.0, n_pts_per_ray_evaluation=5).grid(cameras, (4, 4))
    assert rays.ray_shape == (2, 4, 4)
    torch.testing.assert_close(rays.xy[1, 2, 3], torch.tensor([3.5, 2.5]))
    points = rays.origins + 2.0 * rays.directions
    projected, _ = cameras.project(points)
    torch.testing.assert_close(projected, rays.xy, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(rays.lengths[0, 0, 0], torch.tensor([1.0, 1.5, 2.0, 2.5, 3.0]))


def test_grids_of_another_size_cover_the_same_view() -> None:
    rays = NearFarRaySampler().grid(orbit(1, size=8), (4, 2))
    torch.testing.assert_close(rays.xy[0, :, 0], torch.tensor([[2.0, 1.0], [2.0, 3.0], [2.0, 5.0], [2.0, 7.0]]))


def test_draws_from_images_are_without_replacement_and_respect_the_mask() -> None:
    mask = torch.zeros(2, 1, 16, 16)
    mask[0, 0, 4:8, 4:8] = 1.0
    mask[1, 0, 0:2, 0:2] = 1.0
    rays = NearFarRaySampler(n_rays_per_image_sampled_from_mask=16).draw(orbit(2), mask=mask)
    first, second = ({tuple(p) for p in group.floor().int().tolist()} for group in rays.xy)
    assert first == {(x, y) for x in range(4, 8) for y in range(4, 8)}
    assert second == {(x, y) for x in range(2) for y in range(2)}  # four pixels serve sixteen rays
    assert rays.camera_index.tolist() == [[0] * 16, [1] * 16]


def test_more_rays_than_pixels_repeat_pixels() -> None:
    rays = NearFarRaySampler(n_rays_per_image_sampled_from_mask=40).draw(orbit(1, size=4))
    assert rays.ray_shape == (1, 40)
    assert len({tuple(p) for p in rays.xy[0].tolist()}) == 16


def test_total_draws_spread_over_all_images() -> None:
    rays = NearFarRaySampler(n_rays_total_training=400).draw(orbit(4))
    assert rays.ray_shape == (1, 400)
    counts = torch.bincount(rays.camera_index[0], minlength=4)
    assert (counts > 60).all()
    assert ((rays.xy > 0) & (rays.xy < 16)).all()
    expected = orbit(4).pixel_rays(rays.xy, rays.camera_index)[1]
    torch.testing.assert_close(rays.directions, expected)


def test_resident_draws_use_the_store() -> None:
    store = PixelStore.from_images([torch.zeros(16, 16, 4, dtype=torch.uint8)] * 3)
    rays = NearFarRaySampler(n_rays_total_training=50).draw(orbit(3), pixels=store)
    assert rays.ray_shape == (1, 50) and rays.camera_index.max() == 2


def test_stratified_training_differs_by_seed_and_evaluation_is_fixed() -> None:
    def lengths(seed: int) -> torch.Tensor:
        sampler = NearFarRaySampler(n_rays_total_training=4)
        seed_streams(sampler, seed)
        return sampler.draw(orbit(2)).lengths

    torch.testing.assert_close(lengths(0), lengths(0))
    assert not torch.equal(lengths(0), lengths(1))
    sampler = NearFarRaySampler()
    torch.testing.assert_close(sampler.grid(orbit(1), (2, 2)).lengths, sampler.grid(orbit(1), (2, 2)).lengths)


def test_precrop_ends_after_its_steps() -> None:
    sampler = NearFarRaySampler(n_rays_total_training=500, precrop_steps=10, precrop_fraction=0.5)
    store = PixelStore.from_images([torch.zeros(16, 16, 4, dtype=torch.uint8)])
    for pixels in (None, store):
        assert not sampler.advance(0, 9)
        xy = sampler.draw(orbit(1), pixels).xy
        assert xy.min() == 4.5 and xy.max() == 11.5
    assert sampler.advance(1, 10).recapture and not sampler.advance(1, 11)
    assert sampler.draw(orbit(1), store).xy.min() < 2.0


def test_cones_have_bins_whose_midpoints_are_the_lengths() -> None:
    sampler = NearFarRaySampler(cast_ray_bundle_as_cone=True, n_pts_per_ray_training=6, n_rays_total_training=3)
    rays = sampler.draw(orbit(2, focal=20.0))
    assert rays.bins is not None and rays.bins.shape == (1, 3, 7)
    torch.testing.assert_close(rays.lengths, (rays.bins[..., 1:] + rays.bins[..., :-1]) / 2)


def test_cone_radius_on_the_axis_by_hand() -> None:
    """On the axis a pixel is 1/focal wide and high at unit distance: radius 2 / focal / sqrt(12)."""
    cameras = replace(orbit(1, focal=20.0, size=16), principal_point=torch.tensor([[8.5, 8.5]]))
    rays = NearFarRaySampler(cast_ray_bundle_as_cone=True).grid(cameras, (16, 16))
    assert rays.radii is not None
    assert rays.radii[0, 8, 8].item() == pytest.approx(2 / 20 / 12**0.5, rel=1e-5)


def test_disparity_spacing() -> None:
    sampler = NearFarRaySampler(min_depth=1.0, max_depth=4.0, linear_in_disparity=True, n_pts_per_ray_evaluation=4)
    torch.testing.assert_close(
        sampler.grid(orbit(1), (1, 1)).lengths[0, 0, 0], torch.tensor([1.0, 4.0 / 3.0, 2.0, 4.0])
    )


@pytest.mark.parametrize(
    ("cls", "wrong"),
    [
        (NearFarRaySampler, {"min_depth": 3.0, "max_depth": 2.0}),
        (NearFarRaySampler, {"min_depth": 0.0, "linear_in_disparity": True}),
        (NearFarRaySampler, {"min_depth": 2.0, "max_depth": 2.0}),
        (NearFarRaySampler, {"min_depth": 2.0, "max_depth": 2.0, "n_pts_per_ray_training": 1}),
        (NearFarRaySampler, {"min_depth": 2.0, "max_depth": 2.0, **ONE_SAMPLE, "cast_ray_bundle_as_cone": True}),
        (NearFarRaySampler, {"min_depth": -1.0, "max_depth": -1.0, **ONE_SAMPLE}),
        (NearFarRaySampler, {"n_rays_per_image_sampled_from_mask": None}),
        (AdaptiveRaySampler, {"scene_extent": 0.0}),
        (AdaptiveRaySampler, {"precrop_fraction": 0.0}),
    ],
)
def test_impossible_settings_are_refused(cls: type, wrong: dict) -> None:
    with pytest.raises(ConfigError, match=r"expected|set one"):
        cls(**wrong)


def test_one_sample_may_stand_at_a_single_depth() -> None:
    sampler = NearFarRaySampler(min_depth=0.05, max_depth=0.05, **ONE_SAMPLE)
    for rays in (sampler.draw(orbit(2)), sampler.grid(orbit(2), (3, 3))):
        torch.testing.assert_close(rays.lengths, torch.full((*rays.ray_shape, 1), 0.05))
        torch.testing.assert_close(rays.near, rays.far)


def test_rays_without_lengths_are_the_same_rays() -> None:
    def rays(with_lengths: bool) -> tuple[RayBundle, ...]:
        sampler = NearFarRaySampler(n_rays_total_training=8, cast_ray_bundle_as_cone=True)
        seed_streams(sampler, 0)
        store = PixelStore.from_images([torch.zeros(16, 16, 4, dtype=torch.uint8)] * 2)
        cameras = orbit(2)
        return (
            sampler.draw(cameras, with_lengths=with_lengths),
            sampler.draw(cameras, store, with_lengths=with_lengths),
            sampler.grid(cameras, (4, 4), with_lengths=with_lengths),
        )

    for bare, placed in zip(rays(False), rays(True), strict=True):
        assert bare.lengths is None and bare.bins is None and placed.lengths is not None
        torch.testing.assert_close(bare.xy, placed.xy)
        torch.testing.assert_close(bare.far, placed.far)
        assert bare.radii is not None


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"n_pts_per_ray_training": -1}, "n_pts_per_ray_training: -1, expected a whole number of at least 0"),
        ({"n_pts_per_ray_evaluation": -1}, "n_pts_per_ray_evaluation: -1, expected"),
        ({"n_rays_total_training": 0}, "n_rays_total_training: 0, expected"),
        ({"n_rays_per_image_sampled_from_mask": -1}, "n_rays_per_image_sampled_from_mask: -1, expected"),
        (
            {"n_rays_total_training": 8, "n_rays_per_image_sampled_from_mask": 4},
            "n_rays_per_image_sampled_from_mask: 4 together with n_rays_total_training: 8",
        ),
    ],
)
def test_counts_that_make_no_sense_are_refused(options: dict, line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        AdaptiveRaySampler(**options)


def test_the_total_goes_with_the_default_count_of_each_image_or_none() -> None:
    for per_image in (1024, None):
        AdaptiveRaySampler(n_rays_total_training=8, n_rays_per_image_sampled_from_mask=per_image)


def test_what_a_renderer_is_told_of_the_scene() -> None:
    around = AdaptiveRaySampler(scene_extent=2.0, scene_center=(1.0, 2.0, 3.0))
    assert (around.scene_radius, around.sphere_center) == (2.0, (1.0, 2.0, 3.0))
    between = NearFarRaySampler()
    assert (between.scene_radius, between.sphere_center) == (None, (0.0, 0.0, 0.0))


def test_cone_radii_of_distorted_views() -> None:
    """Lenses that distort nothing leave the radii; a barrel's pixels are wider in the corners, where they see more."""
    plain = replace(orbit(1, focal=20.0, size=16), lenses=None)
    zero = replace(plain, lenses=Lenses.pinholes(1))
    barrel = replace(
        plain, lenses=Lenses.of(torch.tensor([[-0.3, 0.0, 0.0, 0.0]]), torch.zeros(1, 2), torch.zeros(1) > 0)
    )
    sampler = NearFarRaySampler(cast_ray_bundle_as_cone=True)
    expected, same, wider = (sampler.grid(cameras, (16, 16)).radii for cameras in (plain, zero, barrel))
    assert expected is not None and same is not None and wider is not None
    torch.testing.assert_close(same, expected, rtol=1e-3, atol=0.0)
    assert (wider[0, 0, 0] / expected[0, 0, 0]).item() > 1.2
    torch.testing.assert_close(wider[0, 7, 7], expected[0, 7, 7], rtol=1e-2, atol=0.0)


@pytest.mark.parametrize("sampler", [AdaptiveRaySampler(), NearFarRaySampler()], ids=["adaptive", "near_far"])
def test_views_that_nobody_needs_are_not_asked_for(sampler: RaySamplerBase) -> None:
    """A dataset may have to read masks to know its cameras."""

    def views() -> Cameras:
        raise AssertionError("asked for")

    sampler.learn_views(views)
