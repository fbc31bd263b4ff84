"""The splits of a category in the layout of CO3D v1.

<dataset_root>/<category>/frame_annotations.jgz, sequence_annotations.jgz
                          set_lists.json                   train_known, train_unseen, test_known, test_unseen
                          eval_batches_<task>.json
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from nerf_trainer.config import Factory, choice, registry
from nerf_trainer.data.co3d.categories import IndexedDatasetOptions, find_dataset_root, read_category, with_batches
from nerf_trainer.data.co3d.dataset import FrameIndex, IndexDatasetBase
from nerf_trainer.data.co3d.index import JsonIndexDataset
from nerf_trainer.data.co3d.set_lists import Batches, FrameFinder, ListedFrame, read_eval_batches, read_set_lists
from nerf_trainer.data.files import shown
from nerf_trainer.data.splits import DatasetMap
from nerf_trainer.errors import ConfigError, DataError, keyed_line, unknown_name

ROOT_VARIABLE = "CO3D_DATASET_ROOT"
"""The environment variable that stands in for dataset_root."""

SINGLE = "singlesequence"
MULTI = "multisequence"


@registry.register
class JsonIndexDatasetMapProvider(IndexedDatasetOptions):
    """The splits of a category of CO3D v1, for one of its two tasks.

    singlesequence: one of the test sequences; its known frames are trained on, val and test have all of its frames.
    multisequence: the known frames of the training sequences are trained on, val and test have all frames of all
    sequences. The test split has evaluation batches, the target first and the source views after.
    """

    category: str
    """The category, as its folder is named."""
    task_str: Literal["singlesequence", "multisequence"] = SINGLE
    """The task: singlesequence or multisequence."""
    dataset_root: str = ""
    """The folder that has the categories; empty for the environment variable CO3D_DATASET_ROOT."""
    n_frames_per_sequence: int = -1
    """Draw at most so many training frames of each sequence, at random; below 1 for all."""
    test_on_train: bool = False
    """Let val and test be the training split."""
    restrict_sequence_name: tuple[str, ...] = ()
    """Take only sequences of these names; for the task multisequence. Empty for all."""
    test_restrict_sequence_id: int = -1
    """Which sequence is taken, counted from 0 in the order of the evaluation batches; for the task singlesequence."""
    assert_single_seq: bool = False
    """Refuse splits with more than one sequence."""
    only_test_set: bool = False
    """Make no training split."""
    dataset: Factory[JsonIndexDataset] = choice("JsonIndexDataset")
    """What chooses frames and reads them."""

    def __post_init__(self) -> None:
        if self.only_test_set and self.test_on_train:
            raise ConfigError("only_test_set: found true together with test_on_train; set one of them to false")
        if self.task_str == SINGLE and self.test_restrict_sequence_id < 0:
            raise ConfigError(
                f"test_restrict_sequence_id: found {self.test_restrict_sequence_id}, expected which sequence to take,"
                " counted from 0, for task_str=singlesequence"
            )
        if self.task_str == SINGLE and self.restrict_sequence_name:
            raise ConfigError(
                "restrict_sequence_name: found names with task_str=singlesequence, expected none; set"
                " test_restrict_sequence_id"
            )

    def get_dataset_map(self) -> DatasetMap:
        root = find_dataset_root(self.dataset_root, ROOT_VARIABLE)
        everything = read_category(root, self.category)
        finder = FrameFinder(everything.frames, everything.file)
        lists_file = root / self.category / "set_lists.json"
        lists = read_set_lists(lists_file)
        places = {name: finder.require(frames, lists_file, name) for name, frames in lists.items()}
        batches_file = root / self.category / f"eval_batches_{self.task_str}.json"
        batches = read_eval_batches(batches_file)
        finder.require((frame for batch in batches for frame in batch), batches_file, "all batches")
        sequences, batches = self._chosen_sequences(everything, batches)
        listed = _listed(everything, places, sequences)

        notices: list[str] = []
        train = None
        if not self.only_test_set:
            train_list = "test_known" if self.task_str == SINGLE else "train_known"
            train = self._split(listed, (train_list,), lists, self.n_frames_per_sequence)
        if self.test_on_train:
            return self._checked(self.splits(train, train, train, notices))
        subjects = ("test",) if self.task_str == SINGLE else ("test", "train")
        wanted = tuple(f"{subject}_{kind}" for subject in subjects for kind in ("known", "unseen"))
        val = self._split(listed, wanted, lists, -1)
        test = val.holding(with_batches(val.index, batches, batches_file, notices))
        return self._checked(self.splits(train, val, test, notices))

    def _chosen_sequences(self, everything: FrameIndex, batches: Batches) -> tuple[set[str], Batches]:
        """The names of the sequences to take, and the batches of these."""
        in_batches = list(dict.fromkeys(batch[0].sequence_name for batch in batches))
        if self.task_str == SINGLE:
            if self.test_restrict_sequence_id >= len(in_batches):
                raise ConfigError(
                    f"test_restrict_sequence_id: found {self.test_restrict_sequence_id}, but the evaluation batches of"
                    f" {shown(self.category)} have {len(in_batches)} sequences, expected a number below that"
                )
            names = {in_batches[self.test_restrict_sequence_id]}
        else:
            names = set(self.restrict_sequence_name or everything.sequences)
            unknown = sorted(names - everything.sequences.keys())
            if unknown:
                problem = unknown_name(unknown[0], f"is no sequence of {shown(self.category)}", everything.sequences)
                raise ConfigError(keyed_line("restrict_sequence_name", problem))
        return names, tuple(batch for batch in batches if batch[0].sequence_name in names)

    def _split(
        self, listed: FrameIndex, wanted: tuple[str, ...], lists: Mapping[str, tuple[ListedFrame, ...]], most: int
    ) -> IndexDatasetBase:
        """The frames of some lists."""
        places = [i for i, kind in enumerate(listed.frame_types) if kind in wanted]
        if not places:
            raise DataError(
                f"{shown(listed.file)}: found no frame of the lists {', '.join(wanted)} in the sequences chosen,"
                f" expected some; the lists there are: {shown(', '.join(lists))[:80]}"
            )
        return self.dataset(annotated=listed.chosen(places), most_per_sequence=most)

    def _checked(self, splits: DatasetMap) -> DatasetMap:
        names = sorted({name for _, dataset in splits.items() for name in dataset.sequence_names})
        if self.assert_single_seq and len(names) > 1:
            raise ConfigError(
                f"assert_single_seq: found {len(names)} sequences, expected one; choose one by"
                " test_restrict_sequence_id or restrict_sequence_name"
            )
        return splits


def _listed(index: FrameIndex, places: Mapping[str, list[int]], sequences: set[str]) -> FrameIndex:
    """The frames of some sequences that a list has, each of the type that its list is called; in the index's order."""
    kinds = {i: name for name, of_list in places.items() for i in of_list}
    order = [i for i in sorted(kinds) if index.frames[i].sequence_name in sequences]
    return replace(index.chosen(order), frame_types=tuple(kinds[i] for i in order))
