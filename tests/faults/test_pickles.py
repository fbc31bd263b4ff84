"""Row 57: forty files that would run something, for every command that reads files.

Payloads are pickles that start a shell or a process, execute a text, make a file, or hold such a pickle. They stand for
a checkpoint's files (their digests in the manifest made to fit), for files beside them, and for statistics; they are
given to `nerf_model import` in the four forms that torch ever wrote, as data, and as pretrained weights. Nothing runs,
by Python's own audit and by a file that every payload would leave, and the exit code is 4, for data 3. That the
payloads are live is shown too.
"""

import gzip
import io
import logging
import pickle
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from nerf_trainer import model
from nerf_trainer.dataset import main as nerf_data
from nerf_trainer.errors import MAX_LINE, CheckpointError
from nerf_trainer.evaluation.lpips import LpipsNet, LpipsUnavailableError, load_lpips
from nerf_trainer.networks.resnet import ResNetTrunk, load_weights
from nerf_trainer.training import checkpoint_files as files
from tests.command_kit import Typed, typed
from tests.data.llff_scene import write_llff
from tests.data.scene_formats import write_blender
from tests.data.tiny_scene import write_tiny
from tests.faults import audit
from tests.faults.counts import Fault
from tests.faults.nursery import Child, Nursery
from tests.faults.run_kit import start, train
from tests.known_scene import facing


class Calls:
    """An object that is unpickled by calling something."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self._call


@pytest.fixture
def sentinel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What every payload would make; what is watched goes to a file beside it."""
    monkeypatch.setenv(audit.VARIABLE, str(tmp_path / "audit"))
    return tmp_path / audit.MARK


def payloads(sentinel: Path) -> list[Calls]:
    text = f"open({str(sentinel)!r}, 'w').close()"
    return [
        Calls(__import__("os").system, f"touch '{sentinel}'"),
        Calls(subprocess.call, ["touch", str(sentinel)]),
        Calls(exec, text),
        Calls(eval, text),
        Calls(Path.touch, sentinel),
        Calls(pickle.loads, pickle.dumps(Calls(exec, text))),
    ]


def nothing_ran(sentinel: Path) -> None:
    noted = sentinel.with_name("audit")
    assert not sentinel.exists()
    assert not noted.exists(), noted.read_text()


@pytest.mark.fault(row=57)
def test_the_payloads_are_live_and_noted(sentinel: Path):
    noted = sentinel.with_name("audit")
    for payload in payloads(sentinel):
        pickle.loads(pickle.dumps(payload))
        assert sentinel.exists() and noted.exists()
        sentinel.unlink()
        noted.unlink()


# --- forms --------------------------------------------------------------------------------------------------------


def raw(content: object) -> bytes:
    return pickle.dumps(content)


def as_zip(content: object) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def as_legacy(content: object) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


def as_tar(content: object) -> bytes:
    """What the first versions of torch wrote."""
    stream, member = io.BytesIO(), pickle.dumps(content)
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            info = tarfile.TarInfo(name)
            info.size = len(member)
            tar.addfile(info, io.BytesIO(member))
    return stream.getvalue()


FORMS = (raw, as_zip, as_legacy, as_tar)


# --- runs ---------------------------------------------------------------------------------------------------------


def resealed(checkpoint: Path, changed: Mapping[str, bytes]) -> None:
    """Write files into a checkpoint and a manifest that fits them."""
    old = files.read_manifest(checkpoint)
    content = {name: (checkpoint / name).read_bytes() for name in old.files} | dict(changed)
    for name, data in changed.items():
        (checkpoint / name).write_bytes(data)
    manifest = files.new_manifest(old.config_sha256, old.world_size, content)
    (checkpoint / files.MANIFEST).write_bytes(files.manifest_bytes(manifest))


def nested(checkpoint: Path, name: str, payload: Calls) -> dict[str, bytes]:
    """A file of tensors whose bytes are a pickle, for programs that unpickle what they find in one."""
    tensors = safetensors.torch.load((checkpoint / name).read_bytes())
    hidden = torch.frombuffer(bytearray(pickle.dumps(payload)), dtype=torch.uint8)
    changed = {key: hidden.clone() if tensor.dtype == torch.uint8 else tensor for key, tensor in tensors.items()}
    return {name: safetensors.torch.save({**changed, "pickled": hidden})}


Attack = Callable[[Path, Calls], None]
"""Puts a payload into a checkpoint's folder."""


def member(name: str, form: Callable[[object], bytes], seals: bool = True) -> Attack:
    def attack(checkpoint: Path, payload: Calls) -> None:
        if seals:
            resealed(checkpoint, {name: form({"state": payload})})
        else:
            (checkpoint / name).write_bytes(form({"state": payload}))

    return attack


def hidden_in(name: str) -> Attack:
    return lambda checkpoint, payload: resealed(checkpoint, nested(checkpoint, name, payload))


OF_MODELS = (
    *(member(files.MODEL, form) for form in FORMS),
    member(files.MODEL, raw, seals=False),
    member(files.STATE, raw),
    member(files.MANIFEST, as_zip, seals=False),
    hidden_in(files.MODEL),
    member(".metadata", raw),
)
"""What everyone reads who reads a model."""
OF_TRAININGS = (
    *(member(name, form) for name in (files.OPTIMIZER, files.random_file(0)) for form in (raw, as_zip)),
    hidden_in(files.OPTIMIZER),
    hidden_in(files.random_file(0)),
    member("optimizer.bin", as_legacy),
    member("custom_checkpoint_0.pkl", raw),
)
"""What only a training reads."""


@pytest.fixture(scope="module")
def trained(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert train(nursery, folder).code == 0
    return folder


def spoiled(trained: Path, folder: Path, attack: Attack, payload: Calls) -> Path:
    """A copy of the run, each of whose checkpoints has the payload."""
    shutil.copytree(trained, folder)
    for checkpoint in (folder / "checkpoints").glob("step-*"):
        attack(checkpoint, payload)
    return folder


def refused(child: Child, code: int) -> None:
    assert child.wait() == code, child.err
    lines = child.err.splitlines()
    assert lines[-1].startswith("error: ") and len(lines[-1]) <= MAX_LINE and "Traceback" not in child.err


@pytest.mark.fault(row=57)
def test_runs_are_not_continued_from_pickles(fault: Fault, nursery: Nursery, trained: Path, sentinel: Path):
    attacks = (*OF_MODELS, *OF_TRAININGS)
    n, made = fault.times(len(attacks), quick=2, tenth=4), payloads(sentinel)
    for i in range(n):
        attack = attacks[i * 5 % len(attacks)]
        run = spoiled(trained, sentinel.with_name(f"run_{i}"), attack, made[i % len(made)])
        refused(start(nursery, run, "max_epochs=4", **watched(sentinel)), 4)
        nothing_ran(sentinel)
        fault.passed()


def watched(sentinel: Path) -> dict[str, str]:
    return {audit.VARIABLE: str(sentinel.with_name("audit"))}


@pytest.mark.fault(row=57)
def test_runs_are_not_shown_from_pickles(fault: Fault, nursery: Nursery, trained: Path, sentinel: Path):
    n, made = fault.times(6, quick=1, tenth=2), payloads(sentinel)
    for i in range(n):
        attack = OF_MODELS[(i * 4 + 1) % len(OF_MODELS)]
        run = spoiled(trained, sentinel.with_name(f"run_{i}"), attack, made[-i])
        options = {"command": "nerf_visualizer", "composes_once": True, **watched(sentinel)}
        refused(nursery.start(f"exp_dir={run}", "n_eval_cameras=2", **options), 4)
        nothing_ran(sentinel)
        fault.passed()


BESIDE = (
    "metrics.jsonl",
    "dataset_from_world.json",
    "results_test.json",
    "status.json",
    "checkpoints/latest",
    "checkpoints/step-00000012/custom_checkpoint_0.pkl",
)


@pytest.mark.fault(row=57)
def test_what_lies_beside_checkpoints_is_not_unpickled(fault: Fault, nursery: Nursery, trained: Path, sentinel: Path):
    """Statistics and the like: a run that goes on does without them, or ends with 4."""
    n, made = fault.times(len(BESIDE), quick=1, tenth=2), payloads(sentinel)
    for i in range(n):
        run = shutil.copytree(trained, sentinel.with_name(f"run_{i}"))
        (run / BESIDE[i]).write_bytes(pickle.dumps(made[i]))
        child = start(nursery, run, "max_epochs=4", draws=True, **watched(sentinel))
        assert child.wait() in ((0,) if i == 0 else (0, 4)) and "Traceback" not in child.err, child.err
        nothing_ran(sentinel)
        fault.passed()


# --- other commands -----------------------------------------------------------------------------------------------


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[[str], Typed]]:
    """A command by its name, in an empty working directory."""
    mains = {"nerf_model": model.main, "nerf_data": nerf_data}
    handlers, level = list(logging.root.handlers), logging.root.level
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("NERF_TRAINER_DEBUG", raising=False)
    yield lambda name: typed(name, mains[name], monkeypatch, capsys)
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


@pytest.mark.fault(row=57)
def test_weights_are_not_imported_from_pickles(fault: Fault, command: Callable[[str], Typed], sentinel: Path):
    """In every form, as the whole file, and as a part of what such files hold."""
    made = payloads(sentinel)
    n = fault.times(8, quick=8)
    for i in range(n):
        content = made[i % 6] if i < 4 else {"global_step": 1, "network_fn_state_dict": {"a": made[i % 6]}}
        file = sentinel.with_name("model.tar")
        file.write_bytes(FORMS[i % 4](content))
        code, out, err = command("nerf_model")("import", str(file), "exp_dir=run")
        assert code == 4 and err.startswith("error: ") and err.count("\n") == 1 and len(err) <= MAX_LINE + 1, err
        assert "Traceback" not in out + err and not Path("run").exists()
        nothing_ran(sentinel)
        fault.passed()


def objects(payload: Calls) -> bytes:
    """An array of objects, as NumPy pickles it."""
    stream = io.BytesIO()
    np.save(stream, np.array([payload], dtype=object), allow_pickle=True)
    return stream.getvalue()


def spoiled_llff(folder: Path, payload: Calls) -> Path:
    write_llff(folder, facing(4))
    (folder / "poses_bounds.npy").write_bytes(objects(payload))
    return folder


def spoiled_tiny(folder: Path, payload: Calls) -> Path:
    folder.mkdir()
    path = write_tiny(folder / "tiny_nerf_data.npz", facing(4))
    with np.load(path) as content:
        arrays = dict(content)
    np.savez(path, **{**arrays, "focal": np.array([payload], dtype=object)}, allow_pickle=True)
    return path


def spoiled_json(folder: Path, payload: Calls) -> Path:
    write_blender(folder, facing(4))
    (folder / "transforms_train.json").write_bytes(pickle.dumps(payload))
    return folder


def spoiled_image(folder: Path, payload: Calls) -> Path:
    write_blender(folder, facing(4))
    (folder / "r_1.png").write_bytes(as_zip(payload))
    return folder


def spoiled_index(folder: Path, payload: Calls) -> Path:
    folder.mkdir()
    for name in ("frame_annotations.jgz", "sequence_annotations.jgz"):
        (folder / name).write_bytes(gzip.compress(pickle.dumps(payload)))
    (folder / "set_lists.json").write_bytes(pickle.dumps(payload))
    return folder


DATA = (spoiled_llff, spoiled_tiny, spoiled_json, spoiled_image, spoiled_index)


@pytest.mark.fault(row=57)
def test_data_are_not_unpickled(fault: Fault, command: Callable[[str], Typed], sentinel: Path):
    n, made = fault.times(len(DATA), quick=1), payloads(sentinel)
    for i in range(n):
        source = DATA[i](sentinel.with_name(f"scene_{i}"), made[i])
        code, out, err = command("nerf_data")("check", f"data_source={source}")
        assert code == 3 and err.splitlines()[-1].startswith("error: ") and "Traceback" not in out + err, (i, err)
        nothing_ran(sentinel)
        fault.passed()


@pytest.mark.fault(row=57)
@pytest.mark.parametrize("form", FORMS)
def test_pretrained_weights_are_not_unpickled(form: Callable[[object], bytes], sentinel: Path):
    """Those of a ResNet's trunk, which end a command with 4; and LPIPS's, which evaluation does without."""
    path = sentinel.with_name("weights.pth")
    for payload in payloads(sentinel):
        path.write_bytes(form({"conv1.weight": payload}))
        with pytest.raises(CheckpointError) as caught:
            load_weights(ResNetTrunk("resnet18", 1), path)
        assert caught.value.exit_code == 4 and "\n" not in str(caught.value)
        path.rename(path.with_name("vgg16-397923af.pth"))
        with pytest.raises(LpipsUnavailableError, match="not the weights of VGG16"):
            load_lpips(LpipsNet.vgg, path.parent)
        nothing_ran(sentinel)
