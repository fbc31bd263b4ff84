"""Scenes of one colour, of which there is nothing to learn but that; the data of tests of faults."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from nerf_trainer.data.loaders import DataLoaderMap, FrameLoader
from nerf_trainer.data.source import DataSourceBase
from nerf_trainer.data.splits import DatasetMap
from nerf_trainer.frames import FrameData
from tests.scene_kit import orbit


def photograph(color: Float[Tensor, "3"], size: int, view: int = 0, foreground: float = 1.0) -> FrameData:
    """A square photograph of one colour, one of eight views on a circle."""
    image = color[None, :, None, None].expand(1, 3, size, size).clone()
    return FrameData(
        cameras=orbit(8, distance=3.0, size=size)[view : view + 1],
        image_rgb=image,
        fg_probability=torch.full_like(image[:, :1], foreground),
        frame_number=(view,),
    )


class StillLoader(FrameLoader):
    """The photographs in turn."""

    def __init__(self, source: "Still") -> None:
        self._source = source

    def __len__(self) -> int:
        return self._source.n_steps

    def place(self, device: torch.device | str, seed: int, rank: int = 0, world_size: int = 1) -> None:
        """They are the same for all, and on the CPU."""

    def steps(self, epoch: int, start: int = 0) -> Iterator[FrameData]:
        source = self._source
        for step in range(start, source.n_steps):
            color = torch.tensor(source.colors[step % len(source.colors)])
            frames = photograph(color, source.size, step % source.n_poses, source.foreground)
            yield (
                frames
                if source.crop is None
                else replace(
                    frames,
                    mask_crop=torch.full_like(frames.image_rgb[:, :1], source.crop),  # type: ignore[index]
                )
            )


class Still(DataSourceBase):
    """Photographs of one colour each, for training, validation and tests alike."""

    n_steps: int = 4
    colors: tuple[tuple[float, float, float], ...] = ((1.0, 1.0, 1.0),)
    size: int = 8
    n_poses: int = 8
    """Views on the circle; 1 makes all poses the same."""
    foreground: float = 1.0
    crop: float | None = None
    """Whether pixels are the photograph's own, 1, or padding, 0."""

    def get_datasets_and_dataloaders(self) -> tuple[DatasetMap, DataLoaderMap]:
        return DatasetMap(), DataLoaderMap(train=StillLoader(self), val=StillLoader(self), test=StillLoader(self))
