"""Files that torch.save wrote, opened without running anything that they name."""

import re
import struct
import zipfile
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from nerf_trainer.data.files import require_regular_file
from nerf_trainer.errors import CheckpointError, UserError, keyed_line, shown

MAX_BYTES = 8 * 2**30
"""The largest file that is read: far above any field's."""
_MAX_RECORDS = 100_000
_MOST_SHARING = 4
"""How many tensors may be the same part of a file, on average: a model's parts that share their weights."""


class _Unread:
    """Stands for a value that nobody needs and that only another program's class could restore."""

    def __new__(cls, *_: object) -> "_Unread":
        return object.__new__(cls)

    def __setstate__(self, state: object) -> None:
        """Forget it."""


def _plain_table(*_: object) -> dict[object, object]:
    return {}


_STAND_INS: Mapping[str, Callable[..., object]] = {
    "argparse.Namespace": Namespace,
    "collections.defaultdict": _plain_table,
    "pytorch_lightning.utilities.parsing.AttributeDict": OrderedDict,
    **dict.fromkeys(
        (
            "__builtin__.dict",
            "builtins.dict",
            "numpy.core.multiarray.scalar",
            "numpy.core.multiarray._reconstruct",
            "numpy._core.multiarray.scalar",
            "numpy._core.multiarray._reconstruct",
            "numpy.dtype",
            "numpy.ndarray",
            "pathlib.Path",
            "pathlib.PosixPath",
            "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
            "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
            "torch.optim.adam.Adam",
            "torch.optim.lr_scheduler.CosineAnnealingLR",
            "torch.optim.lr_scheduler.ExponentialLR",
            "torch.optim.lr_scheduler.MultiStepLR",
            "torch.optim.lr_scheduler.StepLR",
            "torch.optim.sgd.SGD",
        ),
        _Unread,
    ),
}
"""Names of classes in published files, and what is made in their place; any other name is refused."""


def read_checkpoint(path: Path) -> Mapping[str, object]:
    """What torch.save wrote into a file, with tensors on the CPU.

    Only tensors and plain values are restored (torch's weights-only reader, in the zip format and in the older one).
    Of what else published files hold a fixed list of names is known: argparse.Namespace comes as such, values of
    NumPy, schedulers and callbacks as objects without content.

    Raises:
        CheckpointError: there is no such file, it is damaged, or it needs more than that to be read.
    """
    try:
        n_bytes = require_regular_file(path, "FILE").st_size
    except UserError as error:
        raise CheckpointError(str(error)) from error
    if n_bytes > MAX_BYTES:
        raise CheckpointError(f"{path}: found {n_bytes:,} bytes, expected the file of one model, at most {MAX_BYTES:,}")
    try:
        if is_archive := zipfile.is_zipfile(path):
            _check_archive(path, n_bytes)
        with torch.serialization.safe_globals([(stand_in, name) for name, stand_in in _STAND_INS.items()]):
            # Mapped, no tensor reaches beyond the file, whatever size it claims.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except UserError:
        raise
    except MemoryError as error:
        raise CheckpointError(f"{path}: is larger than the memory that is free") from error
    except (RuntimeError, ValueError, TypeError, LookupError, OSError, EOFError, AttributeError, struct.error) as error:
        raise _damaged(path, error) from error
    except Exception as error:  # torch's unpickler has an error class of its own
        raise _refused(path, error) from error
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        found = f"a {type(content).__name__}" if not isinstance(content, Mapping) else "keys that are no names"
        raise CheckpointError(f"{path}: found {found}, expected a table of names as a training writes it")
    _check_tensors(path, content, n_bytes)
    return content


def _check_tensors(path: Path, content: Mapping[str, object], n_bytes: int) -> None:
    """Each tensor is as torch.save writes a model's, and all together are about as large as the file.

    A few bytes may else say that they are a tensor of terabytes: one whose rows are all the same storage, or that has
    no storage at all.
    """
    waiting: list[object] = [content]
    seen: dict[int, object] = {}  # kept, so that no number is another object's; tables may hold one another
    n_taken = 0
    while waiting:
        found = waiting.pop()
        if id(found) in seen:
            continue
        seen[id(found)] = found
        if isinstance(found, Mapping):
            waiting += found.values()
        elif isinstance(found, list | tuple):
            waiting += found
        elif isinstance(found, Tensor):
            n_taken += _plain_size(path, found)
    if n_taken > _MOST_SHARING * n_bytes:
        raise CheckpointError(f"{path}: {n_bytes:,} bytes say that they are tensors of {n_taken:,}; expected a model's")


def _plain_size(path: Path, tensor: Tensor) -> int:
    """The bytes of a tensor.

    Raises:
        CheckpointError: it is not on the CPU, not dense, quantised, or larger than its storage.
    """
    if tensor.device.type == "cpu" and tensor.layout is torch.strided and not tensor.is_quantized:
        n_bytes = tensor.numel() * tensor.element_size()
        if n_bytes <= tensor.untyped_storage().nbytes():
            return n_bytes
    shape = "x".join(map(str, tensor.shape))
    raise CheckpointError(f"{path}: holds a tensor {shape} that isn't stored in full; expected a model's dense tensors")


def _check_archive(path: Path, n_bytes: int) -> None:
    """torch stores without compression, so that an archive unpacks to no more than it takes on the disk."""
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    packed = any(record.compress_type != zipfile.ZIP_STORED for record in records)
    if packed or len(records) > _MAX_RECORDS or sum(record.file_size for record in records) > n_bytes:
        raise CheckpointError(f"{path}: is no archive as torch.save writes it (compressed, or with too many records)")


def _damaged(path: Path, error: Exception) -> CheckpointError:
    reason = (str(error).strip().splitlines() or [""])[0] or type(error).__name__
    return CheckpointError(
        keyed_line(str(path), f"can't be read as torch.save writes it ({shown(reason)}); expected an undamaged file")
    )


def _refused(path: Path, error: Exception) -> CheckpointError:
    named = re.search(r"GLOBAL (\S+)", str(error)) or re.search(r"<[^>]*'([^']+)'>", str(error))
    if named is None:
        return _damaged(path, error)
    return CheckpointError(
        keyed_line(
            str(path),
            f"needs {shown(named[1])}, which is code and is not run; expected tensors and plain values; where the file"
            " was made, save the model's state_dict alone, under the key that the project uses for it",
        )
    )
