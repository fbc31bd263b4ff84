"""GenericModel: what fields are told of source views and codes, and what it shares with OverfitModel."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nerf_trainer.conditioning.feature_aggregators import FeatureAggregatorBase
from nerf_trainer.conditioning.feature_extractor import FeatureExtractorBase
from nerf_trainer.conditioning.global_encoders import GlobalEncoderBase, HarmonicTimeEncoder, SequenceAutodecoder
from nerf_trainer.conditioning.view_pooler import ViewPooler
from nerf_trainer.conditioning.view_sampler import SampledViews
from nerf_trainer.config import Factory
from nerf_trainer.errors import ConfigError, DataError
from nerf_trainer.fields.base import FieldInputs, FieldOutputs, ImplicitFunctionBase, conditioned
from nerf_trainer.fields.nerf import NeuralRadianceFieldImplicitFunction
from nerf_trainer.frames import FrameContents, FrameData
from nerf_trainer.models.generic import GenericModel
from nerf_trainer.models.overfit import OverfitModel
from nerf_trainer.models.ray_model import RayModel
from nerf_trainer.randomness import seed_streams
from nerf_trainer.rays.bundle import RayBundle
from nerf_trainer.rays.samplers import AdaptiveRaySampler
from nerf_trainer.renderers.multipass import MultiPassEmissionAbsorptionRenderer
from tests.scene_kit import orbit

SMALL_NERF = Factory.of(
    NeuralRadianceFieldImplicitFunction,
    n_hidden_neurons_xyz=16,
    n_layers_xyz=2,
    append_xyz=(1,),
    n_hidden_neurons_dir=8,
)
FEW_SAMPLES = AdaptiveRaySampler(
    n_rays_per_image_sampled_from_mask=8, n_pts_per_ray_training=6, n_pts_per_ray_evaluation=6, scene_extent=1.5
)


class PatchColors(FeatureExtractorBase):
    """Two maps: the image itself, and its grey value at half the size."""

    @property
    def feature_dims(self) -> tuple[int, ...]:
        return 3, 1

    def forward(self, image_rgb: Tensor, fg_probability: Tensor | None = None) -> tuple[Tensor, ...]:
        grey = torch.nn.functional.avg_pool2d(image_rgb.mean(dim=1, keepdim=True), 2)
        return image_rgb, grey


class BrightestView(FeatureAggregatorBase):
    """A plug-in: the largest value of each feature over the views that see the point, the target's own left out."""

    @property
    def pooled_dim(self) -> int:
        return sum(self.feature_dims)

    def forward(self, sampled: SampledViews) -> Tensor:
        counts = sampled.valid * (~sampled.is_target)[..., None]
        return torch.cat([(features * counts).amax(dim=-2) for features in sampled.features], dim=-1)


class LengthEncoder(GlobalEncoderBase):
    """A code of each view: the length of its sequence's name, twice."""

    @property
    def encoding_dim(self) -> int:
        return 2

    def forward(self, frames: FrameData) -> Tensor:
        lengths = torch.tensor([float(len(name)) for name in frames.sequence_name], device=frames.cameras.device)
        return lengths[:, None].expand(-1, 2)


class Recorder(ImplicitFunctionBase):
    """A plug-in: a linear field on whatever it is told, which keeps what it saw."""

    def __post_init__(self) -> None:
        self.layer = torch.nn.Linear(3 + self.spec.conditioning_dim, 1 + self.spec.color_dim)
        self.seen: list[Tensor] = []

    def forward(self, ray_bundle: RayBundle, inputs: FieldInputs) -> FieldOutputs:
        told = conditioned(ray_bundle.points, ray_bundle, inputs)
        self.seen.append(told)
        out = self.layer(told)
        return FieldOutputs(densities=out[..., :1].exp(), features=out[..., 1:].sigmoid())


def photographs(n: int, sequences: Sequence[str] | None = None) -> FrameData:
    generator = torch.Generator().manual_seed(0)
    return FrameData(
        cameras=orbit(n, distance=3.0, size=8),
        image_rgb=torch.rand(n, 3, 8, 8, generator=generator),
        fg_probability=torch.ones(n, 1, 8, 8),
        sequence_name=tuple(sequences or ("chair",) * n),
    )


def conditioned_model(n_train_target_views: int = 1) -> GenericModel:
    return GenericModel(
        raysampler=FEW_SAMPLES,
        implicit_function=Factory.of(Recorder),
        image_feature_extractor=PatchColors(),
        view_pooler=Factory.of(ViewPooler, feature_aggregator=Factory.of(BrightestView)),
        global_encoder=LengthEncoder(),
        render_image_height=4,
        render_image_width=4,
        n_train_target_views=n_train_target_views,
    )


def recorder(model: GenericModel) -> Recorder:
    (field,) = model.passes()
    assert isinstance(field, Recorder)
    return field


def test_plug_ins_are_told_every_width() -> None:
    model = conditioned_model().train()
    field = recorder(model)
    assert (field.spec.pooled_dim, field.spec.global_code_dim, field.spec.color_dim) == (4, 2, 3)
    predictions = model(photographs(3))
    (told,) = field.seen
    assert told.shape == (1, 8, 6, 3 + 4 + 2)
    assert told[..., -2:].eq(5.0).all()  # "chair"
    assert predictions.objective is not None
    predictions.objective.backward()
    assert field.layer.weight.grad is not None and field.layer.weight.grad[:, 3:].abs().sum() > 0


def test_only_the_target_s_own_sequence_is_looked_at() -> None:
    model = conditioned_model().eval()
    frames = photographs(3, ("chair", "sofa", "chair"))
    assert frames.image_rgb is not None
    other = replace(frames, image_rgb=frames.image_rgb.clone())
    assert other.image_rgb is not None
    other.image_rgb[1] = 0.0
    with torch.no_grad():
        model(frames), model(other)
    before, after = (torch.cat(parts) for parts in (recorder(model).seen[:1], recorder(model).seen[1:]))
    torch.testing.assert_close(before, after)
    other.image_rgb[2] = 0.0
    with torch.no_grad():
        model(other)
    assert not torch.equal(recorder(model).seen[-1], after)


def test_a_batch_without_sources_says_how_to_get_them() -> None:
    with pytest.raises(DataError, match=r"one view.*images_per_seq_options.*n_known_frames_for_test"):
        conditioned_model()(photographs(1))


def test_views_of_other_sequences_are_no_sources() -> None:
    model = conditioned_model()
    frames = photographs(3, ("chair", "sofa", "sofa"))
    for training in (True, False):
        with pytest.raises(DataError, match=r"one view of 'chair'.*n_known_frames_for_test"):
            model.train(training)(frames)
    model.train().n_train_target_views = -1
    assert model(frames).objective is not None, "the sofas are learned from"


def test_of_several_targets_each_has_its_own_sources() -> None:
    model = conditioned_model(n_train_target_views=-1).train()
    frames = photographs(4, ("chair", "sofa", "chair", "sofa"))
    model(frames)
    (told,) = recorder(model).seen
    assert told.shape[0] == 4 and told.isfinite().all()


def test_source_views_are_asked_for_before_training() -> None:
    model, some, none = conditioned_model(), FrameContents(fewest_source_views=1), FrameContents(fewest_source_views=0)
    assert model.looks_at_source_views
    assert model.check_data(FrameContents(), FrameContents(), FrameContents()) == model.check_data(some, some, some)
    with pytest.raises(ConfigError, match=r"^images_per_seq_options: .*at least 2"):
        model.check_data(none, some, some)
    with pytest.raises(ConfigError, match=r"^n_known_frames_for_test: val .*validation_interval=0"):
        model.check_data(some, none, some)
    with pytest.raises(ConfigError, match=r"^n_known_frames_for_test: test .*test_interval=0"):
        model.check_data(some, None, none)
    other = GenericModel(implicit_function=SMALL_NERF)
    other.check_data(none, none, none)
    assert not other.looks_at_source_views


@pytest.mark.parametrize("given", ["extractor", "pooler"])
def test_extractor_and_pooler_need_each_other(given: str) -> None:
    pooler = Factory.of(ViewPooler, feature_aggregator=Factory.of(BrightestView))
    with pytest.raises(ConfigError, match="source views need both"):
        GenericModel(
            image_feature_extractor=PatchColors() if given == "extractor" else None,
            view_pooler=pooler if given == "pooler" else None,
        )


def test_a_resident_scene_has_no_images_to_look_at() -> None:
    with pytest.raises(ConfigError, match="resident"):
        conditioned_model().check_data(FrameContents(is_resident=True))


def test_no_pass_is_too_few() -> None:
    with pytest.raises(ConfigError, match="num_passes: 0"):
        GenericModel(num_passes=0)


def test_each_pass_has_a_field_of_its_own() -> None:
    model = GenericModel(num_passes=3, implicit_function=SMALL_NERF)
    assert len({id(field) for field in model.passes()}) == 3


class Wrapper(torch.nn.Module):
    """What compilers and hooks put around a module."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner


@pytest.mark.parametrize("make", [GenericModel, OverfitModel])
def test_a_wrapped_field_does_not_vanish(make: type[RayModel]) -> None:
    model = make(implicit_function=SMALL_NERF)
    model._fields[0] = Wrapper(model._fields[0])
    with pytest.raises(TypeError, match="found a Wrapper among the fields"):
        model.passes()


@pytest.mark.parametrize(
    ("encoder", "capturable"),
    [(None, True), (HarmonicTimeEncoder(), True), (SequenceAutodecoder(), False), (LengthEncoder(), False)],
    ids=lambda value: type(value).__name__,
)
def test_a_step_is_captured_only_if_the_encoder_allows_it(encoder: GlobalEncoderBase | None, capturable: bool) -> None:
    assert GenericModel(implicit_function=SMALL_NERF, global_encoder=encoder).capturable == capturable


class Asker(AdaptiveRaySampler):
    """A sampler that reads a tensor back, and says so."""

    @property
    def capturable(self) -> bool:
        return False


def test_a_step_is_captured_only_if_the_sampler_allows_it() -> None:
    assert not GenericModel(implicit_function=SMALL_NERF, raysampler=Asker()).capturable


def test_what_source_views_were_padded_with_is_not_looked_at() -> None:
    """The second view's photograph is nothing but padding: what is painted there changes nothing."""
    model, frames = conditioned_model().eval(), photographs(3)
    real = torch.ones(3, 1, 8, 8)
    real[1] = 0.0
    painted = replace(frames, mask_crop=real, image_rgb=frames.image_rgb.clone())
    painted.image_rgb[1] = 1.0
    with torch.no_grad():
        model(replace(frames, mask_crop=real)), model(painted)
    before, after = recorder(model).seen
    assert torch.equal(before, after)


@pytest.mark.parametrize("training", [True, False])
def test_generic_and_overfit_are_the_same_model(training: bool) -> None:
    """The same seed and configuration: the same weights, draws, pictures and losses, to the last bit."""
    fine = Factory.of(
        MultiPassEmissionAbsorptionRenderer, n_pts_per_ray_fine_training=4, n_pts_per_ray_fine_evaluation=4
    )
    common = {"raysampler": FEW_SAMPLES, "renderer": fine, "implicit_function": SMALL_NERF}
    sizes = {"render_image_height": 4, "render_image_width": 4}
    outcomes = []
    for make in (
        lambda: GenericModel(num_passes=2, **common, **sizes),
        lambda: OverfitModel(coarse_implicit_function=SMALL_NERF, **common, **sizes),
    ):
        torch.manual_seed(3)
        model: RayModel = make().train(training)
        seed_streams(model, 5)
        with torch.set_grad_enabled(training):
            outcomes.append(model(photographs(2)))
    generic, overfit = outcomes
    assert torch.equal(generic.rendered.features, overfit.rendered.features)
    assert torch.equal(generic.rendered.depths, overfit.rendered.depths)
    assert generic.metrics.keys() == overfit.metrics.keys() and "loss_prev_stage_rgb_mse" in generic.metrics
    for name, value in generic.metrics.items():
        assert torch.equal(value, overfit.metrics[name]), name
