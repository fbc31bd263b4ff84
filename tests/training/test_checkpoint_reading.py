"""A checkpoint's values are checked as it is opened, and its errors name the file."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nerf_trainer.errors import CheckpointError
from nerf_trainer.randomness import RandomStream
from nerf_trainer.training.checkpoint import CheckpointStore
from nerf_trainer.training.checkpoint_files import (
    json_bytes,
    manifest_bytes,
    new_manifest,
    parse_json,
)
from nerf_trainer.training.checkpoint_reading import Checkpoint, CheckpointState


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A checkpoint of a linear layer and its optimizer, at step 4."""
    model = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.25)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = CheckpointState(step=4, epoch=1, step_in_epoch=0)
    return CheckpointStore(tmp_path).save(model, optimizer, state, {"noise": RandomStream("noise", 1)})


def with_state(directory: Path, change: Any) -> None:
    """Put another state.json in place, with a manifest that vouches for it."""
    members = {path.name: path.read_bytes() for path in directory.iterdir() if path.name != "manifest.json"}
    members["state.json"] = change(members["state.json"])
    (directory / "state.json").write_bytes(members["state.json"])
    (directory / "manifest.json").write_bytes(manifest_bytes(new_manifest("", 1, members)))


WRONG: dict[str, tuple[Any, str]] = {
    "negative": (lambda c: {**c, "epoch": -1}, "epoch is -1, expected 0 or more"),
    "fraction": (lambda c: {**c, "step_in_epoch": 0.5}, "step_in_epoch is 0.5, expected int"),
    "missing": (lambda c: {k: v for k, v in c.items() if k != "seed"}, "no key 'seed'"),
    "unknown": (lambda c: {**c, "learning_rate": 1}, "unexpected key 'learning_rate'"),
    "scaler": (lambda c: {**c, "scaler": []}, r"scaler is \[\], expected dict or NoneType"),
    "groups": (lambda c: {**c, "param_groups": [{"lr": 1}]}, r"param_groups\[0\] has no list of parameter names"),
    "names": (lambda c: {**c, "param_groups": [{"params": [1]}]}, r"param_groups\[0\] has no list of parameter names"),
    "aliases": (lambda c: {**c, "aliases": {"a": 1}}, "aliases holds something else than str"),
    "step": (lambda c: {**c, "step": 5}, "step is 5, expected the directory's 4"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_state_is_refused(directory: Path, case: str):
    change, problem = WRONG[case]
    with_state(directory, lambda data: json_bytes(change(parse_json(data))))
    with pytest.raises(CheckpointError, match=rf"state\.json: .*{problem}"):
        Checkpoint.open(directory)


def test_an_alias_of_nothing_is_refused(directory: Path):
    with_state(directory, lambda data: json_bytes({**parse_json(data), "aliases": {"a": "b"}}))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: a shall be the same as b, which is not stored"):
        Checkpoint.open(directory).load_model(nn.Linear(2, 1))


@pytest.mark.parametrize("content", [b"", b"[]", b'{"step": NaN}', b'{"a":' * 50_000, b"\xff"])
def test_a_state_that_is_no_json_is_refused(directory: Path, content: bytes):
    with_state(directory, lambda _: content)
    with pytest.raises(CheckpointError, match=r"state\.json: "):
        Checkpoint.open(directory)


def test_weights_that_don_t_fit_are_said_with_the_file(directory: Path):
    with pytest.raises(CheckpointError, match=r"step-00000004/model\.safetensors: the weights don't fit Linear"):
        Checkpoint.open(directory).load_model(nn.Linear(3, 1))


def test_an_optimizer_that_doesn_t_fit_is_said_with_the_file(directory: Path):
    model = nn.Linear(2, 1)
    with pytest.raises(CheckpointError, match=r"optim\.safetensors: .*same kind of optimizer"):
        Checkpoint.open(directory).load_optimizer(model, torch.optim.SGD(model.parameters()))


def test_streams_that_don_t_fit_are_said_with_the_file(directory: Path):
    with pytest.raises(CheckpointError, match=r"rng-0\.safetensors: .*noise, pixels"):
        Checkpoint.open(directory).load_streams({"pixels": RandomStream("pixels")}, rank=0)


def test_everything_is_put_back(directory: Path):
    model = nn.Linear(2, 1)
    checkpoint = Checkpoint.open(directory)
    checkpoint.load_model(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1.0)
    checkpoint.load_optimizer(model, optimizer)
    assert optimizer.param_groups[0]["lr"] == 1.0  # settings are the present configuration's
    # One step on the gradient (1, 1): the first moment is (1 - 0.9) of it.
    assert torch.equal(optimizer.state[model.weight]["exp_avg"], torch.full((1, 2), 1 - 0.9))
    stream, expected = RandomStream("noise", 2), RandomStream("noise", 1)
    checkpoint.load_streams({"noise": stream}, rank=0)
    assert torch.equal(torch.rand(3, generator=stream.on("cpu")), torch.rand(3, generator=expected.on("cpu")))


def test_damage_after_opening_is_noticed_too(directory: Path):
    checkpoint = Checkpoint.open(directory)
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(CheckpointError, match="sha256 mismatch"):
        checkpoint.load_model(nn.Linear(2, 1))
