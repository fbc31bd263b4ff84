"""Quick copies of configurations have all that is in them, and share nothing that can change."""

import copy
import enum
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf
from omegaconf.base import Node
from omegaconf.errors import ReadonlyConfigError, ValidationError

from nerf_trainer.config import defaults
from nerf_trainer.experiment import Experiment
from tests import quick_copies


class Kind(enum.Enum):
    ONE = 1


@dataclass
class Inner:
    number: int | float = 1
    path: Path = Path("a")
    kind: Kind = Kind.ONE
    anything: Any = None
    needed: str = MISSING
    raw: bytes = b"a"


@dataclass
class Outer:
    inner: Inner = field(default_factory=Inner)
    many: list[Inner] = field(default_factory=lambda: [Inner()])
    by_number: dict[int, list[int]] = field(default_factory=lambda: {1: [2, 3]})
    maybe: dict[str, int] | None = None
    said: str = "${inner.number}"
    whole: Any = "${inner}"


def one_of_everything() -> DictConfig:
    """Nodes of every kind, some changed, and some with flags of their own."""
    config = OmegaConf.structured(Outer)
    config.by_number[2] = [4]
    config.many.append(Inner(number=2.5, anything={"b": [1, None]}))
    OmegaConf.set_readonly(config.inner, True)
    OmegaConf.set_struct(config.by_number, False)
    return config


def nodes(node: Any, at: str = "") -> Iterator[tuple[str, Node]]:
    """A node and all below it, with where they stand."""
    yield at, node
    content = vars(node).get("_content")
    if isinstance(content, Node):
        yield from nodes(content, f"{at}|")
    elif isinstance(content, dict | list):
        for key, child in content.items() if isinstance(content, dict) else enumerate(content):
            yield from nodes(child, f"{at}/{key!r}")


def described(config: DictConfig | ListConfig) -> dict[str, tuple[Any, ...]]:
    """All that is known of each node: its kind, its value, its metadata, where its parent stands, and what is else."""
    places = {id(node): at for at, node in nodes(config)}
    found: dict[str, tuple[Any, ...]] = {}
    for at, node in nodes(config):
        held = dict(vars(node))
        held.pop("_flags_cache")  # looked up again where it is missing
        content, parent = held.pop("_content", None), held.pop("_parent")
        inner = type(content) if isinstance(content, Node | dict | list) else content
        found[at] = (type(node), inner, vars(held.pop("_metadata")), places.get(id(parent)), held)
    return found


@pytest.mark.parametrize("make", [one_of_everything, lambda: defaults(Experiment)])
def test_a_copy_has_everything_and_shares_nothing(make: Any) -> None:
    config = make()
    copied = copy.deepcopy(config)
    assert type(config).__deepcopy__ is quick_copies.copied
    assert described(copied) == described(config) and copied == config
    assert list(described(copied)) == list(described(config)), "the order of keys"
    changing = [
        {id(part) for _, node in nodes(one) for part in (node, node._metadata, node._metadata.flags, content_of(node))}
        for one in (config, copied)
    ]
    assert not changing[0] & (changing[1] - {id(None)})


def content_of(node: Node) -> Any:
    content = vars(node).get("_content")
    return content if isinstance(content, dict | list) else None


def test_a_copy_of_a_part_stays_below_its_parent() -> None:
    config = one_of_everything()
    part = copy.deepcopy(config.inner)
    assert part._get_parent() is config and part._get_full_key("number") == "inner.number"
    assert copy.deepcopy(config).said == "1"


def test_a_copy_is_as_strict_as_what_it_was_made_of() -> None:
    copied = copy.deepcopy(one_of_everything())
    with pytest.raises(ReadonlyConfigError):
        copied.inner.number = 3
    with pytest.raises(ValidationError):
        copied.many[1].number = "three"
    copied.many[1].number = 3
    assert one_of_everything().many[1].number == 2.5


def test_what_stands_twice_is_one_in_the_copy() -> None:
    config = one_of_everything()
    first, second = copy.deepcopy([config, config])
    assert first is second and first is not config
