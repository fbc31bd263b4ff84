"""Pixels that a training can draw and gather in a second, by where they come from.

    python -m benchmarks.pixel_sources
    python -m benchmarks.pixel_sources --scene /data/nerf_synthetic/lego --rays 4096 --steps 200

Each source gives what a step of `n` rays needs, on the device: origins, directions and colours.

- resident: pixels stay on the device as bytes, rays are made from the cameras as they are drawn (the resident loader).
- streaming: the same from a pool of half the images, which serves `--steps-per-pool` steps while the next is decoded in
  the background (the resident loader where a scene doesn't fit).
- decoding: one image is decoded in every step, by the step itself or by threads ahead of it, and pixels of it are drawn
  (the image loaders). The datasets of this package keep decoded images where they fit in host memory; here they don't.
- ray cache: every pixel's origin, direction and colour as float32 on the device, 36 bytes each, indexed at random; what
  trainers did that made all rays before the first step. Written here, to be compared with.

A number is the median over `--repeats` of the pixels per second of `--steps` steps (fewer where these take longer than
`--seconds`, but whole pools), the device idle before and after; beside it are the lowest and the highest. Nothing is
trained between the steps: a loader that decodes in the background has no more time for it than the draws take.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from benchmarks.record import passport, write
from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.data.blender import BlenderDatasetMapProvider
from nerf_trainer.data.loaders import FrameLoader, ResidentFrameLoader, ShuffledFrameLoader
from nerf_trainer.data.splits import DatasetBase
from nerf_trainer.data.streaming import StreamingFrameLoader
from nerf_trainer.frames import FrameData

N_WARMUP = 3
"""Steps before those that are counted."""

Step = Callable[[], tuple[Tensor, Tensor, Tensor]]
"""One step's origins, directions and colours, (n 3) each."""


@dataclass(frozen=True)
class Source:
    """Where pixels come from."""

    name: str
    """What it is called in the table."""
    n_bytes: int
    """What it holds on the device."""
    step: Step
    """Draws and gathers once."""
    whole: int = 1
    """Steps are counted by so many: those that a pool serves."""


def training_views(scene: str, downscale_factor: int) -> DatasetBase:
    """The training views of a scene in Blender format."""
    provider = BlenderDatasetMapProvider(
        base_dir=scene, object_name=Path(scene).name, downscale_factor=downscale_factor
    )
    train = provider.get_dataset_map().train
    if train is None:
        raise SystemExit(f"{scene}: no training views")
    return train


class Undecoded(DatasetBase):
    """Frames that are decoded whenever they are asked for: as in a scene too large for host memory."""

    def __init__(self, dataset: DatasetBase) -> None:
        self._dataset = dataset
        self._cameras = dataset.cameras()

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> FrameData:
        rgb = self.rgba(index)[..., :3].permute(2, 0, 1)[None].float() / 255
        return FrameData(cameras=self._cameras[index], image_rgb=rgb)

    def rgba(self, index: int) -> UInt8[Tensor, "H W 4"]:
        return self._dataset.rgba(index)

    def cameras(self) -> Cameras:
        return self._cameras

    @property
    def frame_sequences(self) -> tuple[str, ...]:
        return self._dataset.frame_sequences

    @property
    def frame_numbers(self) -> tuple[int, ...]:
        return self._dataset.frame_numbers

    @property
    def frame_types(self) -> tuple[str, ...]:
        return self._dataset.frame_types

    @property
    def image_paths(self) -> tuple[str, ...]:
        return self._dataset.image_paths


def from_store(frames: FrameData, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels drawn across all images of a store, and the rays through them."""
    if frames.pixels is None:
        raise ValueError("frames without resident pixels")
    camera, xy = frames.pixels.draw(n, generator)
    rgb, _ = frames.pixels.gather(camera, xy)
    return (*frames.cameras.pixel_rays(xy, camera), rgb)


def from_image(frames: FrameData, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels drawn from a batch of one image, and the rays through them."""
    if frames.image_rgb is None:
        raise ValueError("frames without images")
    height, width = frames.image_rgb.shape[-2:]
    index = torch.randint(height * width, (n,), generator=generator, device=generator.device)
    xy = torch.stack([index % width, index // width], dim=-1) + 0.5
    rgb = frames.image_rgb[0].flatten(start_dim=1).index_select(1, index).T
    return (*frames.cameras.pixel_rays(xy, torch.zeros_like(index)), rgb)


def ray_cache(frames: FrameData, n: int, generator: torch.Generator) -> Step:
    """All rays and colours of a scene in memory, and steps that index them."""
    if frames.pixels is None:
        raise ValueError("frames without resident pixels")
    store, parts = frames.pixels, []
    for i, (height, width) in enumerate(store.sizes_hw.tolist()):
        index = torch.arange(height * width, device=store.rgba.device)
        camera, xy = torch.full_like(index, i), torch.stack([index % width, index // width], dim=-1) + 0.5
        parts.append(torch.cat([*frames.cameras.pixel_rays(xy, camera), store.gather(camera, xy)[0]], dim=-1))
    cache = torch.cat(parts)

    def step() -> tuple[Tensor, Tensor, Tensor]:
        index = torch.randint(len(cache), (n,), generator=generator, device=cache.device)
        chosen = cache.index_select(0, index)
        return chosen[:, :3], chosen[:, 3:6], chosen[:, 6:]

    return step


def batches(loader: FrameLoader, device: torch.device) -> Generator[FrameData, None, None]:
    """The batches of epoch after epoch."""
    loader.place(device, seed=0)
    epoch = 0
    while True:
        yield from loader.steps(epoch)
        epoch += 1


def measure(source: Source, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Pixels per second: the median over the repeats, the lowest and the highest."""
    rates = []
    for _ in range(N_WARMUP):
        source.step()
    for _ in range(options.repeats):
        _wait(device)
        began, n_steps = time.perf_counter(), 0
        while n_steps < options.steps and (n_steps == 0 or time.perf_counter() - began < options.seconds):
            for _ in range(source.whole):
                source.step()
            n_steps += source.whole
        _wait(device)
        rates.append(options.rays * n_steps / (time.perf_counter() - began))
    return {
        "source": source.name,
        "pixels_per_s": round(statistics.median(rates)),
        "lowest": round(min(rates)),
        "highest": round(max(rates)),
        "device_mb": round(source.n_bytes / 1e6, 2),
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def sources(train: DatasetBase, options: argparse.Namespace, device: torch.device) -> Iterator[Source]:
    """Each source, which is closed when the next is asked for."""
    generator, n = torch.Generator(device).manual_seed(0), options.rays
    resident = next(batches(ResidentFrameLoader(train, 1), device))
    yield Source("resident", 4 * train.n_pixels, lambda: from_store(resident, n, generator))
    per_pool, steps_per_pool = max(1, len(train) // 2), options.steps_per_pool
    pools = batches(StreamingFrameLoader(train, steps_per_pool, per_pool, steps_per_pool), device)
    in_two_pools = 4 * train.n_pixels * 2 * per_pool // len(train)
    yield Source("streaming", in_two_pools, lambda: from_store(next(pools), n, generator), steps_per_pool)
    pools.close()
    one_image = 16 * train.n_pixels // len(train)
    for n_workers in options.workers:
        images = batches(ShuffledFrameLoader(Undecoded(train), 1, 10**6, n_workers), device)
        name = f"decoding, {n_workers} threads ahead" if n_workers else "decoding, within the step"
        yield Source(name, one_image, lambda images=images: from_image(next(images), n, generator))
        images.close()
    yield Source("ray cache", 36 * train.n_pixels, ray_cache(resident, n, generator))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows for people."""
    lines = [f"{'source':<28}{'Mpixels/s':>10}{'lowest':>9}{'highest':>9}{'MB on device':>14}"]
    for row in rows:
        rates = (row[key] / 1e6 for key in ("pixels_per_s", "lowest", "highest"))
        middle, low, high = (f"{rate:.3f}" for rate in rates)
        lines.append(f"{row['source']:<28}{middle:>10}{low:>9}{high:>9}{row['device_mb']:>14.2f}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", default="scene://quickstart", help="folder in Blender format")
    parser.add_argument("--downscale", type=int, default=1, help="average blocks of this many pixels squared")
    parser.add_argument("--rays", type=int, default=4096, help="pixels of a step")
    parser.add_argument("--steps", type=int, default=200, help="counted steps of each repeat")
    parser.add_argument("--seconds", type=float, default=1.5, help="a repeat that takes longer has fewer steps")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps-per-pool", type=int, default=100)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 4], help="threads that decode ahead")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=None, help="folder for the record; default benchmarks/records")
    parser.add_argument("--name", default="pixel_sources", help="the record's name")
    parser.add_argument("--commit", default=None, help="what to record as commit outside a git checkout")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    train = training_views(options.scene, options.downscale)
    rows = []
    for source in sources(train, options, device):
        rows.append(measure(source, options, device))
        print(f"measured: {source.name}", flush=True)
    record = {
        "benchmark": "pixel_sources",
        **passport(options.commit),
        "measured_on": device.type,
        "scene": Path(options.scene).name,
        "images": len(train),
        "image_size_hw": train.image_sizes_hw[0].tolist(),
        "rays": options.rays,
        "steps": options.steps,
        "seconds": options.seconds,
        "repeats": options.repeats,
        "steps_per_pool": options.steps_per_pool,
        "rows": rows,
    }
    print("written to", write(options.name, record, options.out))
    print(table(rows))


if __name__ == "__main__":
    main()
