"""A limit to what interpolations unfold to.

`a: ${b}${b}`, `b: ${c}${c}` and so on are some hundred bytes that double with every line, and lists and mappings double
in the same way. Each reference is therefore counted as it is resolved, with the size of what it stands for: the count
ends before what it would make is made.
"""

from typing import Any

from omegaconf import DictConfig, ListConfig
from omegaconf.base import Container, Node
from omegaconf.errors import InterpolationResolutionError

from nerf_trainer.yaml_files import MAX_NODES

_CHARACTERS_A_NODE = 64
"""Of a text: so many count as one value."""
_NODES_A_REFERENCE = 50
"""A reference takes about as long as so many values, whatever it stands for. A run of a recipe resolves some ten."""

_resolve_node = Container._resolve_node_interpolation
_resolve_custom = Container._evaluate_custom_resolver
_n_left = MAX_NODES


def limit_interpolations() -> None:
    """Begin to count: OmegaConf resolves `MAX_NODES` from here on, and refuses what goes beyond.

    A configuration is composed, read and built in between; a job of a sweep begins anew.
    """
    global _n_left
    _n_left = MAX_NODES
    Container._resolve_node_interpolation = _counted_node
    Container._evaluate_custom_resolver = _counted_custom


def _counted_node(self: Container, inter_key: str, memo: set[int] | None) -> Node:
    _take(_NODES_A_REFERENCE)  # what it refers to may refer to others
    found = _resolve_node(self, inter_key, memo)
    _take(_size(found, _n_left))
    return found


def _counted_custom(
    self: Container, key: Any, node: Node, inter_type: str, inter_args: tuple[Any, ...], inter_args_str: tuple[str, ...]
) -> Any:
    _take(_NODES_A_REFERENCE)
    found = _resolve_custom(self, key, node, inter_type, inter_args, inter_args_str)
    _take(_size(found, _n_left))
    return found


def _take(n: int) -> None:
    global _n_left
    _n_left -= n
    if _n_left < 0:
        raise InterpolationResolutionError(
            f"its ${{...}} unfold to more than {MAX_NODES:,} keys and values, expected a configuration; let fewer "
            "of them refer to one another"
        )


def _size(value: Any, at_most: int) -> int:
    """How many keys and values something holds, as it is written; counted no further than `at_most`."""
    open_values, n = [value], 0
    while open_values and n <= at_most:
        value = open_values.pop()
        content = value._value() if isinstance(value, Node) else value
        n += 1
        if isinstance(content, str):
            n += len(content) // _CHARACTERS_A_NODE
        elif isinstance(content, dict | DictConfig):
            items = content.items_ex(resolve=False) if isinstance(content, DictConfig) else content.items()
            open_values += [item for _, item in items]
        elif isinstance(content, list | tuple):
            open_values += content
        elif isinstance(content, ListConfig):
            open_values += content._iter_ex(resolve=False)
    return n
