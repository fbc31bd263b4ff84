"""Where a COLMAP project keeps what: sub-models, photographs, smaller copies of them, masks.

COLMAP's mapper writes one sub-model or several to sparse/0, sparse/1, ...; its undistorter one to sparse;
automatic_reconstructor works in a folder of its own. Masks are named after the photograph with .png added.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nerf_trainer.data.colmap.reader import ModelFiles
from nerf_trainer.data.files import resolve_inside, shown
from nerf_trainer.data.images import SUFFIXES
from nerf_trainer.errors import DataError

PLACES = ("sparse", "colmap/sparse", ".")
"""Where a model is looked for, below the scene's folder, in this order."""

HIGH_SHARE, LOW_SHARE = 0.9, 0.5
"""Parts of a folder's photographs that are registered: up from the first all is well, below the second hardly
anything is."""

N_NAMED = 3
"""How many files a message names."""


def find_model(root: Path, sparse_dir: str | None) -> tuple[ModelFiles, list[str]]:
    """The sparse model of a scene, and what to say of the choice; of several sub-models the one with most images.

    Args:
        root: the scene's folder.
        sparse_dir: where the model or its sub-models are, below `root`; None looks through `PLACES`.

    Raises:
        DataError: there is none.
    """
    for place in PLACES if sparse_dir is None else (sparse_dir,):
        parts = _sub_models(root / place)
        if parts:
            return _largest(parts)
        model = ModelFiles.of(root / place)
        if model is not None:
            return model, []
    looked = ", ".join(PLACES) if sparse_dir is None else shown(sparse_dir)
    option = "base_dir or sparse_dir" if sparse_dir is None else "sparse_dir"
    raise DataError(
        f"{shown(root)}: found no COLMAP model (looked in {looked}), expected a folder with cameras.bin and images.bin,"
        f" or cameras.txt and images.txt; fix {option}, or run COLMAP's mapper first"
    )


def _sub_models(folder: Path) -> list[tuple[Path, ModelFiles]]:
    """The sub-models 0, 1, ... of a folder in the order of their numbers."""
    if not folder.is_dir():
        return []
    numbered = sorted((child for child in folder.iterdir() if child.name.isdecimal()), key=lambda c: int(c.name))
    found = ((child, ModelFiles.of(child)) for child in numbered)
    return [(child, model) for child, model in found if model is not None]


def _largest(parts: Sequence[tuple[Path, ModelFiles]]) -> tuple[ModelFiles, list[str]]:
    if len(parts) == 1:
        return parts[0][1], []
    counted = [(model.count_images(), folder, model) for folder, model in parts]
    _, chosen, model = max(counted, key=lambda part: part[0])
    each = ", ".join(f"{folder.name} ({n} photographs)" for n, folder, _ in counted[:N_NAMED])
    more = ", ..." if len(counted) > N_NAMED else ""
    return model, [
        f"{shown(chosen.parent)}: COLMAP found {len(parts)} sub-models that it could not join: {each}{more};"
        f" took {chosen.name}, the one with most (sparse_dir chooses another; colmap model_merger joins what overlaps)"
    ]


@dataclass(frozen=True)
class ImageFolder:
    """A folder of photographs, with what lies in it and below."""

    root: Path
    """The scene's folder, which no file may leave."""
    relative: str
    """The folder below `root`."""
    allow_external: bool
    """Files outside of `root` are accepted."""
    names: tuple[str, ...]
    """The paths of the images below the folder, in order; other files are passed over."""

    @classmethod
    def of(cls, root: Path, relative: str, allow_external: bool) -> "ImageFolder | None":
        """What is in a folder; None where there is none."""
        folder = root / relative
        if not os.path.isdir(folder):
            return None
        resolve_inside(root, relative, shown(relative), allow_external)
        names = [
            os.path.relpath(os.path.join(parent, name), folder).replace(os.sep, "/")
            for parent, _, files in os.walk(folder)
            for name in files
            if name.lower().endswith(SUFFIXES) and not name.startswith(".")
        ]
        return cls(root, relative, allow_external, tuple(sorted(names)))

    def resolve(self, name: str, where: str) -> Path:
        """The path of one of its files.

        Raises:
            DataError: the name leads out of the scene's folder.
        """
        return resolve_inside(self.root, f"{self.relative}/{name}", where, self.allow_external)

    def matched(self, names: Sequence[str]) -> dict[str, str]:
        """For each of `names` the file of that name, or else the one that differs by its suffix alone; those that have
        neither are left out.
        """
        exact = set(self.names)
        by_stem = {os.path.splitext(name)[0]: name for name in reversed(self.names)}
        found = {name: name if name in exact else by_stem.get(os.path.splitext(name)[0]) for name in names}
        return {name: file for name, file in found.items() if file is not None}

    def masks_of(self, names: Sequence[str]) -> dict[str, str]:
        """For each photograph its mask's name in this folder: image.jpg.png, image.jpg, or image.png and the like."""
        exact = set(self.names)
        like_colmap = {name: f"{name}.png" for name in names if f"{name}.png" in exact}
        return {**self.matched(names), **like_colmap}


def registration_notices(photographs: ImageFolder, registered: Sequence[str]) -> list[str]:
    """What to say of photographs in the folder that the model does not have: how many, which, how bad that is."""
    used = set(photographs.matched(registered).values())
    unknown = [name for name in photographs.names if name not in used]
    if not unknown:
        return []
    total = len(photographs.names)
    share = len(used) / total
    text = (
        f"{shown(photographs.relative)}: {len(unknown)} of {total} photographs are not registered: {listed(unknown)};"
        f" COLMAP found the poses of {share:.0%}"
    )
    advice = "take more photographs that overlap, sharp and in even light, or match them with exhaustive_matcher"
    if share < LOW_SHARE:
        return [f"{text}, which is very low: what is trained may be a fragment of the scene; {advice}"]
    return [f"{text}, which is low: {advice}" if share < HIGH_SHARE else text]


def listed(names: Sequence[str]) -> str:
    """The first names of many."""
    more = ", ..." if len(names) > N_NAMED else ""
    return ", ".join(shown(name)[:40] for name in names[:N_NAMED]) + more
