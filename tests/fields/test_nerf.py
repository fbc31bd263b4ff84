"""The NeRF field: its size, what it depends on, its gradients."""

import pytest
import torch

from nerf_trainer.errors import ConfigError
from nerf_trainer.fields.base import FieldInputs, FieldSpec
from nerf_trainer.fields.nerf import NeuralRadianceFieldImplicitFunction
from nerf_trainer.rays.samplers import NearFarRaySampler
from tests.scene_kit import orbit

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
    from dataclasses import replace

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
