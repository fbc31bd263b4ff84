"""Scene representation networks: their size, their halves, their conditioning, codes that choose their weights."""

from dataclasses import replace

import pytest
import torch

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.config import Factory
from nerf_trainer.errors import ConfigError
from nerf_trainer.fields.base import BoundField, FieldInputs, FieldSpec, MarchedField
from nerf_trainer.fields.srn import (
    SRNHyperNetImplicitFunction,
    SRNImplicitFunction,
    SRNPixelGenerator,
    SRNRaymarchFunction,
    SRNRaymarchHyperNet,
)
from nerf_trainer.rays.bundle import RayBundle
from nerf_trainer.rays.samplers import NearFarRaySampler
from nerf_trainer.renderers.base import RendererSpec
from nerf_trainer.renderers.multipass import MultiPassEmissionAbsorptionRenderer
from tests.scene_kit import orbit

CODE_DIM, N_SAMPLES = 4, 5


def generator(**options) -> SRNPixelGenerator:
    sizes = {"in_features": 12, "n_hidden_units": 16, "n_hidden_units_color": 8, "n_layers": 1}
    return SRNPixelGenerator(**(sizes | options))


def plain(spec: FieldSpec | None = None, pixels: dict | None = None, **options) -> SRNImplicitFunction:
    torch.manual_seed(0)
    sizes = {"n_hidden_units": 16, "n_layers": 1, "out_features": 12}
    return SRNImplicitFunction(
        spec=spec or FieldSpec(),
        raymarch_function=Factory.of(SRNRaymarchFunction, **(sizes | options)),
        pixel_generator=generator(**(pixels or {})),
    )


def hyper(spec: FieldSpec | None = None, **options) -> SRNHyperNetImplicitFunction:
    torch.manual_seed(0)
    sizes = {"n_hidden_units": 16, "n_layers": 1, "out_features": 12, "n_hidden_units_hypernet": 8}
    return SRNHyperNetImplicitFunction(
        spec=spec or FieldSpec(global_code_dim=CODE_DIM),
        hypernet=Factory.of(SRNRaymarchHyperNet, **(sizes | options)),
        pixel_generator=generator(),
    )


def codes(n: int) -> torch.Tensor:
    return torch.randn(n, CODE_DIM, generator=torch.Generator().manual_seed(1))


def grid(cameras: Cameras, size: int = 3) -> RayBundle:
    return NearFarRaySampler(min_depth=3.0, max_depth=5.0, n_pts_per_ray_evaluation=N_SAMPLES).grid(
        cameras, (size, size)
    )


def normed(n_in: int, n_out: int) -> int:
    """Parameters of a linear layer and the layer norm behind it."""
    return (n_in + 1) * n_out + 2 * n_out


def test_the_default_has_the_parameters_of_the_published_options() -> None:
    """Position: 3 (2 * 3 + 1) = 21 numbers; direction: 3 (2 * 4 + 1) = 27."""
    raymarch = normed(21, 256) + 3 * normed(256, 256)
    pixels = 4 * normed(256, 256) + (256 + 1) + normed(256 + 27, 128) + (128 + 1) * 3
    module = SRNImplicitFunction(spec=FieldSpec())
    assert sum(p.numel() for p in module.parameters()) == raymarch + pixels
    assert module.feature_dim == 256


def test_the_hyper_networks_default_has_its_parameters() -> None:
    generating = 4 * (normed(CODE_DIM, 256) + normed(256, 256))
    generated = (21 + 1) * 256 + 3 * (256 + 1) * 256
    module = SRNHyperNetImplicitFunction(spec=FieldSpec(global_code_dim=CODE_DIM))
    of_pixels = sum(p.numel() for p in module.pixel_generator.parameters())
    assert sum(p.numel() for p in module.parameters()) == of_pixels + generating + (256 + 1) * generated


@pytest.mark.parametrize("field", [plain(), hyper()])
def test_the_field_is_its_two_halves(field: MarchedField) -> None:
    cameras = orbit(3)
    bundle, inputs = grid(cameras), FieldInputs(cameras=cameras, global_code=codes(3))
    inputs = inputs if isinstance(field, SRNHyperNetImplicitFunction) else FieldInputs()
    features = field.raymarch_features(bundle, inputs)
    assert features.shape == (3, 3, 3, N_SAMPLES, field.feature_dim)
    outputs, halves = field(bundle, inputs), field.generate(features, bundle, inputs)
    torch.testing.assert_close(outputs.densities, halves.densities)
    torch.testing.assert_close(outputs.features, halves.features)
    assert outputs.densities.shape == (3, 3, 3, N_SAMPLES, 1) and outputs.features.shape[-1] == 3


def test_samples_of_a_ray_do_not_know_of_each_other() -> None:
    field, bundle = plain(), grid(orbit(1))
    whole = field(bundle, FieldInputs())
    one = field(bundle.with_lengths(bundle.lengths[..., 2:3]), FieldInputs())
    torch.testing.assert_close(whole.features[..., 2:3, :], one.features)
    assert not field.couples_samples and not field.allows_multiple_passes and field.gives_density


def test_colour_depends_on_the_view_and_density_does_not() -> None:
    field, bundle = plain(), grid(orbit(2))
    ahead = field(bundle, FieldInputs())
    back = field(replace(bundle, view_directions=-bundle.view_directions), FieldInputs())
    torch.testing.assert_close(ahead.densities, back.densities)
    assert (ahead.features - back.features).abs().max() > 1e-3


def test_the_once_a_ray_colour_layer_equals_the_plain_one() -> None:
    module, bundle = generator(), grid(orbit(1))
    features = torch.randn(*bundle.lengths.shape, 12)
    shared = module.trunk(features)
    direction = module.encode_direction(bundle.view_directions)[..., None, :].expand(*shared.shape[:-1], -1)
    weight = torch.cat([module.color_hidden.weight, module.color_direction.weight], dim=1)
    hidden = torch.cat([shared, direction], dim=-1) @ weight.T + module.color_hidden.bias
    expected = module.color(torch.relu(module.color_norm(hidden)))
    torch.testing.assert_close(module(features, bundle, FieldInputs()).features, expected)


def test_pooled_features_and_the_code_stand_beside_the_position() -> None:
    field, bundle = plain(FieldSpec(pooled_dim=2, global_code_dim=CODE_DIM)), grid(orbit(2))
    pooled = torch.randn(*bundle.lengths.shape, 2)
    inputs = FieldInputs(pool=lambda _: pooled, global_code=codes(2))
    base = field(bundle, inputs).features
    other_code = field(bundle, replace(inputs, global_code=codes(2).flip(0))).features
    other_pooled = field(bundle, replace(inputs, pool=lambda _: -pooled)).features
    assert (base - other_code).abs().max() > 1e-3 and (base - other_pooled).abs().max() > 1e-3
    encoded = field._raymarch.encode_position(bundle.points)
    code = codes(2)[:, None, None, None].expand(*encoded.shape[:-1], -1)
    expected = field._raymarch.layers(torch.cat([encoded, pooled, code], dim=-1))
    torch.testing.assert_close(field.raymarch_features(bundle, inputs), expected)


def test_camera_coordinates_make_views_alike() -> None:
    """Seen in its own axes, every view of an orbit around the origin looks the same."""
    cameras = orbit(3)
    field = plain(xyz_in_camera_coords=True, pixels={"ray_dir_in_camera_coords": True})
    features = field(grid(cameras), FieldInputs(cameras=cameras)).features
    torch.testing.assert_close(features[1], features[0], atol=1e-4, rtol=0)
    assert (features[0, 0, 0] - features[0, 1, 1]).abs().max() > 1e-3


def test_each_view_has_the_network_of_its_code() -> None:
    """Three views together, in groups and mixed, give what each gives alone."""
    field, cameras = hyper(), orbit(3)
    bundle, all_codes = grid(cameras), codes(3)
    together = field(bundle, FieldInputs(global_code=all_codes)).features
    alone = [
        field(replace_view(grid(cameras[i]), 0), FieldInputs(global_code=all_codes[i : i + 1])).features[0]
        for i in range(3)
    ]
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-5, rtol=1e-4)
    assert (together[0] - alone[1]).abs().max() > 1e-2
    flat = bundle.flatten()
    order = torch.randperm(flat.n_rays, generator=torch.Generator().manual_seed(2))
    mixed = flat._map(lambda t, n_dims: t[:, order])
    assert mixed.ray_shape == (1, 27)
    expected = together.reshape(1, 27, N_SAMPLES, 3)[:, order]
    torch.testing.assert_close(
        field(mixed, FieldInputs(global_code=all_codes)).features, expected, atol=1e-5, rtol=1e-4
    )


def replace_view(bundle: RayBundle, view: int) -> RayBundle:
    return replace(bundle, camera_index=torch.full_like(bundle.camera_index, view))


def test_groups_may_be_any_views() -> None:
    """A group's network is that of its camera index, not of its place."""
    field, bundle, all_codes = hyper(), grid(orbit(3)), codes(3)
    turned = bundle._map(lambda t, n_dims: t.flip(0))
    together = field(bundle, FieldInputs(global_code=all_codes)).features
    torch.testing.assert_close(field(turned, FieldInputs(global_code=all_codes)).features, together.flip(0))


def test_a_slice_of_one_view_among_many_codes() -> None:
    """Slices made for chunking are one group; this one's rays are all of the last view."""
    field, bundle, all_codes = hyper(), grid(orbit(3)), codes(3)
    together = field(bundle, FieldInputs(global_code=all_codes)).features
    part = bundle.flatten()[18:27]
    features = field(part, FieldInputs(global_code=all_codes)).features
    torch.testing.assert_close(features, together[2].reshape(1, 9, N_SAMPLES, 3), atol=1e-5, rtol=1e-4)


def test_weights_are_generated_once_for_a_march(monkeypatch: pytest.MonkeyPatch) -> None:
    field, bundle, calls = hyper(), grid(orbit(2)), []
    generate = type(field._raymarch.hyper).forward
    monkeypatch.setattr(type(field._raymarch.hyper), "forward", lambda *a: calls.append(1) or generate(*a))
    features_at = field.marching(bundle, FieldInputs(global_code=codes(2)))
    for _ in range(3):
        features_at(bundle)
    assert len(calls) == 1


def test_views_of_one_sequence_share_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rays from twelve cameras of two sequences: two networks, and what one for each camera gives."""
    field, sequences = hyper(), torch.tensor([1, 0, 0, 1, 1, 0, 1, 0, 1, 0, 0, 1])
    flat = grid(orbit(12)).flatten()
    order = torch.randperm(flat.n_rays, generator=torch.Generator().manual_seed(2))
    rays = flat._map(lambda t, n_dims: t[:, order])
    generated, generate = [], type(field._raymarch.hyper).forward

    def spy(module: torch.nn.Module, of: torch.Tensor) -> object:
        generated.append(len(of))
        return generate(module, of)

    monkeypatch.setattr(type(field._raymarch.hyper), "forward", spy)

    def seen(group: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Features of all rays with codes from a table of two, and the gradients of the table and the field."""
        table = codes(2).requires_grad_()
        field.zero_grad()
        features = torch.zeros(rays.n_rays, N_SAMPLES, 3)
        for cameras in group.unique().tolist():
            of_group = torch.isin(rays.camera_index[0], (group == cameras).nonzero())
            part = rays._map(lambda t, n_dims, chosen=of_group: t[:, chosen])
            out = field(part, FieldInputs(global_code=table[sequences])).features[0]
            features = features.index_put((of_group.nonzero()[:, 0],), out)
        (features * features.detach().cos()).sum().backward()
        return features.detach(), table.grad, *(p.grad.clone() for p in field.parameters() if p.grad is not None)

    together = seen(torch.zeros(12, dtype=torch.int64))
    assert generated == [2]
    apart = seen(torch.arange(12))
    assert generated == [2, *[1] * 12]
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_gradients_reach_the_codes_of_views_in_the_batch() -> None:
    field, all_codes = hyper(), codes(3).requires_grad_()
    bundle = grid(orbit(3)).flatten()[:18]  # the first two views
    field(bundle, FieldInputs(global_code=all_codes)).features.square().sum().backward()
    assert all_codes.grad is not None
    assert all_codes.grad[:2].abs().amax(dim=-1).min() > 0.0 and all_codes.grad[2].abs().max() == 0.0


def test_the_hyper_network_takes_pooled_features() -> None:
    field, bundle = hyper(FieldSpec(pooled_dim=2, global_code_dim=CODE_DIM)), grid(orbit(2))
    pooled = torch.randn(*bundle.lengths.shape, 2)
    inputs = FieldInputs(pool=lambda _: pooled, global_code=codes(2))
    other = replace(inputs, pool=lambda _: -pooled)
    assert (field(bundle, inputs).features - field(bundle, other).features).abs().max() > 1e-3


def test_one_pass_of_emission_and_absorption_renders_it() -> None:
    field, bundle = plain(), grid(orbit(2))
    renderer = MultiPassEmissionAbsorptionRenderer(spec=RendererSpec())
    renderer.check_fields([field])
    rendered = renderer(bundle, [BoundField(field, FieldInputs())])
    assert rendered.features.shape == (2, 3, 3, 3) and rendered.features.isfinite().all()


@pytest.mark.parametrize("make", [plain, hyper])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_finite_in_every_parameter(make, dtype: torch.dtype) -> None:
    field = make()
    inputs = FieldInputs(global_code=codes(3) if make is hyper else None)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is torch.bfloat16):
        outputs = field(grid(orbit(3)), inputs)
    assert outputs.densities.dtype == outputs.features.dtype == torch.float32
    (outputs.densities.square().sum() + outputs.features.square().sum()).backward()
    for name, parameter in field.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: plain(out_features=13), "pixel_generator_args.in_features: 12, expected 13"),
        (lambda: plain(pixels={"out_features": 4}), "pixel_generator_args.out_features: 4, expected 3"),
        (lambda: plain(in_features=2), "in_features: 2, expected 3"),
        (lambda: plain(n_layers=-1), "expected at least 0, 0 and 1"),
        (lambda: plain(raymarch_function="net"), "raymarch_function: net, expected null"),
        (lambda: plain(FieldSpec(pooled_dim=2, pooled_per_view=True)), "feature_aggregator_class_type keeps"),
        (lambda: hyper(FieldSpec()), "set global_encoder_class_type: SequenceAutodecoder"),
        (lambda: hyper(n_hidden_units_hypernet=0), "n_hidden_units_hypernet, n_layers_hypernet: 0, 1"),
    ],
)
def test_parts_that_do_not_fit_are_refused(make, line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        make()


def test_it_learns_a_small_scene() -> None:
    """Colours that follow the position, at samples along rays."""
    field, bundle = plain(n_hidden_units=32), grid(orbit(2), size=4)
    target = torch.sin(bundle.points)
    optimizer = torch.optim.Adam(field.parameters(), lr=3e-3)
    losses = []
    for _ in range(150):
        loss = (field(bundle, FieldInputs()).features - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * target.var().item()
