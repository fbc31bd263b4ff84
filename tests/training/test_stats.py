import math

import pytest
import torch

from nerf_trainer.training.metrics_log import read_rows
from nerf_trainer.training.runtime import Runtime
from nerf_trainer.training.stats import MetricSums, Statistics, blamed
from nerf_trainer.training.step import StepResult

NO, YES = torch.tensor(False), torch.tensor(True)


def scalars(**values):
    return {name: torch.tensor(value) for name, value in values.items()}


def test_means_are_over_the_steps_that_had_the_metric_and_were_finite():
    sums, runtime = MetricSums(torch.device("cpu")), Runtime()
    sums.add(scalars(a=1.0, b=10.0), NO)
    sums.add(scalars(a=2.0, b=math.inf), NO)
    sums.add(scalars(a=6.0), NO)
    means = sums.read(runtime)
    assert means.values == {"a": (1 + 2 + 6) / 3, "b": 10.0}
    assert (means.n_steps, means.n_skipped, means.skipped_in_a_row, means.not_finite) == (3, 0, 0, ())
    sums.add(scalars(a=4.0), NO)
    assert sums.read(runtime).values == {"a": 4.0}


def test_metric_that_was_never_finite_is_nan():
    sums = MetricSums(torch.device("cpu"))
    sums.add(scalars(a=math.nan), YES)
    assert math.isnan(sums.read(Runtime()).values["a"])


def test_skipped_steps_are_counted_and_blamed():
    sums, runtime = MetricSums(torch.device("cpu")), Runtime()
    pattern = [YES, YES, NO, YES, YES, YES, NO]
    for skipped in pattern:
        bad = math.nan if skipped else 1.0
        sums.add(scalars(objective=bad, loss_a=bad, loss_psnr=math.inf, loss_b=1.0), skipped)
    means = sums.read(runtime)
    assert (means.n_steps, means.n_skipped, means.skipped_in_a_row) == (7, 5, 3)
    assert blamed(means) == "loss_a, loss_psnr"


def test_skipped_steps_in_a_row_are_counted_across_reads():
    sums, runtime = MetricSums(torch.device("cpu")), Runtime()
    found = []
    for _ in range(3):
        for _ in range(4):
            sums.add(scalars(a=1.0), YES)
        found.append(sums.read(runtime).skipped_in_a_row)
    assert found == [4, 8, 12]
    sums.add(scalars(a=1.0), NO)
    assert sums.read(runtime).skipped_in_a_row == 0


def test_gradient_is_blamed_when_every_metric_was_finite():
    sums = MetricSums(torch.device("cpu"))
    sums.add(scalars(loss_a=1.0), YES)
    assert blamed(sums.read(Runtime())) == "the gradient of the objective"


def test_restored_sums_continue_exactly():
    runtime = Runtime()
    whole, first, second = (MetricSums(torch.device("cpu")) for _ in range(3))
    values = torch.rand(6).tolist()
    for i, value in enumerate(values):
        skipped = YES if i in (2, 3) else NO
        for sums in (whole, first if i < 3 else second):
            if sums is second and i == 3:
                import json

                second.restore(json.loads(json.dumps(first.state())))
            sums.add(scalars(a=value, b=value * 3), skipped)
    assert second.read(runtime) == whole.read(runtime)


def result(loss, n_rays=10):
    return StepResult(scalars(loss_x=loss, loss_y=1.0, objective=loss), NO, torch.tensor(0.5), None, n_rays)


def test_only_log_vars_reach_the_log(tmp_path):
    stats = Statistics(Runtime(), tmp_path, log_vars=("loss_x", "sec/it", "epoch", "loss_never"))
    stats.add(result(1.0))
    stats.add(result(3.0))
    row, *_ = stats.read(2, 0, 0.1)
    (line,) = read_rows(tmp_path / "metrics.jsonl")
    assert line == row
    assert {name: line[name] for name in ("step", "epoch", "split", "lr", "loss_x", "objective")} == {
        "step": 2, "epoch": 0, "split": "train", "lr": 0.1, "loss_x": 2.0, "objective": 2.0
    }  # fmt: skip
    assert set(line) - {"step", "epoch", "split", "lr", "loss_x", "objective"} == {
        "sec_per_step",
        "rays_per_s",
        "peak_memory_gib",
    }
    assert line["rays_per_s"] == pytest.approx(20 / (2 * line["sec_per_step"]), rel=0.05)


def test_without_log_vars_everything_is_logged(tmp_path):
    stats = Statistics(Runtime(), tmp_path)
    stats.add(result(1.0))
    assert {"loss_x", "loss_y", "objective"} <= set(stats.read(1, 0, 0.1)[0])


def test_history_is_read_back_from_the_log(tmp_path):
    stats = Statistics(Runtime(), tmp_path)
    for step in range(1, 4):
        stats.add(result(float(step)))
        stats.read(step, 0, 0.1)
    offset = stats.log.offset()
    stats.add(result(9.0))
    stats.read(4, 0, 0.1)
    resumed = Statistics(Runtime(), tmp_path, offset)
    assert resumed.history.curve("train", "loss_x") == ([1, 2, 3], [1.0, 2.0, 3.0])


class TwoRanks(Runtime):
    """What one rank hears from another that added nothing, or other metrics."""

    def __init__(self, others):
        super().__init__()
        self._others = others

    def gather_objects(self, items):
        return [*items, *self._others]

    def sum_over_ranks(self, values):
        self.reduced = [*getattr(self, "reduced", []), tuple(values.shape)]
        return values


def test_ranks_sum_the_same_groups_though_one_of_them_added_nothing():
    busy, idle = MetricSums(torch.device("cpu")), MetricSums(torch.device("cpu"))
    busy.add(scalars(a=1.0, b=2.0))
    here, there = TwoRanks([]), TwoRanks([("a", "b")])
    assert busy.read(here).values == {"a": 1.0, "b": 2.0}
    assert math.isnan(idle.read(there).values["a"])
    assert here.reduced == there.reduced == [(3, 2)]
