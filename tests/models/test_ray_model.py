"""The one forward: targets, backgrounds, objective, evaluation at any size."""

import inspect
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nerf_trainer.config import Factory
from nerf_trainer.errors import ConfigError
from nerf_trainer.fields.nerf import NeuralRadianceFieldImplicitFunction
from nerf_trainer.frames import FrameContents, FrameData, PixelStore
from nerf_trainer.models.generic import GenericModel
from nerf_trainer.models.overfit import OverfitModel
from nerf_trainer.models.photographs import Background
from nerf_trainer.models.ray_defaults import DEFAULT_LOG_VARS
from nerf_trainer.models.ray_model import RayModel
from nerf_trainer.randomness import seed_streams
from nerf_trainer.rays.samplers import NearFarRaySampler, RenderSamplingMode
from nerf_trainer.renderers.multipass import MultiPassEmissionAbsorptionRenderer
from nerf_trainer.renderers.raymarchers import EmissionAbsorptionRaymarcher
from tests.scene_kit import BallField, orbit

TINY = Factory.of(
    NeuralRadianceFieldImplicitFunction,
    n_hidden_neurons_xyz=16,
    n_layers_xyz=2,
    append_xyz=(1,),
    n_hidden_neurons_dir=8,
    n_harmonic_functions_xyz=3,
)


def sampler(**options) -> NearFarRaySampler:
    values = {"min_depth": 2.0, "max_depth": 6.0, "n_pts_per_ray_training": 16, "n_pts_per_ray_evaluation": 16}
    return NearFarRaySampler(**(values | {"n_rays_total_training": 64} | options))


def model(**options) -> OverfitModel:
    torch.manual_seed(0)
    values = {"raysampler": sampler(), "implicit_function": TINY}
    made = OverfitModel(**(values | options))
    seed_streams(made, 0)
    return made


def ball_model(**options) -> OverfitModel:
    return model(implicit_function=Factory.of(BallField), **options).eval()


def photographs(n: int = 3, size: int = 16) -> FrameData:
    generator = torch.Generator().manual_seed(5)
    return FrameData(
        cameras=orbit(n, size=size),
        image_rgb=torch.rand(n, 3, size, size, generator=generator),
        fg_probability=torch.rand(n, 1, size, size, generator=generator),
    )


def resident(frames: FrameData) -> FrameData:
    rgba = torch.cat([frames.image_rgb, frames.fg_probability], dim=1).permute(0, 2, 3, 1)
    store = PixelStore.from_images(list((rgba * 255).round().to(torch.uint8)))
    return FrameData(cameras=frames.cameras, pixels=store)


def test_training_draws_rays_and_evaluation_renders_whole_views() -> None:
    module, frames = model(), photographs()
    assert module(resident(frames)).rendered.features.shape == (1, 64, 3)
    predictions = module.eval()(frames)
    assert predictions.images_render.shape == (1, 3, 16, 16)
    assert predictions.targets.rgb is not None and predictions.targets.rgb.shape == (1, 16, 16, 3)


def test_resident_pixels_and_images_are_the_same_targets() -> None:
    module, frames = model(raysampler=sampler(), n_train_target_views=0), photographs()
    rays = module.raysampler.draw(frames.cameras, resident(frames).pixels)
    from_store = module.targets(resident(frames), rays)
    from_images = module.targets(frames, rays)
    torch.testing.assert_close(from_store.rgb, from_images.rgb, atol=1 / 255, rtol=0)
    torch.testing.assert_close(from_store.fg_probability, from_images.fg_probability, atol=1 / 255, rtol=0)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"mask_images": False}, lambda rgb, a: rgb),
        ({"mask_threshold": 0.5}, lambda rgb, a: rgb * (a > 0.5)),
        (
            {"mask_threshold": None, "background": Background.COLOR, "bg_color": (1.0, 1.0, 1.0)},
            lambda rgb, a: rgb * a + 1 - a,
        ),
    ],
)
def test_photographs_are_composited_as_asked(options: dict, expected) -> None:
    frames = photographs(1)
    rgb = model(**options).eval()(frames).targets.rgb
    wanted = expected(frames.image_rgb, frames.fg_probability).permute(0, 2, 3, 1)
    torch.testing.assert_close(rgb, wanted)


def test_white_background_is_behind_the_scene_and_the_photograph() -> None:
    module = ball_model(background=Background.COLOR, bg_color=(1.0, 1.0, 1.0), mask_threshold=None)
    predictions = module(photographs(1))
    torch.testing.assert_close(predictions.images_render[0, :, 0, 0], torch.ones(3))
    assert predictions.masks_render[0, 0, 8, 8] == 1.0


def test_random_background_is_the_same_behind_both_and_only_while_training() -> None:
    module = ball_model(background=Background.RANDOM, bg_color=(0.0, 0.0, 0.0), mask_threshold=None)
    frames = resident(photographs())
    empty = torch.zeros_like(frames.pixels.rgba)
    frames = FrameData(cameras=frames.cameras, pixels=PixelStore(empty, frames.pixels.ends, frames.pixels.sizes_hw))
    predictions = module.train()(frames)
    missed = predictions.rendered.masks[..., 0] == 0
    torch.testing.assert_close(predictions.rendered.features[missed], predictions.targets.rgb[missed])
    assert predictions.targets.rgb.std() > 0.1
    assert module.eval()(photographs(1)).images_render[0, :, 0, 0].sum() == 0


def test_target_depth_is_turned_into_distance_along_the_ray() -> None:
    frames = photographs(1)
    frames = FrameData(cameras=frames.cameras, depth_map=torch.full((1, 1, 16, 16), 4.0))
    depth = ball_model()(frames).targets.depth
    # the pixel (15, 8) lies 7.5 and 0.5 pixels off the axis, at a focal length of 19.2
    expected = 4.0 * (1 + (7.5 / 19.2) ** 2 + (0.5 / 19.2) ** 2) ** 0.5
    assert depth[0, 8, 15].item() == pytest.approx(expected, rel=1e-5)


def test_rendered_depth_agrees_with_the_balls_surface() -> None:
    module = ball_model(chunk_size_grid=999, share_implicit_function_across_passes=True)
    predictions = module(photographs(1, size=17))
    # the central pixel of an odd image looks at the centre: the ball of radius 1 is met at distance 3
    assert predictions.depths_normalized[0, 0, 8, 8].item() == pytest.approx(3.0, abs=0.15)
    assert predictions.disparities_render[0, 0, 8, 8].item() == pytest.approx(1 / 3.0, abs=0.02)
    assert predictions.disparities_render[0, 0, 0, 0].item() == 0.0


def test_views_are_rendered_at_a_size_that_is_set() -> None:
    module = ball_model(render_image_height=8, render_image_width=4)
    predictions = module(photographs(1))
    assert predictions.images_render.shape == (1, 3, 8, 4)
    assert predictions.targets.rgb.shape == (1, 8, 4, 3)


def test_objective_is_the_weighted_sum_of_its_losses() -> None:
    module = model(
        loss_weights={"loss_rgb_mse": 2.0, "loss_mask_bce": 0.5, "loss_prev_stage_rgb_mse": 0.25},
        share_implicit_function_across_passes=True,
    )
    metrics = module(resident(photographs())).metrics
    expected = 2 * metrics["loss_rgb_mse"] + 0.5 * metrics["loss_mask_bce"] + 0.25 * metrics["loss_prev_stage_rgb_mse"]
    torch.testing.assert_close(metrics["objective"], expected)


def test_gradients_reach_both_passes() -> None:
    module = model(coarse_implicit_function=TINY)
    module(resident(photographs())).objective.backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, name


def test_n_train_target_views() -> None:
    module = model(raysampler=sampler(n_rays_total_training=None, n_rays_per_image_sampled_from_mask=8))
    assert module(photographs()).rendered.features.shape == (1, 8, 3)
    module.n_train_target_views = 0
    assert module(photographs()).rendered.features.shape == (3, 8, 3)


def test_a_misspelt_loss_is_refused_and_an_absent_one_is_a_notice() -> None:
    with pytest.raises(ConfigError, match="loss_rgb_mse"):
        model(loss_weights={"loss_rgb_mes": 1.0})
    module = model(loss_weights={"loss_rgb_mse": 1.0, "loss_eikonal": 0.1}, log_vars=("loss_kl",))
    notices = module.check_data(FrameContents())
    assert any("loss_eikonal" in n for n in notices) and any("loss_kl" in n for n in notices)


def test_only_names_that_were_asked_for_are_a_notice_in_log_vars() -> None:
    def silent(log_vars: tuple[str, ...]) -> list[str]:
        notices = model(log_vars=log_vars).check_data(FrameContents())
        return [notice for notice in notices if notice.startswith("log_vars: ")]

    assert "loss_eikonal" in DEFAULT_LOG_VARS and silent(DEFAULT_LOG_VARS) == []
    (notice,) = silent((*DEFAULT_LOG_VARS, "loss_kl"))
    assert "loss_eikonal" in notice and "loss_kl" in notice


def test_a_loss_that_the_data_has_nothing_for_is_one_notice() -> None:
    module = model(
        loss_weights={"loss_rgb_mse": 1.0, "loss_depth_abs": 1.0, "loss_mask_bce": 0.5}, log_vars=("loss_rgb_mse",)
    )
    everything = FrameContents()
    assert module.check_data(everything) == ()
    (notice,) = module.check_data(replace(everything, depth_map=False))
    assert notice.startswith("loss_weights.loss_depth_abs: ")
    (notice,) = module.check_data(replace(everything, fg_probability=False))
    assert notice.startswith("loss_weights.loss_mask_bce: ")


def test_a_resident_scene_is_not_rendered_whole_in_each_step() -> None:
    module = model(sampling_mode_training=RenderSamplingMode.full_grid)
    assert not any("sampling_mode" in notice for notice in module.check_data(FrameContents()))
    with pytest.raises(ConfigError, match="sampling_mode_training: full_grid on a resident scene"):
        module.check_data(FrameContents(is_resident=True))


def test_rays_per_image_of_a_resident_scene_are_a_notice() -> None:
    module = model(
        raysampler=sampler(n_rays_total_training=None, n_rays_per_image_sampled_from_mask=8), log_vars=("objective",)
    )
    weights = {"loss_rgb_mse": 1.0}
    module.loss_weights = weights
    assert module.check_data(FrameContents()) == ()
    (notice,) = module.check_data(FrameContents(is_resident=True))
    assert "set n_rays_total_training=8" in notice


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"bg_color": (1.0, 1.0)}, r"bg_color: \[1.0, 1.0\], expected 3 values"),
        ({"render_features_dimensions": 4}, "render_features_dimensions: 4, expected 3"),
        ({"sampling_mode_evaluation": RenderSamplingMode.mask_sample}, "sampling_mode_evaluation: mask_sample"),
        ({"bg_color": (1.0, 1.0, 1.0)}, "set background: COLOR"),
        ({"background": Background.RANDOM, "mask_images": False}, "set mask_images: true"),
        (
            {"renderer": Factory.of(MultiPassEmissionAbsorptionRenderer, n_pts_per_ray_fine_training=0)},
            "n_pts_per_ray_fine_training: 0, expected at least 1",
        ),
        (
            {
                "renderer": Factory.of(
                    MultiPassEmissionAbsorptionRenderer, raymarcher=EmissionAbsorptionRaymarcher(bg_color=(0.0, 0.0))
                )
            },
            "bg_color of the raymarcher: ",
        ),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict, line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        model(**options)


def test_backgrounds_that_agree_are_taken() -> None:
    white = Factory.of(MultiPassEmissionAbsorptionRenderer, raymarcher=EmissionAbsorptionRaymarcher(bg_color=(1.0,)))
    model(renderer=white, bg_color=(1.0, 1.0, 1.0))
    model(mask_images=False, bg_color=(1.0, 1.0, 1.0))


@pytest.mark.parametrize("n", [1, 2])
def test_refinement_needs_three_coarse_samples(n: int) -> None:
    few = sampler(n_pts_per_ray_training=n)
    assert model(raysampler=few)(resident(photographs())).objective.isfinite()
    with pytest.raises(ConfigError, match=f"n_pts_per_ray_training .* {n}, expected at least 3 for 2 passes"):
        model(raysampler=few, coarse_implicit_function=TINY)
    enough = model(raysampler=sampler(n_pts_per_ray_training=3), coarse_implicit_function=TINY)
    assert enough(resident(photographs())).objective.isfinite()


class SinglePassField(BallField):
    """Can't be evaluated twice."""

    @property
    def allows_multiple_passes(self) -> bool:
        return False


def test_a_field_of_one_pass_is_refused_in_two() -> None:
    once = Factory.of(SinglePassField)
    model(implicit_function=once)
    with pytest.raises(ConfigError, match="SinglePassField can't be evaluated at samples that another pass placed"):
        model(implicit_function=once, share_implicit_function_across_passes=True)
    with pytest.raises(ConfigError, match="found 2 passes"):
        model(implicit_function=once, coarse_implicit_function=TINY)


def test_photographs_without_alpha_say_nothing_of_the_foreground() -> None:
    module, frames = model(), photographs()
    opaque = resident(frames)
    opaque = replace(opaque, pixels=replace(opaque.pixels, has_alpha=False))
    metrics = module(opaque).metrics
    assert "loss_rgb_mse" in metrics and "loss_mask_bce" not in metrics
    targets = module.targets(opaque, module.raysampler.draw(frames.cameras, opaque.pixels))
    assert targets.fg_probability is None


def test_a_trained_model_fits_its_scene() -> None:
    """A few hundred steps on pictures of a ball leave an error far below that of the best single colour."""
    with torch.no_grad():
        views = [ball_model()(photographs(6)[i : i + 1]) for i in range(6)]
    frames = FrameData(
        cameras=orbit(6),
        image_rgb=torch.cat([v.images_render for v in views]),
        fg_probability=torch.cat([v.masks_render for v in views]).clamp(0, 1),
    )
    module = model(raysampler=sampler(n_rays_total_training=256, min_depth=2.5, max_depth=5.5))
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    scene = resident(frames)
    for _ in range(200):
        optimizer.zero_grad()
        module(scene).objective.backward()
        optimizer.step()
    with torch.no_grad():
        error = module.eval()(frames[:1]).metrics["loss_rgb_mse"]
    assert frames.image_rgb.var() > 10 * error


def test_a_renderer_that_returns_something_else_is_told_so() -> None:
    module = model()
    module._renderer.forward = lambda *_: torch.zeros(1)
    with pytest.raises(ConfigError, match="forward returned a Tensor, expected a RendererOutput"):
        module(resident(photographs()))


def test_a_training_step_makes_pictures_of_its_rays_where_asked_for() -> None:
    frames = photographs(size=16)
    shown = model(output_rasterized_mc=True, n_train_target_views=2)(frames).rasterize
    assert shown is not None
    pictures = shown()
    assert pictures.features.shape == (2, 16, 16, 3) and pictures.depths.shape == (2, 16, 16, 1)
    assert not pictures.features.requires_grad and pictures.features.abs().sum() > 0
    assert model()(frames).rasterize is None
    assert model(output_rasterized_mc=True).eval()(frames).rasterize is None
    assert model(output_rasterized_mc=True)(resident(frames)).rasterize is None


def test_the_forward_reads_as_the_method_and_models_stay_short() -> None:
    assert len(inspect.getsource(RayModel.forward).splitlines()) <= 40
    files = (inspect.getsourcefile(GenericModel), inspect.getsourcefile(OverfitModel))
    assert sum(len(Path(str(file)).read_text().splitlines()) for file in files) <= 350
