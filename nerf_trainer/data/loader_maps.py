"""Providers of loaders: what a configuration chooses from to say how frames are drawn from the datasets."""

from abc import abstractmethod
from enum import Enum

from nerf_trainer.config import ReplaceableBase, registry
from nerf_trainer.data.concatenation import ConcatenatedDataset
from nerf_trainer.data.consecutive import Gaps, Segments
from nerf_trainer.data.evaluation_views import DrawnViews, targets
from nerf_trainer.data.loaders import (
    DataLoaderMap,
    EvaluationFrameLoader,
    FrameLoader,
    ResidentFrameLoader,
    SampledFrameLoader,
    ShuffledFrameLoader,
)
from nerf_trainer.data.samplers import DoublePoolBatchSampler, SourceViews
from nerf_trainer.data.scene_batches import SceneBatchLoader
from nerf_trainer.data.splits import DatasetBase, DatasetMap, is_known, is_unseen
from nerf_trainer.data.streaming import StreamingFrameLoader, default_steps_per_pool
from nerf_trainer.errors import ConfigError, DataError, require_at_least

RGBA_BYTES = 4
"""What a pixel takes in a `PixelStore`."""
INDEX_BYTES = 4
"""What it takes there besides where masks say which pixels may be drawn."""
POOLS_ON_DEVICE = 3
"""Pools of a scene that is streamed: the one in use, the next, and a copy that a captured training step reads."""


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
    """All training pixels stay on the device, four bytes each (eight where masks say which may be used), and every step
    may draw from all of them. Where they don't fit, they are streamed: a pool of images is on the device while threads
    decode the next. Pools go through all images in shuffled passes; several processes share a pass.

    Val and test come one view a batch, in order, decoded once if they fit in host memory.
    """

    dataset_length_train: int = 1000
    """Steps of an epoch."""
    dataset_length_val: int = 0
    """Validation views, spread evenly over the split; 0 for all."""
    dataset_length_test: int = 0
    """Test views, spread evenly over the split; 0 for all."""
    max_memory: float = 8.0
    """Gigabytes (1e9 bytes) that the training pixels may take on the device; more are streamed, in pools of a third as
    much: one in use, the next, and what a captured training step reads."""
    max_host_memory: float = 8.0
    """Gigabytes of host memory that decoded training images may take where training pixels are streamed: those that fit
    are decoded once, others each time that they are in a pool. 0 keeps none."""
    steps_per_pool: int = 0
    """Steps that a pool of images serves where training pixels are streamed; 0 for one for every 25,000 pixels of a
    pool, no fewer than 500 and no more than 2000."""
    num_workers: int = 0
    """Threads that decode val and test views ahead, and the pools of a training that streams: there, 0 is for as many
    as there are processors, at most 8."""

    def __post_init__(self) -> None:
        require_at_least("dataset_length_train", self.dataset_length_train, 1)
        if not self.max_host_memory >= 0:
            raise ConfigError(f"max_host_memory: found {self.max_host_memory}, expected a number of at least 0")
        for name, value in (
            ("dataset_length_val", self.dataset_length_val),
            ("dataset_length_test", self.dataset_length_test),
            ("steps_per_pool", self.steps_per_pool),
            ("num_workers", self.num_workers),
        ):
            require_at_least(name, value, 0)

    def get_data_loader_map(self, datasets: DatasetMap) -> DataLoaderMap:
        train, notices = (None, ()) if datasets.train is None else self._training(datasets.train)
        return DataLoaderMap(
            train=train,
            val=_evaluation(datasets.val, self.dataset_length_val, self.num_workers),
            test=_evaluation(datasets.test, self.dataset_length_test, self.num_workers),
            notices=notices,
        )

    def _training(self, train: DatasetBase) -> tuple[FrameLoader, tuple[str, ...]]:
        """The training batches, and what to say of them."""
        pixel_bytes = RGBA_BYTES + (INDEX_BYTES if train.contents.mask_crop else 0)
        needed, allowed = train.n_pixels * pixel_bytes, self.max_memory * 1e9
        if needed <= allowed:
            return ResidentFrameLoader(train, self.dataset_length_train), ()
        largest = int(train.image_sizes_hw.prod(dim=1).max()) * pixel_bytes
        n_frames = int(allowed / POOLS_ON_DEVICE // largest)
        if n_frames < 1:
            fewest = POOLS_ON_DEVICE * largest / 1e9
            raise DataError(
                f"max_memory: the {len(train)} training images take {needed / 1e9:.3g} GB on the device, found"
                f" {self.max_memory:g}, expected at least {fewest:.3g}, room for {POOLS_ON_DEVICE} of the largest;"
                " raise max_memory, or downscale the images"
            )
        n_steps = self.steps_per_pool or default_steps_per_pool(n_frames * train.n_pixels / len(train))
        loader = StreamingFrameLoader(
            train, self.dataset_length_train, n_frames, n_steps, self.num_workers, self.max_host_memory * 1e9
        )
        notice = (
            f"max_memory: the {len(train)} training images take {needed / 1e9:.3g} GB on the device, more than"
            f" {self.max_memory:g}: they are streamed, {n_frames} at a time for {n_steps} steps; raise"
            " max_memory to keep all there, steps_per_pool if steps wait for images"
        )
        return loader, (notice,)


class BatchConditioningType(Enum):
    """Where the source views of a target come from: always of its own sequence, and never the target's own image."""

    SAME = "same"
    """From the frames of the split."""
    TRAIN = "train"
    """From the frames that are trained on."""
    KNOWN = "known"
    """From the known frames of the split; the target is an unseen one."""


class ImageDataLoaderMapProvider(DataLoaderMapProviderBase):
    """Batches of whole images."""

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
        require_at_least("batch_size", self.batch_size, 1)
        require_at_least("num_workers", self.num_workers, 0)
        require_at_least("dataset_length_train", self.dataset_length_train, 0)
        require_at_least("dataset_length_val", self.dataset_length_val, 0)
        require_at_least("dataset_length_test", self.dataset_length_test, 0)


class ConditionedDataLoaderMapProvider(ImageDataLoaderMapProvider):
    """Batches of whole images, the first of which is the target and others its source views.

    With a `batch_size` above 1 or `images_per_seq_options`, the views of val and test that the dataset lays down no
    source views for get theirs by the conditioning type.
    """

    train_conditioning_type: BatchConditioningType = BatchConditioningType.SAME
    """Where source views come from in training: SAME, TRAIN, KNOWN. SAME draws images without regard to their
    sequences, unless there are `images_per_seq_options`, which only go with SAME."""
    val_conditioning_type: BatchConditioningType = BatchConditioningType.SAME
    """Where source views come from in validation."""
    test_conditioning_type: BatchConditioningType = BatchConditioningType.KNOWN
    """Where source views come from in tests that don't lay them down."""
    images_per_seq_options: tuple[int, ...] = ()
    """How many images of each sequence a batch may have, drawn anew for every batch, no more than `batch_size`; the
    first is the target. Empty draws `batch_size` images by the conditioning type."""
    sample_consecutive_frames: bool = False
    """With `images_per_seq_options`: take frames that follow each other in a video, by their times, else their numbers.
    In training the first in time is the target; in evaluation the source views are those nearest to the target."""
    consecutive_frames_max_gap: int = 0
    """Largest step in frame numbers between consecutive frames; 0 for no limit."""
    consecutive_frames_max_gap_seconds: float = 0.1
    """Largest step in time between consecutive frames, seconds, where frames have times; 0 for no limit."""
    keep_on_device: bool = False
    """With `images_per_seq_options`: keep all decoded training images on the device, four bytes a pixel, and as many
    more for depth."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (
            ("consecutive_frames_max_gap", self.consecutive_frames_max_gap),
            ("consecutive_frames_max_gap_seconds", self.consecutive_frames_max_gap_seconds),
        ):
            if value < 0:
                raise ConfigError(f"{name}: found {value}, expected a number of at least 0")
        if self.keep_on_device and not self.images_per_seq_options:
            raise ConfigError(
                "keep_on_device: found true without images_per_seq_options; set them, or use"
                " ResidentDataLoaderMapProvider for pixels drawn across all images"
            )
        if self.sample_consecutive_frames and not self.images_per_seq_options:
            raise ConfigError(
                "sample_consecutive_frames: found true without images_per_seq_options; set these, as to [2], or leave"
                " it out"
            )

    def _drawn(
        self, split: str, datasets: DatasetMap, n_steps: int, conditioning: BatchConditioningType
    ) -> tuple[FrameLoader | None, tuple[str, ...]]:
        """Batches of a split drawn at random, and what to say of them."""
        dataset = dict(datasets.items()).get(split)
        if dataset is None:
            return None, ()
        if self.images_per_seq_options and conditioning is not BatchConditioningType.SAME:
            raise ConfigError(
                f"{split}_conditioning_type: found {conditioning.name} together with images_per_seq_options, expected"
                " SAME; leave one of them out"
            )
        if self.images_per_seq_options:
            segments, notices = self._segments(dataset)
            kept = self.keep_on_device and split == "train"
            return SceneBatchLoader(
                dataset, self.batch_size, n_steps, self.num_workers, self.images_per_seq_options, kept, segments
            ), notices
        if self.batch_size == 1 or conditioning is BatchConditioningType.SAME:
            batch_size = self.batch_size if split == "train" else min(self.batch_size, len(dataset))
            return ShuffledFrameLoader(dataset, batch_size, n_steps, self.num_workers), ()
        frames, among = self._pool(split, datasets, dataset, conditioning)
        first = list(range(len(dataset)))
        if conditioning is BatchConditioningType.KNOWN:
            first = [i for i, kind in enumerate(dataset.frame_types) if is_unseen(kind)]
            if not first or not among:
                missing = "known" if first else "unseen"
                raise ConfigError(
                    f"{split}_conditioning_type: found KNOWN, but no {split} frame is {missing}; expected SAME or TRAIN"
                )
        sources = SourceViews(frames.frame_sequences, frames.image_paths, among)
        sampler = DoublePoolBatchSampler(first, sources, self.batch_size, n_steps)
        return SampledFrameLoader(frames, sampler, self.num_workers), ()

    def _evaluated(
        self, split: str, datasets: DatasetMap, n_steps: int, conditioning: BatchConditioningType
    ) -> tuple[FrameLoader | None, tuple[str, ...]]:
        """The views of a split in order, and what to say of them."""
        dataset = dict(datasets.items()).get(split)
        counts = tuple(min(n, self.batch_size) for n in self.images_per_seq_options or (self.batch_size,))
        if dataset is None or dataset.get_eval_batches() is not None or max(counts) == 1:
            return _evaluation(dataset, n_steps, self.num_workers), ()
        frames, among = self._pool(split, datasets, dataset, conditioning)
        segments, notices = self._segments(frames)
        groups = frames.frame_sequences if segments is None else segments.ids
        sources = SourceViews(groups, frames.image_paths, among)
        chosen = targets(dataset)
        if conditioning is BatchConditioningType.TRAIN and not any(sources.of(i) for i in chosen):
            raise ConfigError(
                f"{split}_conditioning_type: found TRAIN, but no training frame is of a sequence that {split} shows;"
                " expected SAME or KNOWN"
            )
        views = DrawnViews(frames, chosen, sources, counts, segments)
        return EvaluationFrameLoader(frames, n_steps, self.num_workers, views), notices

    def _pool(
        self, split: str, datasets: DatasetMap, dataset: DatasetBase, conditioning: BatchConditioningType
    ) -> tuple[DatasetBase, list[int]]:
        """The frames of a split, with those that are trained on after them where these are wanted, and which of all may
        be source views.
        """
        if conditioning is BatchConditioningType.KNOWN:
            return dataset, [i for i, kind in enumerate(dataset.frame_types) if is_known(kind)]
        if conditioning is BatchConditioningType.SAME or dataset is datasets.train:
            return dataset, list(range(len(dataset)))
        if datasets.train is None:
            raise ConfigError(
                f"{split}_conditioning_type: found TRAIN, but there are no training frames; expected SAME or KNOWN"
            )
        frames = ConcatenatedDataset([dataset, datasets.train])
        return frames, list(range(len(dataset), len(frames)))

    def _segments(self, dataset: DatasetBase) -> tuple[Segments | None, tuple[str, ...]]:
        """Which frames follow each other, where that is asked for, and what to say of it."""
        if not self.sample_consecutive_frames:
            return None, ()
        segments = Segments(dataset, Gaps(self.consecutive_frames_max_gap, self.consecutive_frames_max_gap_seconds))
        return segments, segments.notices(min(self.batch_size, max(self.images_per_seq_options)))


@registry.register
class SequenceDataLoaderMapProvider(ConditionedDataLoaderMapProvider):
    """Batches of whole images, with `images_per_seq_options` of several frames of each of a few sequences; val and test
    come one target view a batch, in order, with the source views that the dataset lays down for it, or, where it lays
    down none, with those of the conditioning type.
    """

    def get_data_loader_map(self, datasets: DatasetMap) -> DataLoaderMap:
        train, of_train = self._drawn("train", datasets, self.dataset_length_train, self.train_conditioning_type)
        val, of_val = self._evaluated("val", datasets, self.dataset_length_val, self.val_conditioning_type)
        test, of_test = self._evaluated("test", datasets, self.dataset_length_test, self.test_conditioning_type)
        return DataLoaderMap(train, val, test, notices=tuple(dict.fromkeys((*of_train, *of_val, *of_test))))


@registry.register
class TrainEvalDataLoaderMapProvider(ConditionedDataLoaderMapProvider):
    """Batches of whole images; val is drawn at random as train is, whatever the dataset lays down, and differs from
    epoch to epoch. Test comes one target view a batch, as in `SequenceDataLoaderMapProvider`.

    Each conditioning type counts here too; Implicitron's provider takes TRAIN whatever they say.
    """

    def get_data_loader_map(self, datasets: DatasetMap) -> DataLoaderMap:
        train, of_train = self._drawn("train", datasets, self.dataset_length_train, self.train_conditioning_type)
        val, of_val = self._drawn("val", datasets, self.dataset_length_val, self.val_conditioning_type)
        test, of_test = self._evaluated("test", datasets, self.dataset_length_test, self.test_conditioning_type)
        return DataLoaderMap(train, val, test, notices=tuple(dict.fromkeys((*of_train, *of_val, *of_test))))


@registry.register
class SimpleDataLoaderMapProvider(ImageDataLoaderMapProvider):
    """Batches of whole images, drawn from all training frames alike; val and test come one target view a batch, in
    order, with the source views that the dataset lays down for it.
    """

    def get_data_loader_map(self, datasets: DatasetMap) -> DataLoaderMap:
        train = datasets.train
        return DataLoaderMap(
            train=None
            if train is None
            else ShuffledFrameLoader(train, self.batch_size, self.dataset_length_train, self.num_workers),
            val=_evaluation(datasets.val, self.dataset_length_val, self.num_workers),
            test=_evaluation(datasets.test, self.dataset_length_test, self.num_workers),
        )


def _evaluation(dataset: DatasetBase | None, n_steps: int, num_workers: int) -> EvaluationFrameLoader | None:
    return None if dataset is None else EvaluationFrameLoader(dataset, n_steps, num_workers)
