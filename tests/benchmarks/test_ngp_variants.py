"""Variants of the fast path's step: what they change is changed while they run, and by words that the recipe knows."""

import os

import pytest
from omegaconf import OmegaConf

from benchmarks.growth import RAYS, TINY_PACKED
from benchmarks.methods import composed
from benchmarks.ngp_step import Training, timed
from benchmarks.ngp_variants import VARIANTS, Variant, kernels_of
from benchmarks.render_view import SCENE
from nerf_trainer.ops.backend import Kernels
from nerf_trainer.training.runtime import Precision
from tests.ops.kernel_kit import device_for_kernels

N_TRAIN = 60
"""Views that the embedded scene is trained on."""


def test_kernels_are_changed_within_and_restored_behind() -> None:
    device_for_kernels()
    from nerf_trainer.ops.kernels import hash_encode, march

    def values() -> tuple[int, int, int]:
        return hash_encode.LEVELS_TOGETHER, hash_encode._BLOCK, march.MOST_NOTES

    before = values()
    with pytest.raises(KeyError), kernels_of(Variant(levels_together=1, most_notes=0, points=128)):
        assert values() == (1, 128, 0) != before
        raise KeyError
    assert values() == before


def test_every_variants_words_are_options_of_the_recipe() -> None:
    config = OmegaConf.create(composed(["--config-name", "ngp_blender"], {**os.environ, **SCENE}))
    keys = {word.split("=")[0] for variant in VARIANTS.values() for word in variant.words}
    assert len(keys) == 6 and all(type(OmegaConf.select(config, key)) in (int, float) for key in keys)


def test_steps_are_taken_on_the_recipes_own_views(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the embedded scene, in tiny steps."""
    for name, value in SCENE.items():
        monkeypatch.setenv(name, value)
    words = [f"{name}={value}" for name, value in {**TINY_PACKED, RAYS: 64}.items()]
    training = Training(words, Precision.fp32, False, Kernels.torch, "own")
    assert len(training.frames.cameras) == N_TRAIN and training.frames.pixels is not None
    row = timed(training, 2, 2)
    assert training.n == 4 and row["ms_median"] > 0.0 and row["samples"] > 0
