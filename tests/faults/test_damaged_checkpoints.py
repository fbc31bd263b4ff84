"""Checkpoints that are not what was written: none is loaded, each is named with its reason.

| row | fault | what must happen |
|---|---|---|
| 8 | a bit of the newest flips | warning "sha256 mismatch", the one before is used; `force_resume=true`: exit 4 |
| 9 | a file is cut off, empty or missing | the same |
| 10 | all are bad | exit 4, each with its reason; training never begins anew in silence |
"""

import logging
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from nerf_trainer import experiment as runner
from nerf_trainer.errors import MAX_LINE, CheckpointError
from nerf_trainer.training.checkpoint import CheckpointStore
from tests.command_kit import Typed, typed
from tests.faults.counts import Fault
from tests.training.run_records import final, logged
from tests.training.tiny_experiment import WORDS, experiment

NEWEST, BEFORE = 12, 8
"""Steps of the last two checkpoints of the run."""


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than these runs."""
    monkeypatch.setattr("nerf_trainer.training.stats.draw_train_stats", lambda history, folder: ())


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with checkpoints at steps 4, 8 and 12."""
    experiment(tmp_path / "run", store_checkpoints_purge=0).run()
    return tmp_path / "run"


@pytest.fixture
def nerf_runner(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Typed:
    """The command, in this process."""
    monkeypatch.chdir(tmp_path)
    return typed("nerf_runner", runner.main, monkeypatch, capsys)


def newest(run: Path) -> Path:
    return run / "checkpoints" / f"step-{NEWEST:08d}"


def flip(path: Path, draw: random.Random) -> None:
    damaged = bytearray(path.read_bytes())
    damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
    path.write_bytes(damaged)


def cut(path: Path, draw: random.Random) -> None:
    """Takes away some of the end, or all, or the file."""
    how = draw.randrange(8)
    if how == 0:
        path.unlink()
    else:
        os.truncate(path, 0 if how == 1 else draw.randrange(path.stat().st_size))


def harm_again_and_again(
    run: Path, harm: Callable[[Path, random.Random], None], n: int, fault: Fault, log: pytest.LogCaptureFixture
) -> set[str]:
    """Harm a file of the newest checkpoint `n` times, each time finding the one before. Returns what was said."""
    draw, said = random.Random(0), set()
    files = sorted(newest(run).iterdir())
    for _ in range(n):
        path = draw.choice(files)
        whole = path.read_bytes()
        harm(path, draw)
        log.clear()
        found = CheckpointStore(run).latest()
        assert found is not None and found.state.step == BEFORE
        (warning,) = log.records
        assert warning.levelno == logging.WARNING
        assert f"step-{NEWEST:08d}/{path.name}: " in warning.getMessage()
        said.add(warning.getMessage().partition(f"{path.name}: ")[2])
        path.write_bytes(whole)
        fault.passed()
    found = CheckpointStore(run).latest()
    assert found is not None and found.state.step == NEWEST, "undamaged again, it is taken again"
    return said


@pytest.mark.fault(row=8)
def test_no_flipped_bit_is_loaded(run: Path, fault: Fault, caplog: pytest.LogCaptureFixture):
    said = harm_again_and_again(run, flip, fault.times(1000, quick=100), fault, caplog)
    assert said == {"sha256 mismatch; the file is damaged"}


@pytest.mark.fault(row=9)
def test_no_file_that_was_cut_is_loaded(run: Path, fault: Fault, caplog: pytest.LogCaptureFixture):
    said = harm_again_and_again(run, cut, fault.times(500, quick=100), fault, caplog)
    assert {line.split(", ")[0].split("; ")[0] for line in said} >= {"0 bytes", "missing", "sha256 mismatch"}


@pytest.mark.fault(row=8)
def test_a_run_goes_on_from_the_one_before_a_flipped_bit(run: Path, fault: Fault):
    goes_on_from_the_one_before(run, flip, fault, of_table=10)


@pytest.mark.fault(row=9)
def test_a_run_goes_on_from_the_one_before_a_cut_file(run: Path, fault: Fault):
    goes_on_from_the_one_before(run, cut, fault, of_table=10)


def goes_on_from_the_one_before(
    run: Path, harm: Callable[[Path, random.Random], None], fault: Fault, of_table: int
) -> None:
    """The steps since then are done again, to the last bit, and the bad one is put aside."""
    harmed, draw = run.with_name("harmed"), random.Random(1)
    names = [path.name for path in sorted(newest(run).iterdir())]
    experiment(run.with_name("whole"), max_epochs=4, store_checkpoints_purge=0).run()
    for i in range(fault.times(of_table, quick=1)):
        shutil.copytree(run, harmed)
        harm(newest(harmed) / names[i % len(names)], draw)
        experiment(harmed, max_epochs=4, store_checkpoints_purge=0).run()
        assert logged(harmed) == logged(run.with_name("whole"))
        assert final(harmed) == final(run.with_name("whole"))
        assert (harmed / "checkpoints" / "abandoned-1" / newest(harmed).name).is_dir()
        shutil.rmtree(harmed)
        fault.passed()


def flip_first_file(run: Path) -> None:
    flip(newest(run) / "model.safetensors", random.Random(2))


def cut_first_file(run: Path) -> None:
    os.truncate(newest(run) / "model.safetensors", 0)


HARMS = [
    pytest.param(flip_first_file, "sha256 mismatch", marks=pytest.mark.fault(row=8), id="flipped"),
    pytest.param(cut_first_file, "0 bytes, expected", marks=pytest.mark.fault(row=9), id="cut"),
]


def tree(run: Path) -> dict[str, bytes]:
    """Every file, but the one that says how the last command ended."""
    files = [path for path in sorted(run.rglob("*")) if path.is_file() and path.name != "status.json"]
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


@pytest.mark.parametrize(("harm", "reason"), HARMS)
def test_a_damaged_newest_one_that_is_insisted_on_is_refused(run: Path, harm: Callable[[Path], None], reason: str):
    harm(run)
    before = tree(run)
    with pytest.raises(CheckpointError) as refused:
        experiment(run, max_epochs=4, factory={"force_resume": True}).run()
    assert refused.value.exit_code == 4 and len(f"error: {refused.value}") <= MAX_LINE
    assert str(refused.value).startswith(f"{newest(run)}/model.safetensors: {reason}")
    assert "set force_resume=False" in str(refused.value)
    assert tree(run) == before


@pytest.mark.parametrize(("harm", "reason"), HARMS)
def test_an_epoch_whose_checkpoint_is_damaged_is_refused(run: Path, harm: Callable[[Path], None], reason: str):
    harm(run)
    with pytest.raises(CheckpointError, match=rf"resume_epoch=2.*bad: step-{NEWEST:08d}/model\.safetensors: {reason}"):
        experiment(run, factory={"resume_epoch": 2}).run()


# --- all of them ---------------------------------------------------------------------------------------------------


@pytest.mark.fault(row=10)
def test_when_all_are_bad_the_run_ends_and_says_why(run: Path, nerf_runner: Typed, fault: Fault):
    checkpoints = run / "checkpoints"
    flip(checkpoints / "step-00000004" / "rng-0.safetensors", random.Random(3))
    os.truncate(checkpoints / "step-00000008" / "optim.safetensors", 10)
    (checkpoints / "step-00000012" / "state.json").unlink()
    before = tree(run)
    code, out, err = nerf_runner(*WORDS, f"exp_dir={run}", "max_epochs=4")
    assert code == 4
    assert (out + err).count("passing over a bad checkpoint") == 3
    error = err.splitlines()[-1]
    assert err.count("error: ") == 1 and "Traceback" not in err
    assert error.startswith(f"error: {checkpoints}: no valid checkpoint (") and len(error) <= MAX_LINE
    assert "step-00000012/state.json: missing" in error
    assert "step-00000008/optim.safetensors: 10 bytes, expected" in error
    assert "step-00000004/rng-0.safetensors: sha256 mismatch" in error
    assert tree(run) == before, "nothing was trained, moved or removed"
    fault.passed()
    for options in ({"factory": {"force_resume": True}}, {"eval_only": True}):
        with pytest.raises(CheckpointError, match=r"step-00000012/state\.json: missing"):
            experiment(run, **options).run()
        assert tree(run) == before
        fault.passed()
    fault.n_of_table = 3


@pytest.mark.fault(row=10)
def test_of_many_bad_ones_the_line_names_those_it_has_room_for(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """The log has a line on each of them."""
    folder = tmp_path / "checkpoints"
    for step in range(30):
        (folder / f"step-{step:08d}").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"step-00000029/manifest.json: missing; .*and \d\d more\)") as caught:
        CheckpointStore(tmp_path, keep=None).latest()
    assert len(f"error: {caught.value}") <= MAX_LINE
    assert len(caplog.records) == 30
