"""The checker that conftest.py puts around every function and dataclass of the package."""

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
