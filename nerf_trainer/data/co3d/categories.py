"""Categories of a dataset in CO3D's format: where they are, what their index files say, and the splits made of them."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from nerf_trainer.data.co3d.dataset import FrameIndex, IndexDatasetBase
from nerf_trainer.data.co3d.index_files import read_frame_annotations, read_sequence_annotations
from nerf_trainer.data.co3d.set_lists import FrameFinder, ListedFrame
from nerf_trainer.data.files import shown
from nerf_trainer.data.splits import MOST_BAD_FRAMES, DatasetMap, DatasetMapProviderBase, left_out
from nerf_trainer.errors import ConfigError, DataError, keyed_line, unknown_name

FRAMES_FILE, SEQUENCES_FILE = "frame_annotations.jgz", "sequence_annotations.jgz"
"""The index files of a category."""


class IndexedDatasetOptions(DatasetMapProviderBase):
    """What providers of annotated frames have in common."""

    _leaves_out = False
    _most_bad = MOST_BAD_FRAMES

    def leave_out_bad_frames(self, most: float = MOST_BAD_FRAMES) -> None:
        self._leaves_out, self._most_bad = True, most

    def splits(
        self,
        train: IndexDatasetBase | None,
        val: IndexDatasetBase | None,
        test: IndexDatasetBase | None,
        notices: Iterable[str] = (),
    ) -> DatasetMap:
        """The splits, their cameras and files looked at; with on_bad_frame=skip all is decoded and bad frames left out.

        Raises:
            DataError: cameras that can't be, images that are missing; with on_bad_frame=skip too many of them.
        """
        said = list(notices)
        looked_at: dict[int, IndexDatasetBase] = {}
        for dataset in (train, val, test):
            if dataset is None or id(dataset) in looked_at:
                continue
            sound = self._without_bad_frames(dataset, said) if self._leaves_out else dataset
            said += [notice for notice in sound.check() if notice not in said]
            looked_at[id(dataset)] = sound
        of_train, of_val, of_test = (None if d is None else looked_at[id(d)] for d in (train, val, test))
        points = of_train.points() if of_train is not None else None
        return DatasetMap(train=of_train, val=of_val, test=of_test, notices=tuple(said), points=points)

    def _without_bad_frames(self, dataset: IndexDatasetBase, notices: list[str]) -> IndexDatasetBase:
        places, problems = dataset.sound()
        lines = left_out(str(dataset.index.file), problems, len(dataset), self._most_bad)
        notices += [line for line in lines if line not in notices]
        return dataset.holding(dataset.index.without_others(places)) if problems else dataset


def find_dataset_root(dataset_root: str, variable: str) -> Path:
    """The folder of a dataset: the option, or else an environment variable.

    Args:
        dataset_root: the option; `~` stands for the home folder, "" for what the variable says.
        variable: the environment variable's name.

    Raises:
        ConfigError: neither is set.
        DataError: there is no such folder.
    """
    named = dataset_root or os.environ.get(variable, "")
    if not named:
        raise ConfigError(
            f"dataset_root: found nothing, and {variable} is not set or empty, expected the folder that has the"
            f" categories; set one of them (export {variable}=...)"
        )
    root = Path(os.path.expanduser(named))
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing"
        said_by = f" ({variable})" if named == os.environ.get(variable) else ""
        raise DataError(
            f"dataset_root{said_by}: found {found} at {shown(named)}, expected the folder that has the categories; fix"
            " the path"
        )
    return root


def read_category(root: Path, category: str) -> FrameIndex:
    """All that a category's index files list; no frame has a type yet.

    Raises:
        DataError: there is no such category, a file is missing or damaged, or frames are of unknown sequences.
    """
    folder = root / category
    if category in ("", ".", "..") or category != Path(category).name or not folder.is_dir():
        there = sorted(path.parent.name for path in root.glob(f"*/{FRAMES_FILE}"))
        raise DataError(keyed_line("category", unknown_name(category, f"is no category in {shown(root)}", there)))
    file = folder / FRAMES_FILE
    frames = read_frame_annotations(file)
    annotated = read_sequence_annotations(folder / SEQUENCES_FILE)
    sequences = {sequence.sequence_name: sequence for sequence in annotated}
    orphans = [frame for frame in frames if frame.sequence_name not in sequences]
    if orphans or not frames:
        name = f"{len(orphans)} of {len(frames)} frames of sequences that {SEQUENCES_FILE} lacks, the first is of "
        found = name + shown(orphans[0].sequence_name)[:60] if orphans else "no frame"
        raise DataError(f"{shown(file)}: found {found}, expected frames of its sequences; download both files again")
    return FrameIndex(root, str(file), tuple(frames), ("",) * len(frames), sequences)


def with_batches(
    index: FrameIndex, batches: Sequence[Sequence[ListedFrame]], file: Path, notices: list[str]
) -> FrameIndex:
    """The frames with evaluation batches of them; what filters have left out is left out of the batches too.

    A batch whose target is gone is left out whole. That is said in `notices`, as results then mean something else.

    Raises:
        DataError: no batch is left.
    """
    finder = FrameFinder(index.frames, index.file)
    found = [[finder.place(frame) for frame in batch] for batch in batches]
    kept = [tuple(place for place in batch if place is not None) for batch in found if batch[0] is not None]
    n_short = sum(batch[0] is not None and None in batch for batch in found)
    if not kept:
        raise DataError(
            f"{shown(file)}: found none of the targets of {len(batches)} batches among the {len(index.frames)} test"
            " frames, expected some; change the options that choose frames"
        )
    if n_short or len(kept) < len(batches):
        notices.append(
            f"{shown(file)}: {len(batches) - len(kept)} of {len(batches)} evaluation batches are left out and {n_short}"
            " shortened, for their frames are not among those chosen; results can't be compared with the whole set's"
        )
    return replace(index, eval_batches=tuple(kept))
