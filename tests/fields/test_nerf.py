"""The NeRF field: its size, what it depends on, its gradients; conditioned, and on conical frusta."""

from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from nerf_trainer.errors import ConfigError
from nerf_trainer.fields.base import FieldInputs, FieldSpec
from nerf_trainer.fields.nerf import NeuralRadianceFieldImplicitFunction
from nerf_trainer.ops.cones import frustum_moments
from nerf_trainer.randomness import seed_streams
from nerf_trainer.rays.bundle import RayBundle
from nerf_trainer.rays.samplers import NearFarRaySampler
from tests.ops.kernel_kit import device_for_kernels, triton_kernels
from tests.scene_kit import BallField, orbit

DEVICE = device_for_kernels()
NOTHING = FieldInputs()

SMALL = {"n_hidden_neurons_xyz": 16, "n_layers_xyz": 3, "append_xyz": (2,), "n_hidden_neurons_dir": 8}


def field(**options) -> NeuralRadianceFieldImplicitFunction:
    torch.manual_seed(0)
    return NeuralRadianceFieldImplicitFunction(spec=FieldSpec(), **options)


def rays():
    return NearFarRaySampler(n_rays_total_training=6, n_pts_per_ray_training=5).draw(orbit(2))


def test_one_network_has_the_published_number_of_parameters() -> None:
    assert sum(p.numel() for p in field().parameters()) == 1_191_688 // 2


def test_outputs_have_their_shapes_and_ranges() -> None:
    outputs = field(**SMALL)(rays(), FieldInputs())
    assert outputs.densities.shape == (1, 6, 5, 1) and outputs.features.shape == (1, 6, 5, 3)
    assert (outputs.features >= 0).all() and (outputs.features <= 1).all()
    assert outputs.densities.dtype == torch.float32


def turned(bundle):
    return replace(bundle, view_directions=-bundle.view_directions)


def test_colour_depends_on_the_view_and_density_does_not() -> None:
    module, bundle = field(**SMALL), rays()
    ahead, back = module(bundle, FieldInputs()), module(turned(bundle), FieldInputs())
    torch.testing.assert_close(ahead.densities, back.densities)
    assert (ahead.features - back.features).abs().max() > 1e-3


def test_without_view_directions_neither_does() -> None:
    module, bundle = field(use_view_directions=False, **SMALL), rays()
    torch.testing.assert_close(module(bundle, FieldInputs()).features, module(turned(bundle), FieldInputs()).features)


def test_the_once_a_ray_colour_layer_equals_the_plain_one() -> None:
    module, bundle = field(**SMALL), rays()
    hidden = module.trunk(module.encode_position(bundle.points))
    direction = module.encode_direction(bundle.view_directions)[..., None, :].expand(*hidden.shape[:-1], -1)
    weight = torch.cat([module.color_hidden.weight, module.color_direction.weight], dim=1)
    joint = torch.cat([module.bottleneck(hidden), direction], dim=-1) @ weight.T + module.color_hidden.bias
    plain = module.color(torch.relu(joint))
    torch.testing.assert_close(module(bundle, FieldInputs()).features, torch.sigmoid(plain))


def test_camera_coordinates_make_views_alike() -> None:
    """Seen in its own axes, every view of an orbit around the origin looks the same down its central ray."""
    module, cameras = field(xyz_ray_dir_in_camera_coords=True, **SMALL), orbit(3)
    bundle = NearFarRaySampler(n_pts_per_ray_evaluation=4).grid(cameras, (1, 1))
    features = module(bundle, FieldInputs(cameras=cameras)).features
    torch.testing.assert_close(features[1], features[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(features[2], features[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_finite_in_every_parameter(dtype: torch.dtype) -> None:
    module = field(**SMALL)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is torch.bfloat16):
        outputs = module(rays(), FieldInputs())
    (outputs.densities.square().sum() + outputs.features.sum()).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_a_field_without_any_position_is_refused() -> None:
    with pytest.raises(ConfigError, match="without a position"):
        field(n_harmonic_functions_xyz=0, input_xyz=False)


def cones(grid_hw: tuple[int, int] = (2, 3), n: int = 5):
    """Conical rays of every view of an orbit, (2, H, W)."""
    sampler = NearFarRaySampler(n_pts_per_ray_evaluation=n, min_depth=2.0, max_depth=6.0, cast_ray_bundle_as_cone=True)
    return sampler.grid(orbit(2), grid_hw)


def conditioned_field(pooled: int = 6, code: int = 4, **options) -> NeuralRadianceFieldImplicitFunction:
    torch.manual_seed(0)
    spec = FieldSpec(pooled_dim=pooled, global_code_dim=code)
    return NeuralRadianceFieldImplicitFunction(spec=spec, **SMALL, **options)


def test_the_trunk_and_its_skip_see_position_features_and_code() -> None:
    layers = conditioned_field().trunk.layers
    assert [layer.in_features for layer in layers] == [63 + 6 + 4, 16, 16 + 63 + 6 + 4]


def test_conditioned_forward_by_hand() -> None:
    module, bundle = conditioned_field(), rays()
    pooled, codes = torch.randn(1, 6, 5, 6), torch.randn(2, 4)
    outputs = module(bundle, FieldInputs(pool=lambda _: pooled, global_code=codes))
    code = codes[bundle.camera_index][..., None, :].expand(1, 6, 5, 4)
    hidden = module.trunk(torch.cat([module.encode_position(bundle.points), pooled, code], dim=-1))
    torch.testing.assert_close(outputs.densities, module.density(hidden))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_reach_pooled_features_and_codes(dtype: torch.dtype) -> None:
    module, bundle = conditioned_field(), rays()
    pooled, codes = torch.randn(1, 6, 5, 6, requires_grad=True), torch.randn(2, 4, requires_grad=True)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is torch.bfloat16):
        outputs = module(bundle, FieldInputs(pool=lambda _: pooled, global_code=codes))
    (outputs.densities.square().sum() + outputs.features.sum()).backward()
    for leaf in (pooled, codes):
        assert leaf.grad is not None and leaf.grad.isfinite().all() and leaf.grad.abs().max() > 0


def test_a_conditioned_field_may_be_blind_to_position() -> None:
    module = conditioned_field(n_harmonic_functions_xyz=0, input_xyz=False)
    pooled, codes = torch.randn(1, 6, 1, 6).expand(1, 6, 5, 6), torch.randn(2, 4)
    densities = module(rays(), FieldInputs(pool=lambda _: pooled, global_code=codes)).densities
    torch.testing.assert_close(densities, densities[..., :1, :].expand_as(densities))


def test_features_that_keep_views_apart_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"feature_aggregator_class_type: .*ReductionFeatureAggregator"):
        NeuralRadianceFieldImplicitFunction(spec=FieldSpec(pooled_dim=6, pooled_per_view=True))


@pytest.mark.parametrize("skips", [(0,), (3,)])
def test_impossible_skips_are_refused(skips: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="append_xyz"):
        field(**(SMALL | {"append_xyz": skips}))


def test_thin_and_short_cones_are_points() -> None:
    """As the radius and the interval go to nothing, the integrated encoding is the plain one."""
    bundle = cones(n=1)
    edges = torch.tensor([3.0, 3.0 + 1e-4]).expand(*bundle.ray_shape, 2)
    thin = replace(bundle, lengths=edges.mean(dim=-1, keepdim=True), bins=edges, radii=torch.zeros(bundle.ray_shape))
    mip, plain = field(use_integrated_positional_encoding=True, **SMALL), field(**SMALL)
    found, expected = mip(thin, NOTHING), plain(thin, NOTHING)
    torch.testing.assert_close(found.densities, expected.densities, atol=1e-4, rtol=0.0)
    torch.testing.assert_close(found.features, expected.features, atol=1e-4, rtol=0.0)
    assert (mip(bundle, NOTHING).densities - plain(bundle, NOTHING).densities).abs().max() > 1e-3


@pytest.mark.parametrize("in_camera_axes", [False, True], ids=["world", "camera"])
def test_integrated_encoding_is_the_mean_over_the_frustum(in_camera_axes: bool) -> None:
    """What the trunk sees of one frustum against the encodings of points drawn within it, in the same axes.

    Sines of the frustum's Gaussian stand for those of the frustum, so that slow waves alone agree to the digit.
    """
    options = {"n_harmonic_functions_xyz": 2, "xyz_ray_dir_in_camera_coords": in_camera_axes}
    module = field(use_integrated_positional_encoding=True, **options, **SMALL)
    seen: list[torch.Tensor] = []
    module.trunk.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    cameras = orbit(1)
    bundle = NearFarRaySampler(
        n_pts_per_ray_evaluation=1, min_depth=3.5, max_depth=4.5, cast_ray_bundle_as_cone=True
    ).grid(cameras, (1, 1))
    bundle = replace(bundle, radii=torch.full(bundle.ray_shape, 0.1))
    module(bundle, FieldInputs(cameras=cameras))
    n, generator = 200_000, torch.Generator().manual_seed(0)
    u, v, angle = torch.rand(3, n, 1, generator=generator)
    t = (3.5**3 + u * (4.5**3 - 3.5**3)) ** (1 / 3)
    across = 0.1 * t * v.sqrt() * torch.cat([(6.2832 * angle).cos(), (6.2832 * angle).sin(), 0 * angle], dim=-1)
    # The central ray runs along the view's third axis, from the view's origin.
    points = across + t * torch.tensor([0.0, 0.0, 1.0])
    if not in_camera_axes:
        points = (points - cameras.T[0]) @ cameras.R[0]
    drawn = module.encode_position(points).mean(dim=0)
    torch.testing.assert_close(seen[0].flatten(), drawn, atol=0.02, rtol=0.0)
    assert (module.encode_position(points.mean(dim=0)) - drawn).abs().max() > 0.1


def test_integrated_encoding_in_camera_coordinates_makes_views_alike() -> None:
    """So it does only if the frusta's covariances turn with their means."""
    module = field(xyz_ray_dir_in_camera_coords=True, use_integrated_positional_encoding=True, **SMALL)
    cameras = orbit(3)
    sampler = NearFarRaySampler(n_pts_per_ray_evaluation=4, cast_ray_bundle_as_cone=True)
    features = module(sampler.grid(cameras, (1, 1)), FieldInputs(cameras=cameras)).features
    torch.testing.assert_close(features[1:], features[:1].expand(2, 1, 1, 4, 3), atol=1e-4, rtol=0.0)


def test_features_are_pooled_at_the_frustas_means() -> None:
    """A frustum's mean lies behind its interval's midpoint."""
    asked: list[RayBundle] = []

    def pool(bundle: RayBundle) -> torch.Tensor:
        asked.append(bundle)
        return torch.zeros(*bundle.points.shape[:-1], 6)

    module, bundle = conditioned_field(code=0, use_integrated_positional_encoding=True), cones()
    module(bundle, FieldInputs(pool=pool))
    assert bundle.bins is not None and bundle.radii is not None and bundle.lengths is not None
    lengths = asked[0].lengths
    assert lengths is not None and (lengths > bundle.lengths).all()
    torch.testing.assert_close(lengths, frustum_moments(bundle.bins, bundle.radii)[0])


def test_cones_are_asked_for_by_the_integrated_encoding_alone() -> None:
    assert not field(**SMALL).needs_cones
    module = field(use_integrated_positional_encoding=True, **SMALL)
    assert module.needs_cones
    with pytest.raises(ValueError, match="cast_ray_bundle_as_cone"):
        module(rays(), NOTHING)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_integrated_encoding_has_finite_gradients(dtype: torch.dtype) -> None:
    """Also where a frustum is no thicker than a disc, and one as long as the scene."""
    module, bundle = field(use_integrated_positional_encoding=True, **SMALL), cones()
    edges = torch.tensor([0.0, 0.0, 2.0, 2.0, 2.1, 1e4]).expand(*bundle.ray_shape, 6)
    bundle = replace(bundle, bins=edges, lengths=0.5 * (edges[..., 1:] + edges[..., :-1]))
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is torch.bfloat16):
        outputs = module(bundle, NOTHING)
    (outputs.densities.square().sum() + outputs.features.sum()).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_the_integrated_encoding_learns_a_ball() -> None:
    """Colours and densities of a ball, at jittered frusta: the loss falls to less than a fifth."""
    module = field(use_integrated_positional_encoding=True, n_harmonic_functions_xyz=6, **SMALL)
    sampler = NearFarRaySampler(
        n_rays_total_training=64, n_pts_per_ray_training=8, min_depth=2.0, max_depth=6.0, cast_ray_bundle_as_cone=True
    )
    seed_streams(sampler, 0)
    ball, cameras = BallField(spec=FieldSpec(), density=1.0), orbit(4)
    optimizer = torch.optim.Adam(module.parameters(), lr=5e-3)
    losses = []
    for _ in range(100):
        bundle = sampler.draw(cameras)
        found, wanted = module(bundle, NOTHING), ball(bundle, NOTHING)
        loss = (found.densities - wanted.densities).square().mean()
        loss = loss + (found.features - wanted.features).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.2 * sum(losses[:10]), (losses[0], losses[-1])


def test_the_colour_head_may_be_deeper_and_its_features_positive() -> None:
    """relu(bottleneck) beside the direction, then n_layers_dir layers with a ReLU each, then the colour."""
    module, bundle = field(n_layers_dir=3, relu_bottleneck=True, **SMALL), rays()
    hidden = module.trunk(module.encode_position(bundle.points))
    direction = module.encode_direction(bundle.view_directions)[..., None, :].expand(*hidden.shape[:-1], -1)
    weight = torch.cat([module.color_hidden.weight, module.color_direction.weight], dim=1)
    y = torch.cat([torch.relu(module.bottleneck(hidden)), direction], dim=-1)
    y = torch.relu(y @ weight.T + module.color_hidden.bias)
    assert len(module.color_layers) == 2
    for layer in module.color_layers:
        y = torch.relu(layer(y))
    torch.testing.assert_close(module(bundle, FieldInputs()).features, torch.sigmoid(module.color(y)))
    plain = field(n_layers_dir=3, **SMALL)
    plain.load_state_dict(module.state_dict())
    assert (plain(bundle, FieldInputs()).features - module(bundle, FieldInputs()).features).abs().max() > 1e-3


def test_a_colour_head_without_layers_is_refused() -> None:
    with pytest.raises(ConfigError, match="n_layers_dir: 0, expected at least 1"):
        field(n_layers_dir=0, **SMALL)


def on_device(bundle: RayBundle) -> RayBundle:
    tensors = {f.name: getattr(bundle, f.name) for f in fields(bundle)}
    return RayBundle(**{name: t if t is None else t.to(DEVICE) for name, t in tensors.items()})


def evaluated(module: NeuralRadianceFieldImplicitFunction, bundle: RayBundle, code=None) -> list[torch.Tensor]:
    """Outputs, the gradients of all parameters and that of the code."""
    if code is not None:
        code = code.to(bundle.origins.device).requires_grad_()
    outputs = module(bundle, FieldInputs(global_code=code))
    (outputs.densities.square().sum() + outputs.features.square().sum()).backward()
    grads = [p.grad for p in module.parameters()] + ([] if code is None else [code.grad])
    return [t.cpu() for t in (outputs.densities, outputs.features, *grads) if t is not None]


@pytest.mark.parametrize(
    "options",
    [{}, {"relu_bottleneck": True, "n_layers_dir": 2}, {"use_view_directions": False}],
    ids=["as published", "deep colour", "no directions"],
)
def test_kernels_give_what_the_modules_give(options: dict[str, Any]) -> None:
    module, bundle = field(**{**SMALL, **options}), rays()
    wanted = evaluated(module, bundle)
    torch.testing.assert_close(module.densities(bundle, NOTHING), wanted[0])
    module.zero_grad()
    with triton_kernels():
        found = evaluated(module.to(DEVICE), on_device(bundle))
        densities = module.densities(on_device(bundle), NOTHING)
    assert len(found) == len(wanted) == 2 + len(list(module.parameters()))
    for f, w in zip([*found, densities.cpu()], [*wanted, wanted[0]]):
        torch.testing.assert_close(f, w, rtol=1e-4, atol=1e-5)


def test_what_conditions_the_field_gets_its_gradient_from_the_kernels_too() -> None:
    module, bundle, code = conditioned_field(pooled=0), rays(), torch.randn(2, 4)
    wanted = evaluated(module, bundle, code)
    module.zero_grad()
    with triton_kernels():
        found = evaluated(module.to(DEVICE), on_device(bundle), code)
    torch.testing.assert_close(found[-1], wanted[-1], rtol=1e-4, atol=1e-5)


def test_gradients_of_positions_can_be_differentiated_again() -> None:
    """An eikonal term asks for that; the modules answer, whatever kernels there are."""
    module, bundle = field(**SMALL).to(DEVICE), on_device(rays())
    origins = bundle.origins.clone().requires_grad_()
    with triton_kernels():
        density = module(replace(bundle, origins=origins), NOTHING).densities
        (slope,) = torch.autograd.grad(density.sum(), origins, create_graph=True)
        slope.norm(dim=-1).sum().backward()
    assert module.trunk.layers[0].weight.grad is not None
