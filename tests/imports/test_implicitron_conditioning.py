"""Codes, source views and what is pooled of them: as Implicitron's formulas have them."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import grid_sample, normalize

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.conditioning.global_encoders import SequenceAutodecoder
from nerf_trainer.errors import CheckpointError
from nerf_trainer.models.generic import GenericModel
from tests.imports import implicitron_imitation as published
from tests.imports.implicitron_kit import (
    TURNED,
    assert_passes_match,
    configuration,
    frames,
    imported,
    rendered,
    scattered,
)

EXTRACTOR = "image_feature_extractor_ResNetFeatureExtractor_args"
AGGREGATOR = "view_pooler_args__feature_aggregator"


def sampled(maps: Sequence[Tensor], cameras: Cameras, points: Tensor) -> Tensor:
    """(N V C): what square images show at points (N 3), by PyTorch3D's cameras and NDC; zeros around the images."""
    R, T = cameras.R.mT @ TURNED, cameras.T @ TURNED
    size = cameras.image_size_hw[0, 0].item()
    focal, center = 2.0 * cameras.focal / size, 1.0 - 2.0 * cameras.principal_point / size
    view = points @ R + T[:, None]
    depth = view[..., 2:]
    depth = torch.where(depth < 0, -1.0, 1.0) * depth.abs().clamp(min=1e-2)
    grid = -(view[..., :2] * focal[:, None] / depth + center[:, None])
    values = [grid_sample(m, grid[:, None], padding_mode="zeros", align_corners=False)[:, :, 0] for m in maps]
    return torch.cat(values, dim=1).permute(2, 0, 1)


def angle_weights(cameras: Cameras, points: Tensor) -> Tensor:
    """(N V): 0.6 + 0.5 cos of the angle to the first view's ray; 0 for the first view."""
    rays = normalize(points[:, None] - cameras.centers, dim=-1)
    weights = 0.5 * (rays * rays[:, :1]).sum(dim=-1) + 0.6
    return weights * torch.tensor([0.0, *[1.0] * (len(cameras) - 1)])


def reduced(values: Tensor, weights: Tensor, widths: Sequence[int]) -> Tensor:
    """Mean and standard deviation, map by map."""
    total = weights.sum(dim=1, keepdim=True).clamp(min=1e-2)
    parts = []
    for features in values.split(list(widths), dim=-1):
        mean = (features * weights[..., None]).sum(dim=1) / total
        spread = ((features - mean[:, None]) ** 2 * weights[..., None]).sum(dim=1) / total
        parts += [mean, spread.clamp(min=1e-4).sqrt()]
    return torch.cat(parts, dim=-1)


def extracting(**options: object) -> dict[str, object]:
    """Options of a model that looks at source views through a small residual network."""
    chosen = {f"{EXTRACTOR}__{name}": value for name, value in {"stages": [1, 2], "image_rescale": 1.0}.items()}
    return {
        "view_pooler_enabled": True,
        "image_feature_extractor_class_type": "ResNetFeatureExtractor",
        **chosen,
        f"{EXTRACTOR}__first_max_pool": False,
        **options,
    }


@pytest.mark.parametrize(("stages", "proj_dim", "max_pool"), [((1, 2), 4, False), ((2,), 0, True), ((1, 3), 100, True)])
def test_maps_of_an_image(stages: tuple[int, ...], proj_dim: int, max_pool: bool) -> None:
    extractor = scattered(published.ResNetFeatureExtractor(stages, proj_dim, max_pool), 1)
    widths = [min(w, proj_dim) if proj_dim else w for w in (64 * 2 ** (stage - 1) for stage in stages)]
    field = published.NeRF(beside=2 * (sum(widths) + 4))
    state = published.GenericModel(field, image_feature_extractor=extractor).state_dict()
    options = {f"{EXTRACTOR}__first_max_pool": max_pool, f"{EXTRACTOR}__stages": list(stages)}
    options |= {f"{EXTRACTOR}__proj_dim": proj_dim}
    model, found = imported(state, configuration(**extracting(**options)))
    assert isinstance(model, GenericModel) and model.image_feature_extractor is not None
    assert found.options[f"{EXTRACTOR}.name"] == "resnet18"
    assert (found.options[f"{EXTRACTOR}.stages"], found.options[f"{EXTRACTOR}.pretrained"]) == (list(stages), False)
    batch = frames(size=32)
    assert batch.image_rgb is not None and batch.fg_probability is not None
    with torch.no_grad():
        maps = model.image_feature_extractor(batch.image_rgb, batch.fg_probability)
        expected = extractor(batch.image_rgb, batch.fg_probability)
    for ours, theirs in zip(maps, expected, strict=True):
        assert theirs.std() > 1e-3
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_nerf_on_pooled_features_also_where_views_see_nothing() -> None:
    extractor = scattered(published.ResNetFeatureExtractor(), 1)
    fields = [scattered(published.NeRF(beside=24), seed) for seed in (2, 3)]
    state = published.GenericModel(*fields, image_feature_extractor=extractor).state_dict()
    model, _ = imported(state, configuration(**extracting()))
    batch = frames(size=16)
    assert batch.image_rgb is not None and batch.fg_probability is not None
    # The second view turns away, so that many points lie behind it or outside its image.
    R = batch.cameras.R.clone()
    R[1] = torch.diag(torch.tensor([-1.0, 1.0, -1.0])) @ R[1]
    T = batch.cameras.T.clone()
    T[1] = -(R[1] @ batch.cameras.centers[1])
    T[1, 2] -= 3.0
    batch = replace(batch, cameras=replace(batch.cameras, R=R, T=T))
    images = batch.image_rgb * (batch.fg_probability > 0.5)

    def call(field):
        def evaluate(points: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
            flat = points.reshape(-1, 3)
            maps = extractor(images, batch.fg_probability)
            values, weights = sampled(maps, batch.cameras, flat), angle_weights(batch.cameras, flat)
            values = values * torch.tensor([0.0, 1.0, 1.0])[:, None]
            pooled = reduced(values, weights, [m.shape[1] for m in maps])
            return field(points, directions, pooled=pooled.reshape(*points.shape[:-1], -1))

        return evaluate

    assert_passes_match(*rendered(model, batch), *map(call, fields))


def test_nerformer_on_features_of_each_view() -> None:
    extractor = scattered(published.ResNetFeatureExtractor(), 1)
    field = scattered(published.NeRF(beside=12, n_xyz=3, width=16, n_layers=2, skips=(1,), factor=2.0), 4)
    state = published.GenericModel(field, image_feature_extractor=extractor).state_dict()
    options = extracting(**{f"{AGGREGATOR}_class_type": "AngleWeightedIdentityFeatureAggregator"})
    model, found = imported(state, configuration(**options))
    assert found.options["implicit_function_class_type"] == "NeRFormerImplicitFunction"
    batch = frames(size=16)
    assert batch.image_rgb is not None and batch.fg_probability is not None
    images = batch.image_rgb * (batch.fg_probability > 0.5)

    def call(points: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        flat = points.reshape(-1, 3)
        values = sampled(extractor(images, batch.fg_probability), batch.cameras, flat)
        pooled = values * angle_weights(batch.cameras, flat)[..., None]
        return field(points, directions, pooled=pooled.reshape(*points.shape[:-1], *pooled.shape[1:]))

    assert_passes_match(*rendered(model, batch), call)


def test_codes_and_whose_they_are() -> None:
    decoder = scattered(published.SequenceAutodecoder(4, 3, ("zebra", "ant")), 1)
    state = published.GenericModel(published.NeRF(beside=3), global_encoder=decoder).state_dict()
    model, found = imported(state, configuration())
    encoder = model.global_encoder
    assert isinstance(encoder, SequenceAutodecoder)
    assert encoder.autodecoder.names == ("zebra", "ant")
    torch.testing.assert_close(
        encoder(frames(2, names=("ant", "zebra"))), decoder.autodecoder._autodecoder_codes.weight[[1, 0]]
    )
    assert "codes of 3 for 2 sequences" in found.architecture


def test_one_code_for_all() -> None:
    decoder = scattered(published.SequenceAutodecoder(1, 3, ("singleton",)), 1)
    state = published.GenericModel(published.NeRF(beside=3), global_encoder=decoder).state_dict()
    model, found = imported(state, configuration())
    assert found.options["global_encoder_SequenceAutodecoder_args.autodecoder_args.ignore_input"] is True
    assert model.global_encoder is not None
    torch.testing.assert_close(model.global_encoder(frames(1, names=("any",)))[0], decoder.code("singleton"))


def doubled(times: int) -> list[object]:
    """A list that holds the one before it twice: small, but not when it is written out."""
    return [doubled(times - 1)] * 2 if times else []


@pytest.mark.parametrize(
    "rows",
    [{"a": 0, "b": 2}, {"a": 0, "b": 0}, {"a": "x"}, None, {f"n{i}": i for i in range(9)}, {"a": doubled(60)}],
    ids=["a gap", "the same row", "text", "none", "above the table", "grows when written out"],
)
def test_a_damaged_key_map_is_refused(rows: object) -> None:
    state = published.GenericModel(
        published.NeRF(beside=3), global_encoder=published.SequenceAutodecoder(4, 3, ())
    ).state_dict()
    state["global_encoder.autodecoder._key_map"] = rows
    with pytest.raises(CheckpointError, match="_key_map: expected"):
        imported(state, configuration())


def test_a_code_of_time_has_no_tensors() -> None:
    field = published.NeRF(beside=5)
    config = configuration(
        global_encoder_class_type="HarmonicTimeEncoder",
        global_encoder_HarmonicTimeEncoder_args__n_harmonic_functions=2,
    )
    model, _ = imported(published.GenericModel(field).state_dict(), config)
    assert model.global_encoder is not None and model.global_encoder.encoding_dim == 5


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        (
            {f"{AGGREGATOR}_AngleWeightedReductionFeatureAggregator_args__reduction_functions": ["MAX"]},
            {},
            "depends on",
        ),
        ({}, {"image_feature_extractor.layers.0.2.conv1.weight": torch.zeros(64, 64, 3, 3)}, "stages of [3, 2] blocks"),
        ({}, {"image_feature_extractor.proj_layers.1.weight": torch.zeros(5, 128, 1, 1)}, "expected one width"),
    ],
)
def test_source_views_that_can_not_be_had_are_refused(options, change, message: str) -> None:
    n_functions = 1 if options else 2
    field = published.NeRF(beside=12 * n_functions)
    state = published.GenericModel(field, image_feature_extractor=published.ResNetFeatureExtractor()).state_dict()
    with pytest.raises(CheckpointError) as raised:
        imported(state | change, configuration(**extracting(**options)))
    assert message in str(raised.value)
