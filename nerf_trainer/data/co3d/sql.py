"""SqlIndexDataset: frames of a dataset in CO3D's format whose annotations stand in an SQLite file, and their splits.

<dataset_root>/metadata.sqlite                          annotations of all frames and sequences
               <category>/<sequence>/images, masks, ... where the annotations say
               <category>/set_lists/*.json, *.sqlite    frames of each subset, where the options say
               <category>/eval_batches/*.json
"""

import hashlib
import os
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import torch

from nerf_trainer.config import Factory, choice, registry, runtime
from nerf_trainer.data.co3d.categories import IndexedDatasetOptions, find_dataset_root, with_batches
from nerf_trainer.data.co3d.database import Database, Key, Selection
from nerf_trainer.data.co3d.dataset import FrameIndex, IndexDatasetBase
from nerf_trainer.data.co3d.set_lists import FrameFinder, ListedFrame, read_eval_batches
from nerf_trainer.data.co3d.subset_lists import ListedSubsets, SubsetLists, find_file, read_subsets
from nerf_trainer.data.co3d.v2 import add_known_frames
from nerf_trainer.data.files import shown
from nerf_trainer.data.splits import KNOWN, DatasetMap, is_known
from nerf_trainer.errors import ConfigError, DataError, keyed_line, unknown_name
from nerf_trainer.frames import FrameData

ROOT_VARIABLE = "CO3D_SQL_DATASET_ROOT"
"""The environment variable that stands in for dataset_root."""


@registry.register
class SqlIndexDataset(IndexDatasetBase):
    """Frames that an SQLite file annotates, fewer of them as the options say. Options apply in this order: categories
    and sequences with their limits, remove_empty_masks, pick_frames_sql_clause, limit_to, n_frames_per_sequence.

    Frames are indexed by their place or by (sequence name, frame number).
    """

    database: Database = runtime()
    """The annotations."""
    root: Path = runtime()
    """The folder that the annotations' paths are relative to."""
    subsets: SubsetLists | None = runtime()
    """The frames to choose from; None for all there are."""
    categories: tuple[str, ...] = runtime()
    """Categories that take the place of pick_categories; empty for none."""
    remove_empty_masks: bool = True
    """Leave out frames whose mask is known to have a mass of 0."""
    pick_frames_sql_clause: str | None = None
    """Only frames of which this SQL expression over the columns of frame_annots holds. Trusted input: it is given to
    SQLite as it is; needs trust_sql_clauses."""
    pick_categories: tuple[str, ...] = ()
    """Categories whose sequences to take; empty for all. The provider's category takes its place."""
    pick_sequences: tuple[str, ...] = ()
    """Names of sequences to take; empty for all."""
    pick_sequences_sql_clause: str | None = None
    """Only sequences of which this SQL expression over the columns of sequence_annots holds. Trusted as well."""
    exclude_sequences: tuple[str, ...] = ()
    """Names of sequences to leave out."""
    limit_sequences_per_category_to: int = 0
    """Take the first so many sequences of each category, in the order of the file; 0 for all."""
    limit_sequences_to: int = 0
    """Take the first so many sequences of those; 0 for all."""
    limit_to: int = 0
    """Take the first so many frames by sequence and number; 0 for all."""
    n_frames_per_sequence: int = -1
    """Draw at most so many frames of each sequence, at random; below 1 for all."""
    seed: int = 0
    """Which frames n_frames_per_sequence draws; each sequence's draw depends on its name too."""
    trust_sql_clauses: bool = False
    """Accept the two options that are SQL. Set it only for clauses that you wrote yourself."""

    def __post_init__(self) -> None:
        super().__post_init__()
        limits = {
            "limit_sequences_per_category_to": self.limit_sequences_per_category_to,
            "limit_sequences_to": self.limit_sequences_to,
            "limit_to": self.limit_to,
        }
        for name, value in limits.items():
            if value < 0:
                raise ConfigError(f"{name}: found {value}, expected a whole number, or 0 for no limit")
        clauses = {
            "pick_frames_sql_clause": self.pick_frames_sql_clause,
            "pick_sequences_sql_clause": self.pick_sequences_sql_clause,
        }
        for name, clause in clauses.items():
            if clause is not None and not self.trust_sql_clauses:
                raise ConfigError(
                    f"{name}: found {shown(clause)[:100]} with trust_sql_clauses: false; SQL is run as it is: if"
                    " you wrote it yourself, set trust_sql_clauses=true, otherwise take it out"
                )
        self.hold(self._chosen())

    def hold(self, index: FrameIndex) -> None:
        super().hold(index)
        self._places = {(frame.sequence_name, frame.frame_number): i for i, frame in enumerate(index.frames)}

    def __getitem__(self, index: int | Key) -> FrameData:
        """One frame as a batch of one, by its place or by its sequence and number.

        Raises:
            KeyError: no such frame was chosen.
            DataError: a file of it is missing or damaged.
        """
        return super().__getitem__(index if isinstance(index, int) else self.place(*index))

    def place(self, sequence_name: str, frame_number: int) -> int:
        """Where a frame stands in this dataset.

        Raises:
            KeyError: it was not chosen, or there is none.
        """
        return self._places[sequence_name, frame_number]

    def meta(self, index: int | Key) -> FrameData:
        """What is known of a frame, as `[]` gives it, with no pixel: nothing is decoded.

        Raises:
            KeyError: no such frame was chosen.
            ConfigError: its camera depends on a mask that would have to be decoded.
        """
        place = index if isinstance(index, int) else self.place(*index)
        frame = self.index.frames[place]
        if self.box_crop and (frame.mask is None or frame.mask.bounding_box_xywh is None):
            raise ConfigError(
                "box_crop: found true for frames without an annotated bounding box, whose cameras depend on their"
                " masks; set box_crop=false to look at frames without decoding"
            )
        times = self.frame_timestamps
        return FrameData(
            cameras=self.holding(self.index.chosen([place])).cameras(),
            sequence_name=(frame.sequence_name,),
            frame_number=(frame.frame_number,),
            frame_type=(self.index.frame_types[place],),
            frame_timestamp=None if times is None else torch.tensor([times[place]], dtype=torch.float32),
            image_path=(self.image_paths[place],),
            sequence_category=(self.index.sequences[frame.sequence_name].category,),
        )

    def _chosen(self) -> FrameIndex:
        """The frames that the options leave."""
        keys = self._drawn(self._limited(self._of_frames(self._of_sequences())))
        frames = self.database.frame_annotations(keys)
        finder = FrameFinder(frames, str(self.database.file))
        if self.subsets is not None:  # all that is listed is annotated, with the images that the lists name
            finder.require([self.subsets.frames[key] for key in keys], self.subsets.file, "the lists")
        names = list(dict.fromkeys(name for name, _ in keys))
        sequences = self.database.sequence_annotations(names)
        orphans = [name for name in names if name not in sequences]
        if orphans:
            raise DataError(
                f"{shown(self.database.file)}: found frames of {len(orphans)} sequences that sequence_annots lacks, the"
                f" first is {shown(orphans[0])[:60]}, expected a row for each; restore the file"
            )
        types = {} if self.subsets is None else self.subsets.types
        return FrameIndex(
            root=self.root,
            file=str(self.database.file),
            frames=tuple(frames),
            frame_types=tuple(types.get((f.sequence_name, f.frame_number), KNOWN) for f in frames),
            sequences=sequences,
        )

    def _of_sequences(self) -> list[Key]:
        """Frames of the sequences that are wanted."""
        categories = self.categories or self.pick_categories
        wanted = Selection(
            categories=categories,
            pick=self.pick_sequences,
            exclude=self.exclude_sequences,
            clause=self.pick_sequences_sql_clause,
            most_per_category=self.limit_sequences_per_category_to,
            most=self.limit_sequences_to,
        )
        keys = self.database.frames() if self.subsets is None else list(self.subsets.frames)
        if wanted == Selection():
            return self._some(keys, len(keys), "subset_lists_path")
        for category in sorted(set(categories).difference(there := self.database.categories())):
            key = "category" if self.categories else "pick_categories"
            problem = f"is no category of {shown(self.database.file)}"
            raise ConfigError(keyed_line(key, unknown_name(category, problem, there)))
        names = set(self.database.sequences(wanted))
        return self._some([key for key in keys if key[0] in names], len(keys), "the options that pick sequences")

    def _of_frames(self, keys: list[Key]) -> list[Key]:
        """Those of the frames that have a mask, and of which the clause holds."""
        n = len(keys)
        if self.remove_empty_masks:
            empty = self.database.empty_frames()
            keys = self._some([key for key in keys if key not in empty], n, "remove_empty_masks")
        if self.pick_frames_sql_clause is not None:
            held = set(self.database.frames(self.pick_frames_sql_clause))
            keys = self._some([key for key in keys if key in held], len(keys), "pick_frames_sql_clause")
        return keys

    def _some(self, left: list[Key], n_before: int, option: str) -> list[Key]:
        if not left:
            raise DataError(
                f"{shown(self.database.file)}: found {n_before} frames before {option} and none after it, expected at"
                f" least one; change {option}"
            )
        return left

    def _limited(self, keys: list[Key]) -> list[Key]:
        return sorted(keys)[: self.limit_to] if self.limit_to else keys

    def _drawn(self, keys: list[Key]) -> list[Key]:
        n = self.n_frames_per_sequence
        return [keys[i] for i in draw_frames([name for name, _ in keys], n, self.seed)] if n > 0 else keys


def draw_frames(sequences: Sequence[str], n: int, seed: int) -> list[int]:
    """Places of at most n frames of each sequence, drawn at random, in their order.

    A sequence's draw is numpy's RandomState, seeded by the first 28 bits of the SHA-1 of its name plus `seed`: the same
    frames as those of the loader that the tables come from.

    Args:
        sequences: the sequence of each frame.
    """
    places = sorted(range(len(sequences)), key=lambda i: sequences[i])
    drawn: list[int] = []
    for name, of_sequence in groupby(places, key=lambda i: sequences[i]):
        own = list(of_sequence)
        start = int(hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest()[:7], 16) + seed
        chosen = np.random.RandomState(start % 2**32).choice(len(own), size=min(n, len(own)), replace=False)
        drawn += [own[i] for i in chosen.tolist()]
    return sorted(drawn)


@registry.register
class SqlIndexDatasetMapProvider(IndexedDatasetOptions):
    """The splits of a dataset with an SQLite index, as subset lists divide it."""

    category: str | None = None
    """The categories to take, with commas between them; null for all."""
    subset_list_name: str | None = None
    """Short for the subset_lists_path <category>/set_lists/set_lists_<name>; without <category> unless it is one."""
    subset_lists_path: str | None = None
    """The lists of each subset: a JSON or SQLite file, relative to dataset_root; the suffix can be left out."""
    eval_batches_path: str | None = None
    """The batches to evaluate: a JSON file, relative to dataset_root; null evaluates every unseen test frame."""
    dataset_root: str = ""
    """The folder with the index; empty for the environment variable CO3D_SQL_DATASET_ROOT."""
    metadata_basename: str = "metadata.sqlite"
    """The index, relative to dataset_root."""
    test_on_train: bool = False
    """Let val and test be the training split."""
    only_test_set: bool = False
    """Make no training and validation splits."""
    ignore_subsets: bool = False
    """Take all frames for every split and read no lists."""
    train_subsets: tuple[str, ...] = ("train",)
    """Lists that make up the training split."""
    val_subsets: tuple[str, ...] = ("val",)
    """Lists that make up the validation split."""
    test_subsets: tuple[str, ...] = ("test",)
    """Lists that make up the test split."""
    eval_batch_num_training_frames: int = 0
    """Add so many training frames of the target's sequence to each evaluation batch, as source views."""
    dataset: Factory[SqlIndexDataset] = choice("SqlIndexDataset")
    """What chooses frames and reads them."""

    def __post_init__(self) -> None:
        if self.only_test_set and self.test_on_train:
            raise ConfigError("only_test_set: found true together with test_on_train; set one of them to false")
        if self.subset_lists_path and self.subset_list_name:
            raise ConfigError("subset_lists_path: found it together with subset_list_name; set one of them to null")
        if not self.ignore_subsets and not (self.subset_lists_path or self.subset_list_name):
            raise ConfigError(
                "subset_lists_path: found nothing, expected the lists that say which frames are for training and test;"
                " set it, subset_list_name or ignore_subsets=true"
            )
        n = self.eval_batch_num_training_frames
        if n < 0:
            raise ConfigError(f"eval_batch_num_training_frames: found {n}, expected a whole number of at least 0")
        if n and (not self.eval_batches_path or self.ignore_subsets):
            raise ConfigError(
                f"eval_batch_num_training_frames: found {n} without evaluation batches to add training frames to;"
                " set eval_batches_path, and ignore_subsets=false"
            )

    def get_dataset_map(self) -> DatasetMap:
        root = find_dataset_root(self.dataset_root, ROOT_VARIABLE)
        database = Database(root / self.metadata_basename, "metadata_basename")
        listed = None if self.ignore_subsets else self._read_lists(root)
        same = self.test_on_train or (self.ignore_subsets and not self.only_test_set)
        train = None if self.only_test_set else self._dataset(root, database, listed, self.train_subsets)
        if same:
            return self.splits(train, train, train)
        val = None if self.only_test_set else self._dataset(root, database, listed, self.val_subsets)
        more = self.train_subsets if self.eval_batch_num_training_frames else ()
        test = self._dataset(root, database, listed, (*self.test_subsets, *more))
        notices: list[str] = []
        if self.eval_batches_path is not None and test is not None:
            test = self._with_batches(root, test, notices)
        return self.splits(train, val, test, notices)

    @property
    def _categories(self) -> tuple[str, ...]:
        names = [] if self.category is None else [name.strip() for name in self.category.split(",")]
        return tuple(name for name in names if name)

    def _dataset(
        self, root: Path, database: Database, listed: ListedSubsets | None, subsets: Sequence[str]
    ) -> SqlIndexDataset | None:
        """The frames of some subsets; None where the lists have none."""
        lists = None if listed is None else listed.joined(subsets, self.train_subsets)
        if lists is not None and not lists.frames:
            return None
        return self.dataset(database=database, root=root, subsets=lists, categories=self._categories)

    def _read_lists(self, root: Path) -> ListedSubsets:
        written = self.subset_lists_path
        if written is None:
            folder = self._categories[0] if len(self._categories) == 1 else ""
            written = os.path.join(folder, "set_lists", f"set_lists_{self.subset_list_name}")
        file = find_file(root, written, (".sqlite", ".json"), "subset_lists_path")
        options = (
            ("train_subsets", self.train_subsets),
            ("val_subsets", self.val_subsets),
            ("test_subsets", self.test_subsets),
        )
        return read_subsets(file, dict(options))

    def _with_batches(self, root: Path, test: SqlIndexDataset, notices: list[str]) -> IndexDatasetBase:
        """The test split with the batches to evaluate, those of sequences that were left out aside."""
        assert self.eval_batches_path is not None
        file = find_file(root, self.eval_batches_path, (".json",), "eval_batches_path")
        batches = read_eval_batches(file)
        if self.eval_batch_num_training_frames:
            frames, types = test.index.frames, test.index.frame_types
            known = [f for f, kind in zip(frames, types, strict=True) if is_known(kind)]
            in_order = sorted(known, key=lambda f: (f.sequence_name, f.frame_timestamp, f.frame_number))
            listed = [ListedFrame(f.sequence_name, f.frame_number) for f in in_order]
            batches = add_known_frames(batches, listed, self.eval_batch_num_training_frames)
        return test.holding(with_batches(test.index, batches, file, notices))
