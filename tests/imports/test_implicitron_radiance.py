"""NeRF and NeRFormer of Implicitron's files render here what the published formulas render."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from nerf_trainer.errors import CheckpointError
from tests.imports import implicitron_imitation as published
from tests.imports.implicitron_kit import (
    assert_passes_match,
    configuration,
    frames,
    imported,
    published_camera,
    rendered,
    scattered,
)

NERF = "implicit_function_NeuralRadianceFieldImplicitFunction_args"
NERFORMER = "implicit_function_NeRFormerImplicitFunction_args"


@pytest.mark.parametrize("in_camera_axes", [False, True])
def test_two_passes_of_nerf(in_camera_axes: bool) -> None:
    fields = [scattered(published.NeRF(n_xyz=2), seed) for seed in (1, 2)]
    config = configuration(**{f"{NERF}__xyz_ray_dir_in_camera_coords": in_camera_axes})
    model, found = imported(published.GenericModel(*fields).state_dict(), config)
    assert {key.rpartition(".")[2]: value for key, value in found.options.items() if key.startswith(NERF)} == {
        "n_harmonic_functions_xyz": 2,
        "n_harmonic_functions_dir": 2,
        "input_xyz": True,
        "logspace": True,
        "use_view_directions": True,
        "xyz_ray_dir_in_camera_coords": in_camera_axes,
        "n_layers_xyz": 4,
        "n_hidden_neurons_xyz": 16,
        "append_xyz": [2],
        "n_hidden_neurons_dir": 12,
        "n_layers_dir": 1,
        "relu_bottleneck": False,
    }
    batch = frames()
    camera = published_camera(batch.cameras) if in_camera_axes else None

    def call(field):
        return lambda points, directions: field(points, directions, camera=camera)

    assert_passes_match(*rendered(model, batch), *map(call, fields))


def test_nerf_with_a_global_code() -> None:
    decoder = scattered(published.SequenceAutodecoder(5, 3, ("two", "one")), 4)
    fields = [scattered(published.NeRF(beside=3), seed) for seed in (1, 2)]
    state = published.GenericModel(*fields, global_encoder=decoder).state_dict()
    model, _ = imported(state, configuration())

    def call(field, name: str):
        code = decoder.code(name)
        return lambda points, directions: field(points, directions, code=code)

    for name in ("one", "two"):
        batch = frames(names=(name,) * 3)
        assert_passes_match(*rendered(model, batch), *(call(field, name) for field in fields))


@pytest.mark.parametrize("in_camera_axes", [False, True])
def test_nerformer_on_given_features(in_camera_axes: bool) -> None:
    """With masks and images alone as features, whose sampling `test_implicitron_conditioning` compares."""
    field = scattered(published.NeRF(beside=4, n_xyz=3, width=16, n_layers=2, skips=(1,), factor=2.0), 1)
    config = configuration(
        view_pooler_enabled=True,
        view_pooler_args__feature_aggregator_class_type="IdentityFeatureAggregator",
        image_feature_extractor_class_type="ResNetFeatureExtractor",
        image_feature_extractor_ResNetFeatureExtractor_args__stages=[],
        image_feature_extractor_ResNetFeatureExtractor_args__image_rescale=1.0,
        **{f"{NERFORMER}__xyz_ray_dir_in_camera_coords": in_camera_axes},
    )
    model, found = imported(published.GenericModel(field).state_dict(), config)
    assert found.options[f"{NERFORMER}.transformer_dim_down_factor"] == 2.0
    assert found.options[f"{NERFORMER}.append_xyz"] == [1]
    batch = frames()
    camera = published_camera(batch.cameras) if in_camera_axes else None
    inputs = model.inputs(batch[:1], batch)
    rays, output = rendered(model, batch)
    assert inputs.pool is not None
    pooled = inputs.pool(rays)[0].detach()

    def call(points: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        return field(points, directions, pooled=pooled, camera=camera)

    assert pooled.shape[-2:] == (3, 4)
    assert_passes_match(rays, output, call)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop("_implicit_functions.1._fn.density_layer.bias"),
            "1._fn.density_layer.bias: missing, expected 1",
        ),
        (lambda s: s.update({"_implicit_functions.0._fn.extra": torch.zeros(2)}), "0._fn.extra (2): nothing here"),
        (
            lambda s: s.update({"_implicit_functions.0._fn.xyz_encoder.mlp.1.0.bias": torch.zeros(7)}),
            "0._fn.xyz_encoder.mlp.1.0.bias (7): expected 16",
        ),
        (
            lambda s: s.update({"_implicit_functions.0._fn.xyz_encoder.mlp.0.0.weight": torch.zeros(16, 28)}),
            "expected an input of 6 n + 3 channels of the position and 0 beside, found 28",
        ),
        (
            lambda s: s.update({"_implicit_functions.0._fn.density_layer.bias": torch.full((1,), torch.nan)}),
            "0._fn.density_layer.bias (1): expected finite numbers",
        ),
    ],
)
def test_what_does_not_fit_is_listed_by_the_names_of_the_file(change, message: str) -> None:
    state = published.GenericModel(published.NeRF(), published.NeRF()).state_dict()
    change(state)
    with pytest.raises(CheckpointError) as raised:
        imported(state, configuration(), Path("old.pth"))
    assert message in str(raised.value)
    assert len(str(raised.value)) < 400


def test_passes_of_different_make_are_refused() -> None:
    state = published.GenericModel(published.NeRF(), published.NeRF(n_dir=1)).state_dict()
    with pytest.raises(CheckpointError, match="expected what the first pass is"):
        imported(state, configuration())


def test_a_field_without_a_position() -> None:
    """`input_xyz: false` leaves the code alone."""
    field = scattered(published.NeRF(beside=3, n_xyz=0, n_layers=2, skips=()), 5)
    weights = field.xyz_encoder.mlp[0][0]
    weights.weight = torch.nn.Parameter(weights.weight[:, 3:].clone())
    decoder = published.SequenceAutodecoder(1, 3, ("one",))
    model, found = imported(published.GenericModel(field, global_encoder=decoder).state_dict(), configuration())
    assert (found.options[f"{NERF}.input_xyz"], found.options[f"{NERF}.n_harmonic_functions_xyz"]) == (False, 0)
    batch = frames()
    rays, output = rendered(model, batch)
    assert rays.lengths is not None
    features = weights(decoder.code("one")).relu()
    features = field.xyz_encoder.mlp[1](features)
    density = field.density_layer(features).relu().item()
    spans = rays.lengths[0].diff(dim=-1).sum(dim=-1)
    expected = 1.0 if density > 0 else 0.0  # the last interval is endless
    torch.testing.assert_close(output.masks[0, :, 0], torch.full_like(spans, expected))
