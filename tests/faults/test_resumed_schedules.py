"""Row 11: learning rates go on after a stop as if there had been none, for every policy, around each boundary.

Runs are stopped by a signal a step before, at, and a step after the boundary of an epoch at which a policy changes, and
an epoch before and after it. Each step logs the rate that it was taken with.
"""

from pathlib import Path
from typing import Any

import pytest

from nerf_trainer.training.checkpoint import CheckpointStore
from nerf_trainer.training.interruption import RunStoppedError
from nerf_trainer.training.metrics_log import read_rows
from tests.faults.counts import Fault
from tests.training.run_records import StopAfter, final, logged
from tests.training.tiny_experiment import experiment

N_EPOCHS, N_STEPS = 5, 4
RATE, GAMMA, WARM_UP, HALF_TIME = 0.05, 0.1, 2, 2
MILESTONES = (2, 3)
POLICIES: dict[str, dict[str, Any]] = {
    "MultiStepLR": {"multistep_lr_milestones": MILESTONES},
    "Exponential": {"exponential_lr_step_size": HALF_TIME},
    "LinearExponential": {"exponential_lr_step_size": HALF_TIME, "linear_exponential_lr_milestone": WARM_UP},
}
STOPS = (8, 7, 9, 4, 12, 11, 13, 16)
"""Steps of both milestones, the steps and the epochs before and after them; what matters most first."""


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than these runs."""
    monkeypatch.setattr("nerf_trainer.training.stats.draw_train_stats", lambda history, folder: ())


def rates(folder: Path) -> list[tuple[int, float]]:
    """The rate of each step."""
    return [(row["step"], row["lr"]) for row in read_rows(folder / "metrics.jsonl") if row["split"] == "train"]


def multiplier(policy: str, epoch: float) -> float:
    """What a step at `epoch` has to be taken with, in units of the base rate."""
    if policy == "MultiStepLR":
        return 1.0 if epoch < 2 else 0.1 if epoch < 3 else 0.01
    if policy == "Exponential":
        return 10 ** (-epoch / 2)
    return 0.1 + 0.9 * epoch / 2 if epoch < 2 else 10 ** (-(epoch - 2) / 2)


@pytest.mark.fault(row=11)
@pytest.mark.parametrize("every_step", [False, True], ids=["by epoch", "by step"])
@pytest.mark.parametrize("policy", POLICIES)
def test_learning_rates_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault, policy: str, every_step: bool
):
    settings: dict[str, Any] = {
        "source": {"n_steps": N_STEPS, "has_val": False},
        "optimizer": {
            "lr": RATE, "gamma": GAMMA, "lr_policy": policy, "update_every_step": every_step, **POLICIES[policy]
        },
        "max_epochs": N_EPOCHS,
        "metric_print_interval": 1,
    }  # fmt: skip
    experiment(tmp_path / "whole", **settings).run()
    expected = rates(tmp_path / "whole")
    epochs = [step / N_STEPS if every_step else step // N_STEPS for step in range(N_EPOCHS * N_STEPS)]
    assert [step for step, _ in expected] == list(range(1, N_EPOCHS * N_STEPS + 1))
    assert [rate for _, rate in expected] == pytest.approx([RATE * multiplier(policy, epoch) for epoch in epochs])

    for stop in STOPS[: fault.times(len(STOPS), quick=1)]:
        folder = tmp_path / f"stopped-{stop}"
        with monkeypatch.context() as patch:
            StopAfter(patch, stop)
            with pytest.raises(RunStoppedError):
                experiment(folder, **settings).run()
        checkpoint = CheckpointStore(folder).latest()
        assert checkpoint is not None and checkpoint.state.step == stop
        experiment(folder, **settings).run()
        assert rates(folder) == expected, f"stopped after step {stop}"
        assert logged(folder) == logged(tmp_path / "whole")
        assert final(folder) == final(tmp_path / "whole")
        fault.passed()
