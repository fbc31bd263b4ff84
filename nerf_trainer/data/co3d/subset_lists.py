"""The lists that divide a dataset with an SQLite index into subsets: files of JSON or of SQLite, found by an option."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nerf_trainer.data.co3d.database import Database, Key
from nerf_trainer.data.co3d.set_lists import ListedFrame, read_set_lists
from nerf_trainer.data.files import shown
from nerf_trainer.data.splits import KNOWN, UNSEEN, is_known, is_unseen
from nerf_trainer.errors import ConfigError, keyed_line, unknown_name


@dataclass(frozen=True)
class SubsetLists:
    """Frames of the subsets that a split is made of."""

    file: Path
    """Where they are listed, for messages."""
    frames: Mapping[Key, ListedFrame]
    """The frames, each once, in the order of the lists."""
    types: Mapping[Key, str]
    """What each is for: known or unseen, or a word that ends so."""


@dataclass(frozen=True)
class ListedSubsets:
    """All lists of a file."""

    file: Path
    """Where they stand."""
    lists: Mapping[str, Sequence[ListedFrame]]
    """The frames of each, by name."""

    def joined(self, subsets: Sequence[str], train_subsets: Sequence[str]) -> SubsetLists:
        """Some of them in a row, each frame as the first of them says; training frames are known, others are unseen."""
        frames: dict[Key, ListedFrame] = {}
        types: dict[Key, str] = {}
        for subset in subsets:
            says = subset if is_known(subset) or is_unseen(subset) else KNOWN if subset in train_subsets else UNSEEN
            for frame in self.lists[subset]:
                frames.setdefault(frame.key, frame)
                types.setdefault(frame.key, says)
        return SubsetLists(self.file, frames, types)


def read_subsets(file: Path, wanted: Mapping[str, Sequence[str]]) -> ListedSubsets:
    """The lists of a file: JSON, or SQLite with a table set_lists.

    Args:
        file: the file.
        wanted: options, by name, and the lists that they name.

    Raises:
        DataError: the file is damaged or says something else.
        ConfigError: a list is not in it; the message has those that are.
    """
    lists: dict[str, Sequence[ListedFrame]]
    if file.suffix == ".json":
        lists = dict(read_set_lists(file))
    else:
        found: dict[str, list[ListedFrame]] = {}
        for name, number, path, subset in Database(file, "subset_lists_path").listed():
            found.setdefault(subset, []).append(ListedFrame(name, number, path))
        lists = dict(found)
    for option, names in wanted.items():
        for name in names:
            if name not in lists:
                raise ConfigError(keyed_line(option, unknown_name(name, f"is no list of {shown(file)}", lists)))
    return ListedSubsets(file, lists)


def find_file(root: Path, written: str, suffixes: Sequence[str], option: str) -> Path:
    """A file that an option names: relative to the root or absolute, its suffix given or not.

    Raises:
        ConfigError: there is none; the message has what is in its folder.
    """
    path = root / os.path.expanduser(written)
    for candidate in (path, *(path.with_name(path.name + suffix) for suffix in suffixes)):
        if candidate.is_file():
            return candidate
    there = sorted(entry.name for entry in path.parent.glob("*") if entry.suffix in suffixes)
    raise ConfigError(keyed_line(option, unknown_name(path.name, f"is no file in {shown(path.parent)}", there)))
