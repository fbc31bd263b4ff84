"""What a fly-around's model is shown: never what is held out, the same in every run."""

import contextlib
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nerf_trainer.cameras.trajectories import trajectory
from nerf_trainer.conditioning.feature_aggregators import FeatureAggregatorBase, ReductionFeatureAggregator
from nerf_trainer.conditioning.feature_extractor import ResNetFeatureExtractor
from nerf_trainer.conditioning.view_pooler import ViewPooler
from nerf_trainer.config import Factory
from nerf_trainer.data.co3d.index import JsonIndexDataset
from nerf_trainer.data.co3d.v1 import JsonIndexDatasetMapProvider
from nerf_trainer.data.co3d.v2 import JsonIndexDatasetMapProviderV2
from nerf_trainer.data.splits import DatasetMap
from nerf_trainer.errors import MAX_LINE, DataError
from nerf_trainer.fields.nerf import NeuralRadianceFieldImplicitFunction
from nerf_trainer.models.dbir import ModelDBIR
from nerf_trainer.models.generic import GenericModel
from nerf_trainer.rays.samplers import NearFarRaySampler
from nerf_trainer.visualization.flyaround import pictures, render_views
from nerf_trainer.visualization.source_views import SourceViewBatches, choose_source_views, source_pictures

FIRST = "100_12000_23000"


def dataset(side: int | None = 16) -> Factory[JsonIndexDataset]:
    return Factory.of(JsonIndexDataset, image_height=side, image_width=side, load_depths=True)


def v2(root: Path, subset: str, side: int | None = 16) -> DatasetMap:
    return JsonIndexDatasetMapProviderV2(
        category="solids", subset_name=subset, dataset_root=str(root / "v2"), dataset=dataset(side)
    ).get_dataset_map()


def test_of_a_split_with_both_kinds_the_known_frames_are_shown(co3d_category: Path) -> None:
    """v2's few views (test_known and test_unseen in the test split), and v1's."""
    v1 = JsonIndexDatasetMapProvider(
        category="solids",
        task_str="multisequence",
        dataset_root=str(co3d_category / "v1"),
        dataset=dataset(),
    ).get_dataset_map()
    for datasets in (v2(co3d_category, "fewview_dev"), v1):
        assert datasets.test is not None
        (sequence, *_) = datasets.test.sequence_names
        chosen = choose_source_views(datasets, "test", sequence, 3)
        assert chosen.dataset is datasets.test
        of_split = [
            i
            for i, name in enumerate(datasets.test.frame_sequences)
            if name == sequence and datasets.test.frame_types[i].endswith("_known")
        ]
        assert len(set(chosen.indices)) == 3 and set(chosen.indices) < set(of_split)
        assert chosen.n_available == len(of_split) < datasets.test.frame_sequences.count(sequence)


def test_of_a_split_with_none_but_unseen_frames_those_for_training_are_shown(co3d_category: Path) -> None:
    datasets = v2(co3d_category, "manyview_dev_0")
    assert datasets.test is not None and datasets.train is not None
    (sequence,) = datasets.test.sequence_names
    assert all(kind.endswith("unseen") for kind in datasets.test.frame_types)
    chosen = choose_source_views(datasets, "test", sequence, 99)
    assert chosen.dataset is datasets.train and len(chosen.indices) == len(datasets.train)
    held_out = {datasets.test.image_paths[i] for i in range(len(datasets.test))}
    assert held_out.isdisjoint(chosen.load().image_path)


def test_where_all_is_unseen_what_is_laid_down_is_shown_and_else_nothing(co3d_category: Path) -> None:
    """A subset whose annotations tell nothing: sources of evaluation batches, targets never."""
    test = v2(co3d_category, "fewview_dev").test
    assert isinstance(test, JsonIndexDataset)
    (sequence,) = test.sequence_names
    unseen = test.holding(replace(test.index, frame_types=("unseen",) * len(test)))
    batches = unseen.get_eval_batches()
    targets = {batch[0] for batch in batches}
    chosen = choose_source_views(DatasetMap(test=unseen), "test", sequence, 99)
    assert set(chosen.indices) == {i for batch in batches for i in batch[1:]} - targets != set()
    target, other, *sources = max(batches, key=len)
    crossed = unseen.holding(replace(unseen.index, eval_batches=((target, other, *sources), (other, target, *sources))))
    chosen = choose_source_views(DatasetMap(test=crossed), "test", sequence, 99)
    assert set(chosen.indices) == set(sources) != set(), "the source of one may be the target of another"
    nothing = unseen.holding(replace(unseen.index, eval_batches=None))
    with pytest.raises(DataError, match=f"split=test: found no known frame of sequence '{sequence}'") as caught:
        choose_source_views(DatasetMap(test=nothing), "test", sequence, 9)
    assert "n_known_frames_for_test" in str(caught.value) and len(str(caught.value)) < MAX_LINE


def test_photographs_of_several_sizes_are_refused(co3d_category: Path) -> None:
    chosen = choose_source_views(v2(co3d_category, "fewview_dev", side=None), "train", FIRST, 9)
    with pytest.raises(DataError, match="among the source views, expected one size; set image_height"):
        chosen.load()


def test_pictures_are_the_photographs(co3d_category: Path) -> None:
    sources = choose_source_views(v2(co3d_category, "fewview_dev"), "train", FIRST, 3).load()
    shown = source_pictures(sources)
    assert sources.image_rgb is not None and len(shown) == 3
    expected = (sources.image_rgb[1].permute(1, 2, 0) * 255).round()
    assert torch.equal(shown[1].float(), expected)


def test_a_batch_is_one_of_evaluation_whose_target_counts_nowhere(co3d_category: Path) -> None:
    datasets = v2(co3d_category, "fewview_dev")
    sources = choose_source_views(datasets, "train", FIRST, 3).load()
    path = trajectory(sources.cameras, 2, size_hw=(5, 9))
    batch = SourceViewBatches(sources).of(path[1], torch.tensor([0.5]))
    assert len(batch) == 4 and batch.sequence_name == (FIRST,) * 4
    assert torch.equal(batch.cameras.R[0], path.R[1]) and torch.equal(batch.cameras.R[1:], sources.cameras.R)
    assert batch.cameras.image_size_hw.tolist() == [[5, 9], [16, 16], [16, 16], [16, 16]]
    for maps, of_sources in (
        (batch.image_rgb, sources.image_rgb),
        (batch.fg_probability, sources.fg_probability),
        (batch.depth_map, sources.depth_map),
        (batch.mask_crop, sources.mask_crop),
    ):
        assert maps is not None and of_sources is not None
        assert torch.equal(maps[1:], of_sources) and not maps[0].any()
    assert (batch.frame_timestamp is None) == (sources.frame_timestamp is None)
    without = SourceViewBatches(replace(sources, mask_crop=None)).of(path[0])
    assert without.mask_crop is not None
    assert [float(crop.mean()) for crop in without.mask_crop] == [0.0, 1.0, 1.0, 1.0]
    with pytest.raises(DataError, match="without images"):
        SourceViewBatches(replace(sources, image_rgb=None))


@pytest.mark.parametrize("exclude_target_view", [True, False])
def test_a_model_sees_the_sources_and_nothing_in_the_place_of_the_target(
    co3d_category: Path, exclude_target_view: bool
) -> None:
    """Also one that would look at its own target: the pooled features are those of the three sources alone."""
    torch.manual_seed(0)
    aggregator: Factory[FeatureAggregatorBase] = Factory.of(
        ReductionFeatureAggregator, exclude_target_view=exclude_target_view, exclude_target_view_mask_features=False
    )
    model = GenericModel(
        raysampler=NearFarRaySampler(min_depth=3.0, max_depth=5.0, n_pts_per_ray_evaluation=4),
        image_feature_extractor=ResNetFeatureExtractor(stages=(), image_rescale=1.0),
        view_pooler=Factory.of(ViewPooler, feature_aggregator=aggregator),
        implicit_function=Factory.of(
            NeuralRadianceFieldImplicitFunction, n_layers_xyz=1, append_xyz=(), n_hidden_neurons_xyz=8
        ),
    )
    sources = choose_source_views(v2(co3d_category, "fewview_dev"), "train", FIRST, 3).load()
    path = trajectory(sources.cameras, 2, size_hw=(6, 6))
    shown = [p.images_render for p in render_views(model, path, "cpu", contextlib.nullcontext, FIRST, sources=sources)]
    # the same by hand: any frame of evaluation for target, left out
    batch = SourceViewBatches(sources).of(path[1])
    assert batch.image_rgb is not None
    photographed = replace(batch, image_rgb=torch.cat([torch.ones_like(batch.image_rgb[:1]), batch.image_rgb[1:]]))
    assert batch.mask_crop is not None
    counted = torch.cat([torch.ones_like(batch.mask_crop[:1]), batch.mask_crop[1:]])
    with torch.no_grad():
        expected = model.eval()(photographed).images_render
        alone = model(replace(photographed, mask_crop=counted)).images_render
    assert shown[1].shape == (1, 3, 6, 6) and torch.equal(shown[1], expected)
    assert torch.equal(alone, expected) == exclude_target_view
    other = replace(sources, image_rgb=1.0 - sources.image_rgb)  # type: ignore[operator]
    (view,) = render_views(model, path[1], "cpu", contextlib.nullcontext, FIRST, sources=other)
    assert not torch.equal(view.images_render, expected), "what it is shown changes what it renders"


def test_depth_based_rendering_is_whole_and_centred_along_the_path(co3d_category: Path) -> None:
    """Frames are crops of their own sizes around an object of radius 1, 3.6 to 4.4 away; so is what is rendered."""
    sources = choose_source_views(v2(co3d_category, "fewview_dev", side=24), "train", FIRST, 8).load()
    model = ModelDBIR(render_image_height=None, render_image_width=None)
    path = trajectory(sources.cameras, 4, size_hw=(48, 48))
    for view in render_views(model, path, "cpu", contextlib.nullcontext, FIRST, sources=sources):
        mask = view.masks_render[0, 0] > 0.5
        rows, columns = torch.nonzero(mask, as_tuple=True)
        assert 0.08 < mask.float().mean() < 0.6
        assert math.hypot(rows.float().mean() - 23.5, columns.float().mean() - 23.5) < 6.0
        border = torch.cat([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
        assert border.float().mean() < 0.1
        near = view.depths_normalized[0, 0][mask].median()
        assert 2.5 < float(near) < 5.5
        assert pictures(view).images_render.shape == (48, 48, 3)
