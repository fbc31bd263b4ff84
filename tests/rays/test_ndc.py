"""NDC rays: a point of a ray is the projection of the point in the world, by hand and by the paper's matrix."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.cameras.trajectories import look_at
from nerf_trainer.conditioning.feature_extractor import ResNetFeatureExtractor
from nerf_trainer.conditioning.view_pooler import ViewPooler
from nerf_trainer.config import Factory, registry
from nerf_trainer.errors import ConfigError
from nerf_trainer.fields.base import ImplicitFunctionBase
from nerf_trainer.fields.nerf import NeuralRadianceFieldImplicitFunction
from nerf_trainer.frames import FrameContents, FrameData, PixelStore
from nerf_trainer.models.generic import GenericModel
from nerf_trainer.models.overfit import OverfitModel
from nerf_trainer.randomness import seed_streams
from nerf_trainer.rays.ndc import NDCRaySampler, ndc_points, ndc_rays
from nerf_trainer.rays.samplers import NearFarRaySampler, RaySamplerBase
from nerf_trainer.renderers.raymarchers import EmissionAbsorptionRaymarcher


def facing_cameras(n: int = 5) -> Cameras:
    """Views near the origin that look down -z at points some way ahead, focal 24 and 22 pixels, images of 16 x 12."""
    angle = torch.arange(n) * 1.7
    places = torch.stack([0.3 * angle.cos(), 0.2 * angle.sin(), 0.1 * angle.cos()], dim=-1)
    R, T = look_at(places, torch.tensor([0.05, 0.0, -4.0]), torch.tensor([0.0, 1.0, 0.0]))
    return Cameras(
        R=R,
        T=T,
        focal=torch.tensor([[24.0, 22.0]]).expand(n, 2),
        principal_point=torch.tensor([[8.0, 6.0]]).expand(n, 2),
        image_size_hw=torch.tensor([[12, 16]]).expand(n, 2),
    )


def learned(cameras: Cameras | None = None, **options) -> NDCRaySampler:
    values: dict[str, Any] = {
        "n_rays_per_image_sampled_from_mask": 7,
        "n_pts_per_ray_training": 9,
        "n_pts_per_ray_evaluation": 9,
    }
    sampler = NDCRaySampler(**(values | options))
    sampler.learn_views(facing_cameras if cameras is None else lambda: cameras)
    seed_streams(sampler, 0)
    return sampler


def test_a_ray_worked_by_hand() -> None:
    """o = (1, 2, 3), d = (1, -1, -2), n = 1, a = (2, 4). The near plane is reached after 2 of d, at (3, 0, -1):
    o' = (2 * 3, 4 * 0, -1). There d_x / d_z + o_x / n = -1/2 + 3 and d_y / d_z + o_y / n = 1/2 + 0:
    d' = (-2 * 2.5, -4 * 0.5, 2). Another 1.5 of d on, at (4.5, -1.5, -4), t' = 1 - (-1) / (-4) = 3/4, and
    (6 - 0.75 * 5, -0.75 * 2, -1 + 1.5) = (2.25, -1.5, 0.5), which is (-2 * 4.5 / -4, -4 * -1.5 / -4, 1 + 2 / -4).
    """
    o, d, a = torch.tensor([[1.0, 2, 3]]), torch.tensor([[1.0, -1, -2]]), torch.tensor([2.0, 4.0])
    start, along = ndc_rays(o, d, a)
    torch.testing.assert_close(start, torch.tensor([[6.0, 0.0, -1.0]]))
    torch.testing.assert_close(along, torch.tensor([[-5.0, -2.0, 2.0]]))
    torch.testing.assert_close(start + 0.75 * along, torch.tensor([[2.25, -1.5, 0.5]]))
    torch.testing.assert_close(ndc_points(o + 3.5 * d, a), torch.tensor([[2.25, -1.5, 0.5]]))


@pytest.mark.parametrize("near", [1.0, 0.3])
def test_points_on_ndc_rays_are_projected_points(near: float) -> None:
    """By the homogeneous projection matrix of appendix C with the far plane at infinity, in float64."""
    generator = torch.Generator().manual_seed(3)
    o = torch.rand(50, 3, generator=generator, dtype=torch.float64) - 0.5
    d = torch.rand(50, 3, generator=generator, dtype=torch.float64) - 0.5
    d[:, 2] = -0.2 - d[:, 2].abs()
    a = torch.tensor([1.7, 2.3], dtype=torch.float64)
    right, top = near / a[0], near / a[1]
    matrix = torch.zeros(4, 4, dtype=torch.float64)
    matrix[0, 0], matrix[1, 1], matrix[2, 2], matrix[2, 3], matrix[3, 2] = near / right, near / top, -1, -2 * near, -1
    start, along = ndc_rays(o, d, a, near)
    at_near = o - ((near + o[:, 2]) / d[:, 2])[:, None] * d
    for t in (0.0, 0.1, 1.0, 30.0, 1e9):
        x = at_near + t * d
        clip = torch.cat([x, torch.ones(50, 1, dtype=torch.float64)], dim=1) @ matrix.T
        expected = clip[:, :3] / clip[:, 3:]
        length = 1 - at_near[:, 2] / (at_near[:, 2] + t * d[:, 2])
        torch.testing.assert_close(start + length[:, None] * along, expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(ndc_points(x, a, near), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close((start + along)[:, 2], torch.ones(50, dtype=torch.float64))  # infinity


def test_gradients_are_finite() -> None:
    o = (torch.rand(20, 3) - 0.5).requires_grad_()
    d = torch.cat([torch.rand(20, 2) - 0.5, torch.full((20, 1), -0.06)], dim=1).requires_grad_()
    start, along = ndc_rays(o, d, torch.tensor([2.0, 2.0]))
    (start.square().sum() + along.square().sum()).backward()
    assert o.grad is not None and o.grad.isfinite().all() and d.grad is not None and d.grad.isfinite().all()


def test_samples_lie_where_world_samples_project_to() -> None:
    cameras = facing_cameras()
    rays = learned().grid(cameras, (12, 16))
    world = NearFarRaySampler(n_pts_per_ray_evaluation=9).grid(cameras, (12, 16))
    torch.testing.assert_close(rays.view_directions, world.directions)
    torch.testing.assert_close(rays.near, torch.zeros_like(rays.near))
    torch.testing.assert_close(rays.far, torch.ones_like(rays.far))
    assert rays.lengths is not None and (rays.lengths.diff(dim=-1) > 0).all()
    a = torch.tensor([2 * 24 / 16, 2 * 22 / 12])
    # A sample at length t' lies at depth -n / (1 - t') in the world.
    z = -1.0 / (1.0 - rays.lengths[..., 1:-1])
    t = (z - world.origins[..., None, 2]) / world.directions[..., None, 2]
    points = world.origins[..., None, :] + t[..., None] * world.directions[..., None, :]
    torch.testing.assert_close(rays.points[..., 1:-1, :], ndc_points(points, a), rtol=1e-4, atol=1e-4)
    depths = cameras.project(points.reshape(5, -1, 3))[1].reshape(points.shape[:-1])
    assert (depths.diff(dim=-1) > 0).all()  # the farther in NDC, the farther in the world


def test_training_draws_are_within_the_cube_and_jittered_within_bounds() -> None:
    rays = learned().draw(facing_cameras())
    assert rays.ray_shape == (5, 7) and rays.lengths is not None
    assert (rays.lengths >= 0).all() and (rays.lengths <= 1).all() and (rays.lengths.diff(dim=-1) > 0).all()
    torch.testing.assert_close(rays.origins[..., 2], -torch.ones(5, 7))
    assert (rays.directions.norm(dim=-1) >= 2.0).all()


def test_widths_are_those_of_the_cube() -> None:
    """Raymarchers scale interval widths by the direction's length: they are distances in NDC."""
    rays = learned().grid(facing_cameras(1), (2, 2))
    widths = EmissionAbsorptionRaymarcher().widths(rays)
    torch.testing.assert_close(widths[..., :-1], rays.points.diff(dim=-2).norm(dim=-1))


def test_one_projection_for_views_of_every_shape() -> None:
    sampler, wide = learned(), facing_cameras(1)
    tall = replace(
        wide, image_size_hw=torch.tensor([[32, 8]]), principal_point=torch.tensor([[4.0, 16.0]]), focal=wide.focal * 2
    )
    a, b = (sampler.grid(cameras, (1, 1)) for cameras in (wide, tall))  # both through the principal point
    torch.testing.assert_close(a.origins, b.origins)
    torch.testing.assert_close(a.directions, b.directions)


def test_the_projection_is_kept_with_the_weights() -> None:
    first = learned()
    other = replace(facing_cameras(), focal=torch.full((5, 2), 50.0))
    resumed = NDCRaySampler(n_pts_per_ray_evaluation=9)
    for rays in (resumed.draw(facing_cameras()), resumed.grid(facing_cameras(), (2, 2))):
        assert rays.directions[..., :2].isnan().all()  # nothing is known yet, and nothing renders
    resumed.load_state_dict(first.state_dict())
    torch.testing.assert_close(resumed.grid(other, (2, 2)).origins, first.grid(other, (2, 2)).origins)
    resumed.learn_views(lambda: other)  # as a resumed run does: what was learned first stays
    torch.testing.assert_close(resumed.state_dict(), first.state_dict())
    fresh = NDCRaySampler()
    fresh.load_state_dict(NDCRaySampler().state_dict())
    fresh.learn_views(lambda: other)
    torch.testing.assert_close(fresh.state_dict()["_cotangents"], torch.tensor([2 * 50 / 16, 2 * 50 / 12]))


def test_views_that_the_projection_does_not_map_are_refused() -> None:
    cameras = facing_cameras()
    back = torch.diag(torch.tensor([-1.0, 1.0, -1.0]))
    behind = replace(cameras, R=torch.cat([cameras.R[:4], (back @ cameras.R[4])[None]]))
    too_far = replace(cameras, T=cameras.T - torch.tensor([0.0, 0.0, 1.2]))  # 1.2 towards the scene
    for wrong, n in ((behind, 1), (too_far, 5)):
        with pytest.raises(ConfigError, match=f"found {n} of 5 that don't.*recenter=true.*CameraBounds") as caught:
            learned(wrong)
        assert len(str(caught.value)) < 400
        with pytest.raises(ConfigError, match=f"found {n} of 5"):
            learned().grid(wrong, (2, 2))
    learned(too_far, near_plane=3.0)
    wide = replace(cameras, focal=torch.full((5, 2), 0.3))
    with pytest.raises(ConfigError, match="found 5 of 5"):
        learned(wide)


def test_a_near_plane_beyond_what_is_seen_is_refused() -> None:
    """The middle of depths from 0.5 to 2 is 1, and the views stand at z from -0.1 to 0.1."""
    cameras = facing_cameras()
    seen = replace(cameras, bounds=torch.tensor([[0.5, 2.0]]).expand(5, 2))
    with pytest.raises(
        ConfigError, match=r"near_plane: 2 of NDCRaySampler cuts off .*, 0\.5 to 2 before them"
    ) as caught:
        learned(seen, near_plane=2.0)
    assert len(str(caught.value)) < 400
    learned(seen, near_plane=0.5)
    learned(cameras, near_plane=2.0)  # without bounds nothing is known


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"cast_ray_bundle_as_cone": True}, "cast_ray_bundle_as_cone: true, expected false with NDCRaySampler"),
        ({"linear_in_disparity": True}, "linear_in_disparity: true, expected false with NDCRaySampler"),
        ({"near_plane": 0.0}, "near_plane: 0.0, expected a distance above 0"),
    ],
)
def test_options_that_make_no_sense(options: dict, line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        NDCRaySampler(**options)


TINY = {"n_layers_xyz": 1, "append_xyz": (), "n_hidden_neurons_xyz": 4, "n_hidden_neurons_dir": 4}


def small_model(**options) -> OverfitModel:
    field: Factory[ImplicitFunctionBase] = Factory.of(NeuralRadianceFieldImplicitFunction, **(TINY | options))
    return OverfitModel(raysampler=NDCRaySampler(n_rays_per_image_sampled_from_mask=4), implicit_function=field)


def test_a_model_compares_no_metric_depth_and_says_so() -> None:
    model = small_model()
    model.learn_views(facing_cameras)
    with_depth = FrameContents(depth_map=True, fg_probability=False)
    notices = [line for line in model.check_data(with_depth) if "measures depth in NDC" in line]
    assert len(notices) == 1
    assert not [line for line in model.check_data(FrameContents(depth_map=False)) if "in NDC" in line]
    frames = FrameData(
        cameras=facing_cameras(2), image_rgb=torch.rand(2, 3, 12, 16), depth_map=torch.ones(2, 1, 12, 16)
    )
    for mode in (True, False):
        predictions = model.train(mode)(frames)
        assert predictions.targets.depth is None and "loss_depth_abs" not in predictions.metrics
        assert predictions.rendered.features.isfinite().all()


def test_a_model_passes_on_its_views_and_keeps_them() -> None:
    model = small_model()
    model.learn_views(facing_cameras)
    assert model.capturable
    assert [name for name in model.state_dict() if name.endswith("_cotangents")] == ["raysampler._cotangents"]


def test_fields_in_camera_axes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"lie in NDC.*expected world units for positions of NeuralRadianceField"):
        small_model(xyz_ray_dir_in_camera_coords=True)


def test_source_views_are_refused() -> None:
    """They are looked at from samples in the world."""
    extractor = ResNetFeatureExtractor(stages=(), add_images=True)
    options: dict[str, Any] = {
        "raysampler": NDCRaySampler(n_rays_per_image_sampled_from_mask=4),
        "implicit_function": Factory.of(NeuralRadianceFieldImplicitFunction, **TINY),
    }
    GenericModel(**options)
    with pytest.raises(ConfigError, match=r"lie in NDC.*expected world units for view_pooler_enabled: true"):
        GenericModel(**options, image_feature_extractor=extractor, view_pooler=Factory.of(ViewPooler))


def test_resident_pixels() -> None:
    pixels = PixelStore.from_images([torch.zeros(12, 16, 4, dtype=torch.uint8)] * 5)
    rays = learned(n_rays_total_training=6, n_rays_per_image_sampled_from_mask=None).draw(facing_cameras(), pixels)
    assert rays.ray_shape == (1, 6) and rays.points.isfinite().all()


def test_it_is_chosen_by_its_name() -> None:
    assert registry.get(RaySamplerBase, "NDCRaySampler") is NDCRaySampler
