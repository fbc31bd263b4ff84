"""The NeRFormer field: what it attends to, what it is indifferent to, and what it refuses."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nerf_trainer.conditioning.feature_aggregators import IdentityFeatureAggregator
from nerf_trainer.conditioning.view_pooler import ViewPooler
from nerf_trainer.conditioning.view_sampler import SourceViews
from nerf_trainer.config import Factory
from nerf_trainer.errors import ConfigError
from nerf_trainer.fields.base import FieldInputs, FieldSpec
from nerf_trainer.fields.nerformer import NeRFormerImplicitFunction
from nerf_trainer.randomness import seed_streams
from nerf_trainer.rays.bundle import RayBundle
from nerf_trainer.rays.samplers import NearFarRaySampler
from tests.scene_kit import BallField, orbit

N_POOLED, N_CODE = 5, 4
SMALL = {"n_harmonic_functions_xyz": 3, "n_hidden_neurons_xyz": 16, "n_hidden_neurons_dir": 8}


def field(code: int = 0, **options) -> NeRFormerImplicitFunction:
    torch.manual_seed(0)
    spec = FieldSpec(pooled_dim=N_POOLED, pooled_per_view=True, global_code_dim=code)
    return NeRFormerImplicitFunction(spec=spec, **(SMALL | options))


def pool_from(n_views: int, order: list[int] | None = None) -> Callable[[RayBundle], Tensor]:
    """Features of n source views that are waves over the world; `order` exchanges the views."""
    waves = torch.randn(n_views, N_POOLED, 3, generator=torch.Generator().manual_seed(1))
    waves = waves if order is None else waves[order]
    return lambda rays: (rays.points[..., None, None, :] * waves).sum(dim=-1).sin()


def rays(cast_ray_bundle_as_cone: bool = False) -> RayBundle:
    """Of two views, (2, 3, 2) with 5 samples each."""
    sampler = NearFarRaySampler(
        n_pts_per_ray_evaluation=5, min_depth=2.0, max_depth=6.0, cast_ray_bundle_as_cone=cast_ray_bundle_as_cone
    )
    return sampler.grid(orbit(2), (3, 2))


def test_defaults_are_the_published_ones() -> None:
    module = NeRFormerImplicitFunction(spec=FieldSpec(pooled_dim=132, pooled_per_view=True))
    assert [layer.norm_feedforward.normalized_shape for layer in module.trunk.ray_layers] == [(40,), (20,)]
    assert list(module.trunk.skips) == ["1"]
    assert module.trunk.first.in_features == 3 * (2 * 10 + 1) + 132
    assert module.density.in_features == 80 and module.color_direction.in_features == 3 * (2 * 4 + 1)
    assert module.color_hidden.out_features == 128


@pytest.mark.parametrize("rays_shape", [(1, 12), (2, 6), (2, 3, 2)])
def test_any_shape_of_rays(rays_shape: tuple[int, ...]) -> None:
    module, whole = field(), rays()
    inputs = FieldInputs(pool=pool_from(3))
    flat = whole.flatten()
    bundle = whole if rays_shape == (2, 3, 2) else flat
    if rays_shape == (2, 6):
        parts = [flat[slice(0, 6)], flat[slice(6, 12)]]
        names = ("origins", "directions", "view_directions", "near", "far", "xy", "camera_index", "lengths")
        bundle = replace(flat, **{name: torch.cat([vars(part)[name] for part in parts]) for name in names})
    outputs, expected = module(bundle, inputs), module(flat, inputs)
    assert outputs.densities.shape == (*rays_shape, 5, 1) and outputs.features.shape == (*rays_shape, 5, 3)
    torch.testing.assert_close(outputs.densities.flatten(), expected.densities.flatten(), atol=1e-5, rtol=1e-5)
    assert (outputs.features >= 0).all() and (outputs.features <= 1).all()


def test_chunks_of_rays_are_what_the_whole_is() -> None:
    module, bundle = field(code=N_CODE), rays().flatten()
    inputs = FieldInputs(pool=pool_from(3), global_code=torch.randn(2, N_CODE))
    whole = module(bundle, inputs).features
    parts = [module(bundle[slice(at, at + 5)], inputs).features for at in range(0, 12, 5)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-5)


def test_the_order_of_source_views_does_not_matter() -> None:
    module, bundle = field(), rays()
    ahead = module(bundle, FieldInputs(pool=pool_from(4)))
    exchanged = module(bundle, FieldInputs(pool=pool_from(4, [2, 0, 3, 1])))
    torch.testing.assert_close(exchanged.densities, ahead.densities, atol=1e-5, rtol=0.0)
    torch.testing.assert_close(exchanged.features, ahead.features, atol=1e-5, rtol=0.0)


def test_the_order_of_photographs_does_not_matter() -> None:
    """The same through the real pooler: cameras and feature maps of the source views exchanged."""
    module, bundle = field(), rays()
    pooler = ViewPooler(feature_dims=(2, 3), feature_aggregator=Factory.of(IdentityFeatureAggregator))
    assert pooler.keeps_views and pooler.pooled_dim == N_POOLED
    cameras, maps = orbit(4), (torch.randn(4, 2, 8, 8), torch.randn(4, 3, 4, 4))

    def seen(order: list[int]) -> Tensor:
        source = SourceViews(
            maps=tuple(m[order] for m in maps),
            cameras=cameras[order],
            fg_probability=None,
            mask_crop=None,
            same_sequence=torch.ones(2, 4, dtype=torch.bool),
            is_target=torch.eye(2, 4, dtype=torch.bool)[:, order],
        )
        return module(bundle, FieldInputs(pool=lambda some: pooler(source, some))).features

    torch.testing.assert_close(seen([3, 1, 0, 2]), seen([0, 1, 2, 3]), atol=1e-5, rtol=0.0)


def test_source_views_matter_and_one_is_enough() -> None:
    module, bundle = field(), rays()
    one, three = (module(bundle, FieldInputs(pool=pool_from(n))).densities for n in (1, 3))
    assert one.shape == three.shape and (one - three).abs().max() > 1e-3


def test_samples_of_a_ray_are_coupled_and_rays_are_not() -> None:
    module, bundle = field(), rays()
    assert module.couples_samples
    assert bundle.lengths is not None
    lengths = bundle.lengths.clone()
    lengths[0, 0, 0, 2] += 0.3
    inputs = FieldInputs(pool=pool_from(3))
    before, after = (module(b, inputs).densities[..., 0] for b in (bundle, bundle.with_lengths(lengths)))
    moved = (after - before).abs()
    assert (moved[0, 0, 0] > 1e-6).all()
    moved[0, 0, 0] = 0.0
    assert (moved == 0.0).all()


def test_a_code_belongs_to_its_view() -> None:
    module, bundle, codes = field(code=N_CODE), rays(), torch.randn(2, N_CODE)
    inputs = FieldInputs(pool=pool_from(2), global_code=codes)
    changed = replace(inputs, global_code=torch.stack([codes[0], codes[1] + 1.0]))
    before, after = module(bundle, inputs).densities, module(bundle, changed).densities
    assert torch.equal(before[0], after[0]) and (before[1] - after[1]).abs().max() > 1e-3


@pytest.mark.parametrize("cones", [False, True], ids=["points", "cones"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_finite_in_every_parameter(dtype: torch.dtype, cones: bool) -> None:
    module = field(code=N_CODE, use_integrated_positional_encoding=cones)
    assert module.needs_cones == cones
    codes, pooled = torch.randn(2, N_CODE, requires_grad=True), torch.randn(2, 3, 2, 5, 3, N_POOLED, requires_grad=True)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is torch.bfloat16):
        outputs = module(rays(cones), FieldInputs(pool=lambda _: pooled, global_code=codes))
    assert outputs.densities.dtype == outputs.features.dtype == torch.float32
    (outputs.densities.square().sum() + outputs.features.square().sum()).backward()
    for name, leaf in (*module.named_parameters(), ("codes", codes), ("pooled", pooled)):
        assert leaf.grad is not None and leaf.grad.isfinite().all(), name
        assert leaf.grad.abs().max() > 0, name


def test_camera_coordinates_make_views_alike() -> None:
    """Seen in its own axes, every view of an orbit looks the same down its central ray, if it is told the same."""
    module, cameras = field(xyz_ray_dir_in_camera_coords=True), orbit(3)
    bundle = NearFarRaySampler(n_pts_per_ray_evaluation=4).grid(cameras, (1, 1))
    told = torch.randn(4, 2, N_POOLED).expand(3, 1, 1, 4, 2, N_POOLED)
    features = module(bundle, FieldInputs(cameras=cameras, pool=lambda _: told)).features
    torch.testing.assert_close(features[1:], features[:1].expand(2, 1, 1, 4, 3), atol=1e-4, rtol=0.0)


@pytest.mark.parametrize("spec", [FieldSpec(), FieldSpec(pooled_dim=6)], ids=["nothing", "reduced"])
def test_without_features_of_each_view_it_is_refused(spec: FieldSpec) -> None:
    with pytest.raises(ConfigError, match=r"view_pooler_enabled.*AngleWeightedIdentityFeatureAggregator"):
        NeRFormerImplicitFunction(spec=spec)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"n_hidden_neurons_xyz": 18}, "n_hidden_neurons_xyz: 18"),
        ({"n_hidden_neurons_xyz": 8}, r"\[8, 4, 2\]"),
        ({"transformer_dim_down_factor": 0.5}, "transformer_dim_down_factor: 0.5"),
        ({"append_xyz": (2,)}, "append_xyz"),
    ],
)
def test_networks_that_cannot_be_are_refused(options: dict, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        field(**options)


def test_it_learns_a_ball_from_what_views_show() -> None:
    """Densities and colours of a ball: the loss falls to less than half in a few steps."""
    module = field()
    sampler = NearFarRaySampler(n_rays_total_training=32, n_pts_per_ray_training=8, min_depth=2.0, max_depth=6.0)
    seed_streams(sampler, 0)
    ball, cameras, inputs = BallField(spec=FieldSpec(), density=1.0), orbit(4), FieldInputs(pool=pool_from(2))
    optimizer = torch.optim.Adam(module.parameters(), lr=5e-3)
    losses = []
    for _ in range(60):
        bundle = sampler.draw(cameras)
        found, wanted = module(bundle, inputs), ball(bundle, inputs)
        loss = (found.densities - wanted.densities).square().mean()
        loss = loss + (found.features - wanted.features).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10]), (losses[0], losses[-1])
