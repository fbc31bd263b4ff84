"""The photographs that a fly-around shows to a model that renders views from others of their sequence."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from nerf_trainer.cameras.cameras import Cameras
from nerf_trainer.cameras.spread import well_spread
from nerf_trainer.data.splits import DatasetBase, DatasetMap, is_unseen
from nerf_trainer.errors import DataError, keyed_line, shown
from nerf_trainer.frames import FrameData
from nerf_trainer.visualization.colormaps import to_bytes


@dataclass(frozen=True)
class ChosenViews:
    """The source views of one sequence, by index; nothing decoded yet."""

    dataset: DatasetBase
    """The split that they are taken from."""
    indices: tuple[int, ...]
    """Which of its frames."""
    n_available: int
    """From how many they were chosen."""

    def frame_numbers(self) -> tuple[int, ...]:
        """Their numbers within the sequence."""
        numbers = self.dataset.frame_numbers
        return tuple(numbers[i] for i in self.indices)

    def load(self) -> FrameData:
        """The frames, decoded, in host memory.

        Raises:
            DataError: an image is missing or damaged, or their sizes differ.
        """
        frames = [self.dataset[i] for i in self.indices]
        sizes = {tuple(frame.image_rgb.shape[-2:]) for frame in frames if frame.image_rgb is not None}
        if len(sizes) > 1:
            found = " and ".join(f"{height}x{width}" for height, width in sorted(sizes)[:2])
            raise DataError(
                f"{self.dataset.image_paths[self.indices[0]]}: found images of {found} pixels (height x width) among"
                " the source views, expected one size; set image_height and image_width of the dataset"
            )
        return FrameData.collate(frames)


def choose_source_views(datasets: DatasetMap, split: str, sequence: str, n: int) -> ChosenViews:
    """The views of a sequence that a model is shown, the same ones in every run: well spread over what may be shown.

    Never an unseen frame, as far as the data tells known from unseen. May be shown, in this order of preference: what
    is known of the sequence in the split; what is known of it in the training split; what the split's evaluation
    batches lay down as source views and never as targets.

    Args:
        split: train, val or test.
        n: how many; fewer where there are not so many.

    Raises:
        DataError: nothing of the sequence may be shown.
    """
    splits = dict(datasets.items())
    for name in dict.fromkeys((split, "train")):
        if name in splits and (found := _known(splits[name], sequence)):
            return _chosen(splits[name], found, n)
    if found := _laid_down(splits[split], sequence):
        return _chosen(splits[split], found, n)
    problem = (
        f"found no known frame of sequence {shown(sequence)}, expected some for the model to look at (unseen frames are"
        " never shown to it); choose another split or restrict_sequence_name, or set n_known_frames_for_test of the"
        " dataset in the run's expconfig.yaml"
    )
    raise DataError(keyed_line(f"split={split}", problem))


def _known(dataset: DatasetBase, sequence: str) -> list[int]:
    types = dataset.frame_types
    return [i for i, name in enumerate(dataset.frame_sequences) if name == sequence and not is_unseen(types[i])]


def _laid_down(dataset: DatasetBase, sequence: str) -> list[int]:
    batches = dataset.get_eval_batches() or []
    names = dataset.frame_sequences
    sources = {i for batch in batches for i in batch[1:] if names[i] == sequence}
    return sorted(sources - {batch[0] for batch in batches})


def _chosen(dataset: DatasetBase, frames: Sequence[int], n: int) -> ChosenViews:
    paths = dataset.image_paths
    distinct = list({paths[i]: i for i in reversed(frames)}.values())[::-1]
    places = well_spread(dataset.cameras()[distinct], n)
    return ChosenViews(dataset, tuple(distinct[k] for k in places), len(distinct))


class SourceViewBatches:
    """Batches of a view without a photograph and its source views, as models expect them: the target first.

    In the place of the photograph stands an image in which no pixel counts (`mask_crop` is 0).

    Args:
        sources: one sequence's, with images, on the device.
    """

    def __init__(self, sources: FrameData) -> None:
        images = sources.image_rgb
        if images is None:
            raise DataError("found source views without images, expected photographs for the model to look at")
        counts = torch.ones_like(images[:, :1]) if sources.mask_crop is None else sources.mask_crop
        self._cameras = sources.cameras
        self._times = sources.frame_timestamp
        self._batch = FrameData(
            cameras=Cameras.cat([sources.cameras[:1], sources.cameras]),
            image_rgb=_behind_a_blank(images),
            fg_probability=_behind_a_blank(sources.fg_probability),
            mask_crop=_behind_a_blank(counts),
            depth_map=_behind_a_blank(sources.depth_map),
            depth_mask=_behind_a_blank(sources.depth_mask),
            sequence_name=(*sources.sequence_name[:1], *sources.sequence_name),
            sequence_category=(*sources.sequence_category[:1], *sources.sequence_category),
        )

    def of(self, camera: Cameras, time: Float[Tensor, "1"] | None = None) -> FrameData:
        """The batch of one view; images are not copied."""
        times = None if time is None or self._times is None else torch.cat([time, self._times])
        return replace(self._batch, cameras=Cameras.cat([camera, self._cameras]), frame_timestamp=times)


def source_pictures(sources: FrameData) -> list[UInt8[Tensor, "H W 3"]]:
    """The photographs as they are, nothing masked, in host memory."""
    images = [] if sources.image_rgb is None else list(sources.image_rgb)
    return [to_bytes(image.permute(1, 2, 0)).cpu() for image in images]


def _behind_a_blank(images: Float[Tensor, "V C H W"] | None) -> Float[Tensor, "W1 C H W"] | None:
    return None if images is None else torch.cat([torch.zeros_like(images[:1]), images])
