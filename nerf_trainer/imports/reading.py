"""Files that torch.save wrote, opened without running anything that they name."""

import re
import struct
import zipfile
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from nerf_trainer.data.files import require_regular_file
from nerf_trainer.errors import CheckpointError, UserError, keyed_line, shown

MAX_BYTES = 8 * 2**30
"""The largest file that is read: far above any field's."""
_MAX_RECORDS = 100_000


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
        if zipfile.is_zipfile(path):
            _check_archive(path, n_bytes)
        with torch.serialization.safe_globals([(stand_in, name) for name, stand_in in _STAND_INS.items()]):
            content = torch.load(path, map_location="cpu", weights_only=True)
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
    return content


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
