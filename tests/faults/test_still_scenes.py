"""Row 43: scenes that there is little to learn from.

All-white and all-black images, identical poses, rays of no weight and a perfect prediction have finite losses and
gradients, and what is infinite, as the PSNR of a perfect prediction, is written as JSON that any parser reads.
"""

import json
import math
from pathlib import Path

import pytest
import torch

from nerf_trainer.config import Factory
from nerf_trainer.evaluation.evaluator import IMAGES_FILE, RESULTS_FILE, ImplicitronEvaluator
from nerf_trainer.evaluation.lpips import LpipsNet
from nerf_trainer.experiment import Experiment
from nerf_trainer.fields.nerf import NeuralRadianceFieldImplicitFunction
from nerf_trainer.losses.view_metrics import ViewMetrics
from nerf_trainer.models.generic import GenericModel
from nerf_trainer.rays.samplers import AdaptiveRaySampler
from nerf_trainer.renderers.base import RendererOutput
from nerf_trainer.training.loop import ImplicitronTrainingLoop
from nerf_trainer.training.metrics_log import MetricsLog, read_rows
from nerf_trainer.training.model_factory import ImplicitronModelFactory
from nerf_trainer.training.optimizer_factory import ImplicitronOptimizerFactory
from nerf_trainer.training.skipped_steps import FILE_NAME
from tests.faults.counts import Fault
from tests.faults.still_scenes import Still

WHITE, BLACK = ((1.0, 1.0, 1.0),), ((0.0, 0.0, 0.0),)
SCENES = {
    "white": {"colors": WHITE},
    "black": {"colors": BLACK},
    "white and black in turn": {"colors": WHITE + BLACK},
    "one pose": {"n_poses": 1, "colors": ((0.3, 0.6, 0.9),)},
    "no foreground": {"foreground": 0.0},
    "nothing but padding": {"crop": 0.0},
}
WEIGHTS = {"loss_rgb_mse": 1.0, "loss_rgb_huber": 1.0, "loss_mask_bce": 0.1, "loss_autodecoder_norm": 0.0}


def refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def strict(line: str) -> object:
    """What a parser reads that keeps to the standard, which has no NaN and no Infinity."""
    return json.loads(line, parse_constant=refuse)


def assert_strict(folder: Path) -> None:
    strict((folder / RESULTS_FILE).read_text())
    strict((folder / "status.json").read_text())
    for name in ("metrics.jsonl", IMAGES_FILE):
        lines = (folder / name).read_text().splitlines()
        assert lines and all(isinstance(strict(line), dict) for line in lines)


@pytest.mark.fault(row=43)
@pytest.mark.parametrize("name", SCENES)
def test_there_are_finite_losses_where_there_is_little_to_learn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("nerf_trainer.training.stats.draw_train_stats", lambda history, folder: ())
    network = {"n_hidden_neurons_xyz": 8, "n_hidden_neurons_dir": 8, "n_layers_xyz": 1, "append_xyz": ()}
    model = Factory.of(
        GenericModel,
        implicit_function=Factory.of(NeuralRadianceFieldImplicitFunction, **network),
        raysampler=AdaptiveRaySampler(
            n_rays_per_image_sampled_from_mask=16,
            n_pts_per_ray_training=8,
            n_pts_per_ray_evaluation=8,
            scene_extent=1.5,
        ),
        loss_weights=WEIGHTS,
        log_vars=(),
    )
    Experiment(
        exp_dir=str(tmp_path),
        data_source=Still(**SCENES[name]),
        model_factory=ImplicitronModelFactory(model=model),
        optimizer_factory=ImplicitronOptimizerFactory(lr=0.01),
        training_loop=ImplicitronTrainingLoop(
            evaluator=ImplicitronEvaluator(lpips_net=LpipsNet.none),
            max_epochs=3,
            metric_print_interval=1,
            test_when_finished=True,
            visdom_server="",
        ),
    ).run()
    rows = list(read_rows(tmp_path / "metrics.jsonl"))
    trained = [row for row in rows if row["split"] == "train"]
    assert len(trained) == 12 and not (tmp_path / FILE_NAME).exists(), "no step was left out"
    assert all(math.isfinite(row["objective"]) and math.isfinite(row["grad_norm"]) for row in trained)
    assert_strict(tmp_path)


def compared(rgb: torch.Tensor, target: torch.Tensor, crop: float) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """All metrics of one view, and the gradient of those that are finite, where each alone is differentiable."""
    rgb = rgb.clone().requires_grad_()
    masks = torch.ones(*rgb.shape[:-1], 1)
    rendered = RendererOutput(features=rgb, depths=masks, masks=masks)
    metrics = ViewMetrics()(
        rendered, rgb=target, fg_probability=masks, depth=masks, mask_crop=torch.full_like(masks, crop), wanted=None
    )
    losses = [value for value in metrics.values() if value.requires_grad and value.isfinite()]
    (gradient,) = torch.autograd.grad(torch.stack(losses).sum(), rgb)
    return metrics, gradient


@pytest.mark.fault(row=43)
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_a_perfect_prediction(fault: Fault, tmp_path: Path, value: float) -> None:
    fault.times(1, quick=1)
    picture = torch.full((1, 6, 6, 3), value)
    metrics, gradient = compared(picture, picture, crop=1.0)
    assert gradient.isfinite().all()
    assert metrics["loss_rgb_mse"] == 0.0 and metrics["loss_rgb_psnr"] > 60.0
    finite = {name for name, found in metrics.items() if found.isfinite()}
    assert {name for name in metrics if "psnr" not in name} <= finite
    row = {"step": 1, "split": "test", **{name: found.item() for name, found in metrics.items()}}
    MetricsLog(tmp_path).append(row)
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert isinstance(strict(line), dict) and list(read_rows(tmp_path / "metrics.jsonl")) == [row]
    fault.passed()


@pytest.mark.fault(row=43)
def test_rays_without_weight() -> None:
    metrics, gradient = compared(torch.rand(1, 6, 6, 3), torch.rand(1, 6, 6, 3), crop=0.0)
    assert gradient.isfinite().all()
    assert all(value.isfinite() for name, value in metrics.items() if "psnr" not in name)


@pytest.mark.fault(row=43)
@pytest.mark.parametrize(
    ("value", "written"), [(math.inf, '"inf"'), (-math.inf, '"-inf"'), (math.nan, '"nan"'), (31.5, "31.5")]
)
def test_what_is_not_finite_is_json(tmp_path: Path, value: float, written: str) -> None:
    MetricsLog(tmp_path).append({"step": 1, "psnr": value})
    text = (tmp_path / "metrics.jsonl").read_text()
    strict(text)
    assert text == f'{{"step": 1, "psnr": {written}}}\n'
