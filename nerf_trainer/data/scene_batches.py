"""Training batches for models that see a scene from source views, drawn by a `SceneBatchSampler`.

A batch of B images has k frames of each of B / k sequences. The first frame is the target to render, the frames of its
sequence that follow are its source views.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from nerf_trainer.data.consecutive import Segments
from nerf_trainer.data.loaders import DecodingLoader
from nerf_trainer.data.pixel_pools import default_threads
from nerf_trainer.data.samplers import SceneBatchSampler
from nerf_trainer.data.splits import DatasetBase
from nerf_trainer.errors import DataError
from nerf_trainer.frames import FrameData


class SceneBatchLoader(DecodingLoader):
    """Training batches of several frames of a sequence; steps are drawn independently, and by each rank its own.

    Args:
        dataset: the frames.
        batch_size: images a batch; fewer where the sequences have not so many.
        n_steps: steps of an epoch; 0 for as many as there are frames.
        num_workers: threads that decode ahead; 0 decodes when a batch is asked for.
        images_per_seq: how many frames a sequence may have in a batch; each batch draws one of them.
        keep_on_device: decode all frames once and keep them on the device, four bytes a pixel (five with masks of what
            counts), and five more for depth: a batch is then put together there, without a copy from the host.
        segments: take frames that follow each other; None takes any.

    Raises:
        ConfigError: images_per_seq is empty or has a number below 1.
        DataError: keep_on_device of images that differ in size.
    """

    def __init__(
        self,
        dataset: DatasetBase,
        batch_size: int,
        n_steps: int,
        num_workers: int,
        images_per_seq: Sequence[int],
        keep_on_device: bool = False,
        segments: Segments | None = None,
    ) -> None:
        super().__init__(dataset, num_workers)
        self._sampler = SceneBatchSampler(dataset, batch_size, n_steps, images_per_seq, segments)
        self._keep_on_device = keep_on_device
        self._kept: KeptFrames | None = None
        if keep_on_device:
            KeptFrames.check(dataset)

    def __len__(self) -> int:
        return len(self._sampler)

    def place(self, device: torch.device | str, seed: int, rank: int = 0, world_size: int = 1) -> None:
        super().place(device, seed, rank, world_size)
        self._sampler.place(seed, rank, world_size)
        self._kept = KeptFrames(self._dataset, device) if self._keep_on_device else None

    def steps(self, epoch: int, start: int = 0) -> Iterator[FrameData]:
        if self._kept is None:
            yield from super().steps(epoch, start)
            return
        for step in range(start, len(self)):
            yield self._kept.batch(self._batch(epoch, step))

    def _fewest_source_views(self) -> int | None:
        return self._sampler.fewest_source_views()

    def _batch(self, epoch: int, step: int) -> list[int]:
        return self._sampler.batch(epoch, step)


class KeptFrames:
    """All frames of a dataset on a device, colours as bytes; batches are put together there.

    Args:
        dataset: the frames, all of one size.
        device: where they are kept.
    """

    def __init__(self, dataset: DatasetBase, device: torch.device | str) -> None:
        self.check(dataset)
        self._frames = dataset.as_batch().to(device)
        self._has_alpha = dataset.contents.fg_probability
        with ThreadPoolExecutor(default_threads()) as threads:
            images = torch.stack(list(threads.map(dataset.rgba, range(len(dataset)))))
            valid = list(threads.map(dataset.valid, range(len(dataset))))
        self._rgba: UInt8[Tensor, "N 4 H W"] = images.permute(0, 3, 1, 2).contiguous().to(device)
        self._valid = _valid_maps(valid, dataset).to(device) if any(mask is not None for mask in valid) else None
        depths = _depth_maps(dataset) if dataset.contents.depth_map else None
        self._depth, self._trusted = (None, None) if depths is None else (depths[0].to(device), depths[1].to(device))

    @staticmethod
    def check(dataset: DatasetBase) -> None:
        """Refuse what can't be kept as bytes of one size. Nothing is decoded."""
        sizes = {tuple(size) for size in dataset.image_sizes_hw.tolist()}
        if len(sizes) > 1:
            found = " and ".join(f"{height}x{width}" for height, width in sorted(sizes)[:2])
            raise DataError(
                f"keep_on_device: found images of {found} pixels (height x width), expected one size; set"
                " keep_on_device=false"
            )

    def batch(self, indices: Sequence[int]) -> FrameData:
        """The frames of one batch; a single copy from the host, of the indices."""
        all_frames, device = self._frames, self._rgba.device
        index = torch.tensor(indices, pin_memory=device.type == "cuda").to(device, non_blocking=True)
        pixels = self._rgba[index].float() / 255
        times = all_frames.frame_timestamp
        return FrameData(
            cameras=all_frames.cameras.select(index, list(indices)),
            image_rgb=pixels[:, :3],
            fg_probability=pixels[:, 3:] if self._has_alpha else None,
            mask_crop=None if self._valid is None else self._valid[index].float(),
            depth_map=None if self._depth is None else self._depth[index],
            depth_mask=None if self._trusted is None else self._trusted[index].float(),
            sequence_name=tuple(all_frames.sequence_name[i] for i in indices),
            frame_number=tuple(all_frames.frame_number[i] for i in indices),
            frame_type=tuple(all_frames.frame_type[i] for i in indices),
            frame_timestamp=None if times is None else times[index],
            image_path=tuple(all_frames.image_path[i] for i in indices),
        )


def _valid_maps(valid: Sequence[Bool[Tensor, "H W"] | None], dataset: DatasetBase) -> Bool[Tensor, "N 1 H W"]:
    """Which pixels of all frames count, all of a frame's where it has no mask."""
    height, width = dataset.image_sizes_hw[0].tolist()
    every = torch.ones(height, width, dtype=torch.bool)
    return torch.stack([every if mask is None else mask for mask in valid])[:, None]


def _depth_maps(dataset: DatasetBase) -> tuple[Float[Tensor, "N 1 H W"], Bool[Tensor, "N 1 H W"]]:
    """The depth of all frames, 0 where a frame has none, and where it can be trusted: where it is known if not told."""
    height, width = dataset.image_sizes_hw[0].tolist()
    maps, trusted = [], []
    for i in range(len(dataset)):
        frame = dataset[i]
        depth = torch.zeros(1, 1, height, width) if frame.depth_map is None else frame.depth_map
        maps.append(depth)
        trusted.append(depth > 0 if frame.depth_mask is None else frame.depth_mask > 0)
    return torch.cat(maps), torch.cat(trusted)
