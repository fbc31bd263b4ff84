"""View sampling: where points fall, which views see them, and under which angle."""

import math
from dataclasses import replace

import pytest
import torch

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.conditioning.view_sampler import Unseen, ViewSampler
from nerf_trainer.config import build
from nerf_trainer.errors import ConfigError
from tests.conditioning.view_kit import HEIGHT, POINT, WIDTH, places, rays_to, source_views, two_views
from tests.scene_kit import orbit, straight_rays


def point(*xyz: float) -> torch.Tensor:
    return torch.tensor([xyz])


@pytest.mark.parametrize(("h", "w"), [(HEIGHT, WIDTH), (4, 4), (16, 6)])
def test_a_point_is_looked_up_at_its_pixel_in_maps_of_any_size(h, w):
    # In the first view's axes the point is (1, 0.5, 5), in the second's (1, 0.5, 4).
    expected = [[6 * 1 / 5 + 6, 5 * 0.5 / 5 + 4], [6 * 1 / 4 + 6, 5 * 0.5 / 4 + 4]]
    assert expected == [[7.2, 4.5], [7.5, 4.625]]
    sampled = ViewSampler()(source_views(places(h, w)), rays_to(point(*POINT)))
    torch.testing.assert_close(sampled.features[0], torch.tensor(expected).reshape(1, 1, 1, 2, 2))
    assert sampled.valid.flatten().tolist() == [1.0, 1.0]
    assert sampled.is_target.flatten().tolist() == [True, False]


def test_nearest_takes_the_cell_that_the_point_falls_into():
    sampled = ViewSampler(sampling_mode="nearest")(source_views(), rays_to(point(*POINT)))
    assert sampled.features[0].flatten().tolist() == [7.5, 4.5, 7.5, 4.5]


def test_several_maps_keep_their_order_and_widths():
    maps = places(), torch.full((2, 5, 1, 1), 3.0)
    sampled = ViewSampler()(source_views(*maps), rays_to(point(*POINT)))
    assert [f.shape for f in sampled.features] == [(1, 1, 1, 2, 2), (1, 1, 1, 2, 5)]
    assert sampled.features[1].unique().tolist() == [3.0]


@pytest.mark.parametrize(
    ("xyz", "seen"),
    [
        # (x, y, 4) has depth 8 to the first view: x_pixel = 6 x / 8 + 6, y_pixel = 5 y / 8 + 4.
        pytest.param((7.99, 0.0, 4.0), True, id="just inside, x = 11.9925"),
        pytest.param((8.01, 0.0, 4.0), False, id="just outside, x = 12.0075"),
        pytest.param((-7.99, 0.0, 4.0), True, id="left edge"),
        pytest.param((-8.01, 0.0, 4.0), False, id="beyond the left edge"),
        pytest.param((0.0, 6.39, 4.0), True, id="lower edge, y = 7.99375"),
        pytest.param((0.0, 6.41, 4.0), False, id="beyond the lower edge"),
        pytest.param((0.0, -6.41, 4.0), False, id="beyond the upper edge"),
        pytest.param((0.0, 0.0, -5.0), False, id="behind, on the axis"),
        pytest.param((0.1, 0.1, -4.0), False, id="beside the camera"),
    ],
)
def test_a_view_sees_what_is_in_front_of_it_and_inside_its_image(xyz, seen):
    sampled = ViewSampler()(source_views(), rays_to(point(*xyz)))
    assert sampled.valid[0, 0, 0, 0].item() == seen


def test_maps_reach_to_the_edges_of_the_image():
    maps = torch.full((2, 3, 2, 2), 7.0)
    sampled = ViewSampler()(source_views(maps), rays_to(point(7.99, 6.39, 4.0)))
    assert sampled.features[0][0, 0, 0, 0].tolist() == [7.0, 7.0, 7.0]


def test_views_may_have_images_of_different_sizes():
    cameras = replace(two_views(), image_size_hw=torch.tensor([[HEIGHT, WIDTH], [2 * HEIGHT, 2 * WIDTH]]))
    sampled = ViewSampler()(source_views(cameras=cameras), rays_to(point(*POINT)))
    # The second image is twice as large, so its map's cells are; the map's values are half of its pixels.
    torch.testing.assert_close(sampled.features[0][0, 0, 0, 1], torch.tensor([7.5 / 2, 4.625 / 2]))


def test_other_sequences_are_not_seen_and_rays_know_their_target():
    source = source_views(
        same_sequence=torch.tensor([[True, False], [True, True]]), is_target=torch.eye(2, dtype=torch.bool)
    )
    rays = rays_to(point(*POINT).expand(3, 3), camera_index=torch.tensor([1, 0, 1]))
    sampled = ViewSampler()(source, rays)
    assert sampled.valid.reshape(3, 2).tolist() == [[1, 1], [1, 0], [1, 1]]
    assert sampled.is_target.reshape(3, 2).tolist() == [[False, True], [True, False], [False, True]]


def test_cosines_are_between_the_ray_and_the_line_of_sight():
    sampled = ViewSampler()(source_views(), rays_to(point(*POINT)))
    # The point lies along (1, 0.5, 5) from the first view, as its ray does, and along (-4, 0.5, 1) from the second.
    between = (1 * -4 + 0.5 * 0.5 + 5 * 1) / math.sqrt((1 + 0.25 + 25) * (16 + 0.25 + 1))
    torch.testing.assert_close(sampled.cosines.flatten(), torch.tensor([1.0, between]))


def test_cosines_take_the_view_direction():
    rays = rays_to(point(*POINT))
    opposite = replace(rays, view_directions=-rays.view_directions)
    source = source_views()
    torch.testing.assert_close(ViewSampler()(source, opposite).cosines, -ViewSampler()(source, rays).cosines)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        # At (1.4, 0.5, 1) the first view looks at x = 6 * 1.4 / 5 + 6 = 7.68, 0.18 past the centre of column 7;
        # the second at x = 6 * 1 / 3.6 + 6 = 7.667.
        pytest.param("nearest", [0.25, 1.0], id="nearest"),
        pytest.param("bilinear", [0.25 + 0.18 * 0.75, 1.0], id="bilinear"),
    ],
)
def test_masked_sampling_counts_a_view_by_its_foreground(mode, expected):
    alpha = torch.full((2, 1, HEIGHT, WIDTH), 0.25)
    alpha[0, :, :, 8:] = 1.0
    alpha[1, :, :, 7:] = 1.0
    sampler = ViewSampler(masked_sampling=True, sampling_mode=mode)
    sampled = sampler(source_views(fg_probability=alpha), rays_to(point(1.4, 0.5, 1.0)))
    torch.testing.assert_close(sampled.valid.flatten(), torch.tensor(expected))


def test_masked_sampling_counts_all_where_the_data_has_no_masks():
    sampled = ViewSampler(masked_sampling=True)(source_views(), rays_to(point(*POINT)))
    assert sampled.valid.flatten().tolist() == [1.0, 1.0]


@pytest.mark.parametrize("masked", [False, True])
def test_what_images_were_padded_with_never_counts(masked):
    """The first view looks at x = 7.2, in column 7, the second at x = 7.5: padding is nearest, whatever the mode."""
    real = torch.ones(2, 1, HEIGHT, WIDTH)
    real[0, :, :, 7:] = 0.0
    real[1, :, :, 8:] = 0.0
    alpha = torch.full((2, 1, HEIGHT, WIDTH), 0.25)
    source = source_views(mask_crop=real, fg_probability=alpha)
    sampled = ViewSampler(masked_sampling=masked)(source, rays_to(point(*POINT)))
    assert sampled.valid.flatten().tolist() == [0.0, 0.25 if masked else 1.0]
    whole = ViewSampler(masked_sampling=masked)(replace(source, mask_crop=None), rays_to(point(*POINT)))
    assert whole.valid.flatten().tolist() == [0.25, 0.25] if masked else [1.0, 1.0]


class Barrel(Cameras):
    """Views through a lens that draws the edges of the image in."""

    def plane_to_pixels(self, plane: torch.Tensor) -> torch.Tensor:
        return super().plane_to_pixels(plane / (1.0 + plane.square().sum(dim=-1, keepdim=True)))


def test_points_fall_where_the_views_themselves_project_them():
    straight = two_views()
    cameras = Barrel(straight.R, straight.T, straight.focal, straight.principal_point, straight.image_size_hw)
    sampled = ViewSampler()(source_views(cameras=cameras), rays_to(point(*POINT)))
    # (1, 0.5, 5) is (0.2, 0.1) on the plane, which the lens divides by 1.05.
    first = [6 * 0.2 / 1.05 + 6, 5 * 0.1 / 1.05 + 4]
    torch.testing.assert_close(sampled.features[0][0, 0, 0, 0], torch.tensor(first))
    xy, _ = cameras.project(point(*POINT).expand(2, 1, 3))
    torch.testing.assert_close(sampled.features[0][0, 0, 0], xy[:, 0])


def test_it_is_the_slow_way_round():
    """Random views, points and maps against loops in float64 over views, points and the cells of a map."""
    torch.manual_seed(0)
    height, width = 10, 14
    cameras = replace(orbit(3, distance=3.0, size=10), image_size_hw=torch.tensor([[height, width]]).expand(3, 2))
    maps = torch.rand(3, 2, 5, 6)
    rays = replace(straight_rays(8, n_samples=5), origins=torch.randn(1, 8, 3))
    sampled = ViewSampler()(source_views(maps, cameras=cameras), rays)
    features, valid = sampled.features[0].reshape(40, 3, 2), sampled.valid.reshape(40, 3)
    for n, world in enumerate(rays.points.reshape(40, 3).double()):
        for v in range(3):
            x, y, depth = (cameras.R[v].double() @ world + cameras.T[v].double()).tolist()
            px = x / depth * cameras.focal[v, 0].item() + cameras.principal_point[v, 0].item()
            py = y / depth * cameras.focal[v, 1].item() + cameras.principal_point[v, 1].item()
            inside = depth > 0 and 0 <= px <= width and 0 <= py <= height
            assert valid[n, v].item() == inside
            if inside:
                expected = interpolated(maps[v].double(), py / height * 5 - 0.5, px / width * 6 - 0.5)
                torch.testing.assert_close(features[n, v].double(), expected, atol=1e-5, rtol=1e-5)
    assert 0.2 < valid.mean() < 0.8


def interpolated(values: torch.Tensor, row: float, column: float) -> torch.Tensor:
    """Bilinear interpolation of `values` (C h w), which go on beyond their borders."""
    h, w = values.shape[1:]
    total = torch.zeros(len(values), dtype=torch.float64)
    for i in range(-1, h + 1):
        for j in range(-1, w + 1):
            weight = max(0.0, 1 - abs(row - i)) * max(0.0, 1 - abs(column - j))
            total += weight * values[:, min(max(i, 0), h - 1), min(max(j, 0), w - 1)]
    return total


def test_rays_may_be_a_whole_view():
    rays = rays_to(point(*POINT).expand(6, 3))
    whole = rays._map(lambda t, n: t.reshape(1, 2, 3, *t.shape[n:])).with_lengths(torch.rand(1, 2, 3, 4))
    sampled = ViewSampler()(source_views(), whole)
    assert sampled.features[0].shape == (1, 2, 3, 4, 2, 2)
    assert sampled.valid.shape == (1, 2, 3, 4, 2, 1)
    assert sampled.cosines.shape == sampled.is_target.shape == (1, 2, 3, 4, 2)


def test_gradients_reach_points_and_maps():
    maps = places().clone().requires_grad_()
    xyz = point(*POINT).requires_grad_()
    rays = rays_to(point(*POINT)).at(xyz[None])
    ViewSampler()(source_views(maps), rays).features[0][0, 0, 0, 0, 0].backward()
    # x_pixel = 6 X / (Z + 4) + 6 at X = 1, Z = 1.
    torch.testing.assert_close(xyz.grad, torch.tensor([[6 / 5, 0.0, -6 * 1 / 25]]))
    # Row 4 and columns 6 and 7 have their centres at (6.5, 4.5) and (7.5, 4.5).
    torch.testing.assert_close(maps.grad[0, 0, 4, 6:8], torch.tensor([0.3, 0.7]))
    assert maps.grad[1].abs().sum() == 0


EXTREMES = [
    (0.0, 0.0, -4.0),  # the first view's centre
    (5.0, 0.0, 0.0),  # the second's
    (1.0, 1.0, -4.0),  # beside the first, at depth 0
    (1e6, -1e6, 1e6),
    (0.0, 0.0, -4.0 + 1e-7),
    (1e3, 1e3, -4.0 + 1e-5),
]


def test_values_and_gradients_are_finite_anywhere():
    maps = places().clone().requires_grad_()
    xyz = torch.tensor(EXTREMES).requires_grad_()
    rays = rays_to(torch.tensor(POINT).expand(len(EXTREMES), 3)).at(xyz[None])
    sampled = ViewSampler()(source_views(maps), rays)
    assert all(t.isfinite().all() for t in (*sampled.features, sampled.valid, sampled.cosines))
    (sampled.features[0].sum() + sampled.cosines.sum()).backward()
    assert xyz.grad.isfinite().all()
    assert maps.grad.isfinite().all()


def test_autocast_changes_nothing():
    source, rays = source_views(places().bfloat16()), rays_to(point(*POINT))
    plain = ViewSampler()(source, rays)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = ViewSampler()(source, rays)
    assert torch.equal(cast.features[0], plain.features[0])
    assert torch.equal(cast.cosines, plain.cosines)
    assert plain.features[0].dtype == torch.float32


def test_an_unknown_mode_is_refused():
    with pytest.raises(ConfigError, match="sampling_mode: 'bicubic' is not allowed; expected one of bilinear, nearest"):
        build(ViewSampler, {"sampling_mode": "bicubic"})


def test_views_that_do_not_see_a_point_count_as_zeros_where_that_is_asked_for():
    sampler = ViewSampler(unseen=Unseen.counted_as_zeros)
    constant = torch.full((2, 1, HEIGHT, WIDTH), 7.0)
    # (x, 0, 4) has depth 8 to the first view: x_pixel = 6 x / 8 + 6; its last column of cells is centred on 11.5.
    inside, edge, outside = (sampler(source_views(constant), rays_to(point(x, 0.0, 4.0))) for x in (7.0, 8.0, 9.0))
    assert inside.features[0][0, 0, 0, 0].item() == pytest.approx(7.0)
    assert edge.features[0][0, 0, 0, 0].item() == pytest.approx(3.5)  # x = 12 is half-way to the zeros at 12.5
    assert outside.features[0][0, 0, 0, 0].item() == 0.0
    assert [views.valid[0, 0, 0, 0].item() for views in (inside, edge, outside)] == [1.0, 1.0, 1.0]


def test_a_point_behind_a_view_is_then_looked_up_where_the_line_through_the_centre_meets_the_image():
    sampler = ViewSampler(unseen=Unseen.counted_as_zeros)
    # (1, 1, -8) is (1, 1, -4) to the first view: x_pixel = 6 * 1 / -4 + 6 = 4.5, y_pixel = 5 * 1 / -4 + 4 = 2.75.
    sampled = sampler(source_views(), rays_to(point(1.0, 1.0, -8.0)))
    torch.testing.assert_close(sampled.features[0][0, 0, 0, 0], torch.tensor([4.5, 2.75]))
    # Nearer than a hundredth it is divided by that: (0.001, 0, 0.005) -> x_pixel = 6 * 0.001 / 0.01 + 6 = 6.6.
    sampled = sampler(source_views(), rays_to(point(0.001, 0.0, -3.995)))
    torch.testing.assert_close(sampled.features[0][0, 0, 0, 0], torch.tensor([6.6, 4.0]))


def test_then_padding_counts_unless_sampling_is_masked():
    crop = torch.ones(2, 1, HEIGHT, WIDTH)
    crop[:, :, :, 7:] = 0.0  # the point falls on pixel 7.2 of the first view, between the cells of 6.5 and 7.5
    source = source_views(mask_crop=crop, fg_probability=torch.zeros(2, 1, HEIGHT, WIDTH))
    unmasked, masked = (
        ViewSampler(unseen=Unseen.counted_as_zeros, masked_sampling=masks)(source, rays_to(point(*POINT)))
        for masks in (False, True)
    )
    assert unmasked.valid[0, 0, 0, 0].item() == 1.0
    assert masked.valid[0, 0, 0, 0].item() == pytest.approx(0.3)
