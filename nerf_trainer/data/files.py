"""The files of a scene: found inside its folder, read with care, and named in every complaint.

A dataset comes from anywhere, so that nothing in it is trusted: paths may not leave the folder, files must be regular
files, JSON must be strict, and what is wrong is said in one line with the place in the file.
"""

import json
import math
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from nerf_trainer.errors import DataError

MAX_JSON_BYTES = 256 * 2**20
"""Largest JSON file that is read; a scene of 100,000 frames has about 60 MB."""

LARGEST_NUMBER = 1e30
"""Numbers beyond it are refused, as they are on their way to infinity in single precision."""

_LONGEST_SHOWN = 240
"""Longest path or name that a message shows whole."""

SCENE_SCHEME = "scene://"
"""A base_dir that starts so names a scene that comes with the package."""


def shown(text: object) -> str:
    """`text` as it can stand in a message of one line: printable, its middle cut out where it is very long."""
    plain = str(text)
    if len(plain) > _LONGEST_SHOWN:
        plain = f"{plain[: _LONGEST_SHOWN // 3]} ... {plain[-_LONGEST_SHOWN // 2 :]}"
    return plain if plain.isprintable() else repr(plain)


def scene_folder(base_dir: str) -> Path:
    """The folder that an option `base_dir` means.

    `scene://quickstart` is the scene of that name that comes with the package; anything else is a path, in which `~`
    stands for the home folder.

    Raises:
        DataError: there is no such folder, or no embedded scene of that name.
    """
    if base_dir.startswith(SCENE_SCHEME):
        return embedded_scene(base_dir.removeprefix(SCENE_SCHEME))
    folder = Path(os.path.expanduser(base_dir))
    if not os.path.isdir(folder):
        found = "a file" if os.path.exists(folder) else "nothing"
        raise DataError(f"base_dir: found {found} at {shown(base_dir)}, expected the folder of a scene; fix the path")
    return folder


def embedded_scene(name: str) -> Path:
    """The folder of a scene that comes with the package: inside an installed wheel, beside the package in a checkout.

    Raises:
        DataError: no scene has that name; the message lists those there are.
    """
    package = Path(__file__).resolve().parents[1]
    homes = (package / "scenes", package.parent / "scenes")
    scenes = {child.name: child for home in reversed(homes) for child in _folders(home)}
    if name not in scenes:
        known = ", ".join(SCENE_SCHEME + scene for scene in sorted(scenes)) or "none in this installation"
        raise DataError(
            f"base_dir: {shown(SCENE_SCHEME + name)} is no embedded scene, expected one of: {known}; "
            "to use a scene of your own give the path of its folder"
        )
    return scenes[name]


def _folders(home: Path) -> list[Path]:
    return [child for child in home.iterdir() if any(child.glob("*.json"))] if home.is_dir() else []


def resolve_inside(root: Path, relative: str, where: str, allow_external: bool = False) -> Path:
    """The path of a file that a dataset names, with symbolic links followed; nothing is opened.

    Args:
        root: the dataset's folder.
        relative: the path as the dataset writes it.
        where: the place in the dataset that names it, for the message.
        allow_external: accept files outside of `root`.

    Raises:
        DataError: the path leaves `root`.
    """
    try:
        path = Path(os.path.realpath(root / relative))
    except (ValueError, OSError) as error:  # NUL, half a surrogate pair
        raise DataError(f"{where}: found {shown(relative)[:80]}, expected the path of a file; fix the path") from error
    if not allow_external and not path.is_relative_to(os.path.realpath(root)):
        raise DataError(
            f"{where}: found {shown(relative)}, outside dataset root {shown(root)}; "
            "move the file inside, or set allow_external=true if you trust the dataset"
        )
    return path


@dataclass
class ScenePaths:
    """The files that a scene names, found inside its folder as `resolve_inside` finds them.

    Each folder that is named is resolved and listed once, so that 100,000 frames do not cost a hundred thousand looks
    at the disk: below a folder that is inside, what the listing does not call a link is inside too.
    """

    root: Path
    """The scene's folder, which no file may leave."""
    allow_external: bool = False
    """Accept files outside of `root`."""
    _folders: dict[str, "_Listing | None"] = field(default_factory=dict, repr=False)

    def resolve(self, written: str, where: str) -> Path:
        """As `resolve_inside`, of a path relative to `root` or absolute."""
        folder, name = os.path.split(written)
        listing = self._listing(folder)
        if listing is None or listing.kinds.get(name, _Kind.LINK) is _Kind.LINK:
            return resolve_inside(self.root, written, where, self.allow_external)
        return listing.folder / name

    def find(self, written: str, where: str, suffixes: Sequence[str]) -> Path | None:
        """The first plain file of `written` and `written` with each suffix; else the first that is anything at all.

        Raises:
            DataError: what is found leaves `root`, or `written` can't be the path of a file.
        """
        folder, name = os.path.split(written)
        listing = self._listing(folder)
        if listing is None:
            path = self.resolve(written, where)
            return path if os.path.exists(path) else None
        other = None
        for suffix in ("", *suffixes):
            kind = listing.kinds.get(name + suffix)
            if kind is _Kind.FILE:
                return listing.folder / (name + suffix)
            if kind is not None:
                path = self.resolve(written + suffix, where)
                if os.path.isfile(path):
                    return path
                other = other or path
        if other is None:
            self.resolve(written, where)
        return other

    def _listing(self, folder: str) -> "_Listing | None":
        """What is in a folder as the dataset writes it; None where that is outside, missing or no folder."""
        if folder not in self._folders:
            self._folders[folder] = self._listed(folder)
        return self._folders[folder]

    def _listed(self, folder: str) -> "_Listing | None":
        try:
            path = resolve_inside(self.root, folder, folder, self.allow_external)
            with os.scandir(path) as entries:
                return _Listing(path, {entry.name: _kind_of(entry) for entry in entries})
        except (DataError, OSError):
            return None


class _Kind(Enum):
    """What an entry of a folder is."""

    FILE = "a plain file"
    LINK = "a symbolic link"
    OTHER = "a folder, a pipe, a device"


@dataclass(frozen=True)
class _Listing:
    """A folder, with symbolic links followed, and what is in it."""

    folder: Path
    kinds: dict[str, _Kind]


def _kind_of(entry: "os.DirEntry[str]") -> _Kind:
    if entry.is_symlink():
        return _Kind.LINK
    return _Kind.FILE if entry.is_file(follow_symlinks=False) else _Kind.OTHER


def _mend(missing: Path) -> str:
    """What to do about a file that is not there: a name may differ from it by upper and lower case alone."""
    try:
        likeness = [name for name in os.listdir(missing.parent) if name.lower() == missing.name.lower()]
    except OSError:
        likeness = []
    return f"there is {shown(likeness[0])}: write both alike" if likeness else "restore it"


def require_regular_file(path: Path, where: str) -> os.stat_result:
    """Refuse what is missing, empty or no plain file (a folder, a FIFO, a device), without opening it.

    Raises:
        DataError: naming `where`, the path and what is there.
    """
    try:
        status = path.stat()
    except OSError as error:
        found = "nothing" if isinstance(error, FileNotFoundError | NotADirectoryError) else str(error.strerror)
        raise DataError(f"{where}: found {found} at {shown(path)}, expected a file; {_mend(path)}") from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, socket or device"
        raise DataError(f"{where}: found {kind} at {shown(path)}, expected a plain file; replace it")
    if status.st_size == 0:
        raise DataError(f"{where}: found an empty file at {shown(path)}, expected content; restore it")
    return status


@dataclass(frozen=True)
class JsonNode:
    """A value in a JSON file, which knows its place, so that what is wrong with it can be said."""

    value: Any
    """As the json module reads it."""
    file: Path
    """The file it stands in."""
    path: str = ""
    """Its place in the file, like frames[7].transform_matrix."""

    @property
    def where(self) -> str:
        """File and place, for messages."""
        return f"{shown(self.file)}: {self.path}" if self.path else shown(self.file)

    def wrong(self, expected: str, found: str | None = None) -> DataError:
        """The error that says that something else was expected here."""
        seen = json_kind(self.value) if found is None else found
        return DataError(f"{self.where}: expected {expected}, found {seen}; fix the file or export it again")

    def __contains__(self, key: str) -> bool:
        """Whether the object has a member `key`."""
        return key in self._object()

    def member(self, key: str) -> "JsonNode":
        """The member `key` of an object, which must have it."""
        members = self._object()
        child = JsonNode(members.get(key), self.file, f"{self.path}.{key}" if self.path else key)
        if key not in members:
            raise child.wrong("a value", "nothing (the key is missing)")
        return child

    def elements(self) -> Iterator["JsonNode"]:
        """The elements of an array."""
        if not isinstance(self.value, list):
            raise self.wrong("an array")
        return (JsonNode(value, self.file, f"{self.path}[{i}]") for i, value in enumerate(self.value))

    def text(self) -> str:
        """The value as a string that is not empty."""
        if not isinstance(self.value, str) or not self.value:
            raise self.wrong("a string", "an empty string" if self.value == "" else None)
        return self.value

    def number(self, expected: str = "a finite number", low: float = -math.inf, high: float = math.inf) -> float:
        """The value as a finite number strictly between `low` and `high`; `expected` says so in the message."""
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            raise self.wrong(expected)
        if not abs(self.value) <= LARGEST_NUMBER or not low < self.value < high:
            raise self.wrong(expected, f"{self.value:.6g}" if isinstance(self.value, float) else str(self.value)[:20])
        return float(self.value)

    def matrix(self, n_rows: int, n_columns: int) -> list[list[float]]:
        """The value as a matrix of finite numbers, row by row."""
        wanted, rows = f"{n_rows}x{n_columns}", self.value
        if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
            raise self.wrong(f"{wanted} (an array of rows)")
        widths = sorted({len(row) for row in rows})
        if len(rows) != n_rows or widths != [n_columns]:
            found = f"{len(rows)}x{widths[0]}" if len(widths) == 1 else f"{len(rows)} rows of {widths} numbers"
            raise self.wrong(wanted, found[:60])
        return [[entry.number() for entry in row.elements()] for row in self.elements()]

    def _object(self) -> dict[str, Any]:
        if not isinstance(self.value, dict):
            raise self.wrong("an object")
        return self.value


def json_kind(value: object) -> str:
    """What a JSON value is, in words."""
    if isinstance(value, str | int | float | bool) or value is None:
        return shown(json.dumps(value)[:40])
    return "an array" if isinstance(value, list) else "an object"


def read_json(path: Path) -> JsonNode:
    """Read a JSON file, strictly: UTF-8 without byte order mark, no NaN or Infinity, no key twice.

    Raises:
        DataError: the file is missing, too large (`MAX_JSON_BYTES`) or no such JSON.
    """
    size = require_regular_file(path, shown(path)).st_size
    if size > MAX_JSON_BYTES:
        raise DataError(
            f"{shown(path)}: found {size / 2**20:.0f} MiB of JSON, expected at most "
            f"{MAX_JSON_BYTES / 2**20:.0f} MiB; split the scene"
        )

    try:
        content = path.read_bytes()
    except OSError as error:
        problem = shown(str(error)[:160])
        raise DataError(f"{shown(path)}: expected JSON, found: {problem}; fix the file or export it again") from error
    return parse_json(content, path)


def parse_json(content: bytes, path: Path) -> JsonNode:
    """JSON from memory, as strictly as `read_json` takes it.

    Args:
        content: the text in UTF-8.
        path: the file that it comes from, for messages.

    Raises:
        DataError: it is no such JSON.
    """

    faults: list[_Fault] = []

    def constant(name: str) -> _Fault:
        faults.append(_Fault("a finite number", name))
        return faults[-1]

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any] | _Fault:
        found = dict(pairs)
        if len(found) == len(pairs):
            return found
        twin = Counter(key for key, _ in pairs).most_common(1)[0][0]
        faults.append(_Fault("every key once in an object", f"the key {shown(twin[:40])!r} twice"))
        return faults[-1]

    try:
        text = content.decode("utf-8")
        if text.startswith("\ufeff"):
            raise ValueError("the file starts with a byte order mark; save it as UTF-8 without one")
        value = json.loads(text, parse_constant=constant, object_pairs_hook=members)
    except RecursionError as error:
        raise DataError(f"{shown(path)}: found arrays nested too deep, expected a scene; export it again") from error
    except ValueError as error:
        problem = shown(str(error)[:160])
        raise DataError(f"{shown(path)}: expected JSON, found: {problem}; fix the file or export it again") from error
    if faults:
        raise _first_fault(value, path)
    return JsonNode(value, path)


@dataclass(frozen=True)
class _Fault:
    """Stands in a document where its text has what JSON does not allow: NaN, Infinity, or a key twice."""

    expected: str
    found: str


_INNER = (list, dict, _Fault)
"""What may be, or have within, a fault."""


def _first_fault(value: Any, path: Path) -> DataError:
    """The error that says where the first fault stands in a document that has some."""
    left: list[tuple[str, Any]] = [("", value)]
    while left:
        place, here = left.pop()
        if isinstance(here, _Fault):
            return JsonNode(None, path, place).wrong(here.expected, here.found)
        if isinstance(here, list):
            inner = [(f"{place}[{i}]", member) for i, member in enumerate(here) if isinstance(member, _INNER)]
        else:
            named = ((key, member) for key, member in here.items() if isinstance(member, _INNER))
            inner = [(f"{place}.{shown(key[:40])}".removeprefix("."), member) for key, member in named]
        left += reversed(inner)
    raise AssertionError("called for a document without faults")
