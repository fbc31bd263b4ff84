"""YAML of configurations, looked at before anything is made of it.

A file of some hundred bytes may unfold to terabytes through its aliases, and a configuration may name code: Hydra calls
what `_target_` names for its callbacks, and Python's logging what `class` and `()` name. Files are therefore walked as
events first, which takes no more memory than the file.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from nerf_trainer.errors import ConfigError, keyed_line, shown

MAX_BYTES = 2**20
"""The largest file that is read; those of this project have some 10 kB."""
MAX_NODES = 100_000
"""Most keys and values that a file may hold, what its aliases stand for counted each time."""
MAX_DEPTH = 100
"""Most levels of mappings and lists, one within the other."""

_PARSER: Any = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
_TAGS = frozenset({"!", *(f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map"))})
"""Tags that may stand there; those of Python's objects are refused, and values need none."""
_TARGET = "_target_"
_LOGGING_CLASS = re.compile(r"logging\.(handlers\.(?!Queue))?[A-Z][A-Za-z]+")
"""What the `class` of a logging handler may be: one of the standard library's own that calls nothing by its name."""
_IMPORTED = re.compile(r"\bext://(?!sys\.(stdout|stderr)$)")
"""What logging imports, but for the two streams."""


def read_yaml_text(path: Path) -> str:
    """The text of a YAML file, proven to be harmless: see `check_yaml`.

    Raises:
        ConfigError: that; or the file is no regular file, too large, or no UTF-8.
        OSError: it can't be read.
    """
    if not path.is_file():
        raise ConfigError(keyed_line(str(path), "no regular file; expected a configuration in YAML"))
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        found = f"found {path.stat().st_size:,} bytes"
        raise ConfigError(keyed_line(str(path), f"{found}, expected a configuration of at most {MAX_BYTES:,}"))
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        found = f"found a byte that is no UTF-8 at {error.start}"
        raise ConfigError(keyed_line(str(path), f"{found}, expected a configuration in YAML")) from error
    check_yaml(text, str(path))
    return text


def check_yaml(text: str, name: str) -> None:
    """Refuse YAML that is damaged, that unfolds to too much, or that names code to be called.

    Args:
        text: the YAML.
        name: what messages call it.

    Raises:
        ConfigError: with what was found and its line.
    """
    walk = _Walk(name)
    try:
        for event in yaml.parse(text, Loader=_PARSER):
            walk.take(event)
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f"line {error.problem_mark.line + 1}: "
        raise ConfigError(keyed_line(name, f"{line}{error.problem or error.context}, expected YAML")) from error
    except (yaml.YAMLError, RecursionError) as error:
        problem = (str(error).strip() or "nested too deeply").splitlines()[0]
        raise ConfigError(keyed_line(name, f"{problem}, expected YAML")) from error


def require_no_code(key: str, value: Any) -> None:
    """Refuse an override that names code to be called, at any depth of its key or its value.

    Args:
        key: the dotted key.
        value: what it is given: plain values, lists, mappings.

    Raises:
        ConfigError: naming the key.
    """
    *parents, last = re.findall(r"[^.\[\]]+", key) or [""]
    for parent in parents:
        _require_harmless(parent, None, key)
    for name, item in ((last, value), *_pairs(value)):
        for text in item if isinstance(item, list | tuple) else (item,):  # a sweep's values
            _require_harmless(name, text if isinstance(text, str) else None, key)
            _require_no_import(text, key)


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key), item
            yield from _pairs(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _pairs(item)


def _require_harmless(key: str, value: str | None, where: str) -> None:
    if key == _TARGET:
        problem = f"{_TARGET} is never called here; components are chosen by the name of their class, ..._class_type"
    elif key == "()":
        problem = "'()' names what would be called; a configuration can't name code"
    elif key == "class" and value is not None and _LOGGING_CLASS.fullmatch(value) is None:
        problem = f"class: {shown(value)} would be called; expected a class of logging or logging.handlers"
    else:
        return
    raise ConfigError(keyed_line(where, problem))


def _require_no_import(text: Any, where: str) -> None:
    if isinstance(text, str) and _IMPORTED.search(text) is not None:
        problem = f"{shown(text)} would be imported; expected ext://sys.stdout or ext://sys.stderr"
        raise ConfigError(keyed_line(where, problem))


@dataclass
class _Open:
    """A mapping or list whose end was not seen yet."""

    anchor: str | None
    is_mapping: bool
    n_before: int
    """Nodes seen before it."""
    key: str | None = None
    """Of a mapping: the key whose value comes next, where it is a scalar."""
    at_key: bool = True
    """Of a mapping: whether a key comes next."""


@dataclass
class _Walk:
    """What has been seen of a file."""

    name: str
    n_nodes: int = 0
    within: list[_Open] = field(default_factory=list)
    anchors: dict[str, tuple[int, str | None]] = field(default_factory=dict)
    """The number of nodes that an alias stands for, and its text where that is a scalar."""

    def take(self, event: yaml.Event) -> None:
        if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag not in (None, *_TAGS):
            tag = str(event.tag).replace("tag:yaml.org,2002:", "!!")
            raise self._refused(event.start_mark.line + 1, f"the tag {shown(tag)}; expected plain values")
        if isinstance(event, yaml.CollectionEndEvent):
            done = self.within.pop()
            self._name(done.anchor, self.n_nodes - done.n_before, None)
        elif isinstance(event, yaml.AliasEvent):
            line = event.start_mark.line + 1
            if any(event.anchor == outer.anchor for outer in self.within):
                raise self._refused(line, f"*{event.anchor} stands within what it stands for; expected plain values")
            n_nodes, text = self.anchors.get(event.anchor, (1, None))
            self._add(n_nodes, text, line)
        elif isinstance(event, yaml.ScalarEvent):
            _require_no_import(event.value, f"{self.name}: line {event.start_mark.line + 1}")
            self._add(1, event.value, event.start_mark.line + 1)
            self._name(event.anchor, 1, event.value)
        elif isinstance(event, yaml.CollectionStartEvent):
            line = event.start_mark.line + 1
            opened = _Open(event.anchor, isinstance(event, yaml.MappingStartEvent), self.n_nodes)
            self._add(1, None, line)
            self.within.append(opened)
            if len(self.within) > MAX_DEPTH:
                raise self._refused(line, f"found more than {MAX_DEPTH} levels of nesting, expected a configuration")

    def _name(self, anchor: str | None, n_nodes: int, text: str | None) -> None:
        if anchor is not None:
            self.anchors[anchor] = n_nodes, text

    def _add(self, n_nodes: int, text: str | None, line: int) -> None:
        """One more node of what is open, `text` if it is a scalar."""
        self.n_nodes += n_nodes
        if self.n_nodes > MAX_NODES:
            raise self._refused(line, f"unfolds to more than {MAX_NODES:,} keys and values, expected a configuration")
        outer = self.within[-1] if self.within else None
        if outer is None or not outer.is_mapping:
            return
        if outer.at_key:
            outer.key = text
            if text is not None:
                _require_harmless(text, None, f"{self.name}: line {line}")
        elif outer.key is not None:
            _require_harmless(outer.key, text, f"{self.name}: line {line}")
        outer.at_key = not outer.at_key

    def _refused(self, line: int, problem: str) -> ConfigError:
        return ConfigError(keyed_line(self.name, f"line {line}: {problem}"))
