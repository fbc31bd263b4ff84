"""The X-ray plug-in: its integral against closed forms, and a training through the command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from examples.xray_renderer import XRayRenderer
from examples.xray_scene import write_scene
from nerf_trainer.config import Factory
from nerf_trainer.errors import ConfigError
from nerf_trainer.fields.base import BoundField, FieldInputs, FieldSpec
from nerf_trainer.frames import FrameData
from nerf_trainer.models.overfit import OverfitModel
from nerf_trainer.rays.samplers import NearFarRaySampler
from nerf_trainer.renderers.base import EvaluationMode, RendererOutput, RendererSpec
from tests.scene_kit import BallField, orbit, straight_rays

SOURCE = "data_source_ImplicitronDataSource_args.dataset_map_provider_BlenderDatasetMapProvider_args"


def ball(density: float) -> BoundField:
    """A ball of radius 1 around the origin."""
    return BoundField(BallField(spec=FieldSpec(), density=density), FieldInputs())


def render(n_pts_per_ray: int, mode: EvaluationMode = EvaluationMode.EVALUATION, **options: float) -> RendererOutput:
    renderer = XRayRenderer(spec=RendererSpec(color_dim=3), n_pts_per_ray=n_pts_per_ray)
    return renderer(straight_rays(2000), [ball(**options)], mode)


def test_beer_lambert() -> None:
    """Straight rays start in the middle of the ball and leave it after 1 of 4 units."""
    output = render(64, density=0.8)
    torch.testing.assert_close(output.features, torch.full((1, 2000, 3), 1.0 - np.exp(-0.8)).float())
    torch.testing.assert_close(output.masks, output.features[..., :1])
    assert output.weights is not None
    torch.testing.assert_close(output.weights.sum(-1, keepdim=True), output.masks)


def test_depth_is_where_rays_were_stopped() -> None:
    """The first moment of exp(-sigma t) sigma over [0, 1]: (1 - (1 + sigma) exp(-sigma)) / sigma."""
    expected = (1.0 - 1.8 * np.exp(-0.8)) / 0.8
    torch.testing.assert_close(
        render(4096, density=0.8).depths[0, 0], torch.tensor([expected]).float(), rtol=1e-3, atol=0
    )


def test_training_draws_anew_and_has_the_right_mean() -> None:
    """Five strata over 4 units: 1 and a quarter of them are inside, the second with probability 1/4."""
    output = render(5, EvaluationMode.TRAINING, density=0.8)
    thickness = -torch.log1p(-output.masks)
    torch.testing.assert_close(thickness.unique().sort().values, torch.tensor([0.64, 1.28]), rtol=1e-4, atol=0)
    # 2,000 rays: the mean's standard deviation is 0.64 sqrt(3 / 16 / 2000) = 0.0062.
    assert abs(thickness.mean().item() - 0.8) < 0.025
    again = XRayRenderer(spec=RendererSpec(), n_pts_per_ray=5)
    first, second = (again(straight_rays(50), [ball(0.8)], EvaluationMode.TRAINING).lengths for _ in range(2))
    assert not torch.equal(first, second)


def test_evaluation_is_repeatable_and_even() -> None:
    output = render(4, density=0.8)
    torch.testing.assert_close(output.lengths[0, 7], torch.tensor([0.5, 1.5, 2.5, 3.5]))


def test_a_model_gives_it_rays_without_samples() -> None:
    model = OverfitModel(
        raysampler=NearFarRaySampler(min_depth=2.0, max_depth=6.0, n_rays_total_training=32, n_pts_per_ray_training=9),
        renderer=Factory.of(XRayRenderer, n_pts_per_ray=16),
        implicit_function=Factory.of(BallField),
        chunk_size_grid=100,
    )
    frames = FrameData(cameras=orbit(2), image_rgb=torch.rand(2, 3, 16, 16))
    trained = model(frames).rendered
    assert trained.lengths is not None and trained.lengths.shape == (1, 32, 16)
    evaluated = model.eval()(frames)
    assert evaluated.images_render.shape == (1, 3, 16, 16)
    model.chunk_size_grid = 1_000_000
    torch.testing.assert_close(model(frames).images_render, evaluated.images_render)


def test_wrong_numbers_are_refused() -> None:
    with pytest.raises(ConfigError, match="n_pts_per_ray: 0; expected at least 1"):
        XRayRenderer(spec=RendererSpec(), n_pts_per_ray=0)
    with pytest.raises(ValueError, match="needs a field"):
        XRayRenderer(spec=RendererSpec())(straight_rays())


def brightness(folder: Path, split: str) -> np.ndarray:
    files = sorted((folder / split).glob("*.png"))
    return np.stack([np.asarray(Image.open(file), np.float64)[..., 0] / 255 for file in files])


def test_it_learns_a_scene_from_its_radiographs(repository: Path, tmp_path: Path) -> None:
    """As the recipe, with a quarter of its steps; held-out views are far better than the mean of the others."""
    scene = tmp_path / "scene"
    write_scene(scene)
    squared = (brightness(scene, "test") - brightness(scene, "train").mean(0)) ** 2
    assert (-10.0 * np.log10(squared.mean((1, 2)))).mean() < 15.0
    words = ["--config-dir", str(repository / "examples"), "--config-name", "xray", "max_epochs=1"]
    words += [f"exp_dir={tmp_path / 'run'}", f"{SOURCE}.base_dir={scene}"]
    done = subprocess.run(
        [sys.executable, "-m", "nerf_trainer.experiment", *words],
        cwd=repository,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    test = next(row for row in rows if row["split"] == "test")
    assert test["psnr_full_image"] > 20.0
