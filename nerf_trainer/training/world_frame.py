"""What was done to the world of a dataset's files, kept with the run: `dataset_from_world.json`.

A run of a dataset that was recentred or rescaled lives in another world than the files. `matrix` of the file takes what
is in the one to the other; a run that is continued or evaluated is held against it, for with photographs added or taken
away the cameras' mean moves, and with it the world.
"""

import os
from pathlib import Path

import torch

from nerf_trainer.data.files import JsonNode, read_json
from nerf_trainer.errors import CheckpointError, DataError, StorageError
from nerf_trainer.geometry.similarity import Similarity
from nerf_trainer.training.checkpoint_files import json_bytes, sync_directory, write_durably

FILE_NAME = "dataset_from_world.json"
"""In the run's folder, where the dataset's world is not that of its files."""
MEANING = (
    "matrix maps homogeneous column vectors of the dataset's files to the run's world: x_run = matrix * x_files;"
    " lengths of the run are scale times those of the files"
)
_TOLERANCE = 1e-6
"""Largest difference, relative to the scale, of a rotation from one, and of the scale from the matrix's."""
_SAME = 1e-4
"""Worlds that differ by less, in units of the run, are one."""


def save(folder: Path, dataset_from_world: Similarity | None) -> None:
    """Write the file as a whole, or take away what an earlier run left where there is nothing to say.

    Raises:
        StorageError: the disk refuses.
    """
    path, part = folder / FILE_NAME, folder / f".{FILE_NAME}-{os.getpid()}.tmp"
    try:
        if dataset_from_world is None:
            path.unlink(missing_ok=True)
            return
        content = {
            "meaning": MEANING,
            "scale": dataset_from_world.scale,
            "matrix": dataset_from_world.matrix().tolist(),
        }
        write_durably(part, json_bytes(content))
        os.replace(part, path)
        sync_directory(folder)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise StorageError(
            f"{path}: can't be written ({error.strerror}); free some space or set another exp_dir"
        ) from error


def read(folder: Path) -> Similarity:
    """What leads from the world of the dataset's files to that of the run; the identity where nothing was kept.

    Raises:
        CheckpointError: the file holds no similarity.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return Similarity.identity()
    try:
        return _similarity(read_json(path))
    except DataError as error:
        raise CheckpointError(str(error)) from error


def differs(folder: Path, dataset_from_world: Similarity | None) -> bool:
    """Whether the run's world is not the one that the dataset gives now.

    Raises:
        CheckpointError: as `read`.
    """
    now = Similarity.identity() if dataset_from_world is None else dataset_from_world
    between = now.after(read(folder).inverse()).matrix()
    return bool((between - torch.eye(4, dtype=torch.float64)).abs().max() > _SAME)


def _similarity(content: JsonNode) -> Similarity:
    node = content.member("matrix")
    matrix = torch.tensor(node.matrix(4, 4), dtype=torch.float64)
    scale = content.member("scale").number("a number above 0", low=0.0)
    rotation, eye = matrix[:3, :3] / scale, torch.eye(4, dtype=torch.float64)
    is_rotation = (rotation @ rotation.T - eye[:3, :3]).abs().max() < _TOLERANCE and torch.linalg.det(rotation) > 0
    if not is_rotation or not torch.equal(matrix[3], eye[3]):
        raise node.wrong("a rotation times the scale, a translation, and a last row of 0 0 0 1", "another matrix")
    return Similarity(scale, rotation, matrix[:3, 3])
