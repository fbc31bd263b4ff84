"""What a run keeps of how its dataset's world was moved."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from nerf_trainer.errors import CheckpointError, StorageError
from nerf_trainer.geometry.similarity import Similarity
from nerf_trainer.training import world_frame


def turned() -> Similarity:
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    return Similarity(0.3, q * torch.linalg.det(q), torch.tensor([1.0, -2.0, 1 / 3], dtype=torch.float64))


def test_what_is_saved_is_read(tmp_path: Path):
    world_frame.save(tmp_path, turned())
    found = world_frame.read(tmp_path)
    torch.testing.assert_close(found.matrix(), turned().matrix(), rtol=0, atol=1e-15)
    assert found.scale == 0.3
    assert [path.name for path in tmp_path.iterdir()] == [world_frame.FILE_NAME]


def test_the_matrix_does_what_the_file_says(tmp_path: Path):
    world_frame.save(tmp_path, turned())
    content = json.loads((tmp_path / world_frame.FILE_NAME).read_text())
    assert "x_run = matrix * x_files" in content["meaning"]
    x = torch.tensor([0.5, 2.0, -1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close((torch.tensor(content["matrix"]).double() @ x)[:3], turned().points(x[:3]))


def test_nothing_was_moved(tmp_path: Path):
    world_frame.save(tmp_path, turned())
    world_frame.save(tmp_path, None)
    assert not list(tmp_path.iterdir())
    world_frame.save(tmp_path, None)
    assert world_frame.read(tmp_path).is_identity


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"scale": 0.4}, "expected a rotation times the scale"),
        ({"scale": -0.3}, "scale: expected a number above 0, found -0.3"),
        ({"matrix": [[1, 0, 0], [0, 1, 0], [0, 0, 1]]}, "matrix: expected 4x4, found 3x3"),
        ({"scale": 1.0, "matrix": [[-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]}, "expected a rotation"),
        ({"scale": 1.0, "matrix": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]}, "expected a rotation"),
    ],
)
def test_a_file_that_says_something_else(tmp_path: Path, change: dict[str, Any], said: str):
    world_frame.save(tmp_path, turned())
    path = tmp_path / world_frame.FILE_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=said):
        world_frame.read(tmp_path)


def test_a_disk_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(StorageError, match="can't be written \\(No space left on device\\)"):
        world_frame.save(tmp_path, turned())
    assert not list(tmp_path.iterdir())
