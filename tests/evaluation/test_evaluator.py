"""A whole evaluation with a made-up model and loader: what is written, and what is left as it was."""

import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from nerf_trainer.cameras.cameras import Cameras
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
from nerf_trainer.frames import FrameData
from nerf_trainer.models.base import ImplicitronModelBase, Predictions, Targets
from nerf_trainer.renderers.base import RendererOutput

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
        rgb = frames.image_rgb.permute(0, 2, 3, 1)
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
