"""Stands in for packages that a peer's modules import but its training step does not need."""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any


class _Anything(type):
    """A class whose attributes are classes like it: base classes, decorators and annotations of what is missing."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return make_stub(name)

    def __or__(cls, other: Any) -> Any:
        return cls


def make_stub(name: str) -> type:
    """A class that can be inherited from, called and looked into."""
    return _Anything(name, (), {"__init__": lambda self, *args, **kwargs: None})


class _StubModule(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return make_stub(name)


class StubFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the named packages and all modules in them as stubs, where Python finds none."""

    def __init__(self, packages: Sequence[str]) -> None:
        self._packages = frozenset(packages)

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if any(fullname == package or fullname.startswith(f"{package}.") for package in self._packages):
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _StubModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def stub_missing(packages: Sequence[str]) -> None:
    """Let the packages among these that are not installed be imported as stubs."""
    missing = [name for name in packages if "." in name or importlib.util.find_spec(name) is None]
    sys.meta_path.append(StubFinder(missing))  # after the others: what is there, or in the peer's tree, comes first


def stub_always(packages: Sequence[str]) -> None:
    """Let these packages be imported as stubs, installed or not."""
    sys.meta_path.insert(0, StubFinder(packages))


def module(name: str, **attributes: Any) -> None:
    """A small module of this name with these attributes, where Python finds none."""
    if name not in sys.modules and importlib.util.find_spec(name) is None:
        made = ModuleType(name)
        vars(made).update(attributes)
        sys.modules[name] = made


class _Uncompiled(ModuleType):
    """A compiled module that is not there: it can be imported, and what is called says so."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def refuse(*args: Any, **kwargs: Any) -> None:
            raise RuntimeError(f"{self.__name__}.{name} is not compiled")

        return refuse


def compiled_or_refusing(name: str) -> bool:
    """Whether a compiled module is there; where it isn't, it can be imported from here on, but not used."""
    if name in sys.modules:
        return not isinstance(sys.modules[name], _Uncompiled)
    if importlib.util.find_spec(name) is not None:
        return True
    sys.modules[name] = _Uncompiled(name)
    return False
