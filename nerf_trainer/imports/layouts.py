"""The layouts that are known, and which of them a file is of."""

from collections.abc import Mapping
from pathlib import Path

from nerf_trainer.errors import CheckpointError, keyed_line, options_text
from nerf_trainer.imports.base import Layout
from nerf_trainer.imports.implicitron import ImplicitronLayout
from nerf_trainer.imports.krrish94 import Krrish94NeRF
from nerf_trainer.imports.nerf_pl import NerfPl
from nerf_trainer.imports.yenchenlin import YenchenlinNeRF

LAYOUTS: tuple[Layout, ...] = (YenchenlinNeRF(), Krrish94NeRF(), NerfPl(), ImplicitronLayout())
"""Each layout recognises only its own files."""


def recognise(content: Mapping[str, object], file: Path) -> Layout:
    """The layout of a file.

    Raises:
        CheckpointError: none is recognised.
    """
    for layout in LAYOUTS:
        if layout.recognises(content):
            return layout
    found = options_text([str(key) for key in content]) or "nothing"
    known = "; ".join(layout.name for layout in LAYOUTS)
    raise CheckpointError(keyed_line(str(file), f"the layout is not known (found the keys {found}); expected {known}"))
