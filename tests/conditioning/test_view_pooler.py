"""The view pooler: its configuration, its widths, and source views pooled from one end to the other."""

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from nerf_trainer.conditioning.feature_aggregators import FeatureAggregatorBase, ReductionFunction
from nerf_trainer.conditioning.view_pooler import ViewPooler
from nerf_trainer.conditioning.view_sampler import SampledViews, SourceViews, Unseen, ViewSampler
from nerf_trainer.config import Factory, build, schema
from tests.conditioning.view_kit import POINT, places, rays_to, source_views
from tests.scene_kit import orbit, straight_rays

AGGREGATORS = [
    "AngleWeightedIdentityFeatureAggregator",
    "AngleWeightedReductionFeatureAggregator",
    "IdentityFeatureAggregator",
    "ReductionFeatureAggregator",
]


def test_its_keys_are_the_reference_s():
    keys = OmegaConf.to_container(OmegaConf.structured(schema(ViewPooler)))
    assert keys["feature_aggregator_class_type"] == "AngleWeightedReductionFeatureAggregator"
    own = {"unseen": Unseen.left_out}
    assert keys["view_sampler_args"] == {"masked_sampling": False, "sampling_mode": "bilinear", **own}
    assert [key for key in keys if key.startswith("feature_aggregator_")][1:] == [
        f"feature_aggregator_{name}_args" for name in AGGREGATORS
    ]
    target = {"exclude_target_view": True, "exclude_target_view_mask_features": True, "concatenate_output": True}
    angle = {"weight_by_ray_angle_gamma": 1.0, "min_ray_angle_weight": 0.1}
    functions = {"reduction_functions": [ReductionFunction.AVG, ReductionFunction.STD]}
    for name, own in zip(AGGREGATORS, [angle, functions | angle, {}, functions], strict=True):
        assert keys[f"feature_aggregator_{name}_args"] == target | own


@pytest.mark.parametrize("name", AGGREGATORS)
def test_widths_are_as_announced(name):
    pooler = build(ViewPooler, {"feature_aggregator_class_type": name}, feature_dims=(2, 5))
    source = source_views(places(n_views=3), torch.rand(3, 5, 4, 4), cameras=orbit(3))
    pooled = pooler(source, straight_rays(4, n_samples=6))
    per_view = (3,) if pooler.keeps_views else ()
    assert pooled.shape == (1, 4, 6, *per_view, pooler.pooled_dim)
    assert pooler.pooled_dim == (7 if pooler.keeps_views else 14)


def test_a_point_knows_where_the_other_view_sees_it():
    """The first view is the target, so the second's pixel is all that is pooled, with the least deviation."""
    pooler = ViewPooler(feature_dims=(2,))
    torch.testing.assert_close(
        pooler(source_views(), rays_to(torch.tensor([POINT]))).flatten(), torch.tensor([7.5, 4.625, 0.01, 0.01])
    )


def test_masked_sampling_reaches_the_sampler():
    values = {
        "view_sampler_args": {"masked_sampling": True},
        "feature_aggregator_class_type": "IdentityFeatureAggregator",
    }
    pooler = build(ViewPooler, values, feature_dims=(2,))
    source = source_views(fg_probability=torch.full((2, 1, 8, 12), 0.5))
    pooled = pooler(source, rays_to(torch.tensor([POINT])))
    torch.testing.assert_close(pooled.flatten(), torch.tensor([0.0, 0.0, 7.5 / 2, 4.625 / 2]))


def painted_plane(n_views: int = 6) -> SourceViews:
    """Views around the plane z = 0, which is painted with its own coordinates (x, y); none is the target."""
    cameras = orbit(n_views, size=64)
    pixels = torch.stack(torch.meshgrid(torch.arange(64), torch.arange(64), indexing="xy"), dim=-1) + 0.5
    xy = pixels.reshape(-1, 2).repeat(n_views, 1)
    origins, directions = cameras.pixel_rays(xy, torch.arange(n_views).repeat_interleave(64 * 64))
    hits = origins - directions * (origins[:, 2:] / directions[:, 2:])
    colours = hits[:, :2].clamp(-3.0, 3.0).reshape(n_views, 64, 64, 2).permute(0, 3, 1, 2)
    return source_views(colours, cameras=cameras, is_target=torch.zeros(1, n_views, dtype=torch.bool))


@pytest.mark.parametrize("name", ["ReductionFeatureAggregator", "AngleWeightedReductionFeatureAggregator"])
def test_views_agree_on_a_surface_and_disagree_off_it(name):
    pooler = build(ViewPooler, {"feature_aggregator_class_type": name}, feature_dims=(2,))
    torch.manual_seed(0)
    on_plane = torch.cat([torch.rand(50, 2) - 0.5, torch.zeros(50, 1)], dim=-1)
    for height, agrees in ((0.0, True), (0.5, False)):
        points = on_plane + torch.tensor([0.0, 0.0, height])
        mean, std = pooler(painted_plane(), rays_to(points))[0, :, 0].split(2, dim=-1)
        assert (std.mean() < 0.02) == agrees
        if agrees:
            torch.testing.assert_close(mean, on_plane[:, :2], atol=2e-2, rtol=0.0)


class Nearest(FeatureAggregatorBase):
    """A plug-in's aggregator: the features of the view whose line of sight is nearest to the ray."""

    @property
    def pooled_dim(self) -> int:
        return sum(self.feature_dims)

    def forward(self, sampled: SampledViews) -> Tensor:
        best = (sampled.cosines - 3.0 * (1.0 - sampled.valid[..., 0])).argmax(dim=-1, keepdim=True)
        features = torch.cat(sampled.features, dim=-1)
        return features.gather(-2, best[..., None].expand(*best.shape, features.shape[-1])).squeeze(-2)


def test_a_plugged_in_aggregator_is_told_the_widths():
    pooler = ViewPooler(feature_dims=(2, 5), feature_aggregator=Factory.of(Nearest), view_sampler=ViewSampler())
    assert (pooler.pooled_dim, pooler.keeps_views) == (7, False)
    pooled = pooler(source_views(places(), torch.rand(2, 5, 4, 4)), rays_to(torch.tensor([POINT])))
    torch.testing.assert_close(pooled[0, 0, 0, :2], torch.tensor([7.2, 4.5]))


@pytest.mark.parametrize("name", AGGREGATORS)
@pytest.mark.parametrize("cast", [False, True])
def test_gradients_are_finite_where_no_view_sees_anything(name, cast):
    pooler = build(ViewPooler, {"feature_aggregator_class_type": name}, feature_dims=(2,))
    maps = places().clone().requires_grad_()
    xyz = torch.tensor([[0.0, 0.0, -4.0], [0.0, 50.0, -20.0], [5.0, 0.0, 0.0], POINT]).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=cast):
        rays = rays_to(torch.tensor([POINT]).expand(4, 3)).at(xyz[None])
        pooled = pooler(source_views(maps), rays)
    assert pooled.isfinite().all()
    assert (pooled[0, 1] == 0).all()
    pooled.sum().backward()
    assert xyz.grad.isfinite().all() and maps.grad.isfinite().all()
    assert maps.grad[1].abs().sum() > 0
    assert (maps.grad[0] == 0).all()


def test_samples_do_not_see_each_other():
    torch.manual_seed(0)
    pooler = ViewPooler(feature_dims=(4,))
    source = source_views(torch.rand(3, 4, 6, 6), cameras=orbit(3))
    rays = straight_rays(5, n_samples=4)
    torch.testing.assert_close(pooler(source, rays)[:, 2:4], pooler(source, rays[2:4]))


@pytest.mark.gpu
@pytest.mark.parametrize("name", AGGREGATORS)
def test_a_gpu_gives_the_same_without_waiting(name):
    torch.manual_seed(0)
    pooler = build(ViewPooler, {"feature_aggregator_class_type": name}, feature_dims=(4, 2))
    source = source_views(torch.rand(3, 4, 6, 6), torch.rand(3, 2, 16, 16), cameras=orbit(3))
    rays = straight_rays(5, n_samples=4)
    expected = pooler(source, rays)
    there = SourceViews(
        maps=tuple(m.cuda().requires_grad_() for m in source.maps),
        cameras=source.cameras.to("cuda"),
        fg_probability=None,
        mask_crop=None,
        same_sequence=source.same_sequence.cuda(),
        is_target=source.is_target.cuda(),
    )
    rays_there = rays._map(lambda t, n_dims: t.cuda())
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            pooled = pooler(there, rays_there)
            pooled.square().sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(pooled.cpu(), expected, atol=1e-4, rtol=1e-4)
    assert all(m.grad.isfinite().all() for m in there.maps)
