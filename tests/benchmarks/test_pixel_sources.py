import argparse

import pytest
import torch

from benchmarks.pixel_sources import Undecoded, from_store, sources, training_views
from nerf_trainer.data.loaders import ResidentFrameLoader

N_RAYS = 256


@pytest.fixture(scope="module")
def train():
    return training_views("scene://quickstart", downscale_factor=4)


def test_every_source_gives_rays_and_colours_of_the_scene(train):
    """Each ray begins at one of the cameras, has unit length, and shows a colour that one of its pixels has."""
    options = argparse.Namespace(rays=N_RAYS, steps_per_pool=2, workers=[0, 2])
    centers = train.cameras().centers
    colours = {tuple(c) for i in range(len(train)) for c in train.rgba(i)[..., :3].reshape(-1, 3).tolist()}
    names = []
    for name, n_bytes, step in sources(train, options, torch.device("cpu")):
        names.append(name)
        for _ in range(3):
            origins, directions, rgb = step()
            assert origins.shape == directions.shape == rgb.shape == (N_RAYS, 3) and n_bytes > 0
            assert torch.cdist(origins, centers, compute_mode="donot_use_mm_for_euclid_dist").amin(dim=1).max() < 1e-5
            torch.testing.assert_close(directions.norm(dim=1), torch.ones(N_RAYS))
            assert {tuple(c) for c in (rgb * 255).round().int().tolist()} <= colours
    assert names == ["resident", "streaming", "decoding, within the step", "decoding, 2 threads ahead", "ray cache"]


def test_the_ray_cache_holds_what_the_resident_store_gives(train):
    """The same pixel has the same ray and colour in both: means over all pixels agree with means over many draws."""
    options = argparse.Namespace(rays=60_000, steps_per_pool=1, workers=[])
    *_, (name, n_bytes, step) = sources(train, options, torch.device("cpu"))
    assert name == "ray cache" and n_bytes == 36 * train.n_pixels
    loader = ResidentFrameLoader(train, 1)
    loader.place("cpu", 0)
    resident = from_store(next(loader.steps(0)), 60_000, torch.Generator().manual_seed(9))
    for cached, drawn in zip(step(), resident, strict=True):
        torch.testing.assert_close(cached.mean(dim=0), drawn.mean(dim=0), atol=0.05, rtol=0)
        torch.testing.assert_close(cached.var(dim=0), drawn.var(dim=0), atol=0.05, rtol=0.05)


def test_images_are_decoded_each_time(train, monkeypatch):
    calls = []
    rgba = train.rgba
    monkeypatch.setattr(train, "rgba", lambda i: calls.append(i) or rgba(i))
    frames = Undecoded(train)
    assert torch.equal(frames[3].image_rgb, frames[3].image_rgb) and calls == [3, 3]
    assert torch.equal((frames[3].image_rgb[0] * 255).round().byte(), rgba(3)[..., :3].permute(2, 0, 1))
