"""The splits of categories in the layout of CO3D v2.

<dataset_root>/<category>/frame_annotations.jgz, sequence_annotations.jgz
                          set_lists/set_lists_<subset>.json              train, val, test
                          eval_batches/eval_batches_<subset>.json
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nerf_trainer.config import Factory, choice, registry
from nerf_trainer.data.co3d.annotations import FrameAnnotation
from nerf_trainer.data.co3d.categories import IndexedDatasetOptions, find_dataset_root, read_category, with_batches
from nerf_trainer.data.co3d.dataset import FrameIndex
from nerf_trainer.data.co3d.index import JsonIndexDataset
from nerf_trainer.data.co3d.set_lists import Batches, FrameFinder, ListedFrame, read_eval_batches, read_set_lists
from nerf_trainer.data.files import shown
from nerf_trainer.data.splits import KNOWN, UNSEEN, DatasetMap, is_known, is_unseen
from nerf_trainer.errors import ConfigError, DataError, keyed_line, unknown_name

ROOT_VARIABLE = "CO3DV2_DATASET_ROOT"
"""The environment variable that stands in for dataset_root."""

_PREFIX, _SUFFIX = "set_lists_", ".json"


@dataclass(frozen=True)
class _Category:
    """What one category has for each split, and a dataset that any of them can be held by."""

    dataset: JsonIndexDataset
    train: FrameIndex | None
    val: FrameIndex | None
    test: FrameIndex | None
    notices: tuple[str, ...]


@registry.register
class JsonIndexDatasetMapProviderV2(IndexedDatasetOptions):
    """The splits of one or more categories of CO3D v2, as one of its subsets divides them."""

    category: str
    """The category, as its folder is named; several with commas between them."""
    subset_name: str
    """The subset, such as manyview_dev_0, fewview_dev or fewview_train."""
    dataset_root: str = ""
    """The folder that has the categories; empty for the environment variable CO3DV2_DATASET_ROOT."""
    test_on_train: bool = False
    """Let val and test be the training split."""
    only_test_set: bool = False
    """Make no training split."""
    load_eval_batches: bool = True
    """Evaluate the batches that the subset lays down; otherwise every unseen test frame by itself."""
    num_load_workers: int = 4
    """Threads that read the index files of several categories."""
    n_known_frames_for_test: int = 0
    """Add so many training frames of the target's sequence to each evaluation batch, as source views."""
    dataset: Factory[JsonIndexDataset] = choice("JsonIndexDataset")
    """What chooses frames and reads them."""

    def __post_init__(self) -> None:
        if self.only_test_set and self.test_on_train:
            raise ConfigError("only_test_set: found true together with test_on_train; set one of them to false")
        for name, value, least in (
            ("num_load_workers", self.num_load_workers, 1),
            ("n_known_frames_for_test", self.n_known_frames_for_test, 0),
        ):
            if value < least:
                raise ConfigError(f"{name}: found {value}, expected a whole number of at least {least}")
        if self.n_known_frames_for_test and not self.load_eval_batches:
            raise ConfigError(
                f"n_known_frames_for_test: found {self.n_known_frames_for_test} with load_eval_batches: false, expected"
                " evaluation batches to add frames to; set load_eval_batches to true"
            )

    def get_dataset_map(self) -> DatasetMap:
        root = find_dataset_root(self.dataset_root, ROOT_VARIABLE)
        names = list(dict.fromkeys(name.strip() for name in self.category.split(",")))
        with ThreadPoolExecutor(min(self.num_load_workers, len(names))) as threads:
            found = list(threads.map(lambda name: self._read(root, name), names))
        any_dataset = found[0].dataset
        train, val, test = (
            None if None in parts else any_dataset.holding(FrameIndex.joined([p for p in parts if p is not None]))
            for parts in ([c.train for c in found], [c.val for c in found], [c.test for c in found])
        )
        notices = [notice for category in found for notice in category.notices]
        return self.splits(train, *((train, train) if self.test_on_train else (val, test)), notices)

    def _read(self, root: Path, category: str) -> _Category:
        """One category's splits."""
        everything = read_category(root, category)
        lists_file = _subset_file(root / category, self.subset_name)
        lists = read_set_lists(lists_file)
        missing = [name for name in ("train", "val", "test") if name not in lists]
        if missing:
            raise DataError(
                f"{shown(lists_file)}: found no list {missing[0]}, expected train, val and test; download it again"
            )
        finder = FrameFinder(everything.frames, everything.file)
        for name, frames in lists.items():
            finder.require(frames, lists_file, name)
        batches: Batches | None = None
        batches_file = root / category / "eval_batches" / f"eval_batches_{self.subset_name}.json"
        if self.load_eval_batches and not self.test_on_train:
            batches = read_eval_batches(batches_file)
            finder.require((frame for batch in batches for frame in batch), batches_file, "all batches")
        train_keys = {frame.key for frame in lists["train"]}
        typed = replace(everything, frame_types=tuple(_frame_type(frame, train_keys) for frame in everything.frames))
        dataset = self.dataset(annotated=typed, most_per_sequence=-1)
        notices: list[str] = []
        train = None if self.only_test_set else _of_list(dataset.index, lists["train"], lists_file, "train")
        if self.test_on_train:
            return _Category(dataset, train, None, None, ())
        val = _of_list(dataset.index, lists["val"], lists_file, "val")
        tested = lists["test"]
        if batches is not None and self.n_known_frames_for_test:
            batches = add_known_frames(batches, lists["train"], self.n_known_frames_for_test)
            tested = (*tested, *(frame for batch in batches for frame in batch if frame.key in train_keys))
        test = _of_list(dataset.index, tested, lists_file, "test")
        if batches is not None and test is not None:
            test = with_batches(test, batches, batches_file, notices)
        return _Category(dataset, train, val, test, tuple(notices))


def add_known_frames(batches: Batches, known: Sequence[ListedFrame], n: int) -> Batches:
    """Evaluation batches with up to n known frames of the target's sequence after what they have.

    The frames are the first of a permutation by numpy's default generator of seed 0, which goes on from batch to batch
    and takes the same frames as the dataset's reference loader; the target itself, where it is a known frame, is
    passed over.
    """
    by_sequence: dict[str, list[ListedFrame]] = {}
    for frame in known:
        by_sequence.setdefault(frame.sequence_name, []).append(frame)
    generator = np.random.default_rng(seed=0)
    extended = []
    for batch in batches:
        own = by_sequence.get(batch[0].sequence_name, [])
        others = [own[i] for i in generator.permutation(len(own)).tolist() if own[i].key != batch[0].key]
        extended.append((*batch, *others[:n]))
    return tuple(extended)


def _subset_file(folder: Path, subset: str) -> Path:
    """The set lists of a subset.

    Raises:
        ConfigError: there is no such subset; the message has those there are.
    """
    there = sorted(path.name for path in (folder / "set_lists").glob(f"{_PREFIX}*{_SUFFIX}"))
    names = [name.removeprefix(_PREFIX).removesuffix(_SUFFIX) for name in there]
    if subset not in names:
        raise ConfigError(keyed_line("subset_name", unknown_name(subset, f"is no subset of {shown(folder)}", names)))
    return folder / "set_lists" / f"{_PREFIX}{subset}{_SUFFIX}"


def _of_list(index: FrameIndex, listed: Sequence[ListedFrame], file: Path, name: str) -> FrameIndex | None:
    """The frames of a list that filters have left, each once, in its order; None for a list that is empty.

    Raises:
        DataError: filters have left none.
    """
    if not listed:
        return None
    finder = FrameFinder(index.frames, index.file)
    found = dict.fromkeys(finder.place(frame) for frame in listed)
    places = [place for place in found if place is not None]
    if not places:
        raise DataError(
            f"{shown(file)}: {name}: found none of its {len(listed)} frames among the {len(index.frames)} that the"
            " options choose, expected some; change the options that choose frames"
        )
    return index.chosen(places)


def _frame_type(frame: FrameAnnotation, train: set[tuple[str, int]]) -> str:
    """The type that the annotation's meta says, or else known for a training frame and unseen for another."""
    said = None if frame.meta is None else frame.meta.get("frame_type")
    if isinstance(said, str) and (is_known(said) or is_unseen(said)):
        return said
    return KNOWN if (frame.sequence_name, frame.frame_number) in train else UNSEEN
