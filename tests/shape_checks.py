"""The checks that conftest.py puts around every function and dataclass of the package.

jaxtyping's import hook puts its own decorator there. That binds the arguments of each call to their names, and looks at
them twice: before the call, and with the result again. Here beartype looks at each argument and at the result once, and
dimensions are remembered during a call only where annotations name arrays. It finds the same faults in a third of the
time. A function gets its checks when it is called first, so that importing the package takes no longer than without.
"""

import dataclasses
import functools
import inspect
import sys
import typing
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType, SimpleNamespace
from typing import Any, Self

import jaxtyping
from beartype import BeartypeConf, FrozenDict, beartype

checked = beartype(
    conf=BeartypeConf(
        # A method is checked by itself, where `Self` has no meaning yet.
        hint_overrides=FrozenDict({Self: object}),
        # An int may stand for a float, as type checkers have it.
        is_pep484_tower=True,
        violation_type=jaxtyping.TypeCheckError,
    )
)
"""Decorator: arguments and return values are what their annotations say, each array by itself."""

_jaxtyped = jaxtyping.jaxtyped
_dimensions = _jaxtyped("context")


def shape_checked(made: Any) -> Any:
    """Decorator for a function or a dataclass: as `checked`, and a dimension has one size in all of a call's arrays."""
    if isinstance(made, type):
        if dataclasses.is_dataclass(made) and "__init__" in vars(made) and not hasattr(made.__init__, "__wrapped__"):
            made.__init__ = shape_checked(made.__init__)
        return made
    inner: Callable[..., Any] | None = None
    has_dimensions = False

    @functools.wraps(made)
    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        nonlocal inner, has_dimensions
        if inner is None:  # the first call: most functions of the package are never called in a process of tests
            has_dimensions, inner = _with_checks(made)
        if not has_dimensions:
            return inner(*args, **kwargs)
        with _dimensions:
            return inner(*args, **kwargs)

    return call


def _with_checks(function: Callable[..., Any]) -> tuple[bool, Callable[..., Any]]:
    """Whether sizes of dimensions are to be remembered while the function runs, and the function with its checks."""
    _forget_unknown(function)
    if inspect.isgeneratorfunction(function):  # what it is given must be looked at in the call, not at the first item
        return False, _jaxtyped(function, typechecker=checked)
    return any(map(_names_arrays, _hints(function))), checked(function)


def _forget_unknown(function: Callable[..., Any]) -> None:
    """Annotations that name what only type checkers import (`if TYPE_CHECKING`) can't be checked, and say nothing."""
    for name, hint in function.__annotations__.items():
        try:
            typing.get_type_hints(SimpleNamespace(__annotations__={name: hint}), function.__globals__)
        except NameError:
            function.__annotations__[name] = Any


def install() -> None:
    """Check every function and dataclass that is imported from the package from now on."""
    jaxtyping.install_import_hook("nerf_trainer", "tests.shape_checks.checked")
    jaxtyping.jaxtyped = _for_the_hook
    sys.meta_path.insert(0, KernelsFinder)


def _for_the_hook(*, typechecker: object) -> Callable[[Any], Any]:
    """What the hook writes above each definition: `@jaxtyping.jaxtyped(typechecker=...)`."""
    return shape_checked


def _hints(function: Callable[..., Any]) -> list[Any]:
    try:
        return list(typing.get_type_hints(function).values())
    except NameError:  # a class that is not there yet
        return list(function.__annotations__.values())


def _names_arrays(hint: Any) -> bool:
    """Whether dimensions are named in an annotation; also where that can't be told yet."""
    if isinstance(hint, str | typing.ForwardRef | typing.TypeVar):
        return True
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(map(_names_arrays, hint if isinstance(hint, list) else typing.get_args(hint)))


class KernelsFinder(MetaPathFinder):
    """Finds the modules of Triton's kernels, which stay as they are: Triton reads their sources, and compiles those."""

    @classmethod
    def find_spec(
        cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        is_kernels = fullname.startswith("nerf_trainer.ops.kernels.")
        return PathFinder.find_spec(fullname, path, target) if is_kernels else None
