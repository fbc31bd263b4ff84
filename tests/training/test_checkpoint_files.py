"""The manifest proves every byte; JSON is strict; writes are whole or nothing."""

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch

from nerf_trainer.errors import CheckpointError
from nerf_trainer.training.checkpoint_files import (
    check_types,
    is_member,
    json_bytes,
    manifest_bytes,
    new_manifest,
    parse_json,
    read_manifest,
    read_tensors,
    read_verified,
    storage_error,
    tensor_bytes,
    verify_files,
    write_durably,
)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A small directory with all that a manifest demands."""
    tensors = tensor_bytes({"weight": torch.arange(6.0).reshape(2, 3)})
    members = {"model.safetensors": tensors, "rng-0.safetensors": tensors, "state.json": json_bytes({"step": 1})}
    for name, data in members.items():
        write_durably(tmp_path / name, data)
    write_durably(tmp_path / "manifest.json", manifest_bytes(new_manifest("c" * 64, 1, members)))
    return tmp_path


def rewrite(directory: Path, **changes: object) -> None:
    """Put a manifest in place whose digest is right and whose content is not."""
    content = json.loads((directory / "manifest.json").read_bytes())
    del content["sha256"]
    content.update(changes)
    content["sha256"] = hashlib.sha256(json_bytes(content)).hexdigest()
    (directory / "manifest.json").write_bytes(json_bytes(content))


def read_all(directory: Path) -> None:
    verify_files(directory, read_manifest(directory))


def test_a_whole_checkpoint_is_read(checkpoint: Path):
    manifest = read_manifest(checkpoint)
    assert (manifest.schema_version, manifest.config_sha256, manifest.world_size) == (1, "c" * 64, 1)
    assert set(manifest.versions) == {"python", "nerf_trainer", "torch", "safetensors", "numpy"}
    verify_files(checkpoint, manifest)
    assert torch.equal(
        read_tensors(checkpoint, manifest, "model.safetensors")["weight"], torch.arange(6.0).reshape(2, 3)
    )


@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors", "rng-0.safetensors", "state.json"])
def test_a_missing_file_is_named(checkpoint: Path, name: str):
    (checkpoint / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}: missing; the checkpoint is incomplete"):
        read_all(checkpoint)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"schema_version": 2}, "format version 2; this program reads version 1"),
        ({"world_size": 2}, "lists no rng-1.safetensors"),
        ({"world_size": "1"}, "no valid manifest"),
        ({"world_size": True}, "no valid manifest"),
        ({"world_size": 10**12}, "lists no rng-1.safetensors"),
        ({"files": []}, "no valid manifest"),
        ({"files": {"state.json": {"bytes": 1}}}, "no valid manifest"),
        ({"surprise": 1}, "no valid manifest"),
    ],
)
def test_a_manifest_of_another_kind_is_refused(checkpoint: Path, changes: dict[str, object], problem: str):
    rewrite(checkpoint, **changes)
    with pytest.raises(CheckpointError, match=problem):
        read_manifest(checkpoint)


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "optimizer.pkl", "model.safetensors\n"])
def test_a_manifest_names_only_files_of_a_checkpoint(checkpoint: Path, name: str):
    files = json.loads((checkpoint / "manifest.json").read_bytes())["files"]
    rewrite(checkpoint, files={**files, name: {"bytes": 1, "sha256": "0"}})
    with pytest.raises(CheckpointError, match="which is no file of a checkpoint"):
        read_manifest(checkpoint)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000, b"null", b'{"a": 1, "a": 2}'])
def test_a_manifest_that_is_none_is_refused(checkpoint: Path, content: bytes):
    (checkpoint / "manifest.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"manifest\.json: sha256 mismatch"):
        read_manifest(checkpoint)


def test_a_pickle_in_place_of_tensors_is_refused(checkpoint: Path):
    members = {name: (checkpoint / name).read_bytes() for name in ("rng-0.safetensors", "state.json")}
    members["model.safetensors"] = b"cos\nsystem\n(S'echo executed'\ntR."
    (checkpoint / "model.safetensors").write_bytes(members["model.safetensors"])
    (checkpoint / "manifest.json").write_bytes(manifest_bytes(new_manifest("", 1, members)))
    with pytest.raises(CheckpointError, match="no valid safetensors file"):
        read_tensors(checkpoint, read_manifest(checkpoint), "model.safetensors")


def test_a_directory_in_place_of_a_file_is_refused(checkpoint: Path):
    manifest = read_manifest(checkpoint)
    (checkpoint / "state.json").unlink()
    (checkpoint / "state.json").mkdir()
    with pytest.raises(CheckpointError, match=r"state\.json"):
        read_verified(checkpoint, manifest, "state.json")


def test_json_is_strict_and_exact():
    content = {"a": 0.1 + 0.2, "b": 5e-324, "c": [None, True, "é"], "d": 2**62}
    assert parse_json(json_bytes(content)) == content
    for bad in (b'{"a": NaN}', b'{"a": -Infinity}', b'{"a": 1, "a": 2}', b"[1]", b'{"a": 1} x'):
        with pytest.raises(ValueError):
            parse_json(bad)
    with pytest.raises(ValueError):
        json_bytes({"a": float("nan")})


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ([], "an object was expected, [] found"),
        ({}, "no key 'n'"),
        ({"n": 1, "m": 2}, "unexpected key 'm'"),
        ({"n": 1.0}, "n is 1.0, expected int or NoneType"),
        ({"n": True}, "n is True, expected int or NoneType"),
    ],
)
def test_wrong_types_are_said(content: object, problem: str):
    check_types({"n": 1}, {"n": (int, type(None))})
    with pytest.raises(ValueError) as caught:
        check_types(content, {"n": (int, type(None))})
    assert str(caught.value) == problem


def test_a_file_that_is_there_is_not_overwritten(tmp_path: Path):
    write_durably(tmp_path / "a", b"first")
    with pytest.raises(FileExistsError):
        write_durably(tmp_path / "a", b"second")
    assert (tmp_path / "a").read_bytes() == b"first"


def test_a_failed_write_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_durably(tmp_path / "a", b"data")
    assert not list(tmp_path.iterdir())


def test_what_the_disk_lacks_is_said_on_one_line(tmp_path: Path):
    message = str(storage_error(tmp_path / "not" / "there", 1_234_567, OSError(28, "No space left on device")))
    assert message.startswith(f"{tmp_path}/not/there: can't write the checkpoint: No space left on device; ")
    assert "it needs 1,234,567 bytes, " in message
    assert "\n" not in message


def test_members():
    assert all(map(is_member, ["manifest.json", "state.json", "rng-12.safetensors", "optim.safetensors"]))
    assert not any(map(is_member, ["notes.txt", "rng-.safetensors", "rng-1.safetensors.part", "Model.safetensors"]))
