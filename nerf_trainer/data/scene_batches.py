"""Batches for models that see a scene from source views: some frames of each of a few sequences.

A batch of B images has k frames of each of B / k sequences, k being drawn anew from a list for every batch (the rule of
Implicitron's SceneBatchSampler; where k does not divide B, the last sequence has fewer). The first frame is
the target to render, the frames of its sequence that follow are its source views; which is which is drawn at random.

As with the other loaders, a batch depends on the seed, the rank, the epoch and the step alone.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from nerf_trainer.data.loaders import DecodingLoader, decode_all
from nerf_trainer.data.splits import DatasetBase
from nerf_trainer.errors import ConfigError, DataError
from nerf_trainer.frames import FrameData
from nerf_trainer.randomness import derive_seed


class SceneBatchLoader(DecodingLoader):
    """Training batches of several frames of a sequence; steps are drawn independently, and by each rank its own.

    Args:
        dataset: the frames.
        batch_size: images a batch; fewer where the sequences have not so many.
        n_steps: steps of an epoch; 0 for as many as there are frames.
        num_workers: threads that decode ahead; 0 decodes when a batch is asked for.
        images_per_seq: how many frames a sequence may have in a batch; each batch draws one of them.
        keep_on_device: decode all frames once and keep them on the device, four bytes a pixel, and as many more for
            depth: a batch is then put together there, without a copy from the host.

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
    ) -> None:
        super().__init__(dataset, num_workers)
        if not images_per_seq or min(images_per_seq) < 1:
            raise ConfigError(
                f"images_per_seq_options: found {list(images_per_seq)}, expected whole numbers of at least 1"
            )
        self._batch_size = batch_size
        self._n_steps = n_steps
        self._images_per_seq = tuple(images_per_seq)
        by_name: dict[str, list[int]] = {}
        for i, name in enumerate(dataset.frame_sequences):
            by_name.setdefault(name, []).append(i)
        self._sequences = list(by_name.values())
        self._keep_on_device = keep_on_device
        self._kept: KeptFrames | None = None
        if keep_on_device:
            KeptFrames.check(dataset)

    def __len__(self) -> int:
        return self._n_steps or len(self._dataset)

    def place(self, device: torch.device | str, seed: int, rank: int = 0, world_size: int = 1) -> None:
        super().place(device, seed, rank, world_size)
        self._kept = KeptFrames(self._dataset, device) if self._keep_on_device else None

    def steps(self, epoch: int, start: int = 0) -> Iterator[FrameData]:
        if self._kept is None:
            yield from super().steps(epoch, start)
            return
        for step in range(start, len(self)):
            yield self._kept.batch(self._batch(epoch, step))

    def _fewest_source_views(self) -> int | None:
        return min(self._batch_size, *self._images_per_seq, *map(len, self._sequences)) - 1

    def _batch(self, epoch: int, step: int) -> list[int]:
        seed = derive_seed(self._seed, "scene batches", self._rank, epoch, step)
        generator = torch.Generator().manual_seed(seed)
        option = torch.randint(len(self._images_per_seq), (), generator=generator)
        k = min(self._images_per_seq[int(option)], self._batch_size)
        chosen: list[int] = []
        for number in torch.randperm(len(self._sequences), generator=generator).tolist():
            frames = self._sequences[number]
            n = min(k, self._batch_size - len(chosen), len(frames))
            order = torch.randperm(len(frames), generator=generator)[:n]
            chosen += [frames[i] for i in order.tolist()]
            if len(chosen) == self._batch_size:
                break
        return chosen


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
        images = torch.stack(decode_all(dataset))
        self._rgba: UInt8[Tensor, "N 4 H W"] = images.permute(0, 3, 1, 2).contiguous().to(device)
        self._depth = _depth_maps(dataset).to(device) if dataset.contents.depth_map else None

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
        depth = None if self._depth is None else self._depth[index]
        return FrameData(
            cameras=all_frames.cameras.select(index, list(indices)),
            image_rgb=pixels[:, :3],
            fg_probability=pixels[:, 3:] if self._has_alpha else None,
            depth_map=depth,
            depth_mask=None if depth is None else (depth > 0).float(),
            sequence_name=tuple(all_frames.sequence_name[i] for i in indices),
            frame_number=tuple(all_frames.frame_number[i] for i in indices),
            frame_type=tuple(all_frames.frame_type[i] for i in indices),
            frame_timestamp=None if times is None else times[index],
            image_path=tuple(all_frames.image_path[i] for i in indices),
        )


def _depth_maps(dataset: DatasetBase) -> Float[Tensor, "N 1 H W"]:
    """The depth of all frames, 0 where a frame has none."""
    height, width = dataset.image_sizes_hw[0].tolist()
    maps = (dataset[i].depth_map for i in range(len(dataset)))
    return torch.cat([torch.zeros(1, 1, height, width) if depth is None else depth for depth in maps])
