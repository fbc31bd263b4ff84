"""Rendered views: times of each, and what a precision is worth on photographs."""

import pytest
import torch

from benchmarks import render_view
from nerf_trainer.models.base import Predictions
from nerf_trainer.models.overfit import OverfitModel
from nerf_trainer.rays.samplers import NearFarRaySampler
from nerf_trainer.training.runtime import Precision
from tests.data.frames_kit import FakeFrames
from tests.scene_kit import orbit


def small_model() -> OverfitModel:
    torch.manual_seed(0)
    sampler = NearFarRaySampler(min_depth=2.0, max_depth=6.0, n_pts_per_ray_evaluation=4)
    return OverfitModel(raysampler=sampler, chunk_size_grid=4096)


def test_test_views_are_compared_with_their_photographs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean of the views' PSNR, of as many views as were asked for, each at its own size."""
    model, dataset = small_model(), FakeFrames("aaaa", sizes_hw=((4, 6),))
    shapes, scores = [], iter((20.0, 31.0))

    def score(predictions: Predictions) -> dict[str, float]:
        assert not model.training and predictions.targets.rgb is not None
        shapes.append(predictions.rendered.features.shape)
        return {"psnr_full_image": next(scores)}

    monkeypatch.setattr(render_view, "evaluate_view", score)
    found = render_view.tested(model, dataset, Precision.fp32, 2)
    assert found == {"tested_views": 2, "psnr_full_image": 25.5} and shapes == [(1, 4, 6, 3)] * 2


def test_a_view_is_timed_and_kept() -> None:
    row, picture = render_view.measure(small_model(), orbit(3, size=5), Precision.fp32, 1)
    assert row["views"] == 3 and row["size"] == 5 and picture.shape == (3, 5, 5)
    assert row["views_per_s"] == pytest.approx(1.0 / row["s_median"], rel=0.01)
    assert row["s_p10"] <= row["s_median"] <= row["to_host_s_median"] * 1.0001
