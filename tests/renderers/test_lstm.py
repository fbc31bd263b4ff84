"""The learned march: where it ends, what it shows, what it refuses, what its gradients reach."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from nerf_trainer.config import Factory, build, defaults
from nerf_trainer.errors import ConfigError
from nerf_trainer.fields.base import BoundField, FieldInputs, FieldOutputs, FieldSpec, MarchedField
from nerf_trainer.fields.srn import (
    SRNHyperNetImplicitFunction,
    SRNImplicitFunction,
    SRNPixelGenerator,
    SRNRaymarchFunction,
    SRNRaymarchHyperNet,
)
from nerf_trainer.frames import FrameData, PixelStore
from nerf_trainer.models.generic import GenericModel
from nerf_trainer.models.overfit import OverfitModel
from nerf_trainer.randomness import seed_streams
from nerf_trainer.rays.bundle import RayBundle
from nerf_trainer.rays.samplers import NearFarRaySampler
from nerf_trainer.renderers.base import EvaluationMode, RendererSpec
from nerf_trainer.renderers.chunking import render_in_chunks
from nerf_trainer.renderers.lstm import LSTMRenderer
from tests.scene_kit import BallField, orbit, straight_rays

TRAINING, EVALUATION = EvaluationMode.TRAINING, EvaluationMode.EVALUATION
CODE_DIM = 4
SMALL = {"n_hidden_units": 16, "n_layers": 1, "out_features": 12}


class MarchedBall(MarchedField):
    """A ball around the origin. A point's feature is its signed distance from the surface, its colour the point."""

    radius: float = 1.0
    density: float = 4.0

    @property
    def feature_dim(self) -> int:
        return 1

    def marching(self, ray_bundle: RayBundle, inputs: FieldInputs) -> Callable[[RayBundle], Tensor]:
        return lambda rays: rays.points.norm(dim=-1, keepdim=True) - self.radius

    def generate(self, features: Tensor, ray_bundle: RayBundle, inputs: FieldInputs) -> FieldOutputs:
        return FieldOutputs(densities=torch.full_like(features, self.density), features=ray_bundle.points)


def bound(field: MarchedField, **inputs) -> list[BoundField]:
    return [BoundField(field, FieldInputs(**inputs))]


def ball(**options) -> list[BoundField]:
    return bound(MarchedBall(spec=FieldSpec(), **options))


def renderer(**options) -> LSTMRenderer:
    torch.manual_seed(0)
    made = LSTMRenderer(spec=RendererSpec(), **({"n_feature_channels": 1, "init_depth": 3.0} | options))
    seed_streams(made, 0)
    return made


def tracing(**options) -> LSTMRenderer:
    """An LSTM by hand, whose step is its feature: with all gates but the forget gate open, h = tanh(tanh(e f))."""
    made, scale = renderer(hidden_size=1, **options), 1e-2
    closed = -30.0
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
        made._cell.weight_ih[2] = scale  # gates stand in the order input, forget, cell, output
        made._cell.bias_ih.copy_(torch.tensor([-closed, closed, 0.0, -closed]))
        made._step.weight.fill_(1.0 / scale)
    return made


def rays_at(*heights: float) -> RayBundle:
    """Rays along +z from z = -4, each at its height above the axis."""
    rays = straight_rays(len(heights), near=0.5)
    return replace(rays, origins=torch.tensor([[[height, 0.0, -4.0] for height in heights]]))


def srn(**options) -> SRNImplicitFunction:
    torch.manual_seed(1)
    return SRNImplicitFunction(
        spec=FieldSpec(**options),
        raymarch_function=Factory.of(SRNRaymarchFunction, **SMALL),
        pixel_generator=SRNPixelGenerator(n_hidden_units=16, n_hidden_units_color=8, n_layers=1, in_features=12),
    )


def hyper_srn() -> SRNHyperNetImplicitFunction:
    torch.manual_seed(1)
    return SRNHyperNetImplicitFunction(
        spec=FieldSpec(global_code_dim=CODE_DIM),
        hypernet=Factory.of(SRNRaymarchHyperNet, n_hidden_units_hypernet=8, **SMALL),
        pixel_generator=SRNPixelGenerator(n_hidden_units=16, n_hidden_units_color=8, n_layers=1, in_features=12),
    )


def test_a_march_by_the_distance_ends_on_the_surface() -> None:
    """Sphere tracing: the ray at height h meets the unit ball at z = -sqrt(1 - h^2), 4 units after its origin's z."""
    rendered = tracing(num_raymarch_steps=40)(rays_at(0.0, 0.3, -0.6), ball())
    expected = torch.tensor([[4.0 - (1.0 - h * h) ** 0.5 for h in (0.0, 0.3, -0.6)]])
    torch.testing.assert_close(rendered.depths[..., 0], expected, atol=1e-3, rtol=0)
    surface = torch.stack([torch.tensor([0.0, 0.3, -0.6]), torch.zeros(3), expected[0] - 4.0], dim=-1)
    torch.testing.assert_close(rendered.features[0], surface, atol=1e-3, rtol=0)
    torch.testing.assert_close(rendered.masks, torch.full((1, 3, 1), 4.0).sigmoid())


def test_one_step_by_hand() -> None:
    """From near, 0.5 along the ray and so 3.5 from the centre, the step is the distance 2.5 from the ball."""
    rendered = tracing(num_raymarch_steps=1)(rays_at(0.0), ball())
    assert rendered.depths.item() == pytest.approx(0.5 + 2.5, abs=2e-3)


def test_the_lstm_is_the_textbooks() -> None:
    """Two steps in float64, gate by gate (Hochreiter and Schmidhuber 1997, with forget gates)."""
    made = renderer(num_raymarch_steps=2, hidden_size=3)
    with torch.no_grad():
        made._step.weight.normal_()
    length, hidden, memory = torch.tensor([0.5], dtype=torch.float64), torch.zeros(3).double(), torch.zeros(3).double()
    cell = {name: parameter.detach().double() for name, parameter in made._cell.named_parameters()}
    for _ in range(2):
        feature = (length - 4.0).abs() - 1.0
        gates = cell["weight_ih"] @ feature + cell["bias_ih"] + cell["weight_hh"] @ hidden + cell["bias_hh"]
        enter, forget, new, out = gates.chunk(4)
        memory = forget.sigmoid() * memory + enter.sigmoid() * new.tanh()
        hidden = out.sigmoid() * memory.tanh()
        length = length + made._step.weight[0].double() @ hidden + made._step.bias.double()
    depth = made(rays_at(0.0), ball()).depths
    torch.testing.assert_close(depth.double().reshape(1), length.detach(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("n_steps", [1, 10])
def test_an_untrained_march_goes_as_far_as_the_initial_depth(n_steps: int) -> None:
    rendered = renderer(num_raymarch_steps=n_steps, init_depth=3.0)(rays_at(0.0, 0.4), ball())
    torch.testing.assert_close(rendered.depths, torch.full((1, 2, 1), 3.5), atol=0.05, rtol=0)


def test_the_cell_begins_as_its_authors_meant() -> None:
    cell = renderer(hidden_size=16, n_feature_channels=256)._cell
    assert cell.weight_ih.std().item() == pytest.approx((2 / 256) ** 0.5, rel=0.05)
    torch.testing.assert_close(cell.weight_hh.T @ cell.weight_hh, torch.eye(16), atol=1e-5, rtol=0)
    for bias in (cell.bias_ih, cell.bias_hh):
        assert bias.tolist() == [0.0] * 16 + [1.0] * 16 + [0.0] * 32


def test_marches_begin_at_the_first_sample_where_there_are_samples() -> None:
    made, rays = tracing(num_raymarch_steps=1), rays_at(0.0)
    placed = rays.with_lengths(torch.tensor([[[1.5, 2.0]]]))
    torch.testing.assert_close(made(placed, ball()).depths, torch.tensor([[[3.0]]]), atol=2e-3, rtol=0)
    at_near = rays.with_lengths(rays.near[..., None])
    torch.testing.assert_close(made(at_near, ball()).depths, made(rays, ball()).depths)


def test_noise_is_for_training_and_from_the_stream() -> None:
    made, rays = renderer(init_depth_noise_std=0.1, num_raymarch_steps=1), rays_at(*[0.0] * 400)
    with torch.no_grad():
        made._step.weight.zero_()
    still = made(rays, ball(), EVALUATION).depths
    torch.testing.assert_close(still, torch.full_like(still, 3.5))
    first, second = made(rays, ball(), TRAINING).depths, made(rays, ball(), TRAINING).depths
    assert (first - still).std().item() == pytest.approx(0.1, rel=0.15)
    assert not torch.equal(first, second)
    seed_streams(made, 0)
    torch.testing.assert_close(made(rays, ball(), TRAINING).depths, first)


def test_colours_go_over_the_bundles_background_before_the_renderers_own() -> None:
    rays, colour = rays_at(0.0), torch.tensor([0.9, 0.2, 0.4])
    opacity = torch.tensor(0.5).sigmoid()
    own, plain = renderer(bg_color=(0.25,)), renderer()
    bare = plain(rays, ball(density=0.5)).features
    torch.testing.assert_close(own(rays, ball(density=0.5)).features, opacity * bare + (1 - opacity) * 0.25)
    over = replace(rays, background=colour.expand(1, 1, 3))
    expected = opacity * bare + (1 - opacity) * colour
    torch.testing.assert_close(own(over, ball(density=0.5)).features, expected)
    torch.testing.assert_close(plain(over, ball(density=0.5)).features, expected)
    assert own.background == (0.25,) and plain.background is None


def test_three_views_together_give_what_each_gives_alone() -> None:
    made, field, cameras = renderer(n_feature_channels=12), hyper_srn(), orbit(3)
    codes = torch.randn(3, CODE_DIM)
    rays = NearFarRaySampler(min_depth=1.0).grid(cameras, (4, 4), with_lengths=False)
    together = made(rays, bound(field, global_code=codes))
    assert together.features.shape == (3, 4, 4, 3) and together.depths.shape == together.masks.shape == (3, 4, 4, 1)
    for i in range(3):
        own = NearFarRaySampler(min_depth=1.0).grid(cameras[i], (4, 4), with_lengths=False)
        alone = made(own, bound(field, global_code=codes[i : i + 1]))
        torch.testing.assert_close(together.features[i : i + 1], alone.features, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(together.depths[i : i + 1], alone.depths, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("make", [srn, hyper_srn])
def test_chunks_give_what_the_whole_gives(make) -> None:
    made, field = renderer(n_feature_channels=12), bound(make(), global_code=torch.randn(3, CODE_DIM))
    field = field if make is hyper_srn else bound(make())
    rays = NearFarRaySampler(min_depth=1.0).grid(orbit(3), (4, 4), with_lengths=False)
    whole = made(rays, field)
    for size in (7, 48):
        pieces = render_in_chunks(lambda part: made(part, field), rays, size)
        torch.testing.assert_close(pieces.features, whole.features, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(pieces.depths, whole.depths, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(pieces.masks, whole.masks, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_finite_and_reach_every_parameter(dtype: torch.dtype) -> None:
    made, field = renderer(n_feature_channels=12), srn()
    rays = NearFarRaySampler(n_rays_total_training=16).draw(orbit(3), with_lengths=False)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is torch.bfloat16):
        rendered = made(rays, bound(field), TRAINING)
    assert {t.dtype for t in (rendered.features, rendered.depths, rendered.masks)} == {torch.float32}
    (rendered.features.square().mean() + rendered.masks.mean()).backward()
    for name, parameter in [*made.named_parameters(), *field.named_parameters()]:
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_lengths_keep_their_precision_under_autocast() -> None:
    """In bfloat16 a length near 3 would be wrong by up to 0.008."""
    made, rays = tracing(num_raymarch_steps=40), rays_at(0.0, 0.3)
    plain = made(rays, ball()).depths
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(made(rays, ball()).depths, plain, atol=1e-5, rtol=0)


def test_gradients_are_held_back_along_the_march() -> None:
    """Steps of 100 per unit of feature, away from the ball: without a limit the gradient grows as 101^n."""
    made = tracing(num_raymarch_steps=8)
    with torch.no_grad():
        made._step.weight.fill_(1e4)
    made(rays_at(0.0), ball()).depths.sum().backward()
    gradients = [p.grad for p in made.parameters() if p.grad is not None]
    # Ten at most comes back into each of 8 hidden states; features and states stay below 10^4.
    assert all(g.isfinite().all() for g in gradients)
    assert made._cell.bias_ih.grad is not None and made._cell.bias_ih.grad.abs().max() <= 8 * 10.0


def test_a_march_can_be_fitted() -> None:
    """The LSTM learns to end its marches on the ball: nearer to it, on other rays, than any one depth for all."""
    made = renderer(hidden_size=8, num_raymarch_steps=4)
    optimizer = torch.optim.Adam(made.parameters(), lr=3e-2)
    generator = torch.Generator().manual_seed(0)

    def on_the_ball(heights: Tensor) -> Tensor:
        return 4.0 - (1.0 - heights.square()).sqrt()

    def error(heights: Tensor) -> Tensor:
        depths = made(rays_at(*heights.tolist()), ball(), TRAINING).depths[0, :, 0]
        return (depths - on_the_ball(heights)).square().mean()

    for _ in range(160):
        loss = error(torch.rand(64, generator=generator) * 1.6 - 0.8)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    unseen = torch.linspace(-0.75, 0.75, 13)
    assert error(unseen).item() < 0.4 * on_the_ball(unseen).var(correction=0).item()


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ([], "found 0 passes"),
        ([srn(), srn()], "found 2 passes; set num_passes: 1"),
        ([BallField(spec=FieldSpec())], "implicit_function_class_type: BallField has no features to march by"),
        ([srn()], "n_feature_channels of LSTMRenderer: 1, expected 12, the width of SRNImplicitFunction's"),
    ],
)
def test_fields_that_can_not_be_marched_are_refused(fields: list, line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        renderer().check_fields(fields)


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"num_raymarch_steps": 0}, "num_raymarch_steps: 0, expected a whole number"),
        ({"hidden_size": 0}, "hidden_size: 0"),
        ({"init_depth_noise_std": -1.0}, "init_depth_noise_std: -1.0, expected 0 or more"),
        ({"bg_color": (0.0, 1.0)}, "bg_color of the renderer: .* expected 1 or 3 values"),
    ],
)
def test_impossible_settings_are_refused(wrong: dict, line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        renderer(**wrong)


def configured(**options) -> OverfitModel:
    """OverfitModel with SRN and its renderer, from a configuration as a user writes it; one sample at one depth."""
    values = {
        "raysampler_class_type": "NearFarRaySampler",
        "raysampler_NearFarRaySampler_args": {
            "min_depth": 0.05,
            "max_depth": 0.05,
            "n_pts_per_ray_training": 1,
            "n_pts_per_ray_evaluation": 1,
            "n_rays_total_training": 64,
        },
        "implicit_function_class_type": "SRNImplicitFunction",
        "implicit_function_SRNImplicitFunction_args": {
            "raymarch_function_args": {"n_hidden_units": 16, "n_layers": 1, "out_features": 16},
            "pixel_generator_args": {"n_hidden_units": 16, "n_layers": 1, "in_features": 16},
        },
        "renderer_class_type": "LSTMRenderer",
    }
    torch.manual_seed(0)
    config = OmegaConf.merge(defaults(OverfitModel), values, options)
    made = build(OverfitModel, config)
    seed_streams(made, 0)
    return made.train()


def scene() -> FrameData:
    generator = torch.Generator().manual_seed(5)
    images = [torch.randint(0, 256, (16, 16, 4), dtype=torch.uint8, generator=generator) for _ in range(3)]
    return FrameData(cameras=orbit(3), pixels=PixelStore.from_images(images))


def test_a_penalty_on_negative_depths_turns_marches_around() -> None:
    """Marches that begin 2 units behind the camera; each step of the optimizer brings them towards it."""
    losses = {"loss_rgb_mse": 0.0, "loss_prev_stage_rgb_mse": 0.0, "loss_depth_neg_penalty": 1.0}
    options = {"init_depth": -2.0, "n_feature_channels": 16}
    module = configured(loss_weights=losses, renderer_LSTMRenderer_args=options)
    optimizer, frames = torch.optim.Adam(module.parameters(), lr=1e-3), scene()
    penalties = []
    for _ in range(8):
        predictions = module(frames)
        assert predictions.objective is not None
        torch.testing.assert_close(predictions.objective, predictions.metrics["loss_depth_neg_penalty"])
        optimizer.zero_grad()
        predictions.objective.backward()
        optimizer.step()
        penalties.append(predictions.objective.item())
    assert penalties[0] == pytest.approx((-2.0 + 0.05) ** 2, rel=0.05)
    assert all(after < before for before, after in pairwise(penalties))
    assert penalties[-1] < 0.7 * penalties[0]


def test_marches_in_front_of_the_camera_pay_no_penalty() -> None:
    module = configured(renderer_LSTMRenderer_args={"init_depth": 4.0, "n_feature_channels": 16})
    assert module(scene()).metrics["loss_depth_neg_penalty"].item() == 0.0


def test_whole_views_are_rendered_in_chunks_of_rays() -> None:
    """A march holds one sample of a ray at a time, so that a chunk has as many rays as samples."""
    module = configured(renderer_LSTMRenderer_args={"n_feature_channels": 16}, chunk_size_grid=40).eval()
    sizes: list[int] = []
    handle = module._renderer.register_forward_pre_hook(lambda _, arguments: sizes.append(arguments[0].n_rays))
    images = torch.rand(1, 3, 16, 16)
    predictions = module(FrameData(cameras=orbit(1), image_rgb=images))
    handle.remove()
    assert sizes == [40] * 6 + [16]
    assert predictions.images_render.shape == (1, 3, 16, 16)


def two_scenes() -> FrameData:
    """Four views, two of each of two sequences."""
    generator = torch.Generator().manual_seed(6)
    return FrameData(
        cameras=orbit(4),
        image_rgb=torch.rand(4, 3, 16, 16, generator=generator),
        fg_probability=torch.ones(4, 1, 16, 16),
        sequence_name=("a", "b", "a", "b"),
    )


@pytest.mark.parametrize(
    "rays", [{"n_rays_per_image_sampled_from_mask": 16}, {"n_rays_total_training": 64}], ids=["grouped", "mixed"]
)
def test_sequences_have_networks_of_their_own(rays: dict) -> None:
    """GenericModel with learned codes: a step reaches both codes, and a view shows its own sequence."""
    values = {
        "n_train_target_views": -1,
        "raysampler_class_type": "AdaptiveRaySampler",
        "raysampler_AdaptiveRaySampler_args": {"scene_extent": 1.5, **rays},
        "global_encoder_class_type": "SequenceAutodecoder",
        "global_encoder_SequenceAutodecoder_args": {"autodecoder_args": {"encoding_dim": 4, "n_instances": 2}},
        "implicit_function_class_type": "SRNHyperNetImplicitFunction",
        "implicit_function_SRNHyperNetImplicitFunction_args": {
            "hypernet_args": {"n_hidden_units": 16, "n_hidden_units_hypernet": 8, "out_features": 16},
            "pixel_generator_args": {"n_hidden_units": 16, "in_features": 16},
        },
        "renderer_class_type": "LSTMRenderer",
        "renderer_LSTMRenderer_args": {"n_feature_channels": 16, "init_depth": 1.5},
    }
    torch.manual_seed(0)
    module, frames = (
        build(GenericModel, OmegaConf.merge(defaults(GenericModel), values)),
        two_scenes(),
    )
    module.learn_sequences(("a", "b"))
    predictions = module.train()(frames)
    assert predictions.objective is not None
    predictions.objective.backward()
    assert module.global_encoder is not None
    (codes,) = module.global_encoder.parameters()
    assert codes.grad is not None and codes.grad.abs().amax(dim=-1).min() > 0.0
    module.eval()
    with torch.no_grad():
        own, other = (module(replace(frames[:1], sequence_name=(name,))).images_render for name in "ab")
        assert own is not None and other is not None and (own - other).abs().max() > 1e-2
