"""A checkpoint as a directory: durable writes, the manifest, and the proof that every byte is as it was written."""

import hashlib
import json
import os
import platform
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

import nerf_trainer
from nerf_trainer.errors import CheckpointError, StorageError, shown

MANIFEST = "manifest.json"
STATE = "state.json"
MODEL = "model.safetensors"
OPTIMIZER = "optim.safetensors"

_SCHEMA_VERSION = 1
_MEMBER = re.compile(r"model\.safetensors|optim\.safetensors|rng-\d+\.safetensors|state\.json")
_MANIFEST_TYPES = {
    "schema_version": (int,),
    "config_sha256": (str,),
    "world_size": (int,),
    "versions": (dict,),
    "files": (dict,),
}
_RECORD_TYPES = {"bytes": (int,), "sha256": (str,)}


@dataclass(frozen=True)
class FileRecord:
    """What the manifest says of one file."""

    bytes: int
    """Its length."""
    sha256: str
    """The digest of its content, in hexadecimal."""


@dataclass(frozen=True)
class Manifest:
    """What makes a directory a checkpoint: the list of its files, written after all of them."""

    schema_version: int
    """Version of the format."""
    config_sha256: str
    """Digest of the configuration that the run was started with."""
    world_size: int
    """Number of processes that trained."""
    versions: dict[str, str]
    """Versions of Python and of the packages that wrote it."""
    files: dict[str, FileRecord]
    """Every file but the manifest, by name."""


def random_file(rank: int) -> str:
    """Name of the file with the random generators of `rank`."""
    return f"rng-{rank}.safetensors"


def is_member(name: str) -> bool:
    """Whether a checkpoint has files of this name."""
    return name == MANIFEST or _MEMBER.fullmatch(name) is not None


def only_ours(path: Path) -> bool:
    """Whether a directory holds nothing but files of a checkpoint."""
    return path.is_dir() and all(is_member(child.name) for child in path.iterdir())


def delete(path: Path) -> None:
    """Delete a directory of ours, unless somebody put a file of another kind into it."""
    if only_ours(path):
        shutil.rmtree(path)


# --- writing -----------------------------------------------------------------------------------------------------


def new_manifest(config_sha256: str, world_size: int, files: Mapping[str, bytes]) -> Manifest:
    """The manifest of a checkpoint made of `files`."""
    versions = {
        "python": platform.python_version(),
        "nerf_trainer": nerf_trainer.__version__,
        "torch": str(torch.__version__),
        "safetensors": safetensors.__version__,
        "numpy": np.__version__,
    }
    records = {name: FileRecord(len(data), hashlib.sha256(data).hexdigest()) for name, data in files.items()}
    return Manifest(_SCHEMA_VERSION, config_sha256, world_size, versions, records)


def manifest_bytes(manifest: Manifest) -> bytes:
    """The manifest's file, which ends with its own digest, so that damage to it shows too."""
    content = asdict(manifest)
    digest = hashlib.sha256(json_bytes(content)).hexdigest()
    return json_bytes({**content, "sha256": digest})


def json_bytes(content: Any) -> bytes:
    """`content` as strict JSON (no NaN), keys sorted, floats exact.

    Raises:
        TypeError, ValueError: it holds something that JSON has no word for.
    """
    return (json.dumps(content, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()


def tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """`tensors` as a safetensors file, made in memory: a full disk then fails in a write that says so."""
    return safetensors.torch.save(dict(tensors))


def write_durably(path: Path, data: bytes) -> None:
    """Write a new file and wait until the disk has it; nothing is left of it when that fails."""
    with path.open("xb") as file:
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            path.unlink(missing_ok=True)
            raise


def sync_directory(path: Path) -> None:
    """Wait until the disk has the directory's entries: files made in it, renames within it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def storage_error(path: Path, needed: int, error: OSError) -> StorageError:
    """What to tell the user when writing `needed` bytes below `path` failed."""
    try:
        free = f"{shutil.disk_usage(_existing(path)).free:,}"
    except OSError:
        free = "an unknown number of"
    return StorageError(
        f"{path}: can't write the checkpoint: {error.strerror or error}; it needs {needed:,} bytes, {free} are free; "
        "make room or permit writing there, or set exp_dir to another place"
    )


def _existing(path: Path) -> Path:
    return next((p for p in (path, *path.parents) if p.exists()), Path("/"))


# --- reading -----------------------------------------------------------------------------------------------------


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a checkpoint.

    Raises:
        CheckpointError: it is missing, damaged or of another version of the format.
    """
    path = directory / MANIFEST
    try:
        data = path.read_bytes()
        content = _proven(path, data)
        version = content["schema_version"]
        if version != _SCHEMA_VERSION:
            raise CheckpointError(f"{path}: format version {version}; this program reads version {_SCHEMA_VERSION}")
        check_types(content, _MANIFEST_TYPES)
        for record in content["files"].values():
            check_types(record, _RECORD_TYPES)
        files = {name: FileRecord(**record) for name, record in content.pop("files").items()}
        manifest = Manifest(**content, files=files)
        if manifest_bytes(manifest) != data:
            raise CheckpointError(f"{path}: sha256 mismatch; the file is damaged")
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing; the checkpoint is incomplete") from None
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise CheckpointError(f"{path}: no valid manifest; the file is damaged") from None
    for name in (STATE, MODEL, *(random_file(rank) for rank in range(min(manifest.world_size, len(files) + 1)))):
        if name not in files:
            raise CheckpointError(f"{path}: lists no {name}; the checkpoint is incomplete")
    for name in files:
        if _MEMBER.fullmatch(name) is None:
            raise CheckpointError(f"{path}: lists {name!r}, which is no file of a checkpoint")
    return manifest


def _proven(path: Path, data: bytes) -> dict[str, Any]:
    """What a manifest's file says, without its digest, which has to be that of the rest; what is no JSON has none."""
    try:
        content = parse_json(data)
        digest = content.pop("sha256")
        proven = hashlib.sha256(json_bytes(content)).hexdigest() == digest
    except (ValueError, TypeError, KeyError, RecursionError):
        proven, content = False, {}
    if not proven:
        raise CheckpointError(f"{path}: sha256 mismatch; the file is damaged")
    return content


def parse_json(data: bytes) -> dict[str, Any]:
    """A JSON object; ValueError for anything else, NaN, infinities and repeated keys included."""
    content = json.loads(data.decode(), parse_constant=_refuse_constant, object_pairs_hook=_unique)
    if not isinstance(content, dict):
        raise ValueError(f"expected an object, found {type(content).__name__}")
    return content


def check_types(content: Any, types: Mapping[str, tuple[type, ...]]) -> None:
    """Raises ValueError, in words for the user, unless `content` has exactly the keys of `types`, each of its types.

    True and False are no integers here.
    """
    if not isinstance(content, dict):
        raise ValueError(f"an object was expected, {shown(content)} found")
    for key in sorted(set(content) ^ set(types)):
        raise ValueError(f"unexpected key {shown(key)}" if key in content else f"no key {key!r}")
    for key, allowed in types.items():
        if type(content[key]) not in allowed:
            expected = " or ".join(kind.__name__ for kind in allowed)
            raise ValueError(f"{key} is {shown(content[key])}, expected {expected}")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a key stands twice")
    return content


def verify_files(directory: Path, manifest: Manifest) -> None:
    """Hash every file. Raises `CheckpointError` for the first that is missing or not what was written."""
    for name in manifest.files:
        read_verified(directory, manifest, name)


def read_verified(directory: Path, manifest: Manifest, name: str) -> bytes:
    """The content of a file, proven to be what was written.

    Raises:
        CheckpointError: the file is missing, has another size or another digest.
    """
    path, record = directory / name, manifest.files[name]
    try:
        size = path.stat().st_size
        if size != record.bytes:
            raise CheckpointError(f"{path}: {size:,} bytes, expected {record.bytes:,}; the file is damaged")
        data = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing; the checkpoint is incomplete") from None
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from None
    if hashlib.sha256(data).hexdigest() != record.sha256:
        raise CheckpointError(f"{path}: sha256 mismatch; the file is damaged")
    return data


def read_tensors(directory: Path, manifest: Manifest, name: str) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU, after its digest was checked. Raises `CheckpointError`."""
    data = read_verified(directory, manifest, name)
    try:
        return safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{directory / name}: no valid safetensors file ({error})") from None
