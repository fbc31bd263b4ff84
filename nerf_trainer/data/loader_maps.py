"""Providers of loaders: what a configuration chooses from to say how frames are drawn from the datasets."""

from abc import abstractmethod
from enum import Enum

from nerf_trainer.config import ReplaceableBase, registry
from nerf_trainer.data.loaders import (
    DataLoaderMap,
    EvaluationFrameLoader,
    FrameLoader,
    ResidentFrameLoader,
    ShuffledFrameLoader,
)
from nerf_trainer.data.scene_batches import SceneBatchLoader
from nerf_trainer.data.splits import DatasetBase, DatasetMap
from nerf_trainer.errors import ConfigError, DataError

RGBA_BYTES = 4
"""What a pixel takes in a `PixelStore`."""


class DataLoaderMapProviderBase(ReplaceableBase):
    """Makes the loaders of a dataset's splits."""

    @abstractmethod
    def get_data_loader_map(self, datasets: DatasetMap) -> DataLoaderMap:
        """A loader for each split of `datasets`; nothing is decoded yet.

        Raises:
            ConfigError: an option does not suit the dataset.
            DataError: the dataset does not fit in the memory that is allowed.
        """


@registry.register
class ResidentDataLoaderMapProvider(DataLoaderMapProviderBase):
    """All training pixels stay on the device, four bytes each, and every step may draw from all of them.

    Val and test come one view a batch, in order, decoded once if they fit in host memory.
    """

    dataset_length_train: int = 1000
    """Steps of an epoch."""
    dataset_length_val: int = 0
    """Validation views, spread evenly over the split; 0 for all."""
    dataset_length_test: int = 0
    """Test views, spread evenly over the split; 0 for all."""
    max_memory: float = 8.0
    """Gigabytes (1e9 bytes) that the training pixels may take on the device; more is refused before decoding."""
    num_workers: int = 0
    """Threads that decode val and test views ahead."""

    def __post_init__(self) -> None:
        _require_at_least("dataset_length_train", self.dataset_length_train, 1)
        for name, value in (
            ("dataset_length_val", self.dataset_length_val),
            ("dataset_length_test", self.dataset_length_test),
            ("num_workers", self.num_workers),
        ):
            _require_at_least(name, value, 0)

    def get_data_loader_map(self, datasets: DatasetMap) -> DataLoaderMap:
        if datasets.train is not None:
            self._require_memory(datasets.train)
        return DataLoaderMap(
            train=None if datasets.train is None else ResidentFrameLoader(datasets.train, self.dataset_length_train),
            val=_evaluation(datasets.val, self.dataset_length_val, self.num_workers),
            test=_evaluation(datasets.test, self.dataset_length_test, self.num_workers),
        )

    def _require_memory(self, train: DatasetBase) -> None:
        needed = train.n_pixels * RGBA_BYTES / 1e9
        if needed > self.max_memory:
            raise DataError(
                f"max_memory: the {len(train)} training images take {needed:.2f} GB on the device, expected at most "
                f"{self.max_memory:g}; raise max_memory, downscale the images, or use SequenceDataLoaderMapProvider"
            )


class BatchConditioningType(Enum):
    """Where the source views of a target come from. Training frames are all known, and test views that have source
    views bring known frames (n_known_frames_for_test), so that there all three mean the same.
    """

    SAME = "same"
    """From the frames of the split."""
    TRAIN = "train"
    """From the frames that are trained on."""
    KNOWN = "known"
    """From the known frames of the sequence."""


class ImageDataLoaderMapProvider(DataLoaderMapProviderBase):
    """Batches of whole images; val and test come one target view a batch."""

    batch_size: int = 1
    """Images a training batch."""
    num_workers: int = 0
    """Threads that decode ahead; 0 decodes when a batch is asked for. The order of batches does not depend on it."""
    dataset_length_train: int = 0
    """Steps of an epoch, in as many shuffled passes as it takes; 0 for one pass."""
    dataset_length_val: int = 0
    """Validation views, spread evenly over the split; 0 for all."""
    dataset_length_test: int = 0
    """Test views, spread evenly over the split; 0 for all."""

    def __post_init__(self) -> None:
        _require_at_least("batch_size", self.batch_size, 1)
        _require_at_least("num_workers", self.num_workers, 0)
        _require_at_least("dataset_length_train", self.dataset_length_train, 0)
        _require_at_least("dataset_length_val", self.dataset_length_val, 0)
        _require_at_least("dataset_length_test", self.dataset_length_test, 0)

    def get_data_loader_map(self, datasets: DatasetMap) -> DataLoaderMap:
        return DataLoaderMap(
            train=None if datasets.train is None else self._training(datasets.train),
            val=_evaluation(datasets.val, self.dataset_length_val, self.num_workers),
            test=_evaluation(datasets.test, self.dataset_length_test, self.num_workers),
        )

    def _training(self, dataset: DatasetBase) -> FrameLoader:
        """The training batches."""
        return ShuffledFrameLoader(dataset, self.batch_size, self.dataset_length_train, self.num_workers)


@registry.register
class SequenceDataLoaderMapProvider(ImageDataLoaderMapProvider):
    """Batches of whole images, with `images_per_seq_options` of several frames of each of a few sequences; val and test
    come one target view a batch, with the source views that the dataset lays down for it.
    """

    train_conditioning_type: BatchConditioningType = BatchConditioningType.SAME
    """Where source views come from in training."""
    val_conditioning_type: BatchConditioningType = BatchConditioningType.SAME
    """Where source views come from in validation."""
    test_conditioning_type: BatchConditioningType = BatchConditioningType.KNOWN
    """Where source views come from in tests that don't lay them down."""
    images_per_seq_options: tuple[int, ...] = ()
    """How many images of each sequence a batch may have, drawn anew for every batch; the first is the target. Empty
    draws images without regard to their sequences."""
    sample_consecutive_frames: bool = False
    """Take frames that follow each other in a video; for datasets whose frames do."""
    consecutive_frames_max_gap: int = 0
    """Largest step in frame numbers between consecutive frames; 0 for no limit."""
    consecutive_frames_max_gap_seconds: float = 0.1
    """Largest step in time between consecutive frames, seconds; 0 for no limit."""
    keep_on_device: bool = False
    """With `images_per_seq_options`: keep all decoded training images on the device, four bytes a pixel, and as many
    more for depth."""

    def get_data_loader_map(self, datasets: DatasetMap) -> DataLoaderMap:
        if self.sample_consecutive_frames:
            raise ConfigError(
                "sample_consecutive_frames: found true, expected false for photographs in no order; remove it"
            )
        if self.images_per_seq_options and self.train_conditioning_type is not BatchConditioningType.SAME:
            raise ConfigError(
                f"train_conditioning_type: found {self.train_conditioning_type.name} together with"
                " images_per_seq_options, expected SAME; leave one of them out"
            )
        if self.keep_on_device and not self.images_per_seq_options:
            raise ConfigError(
                "keep_on_device: found true without images_per_seq_options; set them, or use"
                " ResidentDataLoaderMapProvider for pixels drawn across all images"
            )
        return super().get_data_loader_map(datasets)

    def _training(self, dataset: DatasetBase) -> FrameLoader:
        if not self.images_per_seq_options:
            return super()._training(dataset)
        return SceneBatchLoader(
            dataset,
            self.batch_size,
            self.dataset_length_train,
            self.num_workers,
            self.images_per_seq_options,
            self.keep_on_device,
        )


@registry.register
class SimpleDataLoaderMapProvider(ImageDataLoaderMapProvider):
    """Batches of whole images, drawn from all training frames alike; val and test come one target view a batch."""


def _evaluation(dataset: DatasetBase | None, n_steps: int, num_workers: int) -> EvaluationFrameLoader | None:
    return None if dataset is None else EvaluationFrameLoader(dataset, n_steps, num_workers)


def _require_at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"{name}: found {value}, expected a whole number of at least {least}")
