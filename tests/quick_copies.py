"""Copies of configurations in a tenth of the time, for tests, which compose and build hundreds of them.

OmegaConf copies a configuration with `copy.deepcopy` for every node, for the metadata of every node and for each of
their attributes; Hydra lets it do so some fifty times for one command line. Here the same is made directly. That
nothing is lost, and nothing shared that can change, is shown in tests/test_quick_copies.py. Processes that tests start
run without this, unless the nursery of tests/faults forks them.
"""

import copy
from typing import Any

from omegaconf import DictConfig, ListConfig
from omegaconf.base import Node, UnionNode
from omegaconf.nodes import ValueNode


def install() -> None:
    """Let `copy.deepcopy` of any node be quick from now on."""
    kinds: list[Any] = [DictConfig, ListConfig, UnionNode, ValueNode]
    while kinds:
        kind = kinds.pop()
        kind.__deepcopy__ = copied
        kinds += kind.__subclasses__()


def copied(node: Node, memo: dict[int, Any]) -> Node:
    """The node, below the same parent, and all below it anew."""
    memo[id(node)] = made = _placed(node, node.__dict__["_parent"])
    return made


def _placed(node: Node, parent: Any) -> Node:
    made: Node = object.__new__(type(node))
    held = made.__dict__
    held.update(node.__dict__)
    held["_parent"] = parent
    held["_flags_cache"] = None  # looked up again when it is asked for
    metadata = held["_metadata"]
    held["_metadata"] = object.__new__(type(metadata))
    held["_metadata"].__dict__.update(
        (name, _anew(value) if isinstance(value, dict) else value) for name, value in metadata.__dict__.items()
    )
    content = held.get("_content")  # the value of a value's node stays itself, as OmegaConf has it
    if isinstance(content, dict):
        held["_content"] = {key: _placed(value, made) for key, value in content.items()}
    elif isinstance(content, list):
        held["_content"] = [_placed(value, made) for value in content]
    elif isinstance(content, Node):
        held["_content"] = _placed(content, made)
    return made


def _anew(held: dict[Any, Any]) -> dict[Any, Any]:
    return copy.deepcopy(held) if held else copy.copy(held)
