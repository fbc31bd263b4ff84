"""The checker that conftest.py puts around every function and dataclass of the package."""

from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Self

from beartype import BeartypeConf, FrozenDict, beartype

checked = beartype(
    conf=BeartypeConf(
        # A method is checked by itself, where `Self` has no meaning yet.
        hint_overrides=FrozenDict({Self: object}),
        # An int may stand for a float, as type checkers have it.
        is_pep484_tower=True,
    )
)
"""Decorator: arguments and return values are what their annotations say, shapes of tensors included."""


class KernelsFinder(MetaPathFinder):
    """Finds the modules of Triton's kernels, which stay as they are: Triton reads their sources, and compiles those."""

    @classmethod
    def find_spec(
        cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        is_kernels = fullname.startswith("nerf_trainer.ops.kernels.")
        return PathFinder.find_spec(fullname, path, target) if is_kernels else None
