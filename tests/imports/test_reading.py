"""Files of torch.save: both formats, what published files hold beside tensors, and what is refused."""

import os
import pickle
import struct
import sys
import zipfile
from argparse import Namespace
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from nerf_trainer.errors import CheckpointError
from nerf_trainer.imports import reading
from nerf_trainer.imports.reading import read_checkpoint


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.ckpt"


@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "the older format"])
def test_tensors_and_what_published_files_have_beside_them(file: Path, as_zip: bool) -> None:
    schedule = torch.optim.lr_scheduler.MultiStepLR(torch.optim.Adam([torch.zeros(1)]), [20])
    tables: defaultdict[str, dict[str, int]] = defaultdict(dict)
    tables["a"]["b"] = 1
    content = {
        "state_dict": {"a.weight": torch.arange(6.0).view(2, 3)},
        "hparams": Namespace(N_samples=64, root=Path("data")),
        "best": np.float64(0.5),
        "curve": np.arange(3),
        "lr_schedulers": [schedule.state_dict()],
        "tables": tables,
        "optimizer": torch.optim.SGD([torch.zeros(1)], lr=0.1).state_dict(),
    }
    torch.save(content, file, _use_new_zipfile_serialization=as_zip)
    read = read_checkpoint(file)
    state, hparams = read["state_dict"], read["hparams"]
    assert isinstance(state, dict) and torch.equal(state["a.weight"], content["state_dict"]["a.weight"])
    assert isinstance(hparams, Namespace) and hparams.N_samples == 64
    assert read["tables"] == {"a": {"b": 1}} and set(read) == set(content)


@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "the older format"])
def test_code_is_named_and_not_run(file: Path, as_zip: bool) -> None:
    proof = file.with_name("proof")
    torch.save({"state_dict": {}, "callback": Touch(proof)}, file, _use_new_zipfile_serialization=as_zip)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(file)
    message = str(caught.value)
    assert not proof.exists()
    assert "which is code and is not run" in message and "getattr" in message and "state_dict alone" in message
    assert len(message) < 400 and "\n" not in message


# --- hostile files, written opcode by opcode --------------------------------------------------------------------------

EVENTS: list[str] | None = None


def _note(event: str, arguments: tuple[object, ...]) -> None:
    if EVENTS is not None and event not in ("builtins.id", "object.__getattr__", "sys._getframe", "mmap.__new__"):
        EVENTS.append(f"open {arguments[0]}" if event == "open" else event)


sys.addaudithook(_note)  # a hook stays for the life of the process


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def called(name: str, *arguments: bytes) -> bytes:
    module, _, function = name.rpartition(".")
    return f"c{module}\n{function}\n".encode() + b"(" + b"".join(arguments) + b"tR"


def tensor(n_stored: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    """A tensor on record 0, which is said to hold so many numbers."""
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + number(n_stored) + b"tQ"
    sizes = [b"(" + b"".join(map(number, values)) + b"t" for values in (shape, stride)]
    hooks = b"ccollections\nOrderedDict\n)R"
    return called("torch._utils._rebuild_tensor_v2", storage, number(0), *sizes, b"\x89", hooks)


def written(path: Path, value: bytes, as_zip: bool = True, stored: bytes = b"") -> Path:
    """A file whose table has `value` under "a", and a record 0."""
    content = b"\x80\x02}(" + text("a") + value + b"u."
    if as_zip:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for name, data in (
                ("data.pkl", content),
                ("byteorder", b"little"),
                ("version", b"3\n"),
                ("data/0", stored),
            ):
                archive.writestr(f"model/{name}", data)
    else:
        sizes = {"short": 2, "int": 4, "long": 8}
        system = {"protocol_version": 1001, "little_endian": True, "type_sizes": sizes}
        ahead = (torch.serialization.MAGIC_NUMBER, 1001, system)
        path.write_bytes(b"".join(pickle.dumps(part, 2) for part in ahead) + content + pickle.dumps([], 2))
    return path


NAMESPACE = b"cargparse\nNamespace\n"
GETATTR = "__builtin__.getattr"
CODE = {
    "a shell": called("posix.system", text("true")),
    "a process": called("subprocess.Popen", text("true")),
    "eval": called("__builtin__.eval", text("1")),
    "an attribute of a known class": called(GETATTR, NAMESPACE, text("__init_subclass__")),
    "a chain of attributes": called(GETATTR, called(GETATTR, NAMESPACE, text("__init__")), text("__globals__")),
    "a nested name": called("argparse.Namespace.__init__.__globals__.get", text("_sys")),
    "a name of torch's": called("torch.hub.load_state_dict_from_url", text("http://localhost/x")),
    "torch.load itself": called("torch.serialization.load", text("other.pth")),
    "an import": called("importlib.import_module", text("antigravity")),
}
HARMLESS = {
    "arguments of a stand-in": called("numpy.core.multiarray._reconstruct", called("numpy.dtype", text("O8"))),
    "a stand-in's state": b"cnumpy\nndarray\n)\x81}("
    + text("__class__")
    + text("os")
    + text("run")
    + text("rm")
    + b"ub",
    "a namespace with another class": NAMESPACE + b")\x81}(" + text("__class__") + text("posix.system") + b"ub",
    "a table with a factory": called("collections.defaultdict", b"c__builtin__\ndict\n"),
    "lists in one another": b"]" * 10**4 + b"a" * (10**4 - 1),
}


def read_under_watch(path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a file's reading did, but for opening the file; it may be refused in one line."""
    with suppress(CheckpointError):
        read_checkpoint(path)  # torch imports what it needs when it first reads, or refuses
    monkeypatch.setitem(globals(), "EVENTS", events := [])
    try:
        read_checkpoint(path)
    except CheckpointError as error:
        assert len(str(error)) < 400 and "\n" not in str(error)
    finally:
        monkeypatch.setitem(globals(), "EVENTS", None)
    return [event for event in events if event != f"open {path}"]


@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "the older format"])
@pytest.mark.parametrize("name", [*CODE, *HARMLESS])
def test_a_hostile_file_executes_nothing(file: Path, name: str, as_zip: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """By Python's own audit: nothing is run, imported, compiled or opened, and no name is looked up by pickle."""
    written(file, (CODE | HARMLESS)[name], as_zip)
    assert read_under_watch(file, monkeypatch) == []
    if name in CODE:
        with pytest.raises(CheckpointError, match=r"is code and is not run|can't be read"):
            read_checkpoint(file)
    else:
        assert set(read_checkpoint(file)) == {"a"}


def test_tensors_that_say_they_are_larger_than_the_file_are_refused(file: Path) -> None:
    stored = struct.pack("<1000f", *range(1000))
    whole = read_checkpoint(written(file, tensor(1000, (2, 2), (2, 1)), stored=stored))["a"]
    assert isinstance(whole, torch.Tensor) and whole.tolist() == [[0.0, 1.0], [2.0, 3.0]]
    sizes = b"(" + number(9**9) + b"t", b"(" + number(1) + b"t", b"\x89"
    claims = {
        "a storage above its record": tensor(10**7, (10**7,), (1,)),
        "a storage above all memory": tensor(10**15, (10**15,), (1,)),
        "negative": tensor(-4, (4,), (1,)),
        "rows that are all one": tensor(4, (10**6, 10**6), (0, 0)),
        "no storage": called("torch._utils._rebuild_meta_tensor_no_storage", b"ctorch\nfloat32\n", *sizes),
        "the same storage again and again": b"](" + b"".join(tensor(1000, (1000,), (1,)) for _ in range(500)) + b"e",
    }
    for name, value in claims.items():
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(written(file, value, stored=stored))
            pytest.fail(name)
        assert len(str(caught.value)) < 400


def test_a_whole_module_is_refused(file: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), file)
    with pytest.raises(CheckpointError, match=r"torch\.nn\.modules\.linear\.Linear.*not run"):
        read_checkpoint(file)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "found an empty file"),
        (b"not a checkpoint at all", "can't be read as torch.save writes it"),
        (b"PK\x03\x04 cut short", "can't be read as torch.save writes it"),
    ],
)
def test_other_files_are_refused(file: Path, content: bytes, said: str) -> None:
    file.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(file)
    assert said in str(caught.value) and str(file) in str(caught.value)


@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "the older format"])
def test_cut_files_are_refused(file: Path, as_zip: bool) -> None:
    torch.save({"a": torch.zeros(1000)}, file, _use_new_zipfile_serialization=as_zip)
    whole = file.read_bytes()
    for part in (0.3, 0.6, 0.9):
        file.write_bytes(whole[: int(part * len(whole))])
        with pytest.raises(CheckpointError, match="can't be read"):
            read_checkpoint(file)


def test_what_is_no_plain_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, found in (("missing", "nothing"), (".", "a folder"), ("pipe", "a pipe")):
        with pytest.raises(CheckpointError, match=found):
            read_checkpoint(tmp_path / name)


def test_other_content_than_a_table_is_refused(file: Path) -> None:
    torch.save([torch.zeros(1)], file)
    with pytest.raises(CheckpointError, match="found a list, expected a table of names"):
        read_checkpoint(file)
    torch.save({1: torch.zeros(1)}, file)
    with pytest.raises(CheckpointError, match="keys that are no names"):
        read_checkpoint(file)


def test_archives_that_grow_when_they_are_unpacked_are_refused(file: Path) -> None:
    torch.save({"a": torch.zeros(100_000)}, file)
    packed = file.with_name("packed.ckpt")
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for record in source.infolist():
            target.writestr(record.filename, source.read(record))
    with pytest.raises(CheckpointError, match=r"no archive as torch\.save writes it"):
        read_checkpoint(packed)


def test_files_above_the_limit_are_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"a": torch.zeros(100)}, file)
    monkeypatch.setattr(reading, "MAX_BYTES", 100)
    with pytest.raises(CheckpointError, match="expected the file of one model, at most 100"):
        read_checkpoint(file)
