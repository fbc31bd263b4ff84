"""Passes, refinement and noise of the NeRF renderer; chunked rendering."""

import pytest
import torch

from nerf_trainer.fields.base import BoundField, FieldInputs, FieldSpec
from nerf_trainer.randomness import seed_streams
from nerf_trainer.rays.samplers import NearFarRaySampler
from nerf_trainer.renderers.base import EvaluationMode, RendererSpec
from nerf_trainer.renderers.chunking import render_in_chunks
from nerf_trainer.renderers.multipass import MultiPassEmissionAbsorptionRenderer
from tests.scene_kit import BallField, orbit


def renderer(**options) -> MultiPassEmissionAbsorptionRenderer:
    return MultiPassEmissionAbsorptionRenderer(spec=RendererSpec(), **options)


def ball() -> BoundField:
    return BoundField(BallField(spec=FieldSpec()), FieldInputs())


def view_rays(n_samples: int = 32):
    return NearFarRaySampler(min_depth=2.0, max_depth=6.0, n_pts_per_ray_evaluation=n_samples).grid(orbit(1), (16, 16))


def test_the_second_pass_finds_the_surface_more_exactly() -> None:
    rendered = renderer(n_pts_per_ray_fine_evaluation=128)(view_rays(), [ball(), ball()])
    assert rendered.prev_stage is not None and rendered.prev_stage.prev_stage is None
    center = (0, 8, 8)
    ray = view_rays().flatten()[8 * 16 + 8 : 8 * 16 + 9]
    along = (ray.origins * ray.directions).sum()
    entry = -along - (along.square() - ray.origins.square().sum() + 1.0).sqrt()
    expected = entry + 1.0 / BallField.density  # light gets 1 / density deep on average
    assert (rendered.depths[center] - expected).abs() < 0.01
    assert (rendered.prev_stage.depths[center] - expected).abs() < 4.0 / 31  # the coarse samples' distance
    assert rendered.masks[center] > 0.999 and rendered.masks[0, 0, 0] == 0.0


def test_one_field_means_one_pass() -> None:
    rendered = renderer()(view_rays(), [ball()])
    assert rendered.prev_stage is None and rendered.features.shape == (1, 16, 16, 3)


def test_evaluation_is_deterministic_and_training_draws() -> None:
    module, rays = renderer(density_noise_std_train=1.0), view_rays()

    def render(seed: int, mode: EvaluationMode) -> torch.Tensor:
        seed_streams(module, seed)
        return module(rays, [ball(), ball()], mode).features

    torch.testing.assert_close(render(0, EvaluationMode.EVALUATION), render(1, EvaluationMode.EVALUATION))
    torch.testing.assert_close(render(0, EvaluationMode.TRAINING), render(0, EvaluationMode.TRAINING))
    assert not torch.equal(render(0, EvaluationMode.TRAINING), render(1, EvaluationMode.TRAINING))


def test_sample_counts_of_each_mode() -> None:
    module = renderer(n_pts_per_ray_fine_training=5, n_pts_per_ray_fine_evaluation=9, return_weights=True)
    rays = view_rays(32)
    assert module(rays, [ball()] * 2, EvaluationMode.TRAINING).weights.shape[-1] == 37
    assert module(rays, [ball()] * 2, EvaluationMode.EVALUATION).weights.shape[-1] == 41
    alone = renderer(n_pts_per_ray_fine_training=5, append_coarse_samples_to_fine=False)
    assert alone(rays, [ball()] * 2, EvaluationMode.TRAINING).weights.shape[-1] == 5


@pytest.mark.parametrize("rays_per_chunk", [1, 7, 100, 256, 10_000])
def test_any_chunk_size_renders_the_same(rays_per_chunk: int) -> None:
    module, rays = renderer(), view_rays()
    fields = [ball(), ball()]
    whole = module(rays, fields)
    pieces = render_in_chunks(lambda part: module(part, fields), rays, rays_per_chunk)
    torch.testing.assert_close(pieces.features, whole.features)
    torch.testing.assert_close(pieces.depths, whole.depths)
    assert pieces.prev_stage is not None
    torch.testing.assert_close(pieces.prev_stage.masks, whole.prev_stage.masks)


def test_no_field_is_refused() -> None:
    with pytest.raises(ValueError, match="a field for each pass"):
        renderer()(view_rays(), [])


def test_a_coarse_pass_that_nobody_looks_at_is_asked_for_its_densities_alone() -> None:
    """The finer pass sees the same samples; while training the coarse one is rendered all the same, for its loss."""

    class Counting(BallField):
        n_colored = 0

        def forward(self, ray_bundle, inputs):
            self.n_colored += 1
            return super().forward(ray_bundle, inputs)

        def densities(self, ray_bundle, inputs):
            return BallField.forward(self, ray_bundle, inputs).densities

    coarse = Counting(spec=FieldSpec())
    hidden = BoundField(coarse, FieldInputs(), is_shown=False)
    module, rays = renderer(), view_rays()
    rendered, expected = module(rays, [hidden, ball()]), module(rays, [ball(), ball()])
    assert coarse.n_colored == 0 and rendered.prev_stage is None
    assert torch.equal(rendered.features, expected.features) and torch.equal(rendered.depths, expected.depths)
    trained = module(rays, [hidden, ball()], EvaluationMode.TRAINING)
    assert coarse.n_colored == 1 and trained.prev_stage is not None
