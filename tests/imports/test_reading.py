"""Files of torch.save: both formats, what published files hold beside tensors, and what is refused."""

import os
import zipfile
from argparse import Namespace
from collections import defaultdict
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
