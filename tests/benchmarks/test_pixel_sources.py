import argparse
import json

import pytest
import torch

from benchmarks import pixel_sources
from benchmarks.pixel_sources import Source, Undecoded, from_store, measure, sources, training_views
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
    for source in sources(train, options, torch.device("cpu")):
        names.append(source.name)
        for _ in range(3):
            origins, directions, rgb = source.step()
            assert origins.shape == directions.shape == rgb.shape == (N_RAYS, 3) and source.n_bytes > 0
            assert torch.cdist(origins, centers, compute_mode="donot_use_mm_for_euclid_dist").amin(dim=1).max() < 1e-5
            torch.testing.assert_close(directions.norm(dim=1), torch.ones(N_RAYS))
            assert {tuple(c) for c in (rgb * 255).round().int().tolist()} <= colours
    assert names == ["resident", "streaming", "decoding, within the step", "decoding, 2 threads ahead", "ray cache"]


def test_the_ray_cache_holds_what_the_resident_store_gives(train):
    """The same pixel has the same ray and colour in both: means over all pixels agree with means over many draws."""
    options = argparse.Namespace(rays=60_000, steps_per_pool=1, workers=[])
    *_, cache = sources(train, options, torch.device("cpu"))
    assert cache.name == "ray cache" and cache.n_bytes == 36 * train.n_pixels
    loader = ResidentFrameLoader(train, 1)
    loader.place("cpu", 0)
    resident = from_store(next(loader.steps(0)), 60_000, torch.Generator().manual_seed(9))
    for cached, drawn in zip(cache.step(), resident, strict=True):
        torch.testing.assert_close(cached.mean(dim=0), drawn.mean(dim=0), atol=0.05, rtol=0)
        torch.testing.assert_close(cached.var(dim=0), drawn.var(dim=0), atol=0.05, rtol=0.05)


def test_images_are_decoded_each_time(train, monkeypatch):
    calls = []
    rgba = train.rgba
    monkeypatch.setattr(train, "rgba", lambda i: calls.append(i) or rgba(i))
    frames = Undecoded(train)
    assert torch.equal(frames[3].image_rgb, frames[3].image_rgb) and calls == [3, 3]
    assert torch.equal((frames[3].image_rgb[0] * 255).round().byte(), rgba(3)[..., :3].permute(2, 0, 1))


def test_a_repeat_counts_whole_pools_and_ends_in_time(monkeypatch):
    """A step of a second: 3 warm up; then one pool of 2 is over the second that is allowed, of single steps one is."""
    now, taken = [0.0], []
    monkeypatch.setattr(pixel_sources.time, "perf_counter", lambda: now[0])

    def step():
        now[0] += 1.0
        taken.append(now[0])

    options = argparse.Namespace(rays=10, steps=9, seconds=1.0, repeats=2)
    for whole in (1, 2):
        row = measure(Source("slow", 5_000_000, step, whole), options, torch.device("cpu"))
        assert row == {"source": "slow", "pixels_per_s": 10, "lowest": 10, "highest": 10, "device_mb": 5.0}
        assert len(taken) == 3 + 2 * whole
        taken.clear()


def test_the_record_and_the_table_say_the_same(tmp_path, capsys):
    short = "--downscale 8 --rays 64 --steps 3 --steps-per-pool 2 --repeats 1 --workers 1 --device cpu"
    pixel_sources.main([*short.split(), "--out", str(tmp_path)])
    record = json.loads((tmp_path / "pixel_sources.json").read_text())
    lines = capsys.readouterr().out.splitlines()[-4:]
    assert [row["source"] for row in record["rows"]] == [line[:28].strip() for line in lines]
    assert [f"{row['pixels_per_s'] / 1e6:.3f}" for row in record["rows"]] == [line[28:].split()[0] for line in lines]
