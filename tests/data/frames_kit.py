"""Frames in memory, for tests of what draws and loads them: sequences, numbers, types, times, categories and masks."""

import threading
from collections import Counter
from collections.abc import Sequence

import torch

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.data.splits import DatasetBase
from nerf_trainer.frames import FrameContents, FrameData
from tests.scene_kit import orbit

DECODED = "decoded"
"""The count of calls that decode a frame."""


class FakeFrames(DatasetBase):
    """Frames of one colour each; pixel (row, column) of frame i is (row, column, i, 255).

    `calls` counts what is asked for, by name.

    Args:
        sequences: the sequence of each frame, which also says how many there are.
        sizes_hw: the images' sizes; one for all, or one each.
        masks: which pixels of a frame count, by its index.
        path: begins the images' paths.
    """

    def __init__(
        self,
        sequences: Sequence[str],
        *,
        numbers: Sequence[int] | None = None,
        types: Sequence[str] | None = None,
        times: Sequence[float] | None = None,
        categories: Sequence[str] | None = None,
        eval_batches: list[list[int]] | None = None,
        sizes_hw: Sequence[tuple[int, int]] = ((4, 6),),
        masks: dict[int, torch.Tensor] | None = None,
        path: str = "",
    ) -> None:
        n = len(sequences)
        sizes = torch.tensor(list(sizes_hw) * (n if len(sizes_hw) == 1 else 1))
        orbiting = orbit(min(n, 8))[[i % 8 for i in range(n)]]
        self._cameras = Cameras(orbiting.R, orbiting.T, orbiting.focal, orbiting.principal_point, sizes)
        self._sequences = tuple(sequences)
        self._numbers = tuple(range(n)) if numbers is None else tuple(numbers)
        self._types = ("known",) * n if types is None else tuple(types)
        self._times = None if times is None else tuple(times)
        self._categories = None if categories is None else tuple(categories)
        self._eval_batches = eval_batches
        self._masks = masks or {}
        self._paths = tuple(f"{path}{name}/{i}.png" for i, name in enumerate(sequences))
        self.calls: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._sequences)

    def __getitem__(self, index: int) -> FrameData:
        channels = self.rgba(index).permute(2, 0, 1)[None].float() / 255
        mask = self._masks.get(index)
        return FrameData(
            cameras=self._cameras[index],
            image_rgb=channels[:, :3],
            mask_crop=None if mask is None else mask[None, None].float(),
            sequence_name=(self._sequences[index],),
            frame_number=(self._numbers[index],),
            frame_type=(self._types[index],),
            frame_timestamp=None if self._times is None else torch.tensor([self._times[index]]),
            sequence_category=() if self._categories is None else (self._categories[index],),
            image_path=(self._paths[index],),
        )

    def rgba(self, index: int) -> torch.Tensor:
        with self._lock:
            self.calls[DECODED] += 1
        height, width = self._cameras.image_size_hw[index].tolist()
        image = torch.full((height, width, 4), 255, dtype=torch.uint8)
        image[..., 0] = torch.arange(height)[:, None]
        image[..., 1] = torch.arange(width)
        image[..., 2] = index % 256
        return image

    def valid(self, index: int) -> torch.Tensor | None:
        return self._masks.get(index)

    def cameras(self) -> Cameras:
        return self._cameras

    @property
    def frame_sequences(self) -> tuple[str, ...]:
        self.calls["frame_sequences"] += 1
        return self._sequences

    @property
    def frame_numbers(self) -> tuple[int, ...]:
        self.calls["frame_numbers"] += 1
        return self._numbers

    @property
    def frame_types(self) -> tuple[str, ...]:
        self.calls["frame_types"] += 1
        return self._types

    @property
    def image_paths(self) -> tuple[str, ...]:
        self.calls["image_paths"] += 1
        return self._paths

    @property
    def frame_timestamps(self) -> tuple[float, ...] | None:
        self.calls["frame_timestamps"] += 1
        return self._times

    @property
    def frame_categories(self) -> tuple[str, ...] | None:
        self.calls["frame_categories"] += 1
        return self._categories

    def get_eval_batches(self) -> list[list[int]] | None:
        self.calls["get_eval_batches"] += 1
        return self._eval_batches

    @property
    def contents(self) -> FrameContents:
        self.calls["contents"] += 1
        return FrameContents(
            fg_probability=False,
            depth_map=False,
            mask_crop=bool(self._masks),
            sequence_names=tuple(sorted(set(self._sequences))),
        )
