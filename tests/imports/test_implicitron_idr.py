"""IDR of Implicitron's files: distances and colours at points, and a view, as the published formulas have them."""

import pytest
import torch
from torch import Tensor

from nerf_trainer.errors import CheckpointError
from nerf_trainer.fields.base import BoundField
from nerf_trainer.fields.sdf import SDF
from nerf_trainer.models.ray_model import RayModel
from nerf_trainer.rays.bundle import RayBundle
from tests.imports import implicitron_imitation as published
from tests.imports.implicitron_kit import configuration, frames, imported, rendered, scattered
from tests.scene_kit import straight_rays

FIELD = "implicit_function_IdrFeatureField_args"
COLORS = "renderer_SignedDistanceFunctionRenderer_args.ray_normal_coloring_network_args"


def ball(n: int, radius: float = 1.2) -> published.IdrFeatureField:
    """A field that is about the distance from a sphere, as IDR begins (Atzmon and Lipman 2020), and bent a little."""
    field = published.IdrFeatureField(n=n, dims=(64, 64, 64))
    generator = torch.Generator().manual_seed(2)
    layers = list(field.linear_layers)
    n_in, last = layers[0].in_features, layers[-1]
    with torch.no_grad():
        for i, layer in enumerate(layers):
            weight = torch.randn(layer.weight_v.shape, generator=generator) * (2.0 / layer.out_features) ** 0.5
            if i == 0:
                weight[:, :-3] *= 0.05
            elif i in field.skip_in:
                weight[:, -n_in:] *= 0.05
            if layer is last:
                weight *= 0.3
                weight[0] = (torch.pi / layer.in_features) ** 0.5
            layer.weight_v.copy_(weight * 1.7)  # lengths are those of weight_g
            layer.weight_g.copy_(weight.norm(dim=1, keepdim=True))
            layer.bias.zero_()
        sphere = torch.nn.functional.normalize(torch.randn(200, 3, generator=generator), dim=-1)
        near, far = (field(sphere * r)[:, 0].mean() for r in (radius, 2.0 * radius))
        last.weight_g[0] *= radius / (far - near)
        last.bias[0] = -field(sphere * radius)[:, 0].mean()
    return field.eval()


def gradients(field: published.IdrFeatureField, points: Tensor, code: Tensor | None) -> Tensor:
    points = points.detach().requires_grad_()
    return torch.autograd.grad(field(points, code)[:, 0].sum(), points)[0]


def at_points(points: Tensor) -> RayBundle:
    """A ray with one sample at each point."""
    return straight_rays(len(points), n_samples=1).at(points[None])


def field_outputs(model: RayModel, points: Tensor, names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    batch = frames(names=names)
    outputs = BoundField(model.passes()[0], model.inputs(batch[:1], batch))(at_points(points))
    return outputs.extras[SDF][0, :, 0], outputs.features[0, :, 0]


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("with_code", [True, False])
def test_distances_and_features_at_points(with_code: bool, norm: bool) -> None:
    field = scattered(published.IdrFeatureField(beside=3 * with_code, norm=norm), 1)
    decoder = scattered(published.SequenceAutodecoder(2, 3, ("two", "one")), 2)
    network = scattered(published.RayNormalColoringNetwork(norm=norm), 3)
    parts = {"renderer": published.SignedDistanceFunctionRenderer(network)}
    parts |= {"global_encoder": decoder} if with_code else {}
    model, found = imported(published.GenericModel(field, **parts).state_dict(), configuration())
    expected = {"n_harmonic_functions_xyz": 2, "dims": [24, 24, 24], "skip_in": [2], "weight_norm": norm}
    assert {name: found.options[f"{FIELD}.{name}"] for name in expected} == expected
    points = torch.randn(50, 3, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        distance, features = field_outputs(model, points, ("one",) * 3)
        outputs = field(points, decoder.code("one") if with_code else None)
    assert outputs.std(dim=0).min() > 1e-2
    torch.testing.assert_close(distance, outputs[:, :1], rtol=0, atol=1e-4)
    torch.testing.assert_close(features, outputs[:, 1:], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("mode", "n"), [("idr", 0), ("idr", 2), ("no_view_dir", 0), ("no_normal", 1)])
def test_a_view_of_a_surface(mode: str, n: int) -> None:
    field = ball(2)
    network = scattered(published.RayNormalColoringNetwork(mode, n), 2)
    config = configuration(**{f"{COLORS.replace('.', '__')}__mode": mode})
    renderer = published.SignedDistanceFunctionRenderer(network)
    model, found = imported(published.GenericModel(field, renderer=renderer).state_dict(), config)
    assert (found.options[f"{COLORS}.n_harmonic_functions_dir"], found.options[f"{COLORS}.dims"]) == (n, [16, 16])
    rays, output = rendered(model, frames(size=8))
    shown = output.depths[0, :, 0] > 0.0
    assert 3 < shown.sum() < len(shown), "a view of nothing, or of nothing else, would show nothing"
    origins, directions = rays.origins[0, shown], rays.directions[0, shown]
    points = origins + output.depths[0, shown] * directions
    outputs = field(points).detach()
    assert outputs[:, 0].abs().max() < 1e-3  # on the published surface
    normals = gradients(field, points, None)
    assert (normals.norm(dim=-1) - 1.0).abs().max() > 1e-2  # normals of unit length would give other colours
    colors = network(outputs[:, 1:], points, normals, directions).detach()
    torch.testing.assert_close(output.features[0, shown], colors, rtol=0, atol=1e-4)
    # Rays that miss have the background, and a mask by the least distance that the tracer saw of them.
    assert output.features[0, ~shown].abs().max() == 0.0


def test_a_coloring_network_of_another_mode_is_refused() -> None:
    network = published.RayNormalColoringNetwork("no_normal", 1)
    state = published.GenericModel(
        published.IdrFeatureField(), renderer=published.SignedDistanceFunctionRenderer(network)
    ).state_dict()
    with pytest.raises(CheckpointError, match="expected an input of 6 n"):
        imported(state, configuration())
