"""The objective, and what is said of wrong names."""

import pytest
import torch

from nerf_trainer.errors import ConfigError
from nerf_trainer.losses.regularization import RegularizationMetrics
from nerf_trainer.losses.view_metrics import ViewMetrics
from nerf_trainer.losses.weights import check_loss_weights, idle_weights, stage_names, weigh

KNOWN = (*ViewMetrics().known_names(), *RegularizationMetrics().known_names())


def test_weigh_sums_weighted_losses():
    losses = {"loss_a": torch.tensor(2.0), "loss_b": torch.tensor(3.0), "loss_c": torch.tensor(float("nan"))}
    assert weigh(losses, {"loss_a": 0.5, "loss_b": -1.0, "loss_c": 0.0, "loss_absent": 4.0}) == 0.5 * 2 - 3


def test_weigh_nothing():
    assert weigh({"loss_a": torch.tensor(2.0)}, {"loss_a": 0.0}) is None
    assert weigh({}, {"loss_a": 1.0}) is None


def test_stage_names():
    assert stage_names(["a", "b"], 2) == (
        "loss_a",
        "loss_b",
        "loss_prev_stage_a",
        "loss_prev_stage_b",
        "loss_prev_stage_prev_stage_a",
        "loss_prev_stage_prev_stage_b",
    )


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("loss_rgb_mes", "loss_rgb_mse"),
        ("rgb_mse", "loss_rgb_mse"),
        ("depth_neg_penalty", "loss_depth_neg_penalty"),
        ("loss_prev_stage_rgb_mes", "loss_prev_stage_rgb_mse"),
        ("prev_stage_rgb_mse", "loss_prev_stage_rgb_mse"),
    ],
)
def test_wrong_name_is_refused_with_the_nearest(name: str, nearest: str):
    with pytest.raises(ConfigError) as raised:
        check_loss_weights({name: 1.0}, KNOWN)
    message = str(raised.value)
    assert message.startswith(f"loss_weights.{name}: '{name}' is not a known loss; expected one of loss_rgb_huber, ")
    assert message.endswith(f"did you mean '{nearest}'?")
    assert "\n" not in message


def test_wrong_name_like_no_other_lists_what_it_could_be():
    with pytest.raises(ConfigError, match=r"'zzzzzz' is not a known loss; expected one of loss_.*loss_rgb_mse"):
        check_loss_weights({"zzzzzz": 1.0}, KNOWN)


def test_wrong_name_is_refused_even_with_weight_zero():
    with pytest.raises(ConfigError):
        check_loss_weights({"loss_rgb_mes": 0.0}, KNOWN)


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_weight_must_be_finite(weight: float):
    with pytest.raises(ConfigError, match="finite"):
        check_loss_weights({"loss_rgb_mse": weight}, KNOWN)


def test_known_loss_that_will_not_come_is_a_notice():
    producible = ViewMetrics().producible_names(depth=False, fg_probability=False, n_prev_stages=1)
    weights = {
        "loss_rgb_mse": 1.0,
        "loss_prev_stage_rgb_mse": 1.0,
        "loss_prev_stage_prev_stage_rgb_mse": 2.0,
        "loss_depth_abs": 0.5,
        "loss_mask_bce": 0.0,
    }
    notices = idle_weights(weights, producible, key="model.loss_weights")
    assert [notice.split(":")[0] for notice in notices] == [
        "model.loss_weights.loss_prev_stage_prev_stage_rgb_mse",
        "model.loss_weights.loss_depth_abs",
    ]
