"""ModelDBIR, on a textured ball that is traced by arithmetic: its depth is exact."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.config import Factory, build, defaults
from nerf_trainer.data.blender import BlenderDatasetMapProvider
from nerf_trainer.data.loader_maps import SequenceDataLoaderMapProvider
from nerf_trainer.data.source import ImplicitronDataSource
from nerf_trainer.errors import ConfigError, DataError
from nerf_trainer.evaluation.evaluator import ImplicitronEvaluator
from nerf_trainer.evaluation.lpips import LpipsNet
from nerf_trainer.evaluation.view_synthesis import evaluate_view
from nerf_trainer.experiment import Experiment
from nerf_trainer.frames import FrameData
from nerf_trainer.losses.functions import mse, psnr
from nerf_trainer.models.dbir import ModelDBIR, _cosines, _resized
from nerf_trainer.models.photographs import at_rays
from nerf_trainer.rays.samplers import NearFarRaySampler
from nerf_trainer.training.loop import ImplicitronTrainingLoop
from nerf_trainer.training.model_factory import ImplicitronModelFactory
from tests.scene_kit import orbit

SIZE = 96
DATA = "data_source_ImplicitronDataSource_args"
LOOP = "training_loop_ImplicitronTrainingLoop_args"
DEPTH_SCALE = 4e-4
"""World units of a step of the depth images."""


def ball(cameras: Cameras) -> FrameData:
    """A unit ball at the origin, a smooth colour at every point: |o + t d|^2 = 1, the nearer t."""
    size = SIZE
    y, x = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    xy = torch.stack([x, y], dim=-1).expand(len(cameras), size, size, 2)
    index = torch.arange(len(cameras))[:, None, None].expand(-1, size, size)
    origins, directions = cameras.pixel_rays(xy, index)
    b = (origins * directions).sum(dim=-1)
    root = b.square() - origins.square().sum(dim=-1) + 1.0
    hit = root > 0.0
    distance = torch.where(hit, -b - root.clamp(min=0.0).sqrt(), 0.0)
    points = origins + distance[..., None] * directions
    rgb = (0.5 + 0.4 * torch.sin(3.0 * points)) * hit[..., None]
    depth = distance * (directions * cameras.forward_axes[:, None, None]).sum(dim=-1)
    return FrameData(
        cameras=cameras,
        image_rgb=rgb.permute(0, 3, 1, 2),
        fg_probability=hit[:, None].float(),
        depth_map=depth[:, None],
        depth_mask=hit[:, None].float(),
    )


def model(**options: object) -> ModelDBIR:
    return ModelDBIR(**{"render_image_width": None, "render_image_height": None, **options}).eval()


def psnr_of(made: ModelDBIR, frames: FrameData) -> float:
    predictions = made(frames)
    assert predictions.targets.rgb is not None
    return psnr(mse(predictions.rendered.features, predictions.targets.rgb)).item()


@pytest.mark.parametrize("bg_color", [(0.0, 0.0, 0.0), (1.0, 0.5, 0.0)])
def test_a_view_of_the_ball_from_others(bg_color: tuple[float, float, float]) -> None:
    frames = ball(orbit(8, size=SIZE))
    predictions = model(bg_color=bg_color)(frames)
    rendered, targets = predictions.rendered, predictions.targets
    assert rendered.features.shape == (1, SIZE, SIZE, 3) and predictions.objective is None
    metrics = evaluate_view(predictions)
    assert metrics["psnr_full_image"] > 20.0 and metrics["psnr_fg"] > 24.0 and metrics["iou"] > 0.9, metrics
    assert rendered.features[0, 0, 0].tolist() == pytest.approx(bg_color)
    assert targets.rgb is not None and targets.rgb[0, 0, 0].tolist() == pytest.approx(bg_color)


def test_a_view_from_where_it_was_taken_is_itself() -> None:
    """Points on the centres of pixels, whose discs end at the next centres: colours, masks, distances along rays."""
    frames = ball(orbit(3, size=SIZE)[[1, 1]])
    predictions = model()(frames)
    rendered, targets = predictions.rendered, predictions.targets
    assert targets.rgb is not None and targets.depth is not None and targets.fg_probability is not None
    torch.testing.assert_close(rendered.features, targets.rgb, atol=1e-4, rtol=0.0)
    torch.testing.assert_close(rendered.masks, targets.fg_probability, atol=1e-4, rtol=0.0)
    torch.testing.assert_close(rendered.depths, targets.depth, atol=1e-3, rtol=0.0)
    nearest = torch.linalg.vector_norm(frames.cameras.centers[0]) - 1.0
    assert targets.depth[targets.depth > 0].min() == pytest.approx(float(nearest), abs=0.01)


def test_wrong_depth_is_seen() -> None:
    frames = ball(orbit(8, size=SIZE))
    assert frames.depth_map is not None
    right = psnr_of(model(), frames)
    wrong = [psnr_of(model(), replace(frames, depth_map=scale * frames.depth_map)) for scale in (0.85, 1.15)]
    assert right > 20.0 and right - max(wrong) > 4.0, (right, wrong)


def test_the_target_is_no_source() -> None:
    frames = ball(orbit(4, size=SIZE))
    assert frames.image_rgb is not None and frames.depth_map is not None
    others = replace(
        frames,
        image_rgb=torch.cat([torch.zeros_like(frames.image_rgb[:1]), frames.image_rgb[1:]]),
        depth_map=torch.cat([torch.zeros_like(frames.depth_map[:1]), frames.depth_map[1:]]),
    )
    assert torch.equal(model()(frames).rendered.features, model()(others).rendered.features)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, lambda rgb, a: torch.where(a > 0.5, rgb, 1.0)),
        ({"mask_threshold": 0.2}, lambda rgb, a: torch.where(a > 0.2, rgb, 1.0)),
        ({"mask_threshold": None}, lambda rgb, a: rgb * a + (1.0 - a)),
        ({"mask_images": False}, lambda rgb, a: rgb),
    ],
    ids=["by default", "lower", "blended", "as they are"],
)
def test_photographs_are_masked_as_by_models_that_render_rays(options: dict, expected: Callable) -> None:
    frames = ball(orbit(3, size=SIZE))
    assert frames.image_rgb is not None and frames.depth_map is not None
    alpha = torch.linspace(0.0, 1.0, SIZE).expand(3, 1, SIZE, SIZE)
    targets = model(bg_color=(1.0, 1.0, 1.0), **options)(replace(frames, fg_probability=alpha)).targets
    rgb, depth, a = (im[:1].permute(0, 2, 3, 1) for im in (frames.image_rgb, frames.depth_map, alpha))
    torch.testing.assert_close(targets.rgb, expected(rgb, a))
    assert targets.depth is not None and torch.equal(targets.depth > 0, (depth > 0) & (a > 0.5))


@pytest.mark.parametrize("name", ["fg_probability", "depth_mask", "mask_crop"])
def test_masked_pixels_are_no_points(name: str) -> None:
    frames = ball(orbit(4, size=SIZE))
    mask = torch.ones_like(frames.fg_probability)
    mask[1:] = 0.0
    assert model()(replace(frames, **{name: mask})).rendered.masks.max() == 0.0
    assert model()(replace(frames, **{name: None})).rendered.masks.max() > 0.99


def test_at_most_so_many_points() -> None:
    frames = ball(orbit(4, size=SIZE))
    few = model(max_points=5)
    masks = few(frames).rendered.masks
    assert 0 < (masks > 0).sum() <= 5 * 4 and not torch.equal(masks, few(frames).rendered.masks), "drawn anew each time"
    assert torch.equal(masks, model(max_points=5)(frames).rendered.masks), "from a generator of its own"
    assert torch.equal(model(max_points=10**6)(frames).rendered.masks, model()(frames).rendered.masks)


@pytest.mark.parametrize("size_hw", [(44, 44), (160, 160), (64, 80)])
def test_other_sizes(size_hw: tuple[int, int]) -> None:
    """Targets as models that render rays have them; renderings without holes."""
    frames = ball(orbit(8, size=SIZE))
    predictions = model(render_image_height=size_hw[0], render_image_width=size_hw[1])(frames)
    rays = NearFarRaySampler().grid(frames.cameras[:1], size_hw, with_lengths=False)
    for image, mode, ours in (
        (frames.image_rgb, "bilinear", "bilinear"),
        (frames.depth_map, "nearest", "nearest-exact"),
    ):
        assert image is not None
        differ = (_resized(image[:1], size_hw, ours) - at_rays(image[:1], rays, mode)).abs() > 1e-5
        assert differ.float().mean() < 0.04, "but for the nearest of two pixels that are equally near"
    cosines = (rays.directions * frames.cameras.forward_axes[0]).sum(dim=-1, keepdim=True)
    torch.testing.assert_close(_cosines(frames.cameras[:1], size_hw), cosines)
    metrics = evaluate_view(predictions)
    assert predictions.rendered.features.shape == (1, *size_hw, 3)
    assert metrics["psnr_full_image"] > 17.0 and metrics["iou"] > 0.85, metrics
    assert frames.fg_probability is not None
    inner = _resized(frames.fg_probability[:1], size_hw) == 1.0
    assert (predictions.rendered.masks[inner] > 0.5).float().mean() > 0.97


def test_the_default_size_is_the_references() -> None:
    assert ModelDBIR()(ball(orbit(2, size=SIZE))).rendered.features.shape == (1, 256, 256, 3)


def test_under_autocast() -> None:
    frames = ball(orbit(4, size=SIZE))
    expected = model()(frames).rendered
    with torch.autocast("cpu", torch.bfloat16):
        rendered = model()(frames).rendered
    torch.testing.assert_close(rendered.features, expected.features)
    torch.testing.assert_close(rendered.depths, expected.depths)


def test_what_is_missing_is_said() -> None:
    frames = ball(orbit(3, size=SIZE))
    assert frames.depth_map is not None
    with pytest.raises(DataError, match=r"without source views.*n_known_frames_for_test=N"):
        model()(frames[:1])
    with pytest.raises(DataError, match=r"without depth.*load_depth=true"):
        model()(replace(frames, depth_map=None))
    of_target_alone = torch.cat([frames.depth_map[:1], torch.zeros_like(frames.depth_map[1:])])
    with pytest.raises(DataError, match="without depth"):
        model()(replace(frames, depth_map=of_target_alone))
    with pytest.raises(DataError, match="without images"):
        model()(replace(frames, image_rgb=None))


@pytest.mark.parametrize(
    "options", [{"render_image_width": 0}, {"render_image_height": -1}, {"point_radius": 0.0}], ids=str
)
def test_options_that_make_no_sense_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        ModelDBIR(**options)


def write_scene(root: Path) -> None:
    """The ball in Blender format: 12 training and 3 test views on circles of different heights."""
    for split, n, distance in (("train", 12, 4.0), ("test", 3, 3.6)):
        cameras = orbit(n, distance=distance, size=SIZE)
        frames = ball(cameras)
        assert frames.image_rgb is not None and frames.fg_probability is not None and frames.depth_map is not None
        (root / split).mkdir(parents=True)
        poses = torch.eye(4).repeat(n, 1, 1)
        poses[:, :3, :3] = torch.stack([cameras.R[:, 0], -cameras.R[:, 1], -cameras.R[:, 2]], dim=-1)
        poses[:, :3, 3] = cameras.centers
        rgba = torch.cat([frames.image_rgb, frames.fg_probability], dim=1).permute(0, 2, 3, 1)
        names = [f"{split}/r_{i}" for i in range(n)]
        content = {
            "camera_angle_x": 2.0 * math.atan(0.5 * SIZE / float(cameras.focal[0, 0])),
            "frames": [
                {"file_path": f"./{name}", "transform_matrix": pose.tolist()}
                for name, pose in zip(names, poses, strict=True)
            ],
        }
        (root / f"transforms_{split}.json").write_text(json.dumps(content))
        for i, name in enumerate(names):
            Image.fromarray((rgba[i] * 255).round().to(torch.uint8).numpy()).save(root / f"{name}.png")
            steps = (frames.depth_map[i, 0] / DEPTH_SCALE).round().numpy().astype(np.uint16)
            Image.fromarray(steps).save(root / f"{name}_depth.png")
    (root / "meta.json").write_text(json.dumps({"depth_scale": DEPTH_SCALE}))


def experiment(root: Path, name: str, n_known: int = 8, load_depth: bool = True, eval_only: bool = True) -> Experiment:
    """The scene in `root`, evaluated into the folder `name` beside it."""
    scene = BlenderDatasetMapProvider(
        base_dir=str(root), object_name="ball", n_known_frames_for_test=n_known, load_depth=load_depth
    )
    sizes = {"render_image_width": None, "render_image_height": None}
    return Experiment(
        exp_dir=str(root.parent / name),
        data_source=ImplicitronDataSource(
            dataset_map_provider=scene, data_loader_map_provider=SequenceDataLoaderMapProvider()
        ),
        model_factory=ImplicitronModelFactory(model=Factory.of(ModelDBIR, **sizes)),
        training_loop=ImplicitronTrainingLoop(
            evaluator=ImplicitronEvaluator(lpips_net=LpipsNet.none), eval_only=eval_only, visualize_interval=0
        ),
    )


def results(folder: Path) -> dict[str, float]:
    (row,) = json.loads((folder / "results_test.json").read_text())
    assert (row["subset"], row["n_views"], row["step"], row["eval_epoch"]) == ("test", 3, 0, 0)
    return row["metrics"]


def test_a_whole_evaluation_without_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From a configuration, as the command builds it; then with depth that is a fifth too large."""
    write_scene(tmp_path / "ball")
    overrides = (
        f"exp_dir={tmp_path / 'right'}",
        "model_factory_ImplicitronModelFactory_args.model_class_type=ModelDBIR",
        "model_factory_ImplicitronModelFactory_args.model_ModelDBIR_args.render_image_width=null",
        "model_factory_ImplicitronModelFactory_args.model_ModelDBIR_args.render_image_height=null",
        f"{DATA}.dataset_map_provider_class_type=BlenderDatasetMapProvider",
        f"{DATA}.data_loader_map_provider_class_type=SequenceDataLoaderMapProvider",
        f"{DATA}.dataset_map_provider_BlenderDatasetMapProvider_args.base_dir={tmp_path / 'ball'}",
        f"{DATA}.dataset_map_provider_BlenderDatasetMapProvider_args.object_name=ball",
        f"{DATA}.dataset_map_provider_BlenderDatasetMapProvider_args.n_known_frames_for_test=8",
        f"{LOOP}.evaluator_ImplicitronEvaluator_args.lpips_net=none",
        f"{LOOP}.eval_only=true",
    )
    config = OmegaConf.merge(defaults(Experiment), OmegaConf.from_dotlist(list(overrides)))
    build(Experiment, config).run(config)
    right = results(tmp_path / "right")
    assert "0 parameters" in capsys.readouterr().out
    assert right["psnr_full_image"] > 20.0 and right["psnr_fg"] > 24.0 and right["depth_abs_fg"] < 0.15, right
    (tmp_path / "ball" / "meta.json").write_text(json.dumps({"depth_scale": 1.2 * DEPTH_SCALE}))
    experiment(tmp_path / "ball", "wrong").run()
    wrong = results(tmp_path / "wrong")
    assert right["psnr_full_image"] - wrong["psnr_full_image"] > 4.0, (right, wrong)


def test_a_run_says_what_is_missing_and_trains_nothing(tmp_path: Path) -> None:
    root = tmp_path / "ball"
    write_scene(root)
    with pytest.raises(DataError, match="n_known_frames_for_test"):
        experiment(root, "run", n_known=0).run()
    with pytest.raises(DataError, match="load_depth"):
        experiment(root, "run", load_depth=False).run()
    with pytest.raises(ConfigError, match="ModelDBIR has no parameters to train; set eval_only=true"):
        experiment(root, "run", eval_only=False).run()


def test_it_renders_no_camera_path_by_itself():
    assert ModelDBIR().looks_at_source_views
