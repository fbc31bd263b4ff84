"""Renderings without photographs, and what is shown of them."""

import contextlib

import pytest
import torch

from nerf_trainer.config import Factory
from nerf_trainer.data.blender import BlenderDatasetMapProvider
from nerf_trainer.data.multi_scene import JoinedDataset
from nerf_trainer.models.base import Predictions, Targets
from nerf_trainer.models.overfit import OverfitModel
from nerf_trainer.rays.samplers import NearFarRaySampler
from nerf_trainer.renderers.base import RendererOutput
from nerf_trainer.visualization.flyaround import ViewPictures, depth_range, filmed, pictures, render_views
from tests.data.conftest import BlenderScene
from tests.scene_kit import BallField, orbit


def ball_model() -> OverfitModel:
    sampler = NearFarRaySampler(min_depth=2.0, max_depth=6.0, n_pts_per_ray_evaluation=128)
    return OverfitModel(raysampler=sampler, implicit_function=Factory.of(BallField))


def rendered(model, cameras):
    return list(render_views(model, cameras, "cpu", contextlib.nullcontext, "one_sequence"))


def predictions(features, depths, masks) -> Predictions:
    output = RendererOutput(features=features[None], depths=depths[None, ..., None], masks=masks[None, ..., None])
    return Predictions(rendered=output, targets=Targets())


def test_a_model_renders_cameras_alone():
    model = ball_model().train()
    views = rendered(model, orbit(3, distance=4.0, size=16))
    assert len(views) == 3
    for view in views:
        assert view.images_render.shape == (1, 3, 16, 16)
        # The ball of radius 1 fills the middle, 4 away: its front is at 3.
        assert view.masks_render[0, 0, 8, 8] > 0.99
        assert view.masks_render[0, 0, 0, 0] == 0.0
        assert view.depths_normalized[0, 0, 8, 8] == pytest.approx(3.05, abs=0.1)
        assert not view.images_render.requires_grad
    assert model.training


def test_the_mode_is_put_back_when_the_rendering_is_left():
    model = ball_model().train()
    views = render_views(model, orbit(3, size=4), "cpu", contextlib.nullcontext)
    next(views)
    assert not model.training
    views.close()
    assert model.training


def test_one_view_is_held_at_a_time():
    """Frames are rendered when asked for."""
    model, calls = ball_model(), []
    model.register_forward_hook(lambda *_: calls.append(None))
    views = render_views(model, orbit(5, size=4), "cpu", contextlib.nullcontext)
    for i in range(3):
        next(views)
        assert len(calls) == i + 1


def test_views_of_a_moving_scene_have_their_times():
    model, seen = ball_model(), []
    model.register_forward_hook(lambda _, given, __: seen.append((given[0].sequence_name, given[0].frame_timestamp)))
    times = torch.tensor([0.0, 0.5, 2.0])
    list(render_views(model, orbit(3, size=4), "cpu", contextlib.nullcontext, "walk", times))
    assert [(names, time.tolist()) for names, time in seen] == [(("walk",), [t]) for t in times.tolist()]


def test_what_was_filmed_of_a_sequence(tmp_path):
    scene = BlenderScene(tmp_path).add("train", 3).add("test", 2)
    load = BlenderDatasetMapProvider(base_dir=str(tmp_path), object_name="points").get_dataset_map
    cameras, times = filmed(load().train, "one_sequence")
    assert len(cameras) == 3 and times is None
    for frame, time in zip(scene.contents["train"]["frames"], (0.5, 2.0, 0.25), strict=True):
        frame["time"] = time
    scene.write("train")
    test, train = load().test, load().train
    joined = JoinedDataset({"walk": train, "run": train})
    cameras, times = filmed(joined, "run")
    assert torch.equal(cameras.T, train.cameras().T) and times == (0.25, 2.0)
    assert filmed(test, "one_sequence")[1] is None


def test_depths_of_all_views_give_one_range():
    model = ball_model()
    low, high = depth_range(iter(rendered(model, orbit(2, distance=4.0)) + rendered(model, orbit(2, distance=4.5))))
    assert 3.0 <= low < 3.2
    assert 4.0 < high < 4.6
    assert depth_range(iter(())) == (0.0, 1.0)


def test_pictures():
    # left: opaque, depth 2; right: half transparent, depth 4
    masks = torch.tensor([[1.0, 0.5]])
    depths = torch.tensor([[2.0, 0.5 * 4.0]])
    features = torch.tensor([[[1.0, 0.5, 0.0], [2.0, float("nan"), 0.2]]])
    shown = pictures(predictions(features, depths, masks), depths=(2.0, 4.0))
    assert shown.images_render.tolist() == [[[255, 128, 0], [255, 0, 51]]]
    assert shown.masks_render.tolist() == [[[255] * 3, [128] * 3]]
    dark, bright = torch.tensor([68, 1, 84]), torch.tensor([253, 231, 37])
    half = lambda color: (color + 255) / 2  # noqa: E731  (over white)
    assert torch.equal(shown.depths_render[0, 0], dark.byte())
    assert (shown.depths_render[0, 1] - half(bright)).abs().max() <= 1
    assert torch.equal(shown.disparities_render[0, 0], bright.byte())
    assert (shown.disparities_render[0, 1] - half(dark)).abs().max() <= 1
    assert [name for name, _ in shown.items()] == list(ViewPictures.names())


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_any_number_of_channels_is_shown(channels):
    features = torch.full((2, 2, channels), 0.5)
    shown = pictures(predictions(features, torch.ones(2, 2), torch.ones(2, 2)))
    assert shown.images_render.unique().tolist() == [128]


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_an_empty_or_broken_view_is_shown(value):
    flat = torch.full((2, 2), value)
    shown = pictures(predictions(torch.full((2, 2, 3), value), flat, flat))
    for _, picture in shown.items():
        assert picture.shape == (2, 2, 3)
