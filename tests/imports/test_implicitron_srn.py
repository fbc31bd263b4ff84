"""Scene representation networks of Implicitron's files march here as the published formulas do."""

import pytest
import torch
from torch import Tensor

from nerf_trainer.errors import CheckpointError
from nerf_trainer.frames import FrameData
from nerf_trainer.models.ray_model import RayModel
from tests.imports import implicitron_imitation as published
from tests.imports.implicitron_kit import configuration, frames, imported, published_camera, rendered, scattered

MARCHED = {
    "raysampler_class_type": "NearFarRaySampler",
    "raysampler_NearFarRaySampler_args__min_depth": 0.05,
    "raysampler_NearFarRaySampler_args__max_depth": 0.05,
    "raysampler_NearFarRaySampler_args__n_pts_per_ray_training": 1,
    "raysampler_NearFarRaySampler_args__n_pts_per_ray_evaluation": 1,
}


def assert_marches_match(
    model: RayModel,
    batch: FrameData,
    field: published.SRN,
    renderer: published.LSTMRenderer,
    code: Tensor | None,
    camera: published.Camera,
) -> None:
    """Every pixel of the first view ends where the published march ends, with its colour and mask, within 1e-4."""
    rays, output = rendered(model, batch)
    origins, directions = rays.origins[0], rays.directions[0]
    with torch.no_grad():
        lengths, state, step = torch.full((len(origins), 1), 0.05), None, torch.zeros(len(origins), 1)
        for t in range(renderer.steps + 1):
            lengths = lengths + step
            points = origins[:, None] + lengths[..., None] * directions[:, None]
            features = field.march(points, None, code, camera)
            if t < renderer.steps:
                state = renderer._lstm(features[:, 0], state)
                step = renderer._out_layer(state[0])
        logits, colors = field.pixel_generator(features, directions, camera)
    assert lengths.std() > 1e-2 and colors.std(dim=0).min() > 1e-2, "marches that are all alike would show nothing"
    torch.testing.assert_close(output.depths[0], lengths, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(output.masks[0], torch.sigmoid(logits[:, 0]), rtol=0, atol=1e-4)
    torch.testing.assert_close(output.features[0], colors[:, 0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("in_camera_axes", [False, True])
def test_a_march_through_a_field(in_camera_axes: bool) -> None:
    field, renderer = scattered(published.SRN(), 1), scattered(published.LSTMRenderer(), 2)
    section = "implicit_function_SRNImplicitFunction_args"
    config = configuration(
        **MARCHED,
        **{
            f"{section}__raymarch_function_args__xyz_in_camera_coords": in_camera_axes,
            f"{section}__pixel_generator_args__ray_dir_in_camera_coords": in_camera_axes,
        },
    )
    model, found = imported(published.GenericModel(field, renderer=renderer).state_dict(), config)
    assert found.options["renderer_LSTMRenderer_args.hidden_size"] == 6
    assert found.options[f"{section}.raymarch_function_args.n_harmonic_functions"] == 2
    assert found.options[f"{section}.pixel_generator_args.n_hidden_units_color"] == 10
    batch = frames()
    camera = published_camera(batch.cameras) if in_camera_axes else None
    assert_marches_match(model, batch, field, renderer, None, camera)


@pytest.mark.parametrize("in_camera_axes", [False, True])
def test_a_march_through_a_field_generated_from_a_code(in_camera_axes: bool) -> None:
    field, renderer = scattered(published.SRN(code_dim=3, hyper=7), 1), scattered(published.LSTMRenderer(), 2)
    decoder = scattered(published.SequenceAutodecoder(4, 3, ("two", "one")), 3)
    section = "implicit_function_SRNHyperNetImplicitFunction_args"
    config = configuration(
        **MARCHED,
        **{
            f"{section}__hypernet_args__xyz_in_camera_coords": in_camera_axes,
            f"{section}__pixel_generator_args__ray_dir_in_camera_coords": in_camera_axes,
        },
    )
    state = published.GenericModel(field, renderer=renderer, global_encoder=decoder).state_dict()
    model, found = imported(state, config)
    sizes = {"n_hidden_units": 8, "n_layers": 1, "n_hidden_units_hypernet": 7, "n_layers_hypernet": 1}
    assert {name: found.options[f"{section}.hypernet_args.{name}"] for name in sizes} == sizes
    for name in ("one", "two"):
        batch = frames(names=(name,) * 3)
        camera = published_camera(batch.cameras) if in_camera_axes else None
        assert_marches_match(model, batch, field, renderer, decoder.code(name), camera)


def test_a_code_stands_beside_the_positions_of_a_plain_field() -> None:
    field, renderer = scattered(published.SRN(code_dim=3), 1), scattered(published.LSTMRenderer(), 2)
    decoder = scattered(published.SequenceAutodecoder(1, 3, ("one",)), 3)
    state = published.GenericModel(field, renderer=renderer, global_encoder=decoder).state_dict()
    model, _ = imported(state, configuration(**MARCHED))
    assert_marches_match(model, frames(names=("one",) * 3), field, renderer, decoder.code("one"), None)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("hypernet._hypernet.layers.2.hyper_linear.hypo_params.net.2.weight", (71, 7), "expected H (H + 1) rows"),
        ("hypernet._hypernet.layers.0.hyper_linear.hypo_params.net.0.net.0.weight", (7, 4), "the global code's 3"),
        ("pixel_generator._color_layer.0.weight", (10, 22), "expected an input of 6 n + 3 channels of the position"),
    ],
)
def test_shapes_that_say_nothing_are_refused(name: str, shape: tuple[int, ...], message: str) -> None:
    decoder = published.SequenceAutodecoder(1, 3, ("one",))
    field = published.SRN(code_dim=3, hyper=7)
    state = published.GenericModel(field, renderer=published.LSTMRenderer(), global_encoder=decoder).state_dict()
    state[f"_implicit_functions.0._fn.{name}"] = torch.zeros(shape)
    with pytest.raises(CheckpointError) as raised:
        imported(state, configuration(**MARCHED))
    assert message in str(raised.value)
