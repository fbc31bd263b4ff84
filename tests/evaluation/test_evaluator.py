"""A whole evaluation with a made-up model and loader: what is written, and what is left as it was."""

import errno
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.cameras.difficulty import camera_difficulty
from nerf_trainer.conditioning.feature_extractor import ResNetFeatureExtractor
from nerf_trainer.conditioning.view_pooler import ViewPooler
from nerf_trainer.config import Factory
from nerf_trainer.data.co3d.index import JsonIndexDataset
from nerf_trainer.data.co3d.v2 import JsonIndexDatasetMapProviderV2
from nerf_trainer.data.loaders import FrameLoader
from nerf_trainer.errors import ConfigError
from nerf_trainer.evaluation.evaluator import (
    IMAGES_FILE,
    RESULTS_FILE,
    EvaluationContext,
    ImplicitronEvaluator,
)
from nerf_trainer.evaluation.lpips import WEIGHTS_VARIABLE, LpipsNet
from nerf_trainer.evaluation.summaries import ResultRow
from nerf_trainer.evaluation.view_synthesis import ViewResult
from nerf_trainer.fields.nerf import NeuralRadianceFieldImplicitFunction
from nerf_trainer.frames import FrameData
from nerf_trainer.models.base import ImplicitronModelBase, Predictions, Targets
from nerf_trainer.models.generic import GenericModel
from nerf_trainer.rays.samplers import NearFarRaySampler
from nerf_trainer.renderers.base import RendererOutput
from tests.scene_kit import orbit

SIZE = 16
N_VIEWS = 7


def frame(number: int) -> FrameData:
    """A grey photograph, the brighter the higher its number."""
    cameras = Cameras(
        R=torch.eye(3)[None],
        T=torch.zeros(1, 3),
        focal=torch.ones(1, 2),
        principal_point=torch.zeros(1, 2),
        image_size_hw=torch.tensor([[SIZE, SIZE]]),
    )
    return FrameData(
        cameras=cameras,
        image_rgb=torch.full((1, 3, SIZE, SIZE), number / 10),
        sequence_name=("scene",),
        frame_number=(number,),
        frame_type=("unseen",),
        image_path=(f"views/r_{number}.png",),
    )


@dataclass
class Batches(FrameLoader):
    """These batches."""

    batches: list[FrameData]

    def __len__(self) -> int:
        return len(self.batches)

    def place(self, device: torch.device | str, seed: int, rank: int = 0, world_size: int = 1) -> None:
        raise AssertionError("an evaluation takes a loader that is placed")

    def steps(self, epoch: int, start: int = 0) -> Iterator[FrameData]:
        return iter(self.batches)


class Views(FrameLoader):
    """Every `world_size`-th of the views, from the last to the first."""

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        self.numbers = list(range(N_VIEWS))[::-1][rank::world_size]

    def __len__(self) -> int:
        return len(self.numbers)

    def place(self, device: torch.device | str, seed: int, rank: int = 0, world_size: int = 1) -> None:
        raise AssertionError("an evaluation takes a loader that is placed")

    def steps(self, epoch: int, start: int = 0) -> Iterator[FrameData]:
        return (frame(number) for number in self.numbers)


class Grey(ImplicitronModelBase):
    """Renders black, so that the error of view n is n / 10."""

    fails: bool = False

    def __post_init__(self) -> None:
        self.frozen = torch.nn.Dropout().eval()
        self.parameter = torch.nn.Parameter(torch.zeros(()))

    def forward(self, frames: FrameData) -> Predictions:
        assert not self.training and not torch.is_grad_enabled()
        if self.fails:
            raise RuntimeError("no picture today")
        assert frames.image_rgb is not None
        rgb = frames.image_rgb[:1].permute(0, 2, 3, 1)
        black = torch.zeros_like(rgb) + self.parameter
        ones = torch.ones_like(rgb[..., :1])
        return Predictions(RendererOutput(black, ones, ones), Targets(rgb=rgb, fg_probability=ones))


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(WEIGHTS_VARIABLE, raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "no_hub"))


def evaluate(folder: Path, said: list[str] | None = None, **options: object) -> list[dict[str, object]]:
    said = [] if said is None else said
    evaluator = ImplicitronEvaluator(**options)
    evaluator.run(Grey(), Views(), EvaluationContext(exp_dir=folder, epoch=3, step=120, say=said.append))
    return json.loads((folder / RESULTS_FILE).read_text())


def test_summary_has_the_shape_of_the_reference_and_the_protocol_beside_it(tmp_path: Path):
    (row,) = evaluate(tmp_path, lpips_net=LpipsNet.none)
    assert {"subset": "test", "subsubset": "diff=all", "eval_epoch": 3}.items() <= row.items()
    metrics = row["metrics"]
    assert isinstance(metrics, dict)
    assert metrics["rgb_l1_full_image"] == pytest.approx(sum(n / 10 for n in range(N_VIEWS)) / N_VIEWS)
    assert metrics["iou"] == pytest.approx(1)
    assert not any("lpips" in name for name in metrics)
    assert (row["n_views"], row["step"], row["image_sizes_hw"]) == (N_VIEWS, 120, [[SIZE, SIZE]])
    assert row["background"] is None and row["lpips_net"] is None and "lpips_missing" not in row


def test_one_line_a_view_and_the_summary_is_their_mean(tmp_path: Path):
    (row,) = evaluate(tmp_path)
    views = [json.loads(line) for line in (tmp_path / IMAGES_FILE).read_text().splitlines()]
    assert [view["frame_number"] for view in views] == list(range(N_VIEWS))
    assert [view["image_path"] for view in views] == [f"views/r_{n}.png" for n in range(N_VIEWS)]
    assert all(view["image_size_hw"] == [SIZE, SIZE] and view["seconds"] >= 0 for view in views)
    metrics = row["metrics"]
    assert isinstance(metrics, dict)
    for name, value in metrics.items():
        of_views = [view["metrics"][name] for view in views]
        if value is None:
            assert of_views == [None] * N_VIEWS
        else:
            assert value == pytest.approx(sum(of_views) / N_VIEWS)
    assert views[2]["metrics"]["rgb_l1_full_image"] == pytest.approx(0.2)


def test_nothing_else_is_left_in_the_folder(tmp_path: Path):
    evaluate(tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {RESULTS_FILE, IMAGES_FILE}


def test_missing_lpips_weights_cost_the_metric_and_one_notice(tmp_path: Path):
    said: list[str] = []
    evaluator = ImplicitronEvaluator(lpips_net=LpipsNet.vgg)
    for _ in range(2):
        evaluator.run(Grey(), Views(), EvaluationContext(exp_dir=tmp_path, say=said.append))
    (row,) = json.loads((tmp_path / RESULTS_FILE).read_text())
    assert row["metrics"]["lpips_full_image"] is row["metrics"]["lpips_masked"] is None
    assert row["lpips_net"] is None
    assert "VGG16" in row["lpips_missing"]
    assert sum("LPIPS is not measured" in line for line in said) == 1


def test_progress_and_table_are_said(tmp_path: Path):
    said: list[str] = []
    evaluate(tmp_path, said)
    assert [line.split("  ")[0] for line in said if line.startswith("[test]")] == [
        f"[test] view {i + 1}/{N_VIEWS}" for i in range(N_VIEWS)
    ]
    assert "psnr_full_image" in said[-1]


def test_the_model_is_left_in_the_mode_it_was_in():
    model = Grey()
    model.train()
    model.frozen.eval()
    ImplicitronEvaluator().run(model, Views(), EvaluationContext(say=lambda line: None))
    assert model.training and not model.frozen.training
    with pytest.raises(RuntimeError, match="no picture"):
        failing = Grey(fails=True)
        ImplicitronEvaluator().run(failing, Views(), EvaluationContext(say=lambda line: None))
    assert failing.training


@pytest.mark.parametrize("world_size", [2, 3])
def test_any_number_of_ranks_gives_the_same_summary(tmp_path: Path, world_size: int):
    alone = ImplicitronEvaluator().run(Grey(), Views(), EvaluationContext(say=lambda line: None))
    parts: dict[int, list[ViewResult]] = {}

    def keep(rank: int, views: list[ViewResult]) -> list[ViewResult]:
        parts[rank] = views
        return views

    def run(
        rank: int, gather: Callable[[list[ViewResult]], list[ViewResult]], say: Callable[[str], None]
    ) -> list[ResultRow]:
        context = EvaluationContext(exp_dir=tmp_path, gather=gather, is_main=rank == 0, say=say)
        return ImplicitronEvaluator().run(Grey(), Views(rank, world_size), context)

    for rank in range(world_size):
        run(rank, lambda views, rank=rank: keep(rank, views), lambda line: None)
    together = [view for rank in range(world_size) for view in parts[rank]]
    assert len(together) == N_VIEWS
    said: list[str] = []
    rows = [run(rank, lambda views: list(together), said.append) for rank in range(world_size)]
    assert all(of_rank == rows[0] for of_rank in rows[1:])
    assert sum(line.startswith("[test]") for line in said) == len(Views(0, world_size))
    assert [(row.metrics, row.n_views) for row in rows[0]] == [(row.metrics, row.n_views) for row in alone]
    lines = (tmp_path / IMAGES_FILE).read_text().splitlines()
    assert [json.loads(line)["frame_number"] for line in lines] == list(range(N_VIEWS))


def test_a_full_disk_costs_the_files_and_not_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / RESULTS_FILE).write_text("[]\n")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    said: list[str] = []
    rows = ImplicitronEvaluator().run(Grey(), Views(), EvaluationContext(exp_dir=tmp_path, say=said.append))
    assert rows[0].n_views == N_VIEWS
    assert [path.name for path in tmp_path.iterdir()] == [RESULTS_FILE]
    assert (tmp_path / RESULTS_FILE).read_text() == "[]\n"
    assert sum("not written" in line for line in said) == 2


def test_difficulty_breaks_must_rise():
    with pytest.raises(ConfigError, match="camera_difficulty_bin_breaks"):
        ImplicitronEvaluator(camera_difficulty_bin_breaks=(0.98, 0.97))


def test_values_that_json_has_no_number_for_are_null(tmp_path: Path):
    not_finite = ViewResult({"psnr_full_image": float("inf")})
    context = EvaluationContext(exp_dir=tmp_path, gather=lambda views: [*views, not_finite], say=lambda line: None)
    ImplicitronEvaluator().run(Grey(), Views(), context)
    text = (tmp_path / IMAGES_FILE).read_text() + (tmp_path / RESULTS_FILE).read_text()
    assert "Infinity" not in text and "NaN" not in text


def seen_from(number: int, n_src: int, category: str, frame_type: str) -> FrameData:
    """A target of an orbit, the next `n_src` views of it, and a view of another sequence."""
    size = n_src + 2
    cameras = orbit(12, size=SIZE)[[(number + i) % 12 for i in range(size)]]
    return FrameData(
        cameras=cameras,
        image_rgb=torch.full((size, 3, SIZE, SIZE), number / 10),
        sequence_name=(*[category + "_1"] * (n_src + 1), "another"),
        sequence_category=(category,) * size,
        frame_number=tuple(range(number, number + size)),
        frame_type=(frame_type, *["train_known"] * (n_src + 1)),
        image_path=tuple(f"{category}/{number + i}.jpg" for i in range(size)),
    )


def test_groups_over_sequences_and_what_is_written_of_each_view(tmp_path: Path):
    batches = [
        seen_from(0, 1, "apple", "train_unseen"),
        seen_from(1, 3, "apple", "test_unseen"),
        seen_from(2, 0, "bench", "test_unseen"),
        seen_from(3, 7, "bench", "test_unseen"),
    ]
    near = camera_difficulty(batches[0].cameras[0], batches[0].cameras[1]).item()
    nearest_two = camera_difficulty(batches[1].cameras[0], batches[1].cameras[1:4]).item()
    breaks = ((near + nearest_two) / 2, near + 0.01)
    assert 0 < nearest_two < near < 1 and breaks[1] < 1
    evaluator = ImplicitronEvaluator(
        is_multisequence=True, camera_difficulty_bin_breaks=breaks, lpips_net=LpipsNet.none
    )
    said: list[str] = []
    evaluator.run(Grey(), Batches(batches), EvaluationContext(exp_dir=tmp_path, say=said.append))

    views = [json.loads(line) for line in (tmp_path / IMAGES_FILE).read_text().splitlines()]
    told = [(v["category"], v["n_src"], v["difficulty"], v["difficulty_bin"]) for v in views]
    assert told == [
        ("apple", 1, pytest.approx(near), "medium"),
        ("apple", 3, pytest.approx(nearest_two), "hard"),
        ("bench", 0, None, None),
        ("bench", 7, pytest.approx(nearest_two, abs=0.02), "hard"),
    ]
    rows = json.loads((tmp_path / RESULTS_FILE).read_text())
    assert {(row["subset"], row["subsubset"]): row["n_views"] for row in rows} == {
        **{("train", "diff=all"): 1, ("train", "diff=medium"): 1, ("train", "n_src=1"): 1},
        **{("test", "diff=all"): 3, ("test", "diff=hard"): 2, ("test", "n_src=3"): 1, ("test", "n_src=7"): 1},
    }
    assert len({(row["subset"], row["subsubset"]) for row in rows}) == len(rows), "readers take these two for a key"
    of_test = next(row for row in rows if row["subset"] == "test")
    errors = {name: of["metrics"]["rgb_l1_full_image"] for name, of in of_test["categories"].items()}
    assert errors == {"apple": pytest.approx(0.1), "bench": pytest.approx(0.25)}
    assert of_test["category_mean"]["rgb_l1_full_image"] == pytest.approx((0.1 + 0.25) / 2)
    assert of_test["metrics"]["rgb_l1_full_image"] == pytest.approx((0.1 + 0.2 + 0.3) / 3)
    assert of_test["camera_difficulty_bin_breaks"] == list(breaks)
    assert "New views, subset test, diff=all, by category" in said[-2]
    assert said[-1].startswith("camera difficulty: ")


def test_a_single_sequence_has_no_difficulties(tmp_path: Path):
    batches = Batches([seen_from(0, 3, "apple", "test_unseen")])
    ImplicitronEvaluator(lpips_net=LpipsNet.none).run(Grey(), batches, EvaluationContext(exp_dir=tmp_path))
    (row,) = json.loads((tmp_path / RESULTS_FILE).read_text())
    assert "categories" not in row and "camera_difficulty_bin_breaks" not in row
    assert json.loads((tmp_path / IMAGES_FILE).read_text())["difficulty"] is None


class WithBackground(ImplicitronModelBase):
    """Renders photographs as they are."""

    def forward(self, frames: FrameData) -> Predictions:
        rgb = torch.rand(1, SIZE, SIZE, 3)
        masks = (torch.arange(SIZE) < 5).float().expand(1, SIZE, SIZE)[..., None]
        return Predictions(RendererOutput(rgb, masks, masks), Targets(rgb=rgb, fg_probability=masks))


def test_masked_metrics_of_what_has_a_background_come_with_a_notice():
    said: list[str] = []
    evaluator = ImplicitronEvaluator(lpips_net=LpipsNet.none)
    for _ in range(2):
        evaluator.run(WithBackground(), Batches([frame(1)]), EvaluationContext(say=said.append))
    assert [line for line in said if "mask_images=true" in line] == [line for line in said if line.startswith("note")]
    assert sum(line.startswith("note") for line in said) == 1
    said.clear()
    ImplicitronEvaluator(lpips_net=LpipsNet.none).run(Grey(), Views(), EvaluationContext(say=said.append))
    assert not any(line.startswith("note") for line in said)


def co3d_view(root: Path) -> tuple[ImplicitronModelBase, FrameData]:
    """A small model of source views and a batch of the generated category, half of whose depth can't be trusted."""
    dataset = Factory.of(JsonIndexDataset, image_height=24, image_width=24, load_depths=True)
    provider = JsonIndexDatasetMapProviderV2(
        category="solids", subset_name="fewview_dev", dataset_root=str(root / "v2"), dataset=dataset
    )
    test = provider.get_dataset_map().test
    assert test is not None
    frames = FrameData.collate([test[i] for i in (test.get_eval_batches() or [])[0]])
    assert frames.depth_mask is not None
    torch.manual_seed(0)
    model = GenericModel(
        render_image_height=24,
        render_image_width=24,
        mask_threshold=0.5,
        raysampler=NearFarRaySampler(min_depth=2.5, max_depth=5.5, n_pts_per_ray_evaluation=8),
        image_feature_extractor=ResNetFeatureExtractor(stages=(), image_rescale=1.0),
        view_pooler=Factory.of(ViewPooler),
        implicit_function=Factory.of(
            NeuralRadianceFieldImplicitFunction, n_layers_xyz=2, append_xyz=(), n_hidden_neurons_xyz=16
        ),
    ).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("density.bias"):
            parameter.data += 0.3  # a new network may see nothing anywhere
    return model, replace(frames, depth_mask=frames.depth_mask * (torch.arange(24) % 2))


def test_scores_of_a_co3d_view_are_those_of_the_textbook(co3d_category: Path, tmp_path: Path):
    """From the frame and the rendering by numpy alone, in double precision."""
    model, frames = co3d_view(co3d_category)
    with torch.no_grad():
        rendered = model(frames).rendered
    ImplicitronEvaluator(lpips_net=LpipsNet.none).run(model, Batches([frames]), EvaluationContext(exp_dir=tmp_path))
    (row,) = json.loads((tmp_path / RESULTS_FILE).read_text())

    maps = (frames.image_rgb, frames.fg_probability, frames.mask_crop, frames.depth_map, frames.depth_mask)
    arrays = [None if values is None else values[0].permute(1, 2, 0).double().numpy() for values in maps]
    photograph, probability, valid, axial_depth, trusted = (array for array in arrays if array is not None)
    image, opacity, distance = (x[0].double().numpy() for x in (rendered.features, rendered.masks, rendered.depths))
    inside, counts = probability[..., 0] > 0.5, valid[..., 0] == 1
    assert 0 < inside.sum() < counts.sum() < counts.size, "a frame with an object, a background and padding"

    masked = photograph * inside[..., None]  # the model, too, is trained on black
    foreground = inside & counts
    overlap = (opacity[..., 0] * inside)[counts].sum()
    union = (opacity[..., 0] + inside - opacity[..., 0] * inside)[counts].sum()
    (fx, fy), (cx, cy) = frames.cameras.focal[0].tolist(), frames.cameras.principal_point[0].tolist()
    y, x = np.mgrid[:24, :24] + 0.5
    true_distance = axial_depth[..., 0] * np.sqrt(((x - cx) / fx) ** 2 + ((y - cy) / fy) ** 2 + 1)
    known = foreground & (axial_depth[..., 0] > 0) & (trusted[..., 0] > 0)
    known[:5] = known[-5:] = known[:, :5] = known[:, -5:] = False
    z, d = true_distance[known], distance[..., 0][known]
    expected = {
        "psnr_masked": -10 * np.log10(np.mean((image - masked)[counts] ** 2)),
        "psnr_full_image": -10 * np.log10(np.mean((image - masked)[counts] ** 2)),
        "psnr_fg": -10 * np.log10(np.mean((image - photograph)[foreground] ** 2)),
        "rgb_l1_masked": np.mean(np.abs(image - masked)[counts]),
        "rgb_l1_fg": np.mean(np.abs(image - photograph)[foreground]),
        "iou": overlap / union,
        "depth_abs_fg": np.mean(np.abs(d * (d @ z) / (d @ d) - z)),
    }
    assert known.sum() > 5 and expected["depth_abs_fg"] > 0.001 and 0.05 < expected["iou"] < 0.95
    for name, value in expected.items():
        assert row["metrics"][name] == pytest.approx(value, rel=1e-4), name
