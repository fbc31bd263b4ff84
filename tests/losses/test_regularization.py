"""Losses without photographs."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nerf_trainer.fields.base import FieldInputs, FieldOutputs, FieldSpec, ImplicitFunctionBase
from nerf_trainer.losses.regularization import SDF_GRADIENTS, RegularizationMetrics
from nerf_trainer.rays.bundle import RayBundle
from nerf_trainer.renderers.base import RendererOutput


class Smooth(ImplicitFunctionBase):
    """A field that says two things of its only parameter."""

    value: float = 2.0

    def __post_init__(self) -> None:
        self.parameter = torch.nn.Parameter(torch.tensor(self.value))

    def forward(self, ray_bundle: RayBundle, inputs: FieldInputs) -> FieldOutputs:
        raise AssertionError("regularization needs no samples")

    def regularization(self) -> dict[str, Callable[[], Tensor]]:
        return {"density_tv": lambda: self.parameter**2, "mine": lambda: 3 * self.parameter}


def rendered(*depths: float) -> RendererOutput:
    values = torch.tensor(depths).reshape(1, -1, 1)
    return RendererOutput(features=torch.zeros(1, len(depths), 3), depths=values, masks=torch.ones_like(values))


def test_every_term():
    fine = replace(rendered(1.0, -2.0), extras={SDF_GRADIENTS: torch.tensor([[0.0, 0.0, 3.0]])})
    fields = [Smooth(spec=FieldSpec()), Smooth(spec=FieldSpec(), value=5.0)]
    code = torch.tensor([[1.0, 2.0], [0.0, 1.0]])
    losses = RegularizationMetrics()(replace(fine, prev_stage=rendered(-1.0)), fields, global_code=code)
    expected = {
        "loss_depth_neg_penalty": 4 / 2,
        "loss_prev_stage_depth_neg_penalty": 1.0,
        "loss_eikonal": 2.0**2,
        "loss_density_tv": 2.0**2 + 5.0**2,
        "loss_mine": 3 * 2.0 + 3 * 5.0,
        "loss_autodecoder_norm": ((1 + 4) + 1) / 2,
    }
    assert set(losses) == set(expected)
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value, abs=1e-5), name
    losses["loss_density_tv"].backward()
    assert fields[1].parameter.grad == 2 * 5.0


def test_names_are_those_that_come():
    metrics, field = RegularizationMetrics(), Smooth(spec=FieldSpec())
    losses = metrics(replace(rendered(1.0), prev_stage=rendered(1.0)), [field])
    assert set(losses) == set(metrics.producible_names([field], n_prev_stages=1))
    assert metrics() == {}


def test_known_names_hold_what_no_field_here_gives():
    known = RegularizationMetrics().known_names()
    assert set(known) == {"loss_depth_neg_penalty", "loss_eikonal", "loss_density_tv", "loss_autodecoder_norm"}
    assert "loss_mine" in RegularizationMetrics().known_names([Smooth(spec=FieldSpec())])


def test_only_what_is_wanted_is_computed():
    class Costly(Smooth):
        def regularization(self) -> dict[str, Callable[[], Tensor]]:
            def compute() -> Tensor:
                raise AssertionError("nobody asked for it")

            return {"density_tv": compute}

    fields = [Costly(spec=FieldSpec())]
    losses = RegularizationMetrics()(rendered(-1.0), fields, wanted={"loss_depth_neg_penalty"})
    assert set(losses) == {"loss_depth_neg_penalty"}
