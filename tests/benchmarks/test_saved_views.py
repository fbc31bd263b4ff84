from dataclasses import replace

import pytest
import torch

from benchmarks.saved_views import ShuffledSources, with_images_of
from nerf_trainer.data.loaders import EvaluationFrameLoader
from nerf_trainer.data.multi_scene import MultiSceneDatasetMapProvider


def evaluation(solids, **options):
    provider = MultiSceneDatasetMapProvider(base_dir=str(solids / "many"), n_known_frames_for_test=3, **options)
    return EvaluationFrameLoader(provider.get_dataset_map().test, 0, 0)


def test_sources_show_another_scene_from_the_same_cameras(solids):
    loader = evaluation(solids, n_held_out_scenes=3)
    own, shuffled = list(loader.steps(0)), list(ShuffledSources(loader).steps(0))
    assert len(own) == len(shuffled) == 3
    for i, (a, b) in enumerate(zip(own, shuffled, strict=True)):
        assert torch.equal(a.image_rgb[0], b.image_rgb[0]) and torch.equal(a.fg_probability[0], b.fg_probability[0])
        assert torch.equal(a.cameras.R, b.cameras.R) and torch.equal(a.cameras.T, b.cameras.T)
        assert a.sequence_name == b.sequence_name
        donor = own[(i + 1) % 3]  # one test view a scene: the next batch is of another
        assert torch.equal(b.image_rgb[1:], donor.image_rgb[1:])
        assert torch.equal(b.fg_probability[1:], donor.fg_probability[1:])
        assert torch.equal(b.depth_map[1:], donor.depth_map[1:]) and torch.equal(a.depth_map[0], b.depth_map[0])
        assert not torch.equal(a.image_rgb[1:], b.image_rgb[1:])
    assert [f.sequence_name for f in ShuffledSources(loader).steps(0, start=2)] == [own[2].sequence_name]


def test_masks_that_are_missing_stay_so(solids):
    frames = next(evaluation(solids, n_held_out_scenes=1).steps(0))
    assert with_images_of(replace(frames, fg_probability=None), frames).fg_probability is None


def test_one_scene_has_no_other(solids):
    loader = ShuffledSources(evaluation(solids, n_held_out_scenes=1))
    with pytest.raises(ValueError, match="no other scene"):
        next(loader.steps(0))
