"""Losses without photographs."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from nerf_trainer.conditioning.global_encoders import (
    Autodecoder,
    GlobalEncoderBase,
    HarmonicTimeEncoder,
    SequenceAutodecoder,
)
from nerf_trainer.config import Factory, build
from nerf_trainer.experiment import Experiment
from nerf_trainer.fields.base import FieldInputs, FieldOutputs, FieldSpec, ImplicitFunctionBase
from nerf_trainer.fields.nerf import NeuralRadianceFieldImplicitFunction
from nerf_trainer.frames import FrameData
from nerf_trainer.losses.regularization import RegularizationMetrics
from nerf_trainer.models.generic import GenericModel
from nerf_trainer.rays.bundle import RayBundle
from nerf_trainer.rays.samplers import AdaptiveRaySampler
from nerf_trainer.renderers.base import DISTORTION, SDF_GRADIENTS, RendererOutput
from nerf_trainer.training.metrics_log import read_rows
from tests.recipe_kit import LOADER, LOOP, MODEL, ONE_STEP, Compose, chosen
from tests.scene_kit import orbit


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


def table(dim: int, values: Sequence[float]) -> SequenceAutodecoder:
    """Learned codes, one after the other."""
    encoder = SequenceAutodecoder(autodecoder=Autodecoder(encoding_dim=dim, n_instances=len(values) // dim))
    with torch.no_grad():
        encoder.autodecoder.codes.copy_(torch.tensor(values).reshape(-1, dim))
    return encoder


def test_every_term():
    fine = replace(rendered(1.0, -2.0), extras={SDF_GRADIENTS: torch.tensor([[0.0, 0.0, 3.0]])})
    fields = [Smooth(spec=FieldSpec()), Smooth(spec=FieldSpec(), value=5.0)]
    parts = [*fields, table(2, [1.0, 2.0, 0.0, 1.0])]
    losses = RegularizationMetrics()(replace(fine, prev_stage=rendered(-1.0)), parts)
    expected = {
        "loss_depth_neg_penalty": 4 / 2,
        "loss_prev_stage_depth_neg_penalty": 1.0,
        "loss_eikonal": 2.0**2,
        "loss_density_tv": 2.0**2 + 5.0**2,
        "loss_mine": 3 * 2.0 + 3 * 5.0,
        "loss_autodecoder_norm": (1 + 4 + 0 + 1) / 4,
    }
    assert set(losses) == set(expected)
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value, abs=1e-5), name
    losses["loss_density_tv"].backward()
    assert fields[1].parameter.grad == 2 * 5.0


def test_distortion_is_the_mean_over_the_rays_that_were_rendered():
    spread = torch.tensor([[[0.5], [0.25], [7.0]]])
    seen = replace(rendered(1.0, 1.0, 1.0), extras={DISTORTION: spread})
    assert RegularizationMetrics()(seen)["loss_distortion"].item() == pytest.approx(7.75 / 3)
    seen = replace(seen, valid=torch.tensor([[[1.0], [1.0], [0.0]]]))
    assert RegularizationMetrics()(seen)["loss_distortion"].item() == pytest.approx(0.75 / 2)
    assert "loss_distortion" in RegularizationMetrics().producible_names(distortion=True)


def test_names_are_those_that_come():
    metrics, field = RegularizationMetrics(), Smooth(spec=FieldSpec())
    losses = metrics(replace(rendered(1.0), prev_stage=rendered(1.0)), [field])
    assert set(losses) == set(metrics.producible_names([field], n_prev_stages=1))
    assert metrics() == {}


def test_known_names_hold_what_no_field_here_gives():
    known = RegularizationMetrics().known_names()
    of_rendering = {"loss_depth_neg_penalty", "loss_eikonal", "loss_distortion"}
    assert set(known) == {*of_rendering, "loss_density_tv", "loss_autodecoder_norm"}
    assert "loss_mine" in RegularizationMetrics().known_names([Smooth(spec=FieldSpec())])


def test_codes_count_in_full_whichever_sequences_a_batch_has():
    """The mean square of the table is 14 / 4, and d/dz of it is 2 z / 4."""
    encoder = table(1, [1.0, 0.0, 3.0, 2.0])
    model = GenericModel(
        raysampler=AdaptiveRaySampler(n_rays_per_image_sampled_from_mask=2, n_pts_per_ray_training=2),
        implicit_function=Factory.of(NeuralRadianceFieldImplicitFunction, n_layers_xyz=2, append_xyz=(1,)),
        global_encoder=encoder,
        loss_weights={"loss_autodecoder_norm": 1.0},
        log_vars=("loss_autodecoder_norm",),
    )
    model.learn_sequences(["a", "b", "c", "d"])
    frames = FrameData(cameras=orbit(2), image_rgb=torch.rand(2, 3, 16, 16), sequence_name=("c", "c"))
    predictions = model.train()(frames)
    assert predictions.metrics["loss_autodecoder_norm"].item() == pytest.approx(14 / 4)
    predictions.objective.backward()
    assert encoder.autodecoder.codes.grad.flatten().tolist() == pytest.approx([0.5, 0.0, 1.5, 1.0])


@pytest.mark.parametrize("encoder", [SequenceAutodecoder(), HarmonicTimeEncoder()], ids=lambda e: type(e).__name__)
def test_encoders_without_learned_numbers_have_no_norm(encoder: GlobalEncoderBase):
    assert RegularizationMetrics()(None, [encoder]) == {}
    assert not any("autodecoder" in name for name in RegularizationMetrics().producible_names([encoder]))


def test_only_what_is_wanted_is_computed():
    class Costly(Smooth):
        def regularization(self) -> dict[str, Callable[[], Tensor]]:
            def compute() -> Tensor:
                raise AssertionError("nobody asked for it")

            return {"density_tv": compute}

    fields = [Costly(spec=FieldSpec())]
    losses = RegularizationMetrics()(rendered(-1.0), fields, wanted={"loss_depth_neg_penalty"})
    assert set(losses) == {"loss_depth_neg_penalty"}


def test_the_norm_of_codes_is_lowered_as_the_weights_say(compose: Compose, monkeypatch: pytest.MonkeyPatch):
    """Plain descent on 2.5 |z|^2 / 5 at a rate of 0.1: each step multiplies z by 0.9, and |z|^2 by 0.81."""
    monkeypatch.setattr("nerf_trainer.training.stats.draw_train_stats", lambda history, folder: ())
    autodecoder = f"{MODEL}.global_encoder_SequenceAutodecoder_args.autodecoder_args"
    optimizer = "optimizer_factory_ImplicitronOptimizerFactory_args"
    config = compose(
        "nerf_blender",
        *(word for word in ONE_STEP if "dataset_length_train" not in word),
        f"{LOADER}.dataset_length_train=4",
        f"{MODEL}.global_encoder_class_type=SequenceAutodecoder",
        f"{autodecoder}.encoding_dim=5",
        f"{autodecoder}.init_scale=2.0",
        f"{MODEL}.n_train_target_views=0",
        f"{LOOP}.metric_print_interval=1",
        f"{LOOP}.validation_interval=0",
        f"{LOOP}.test_when_finished=false",
        f"{optimizer}.breed=SGD",
        f"{optimizer}.momentum=0.0",
        f"{optimizer}.lr=0.1",
        "exp_dir=run",
    )
    model = OmegaConf.select(config, MODEL)
    for place in ("implicit_function", "coarse_implicit_function"):
        chosen(model, place).update(n_hidden_neurons_xyz=8, n_hidden_neurons_dir=8, n_layers_xyz=2, append_xyz=[])
    model.log_vars = ["loss_autodecoder_norm", "objective"]
    model.loss_weights = {**dict.fromkeys(model.loss_weights, 0.0), "loss_autodecoder_norm": 2.5}
    build(Experiment, config).run(config)
    rows = [row for row in read_rows(Path("run/metrics.jsonl")) if row["split"] == "train"]
    norms = [row["loss_autodecoder_norm"] for row in rows]
    assert norms[0] > 0 and norms == pytest.approx([norms[0] * 0.81**n for n in range(4)], rel=1e-4)
    assert [row["objective"] for row in rows] == pytest.approx([2.5 * norm for norm in norms])
