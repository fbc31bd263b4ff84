"""Row 25: less room than the checkpoints that will be kept and one more take is noted before the first step."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nerf_trainer.training.session import Session
from tests.faults.counts import Fault
from tests.faults.heavy_run import WEIGHTS, tiny


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The curves' file takes most of the time of a tiny training."""
    monkeypatch.setattr("nerf_trainer.training.stats.draw_train_stats", lambda history, folder: ())


def with_free(monkeypatch: pytest.MonkeyPatch, n_bytes: int) -> None:
    """A disk with so many bytes free."""
    fake = SimpleNamespace(f_bavail=n_bytes, f_bfree=n_bytes, f_frsize=1, f_bsize=1, f_blocks=1 << 40)
    monkeypatch.setattr(os, "statvfs", lambda path: fake)


@pytest.mark.fault(row=25)
@pytest.mark.parametrize(("purge", "n_checkpoints"), [(1, 3), (4, 6), (0, 3)])
def test_too_little_room_for_the_checkpoints_is_noted_before_the_first_step(
    fault: Fault,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    purge: int,
    n_checkpoints: int,
):
    took, take_step = [], Session.take_step

    def watched(session: Session, *args: Any) -> None:
        if not took:
            took.append(capsys.readouterr().out)
        take_step(session, *args)

    monkeypatch.setattr(Session, "take_step", watched)
    size = 4 * (WEIGHTS + 5) * 3
    for enough in (False, True):
        took.clear()
        with_free(monkeypatch, n_checkpoints * size - (not enough))
        tiny(tmp_path / str(enough), max_epochs=1, store_checkpoints_purge=purge).run()
        noted = f"note: {tmp_path / str(enough)}: {n_checkpoints * size - 1:,} bytes are free, expected"
        assert (noted in took[0]) is (not enough)
    written = sum(path.stat().st_size for path in (tmp_path / "True" / "checkpoints").glob("step-*/*"))
    assert 0 < written - size < 32768, "what a checkpoint takes, but for random generators and numbers in JSON"
    fault.passed()


@pytest.mark.fault(row=25)
def test_room_is_counted_for_what_is_still_to_come(
    fault: Fault, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    """A run that goes on has its checkpoints already: it needs room for one more, of their size."""
    tiny(tmp_path, max_epochs=2).run()
    newest = max((tmp_path / "checkpoints").glob("step-*"))
    size = sum(path.stat().st_size for path in newest.iterdir() if path.name != "manifest.json")
    for free, noted in ((size - 4096, 1), (size + 4096, 0)):
        with_free(monkeypatch, free)
        tiny(tmp_path, max_epochs=3 + (not noted)).run()
        assert capsys.readouterr().out.count("1 more checkpoints") == noted
    with_free(monkeypatch, 0)
    tiny(tmp_path, max_epochs=5, store_checkpoints=False).run()
    assert "bytes are free" not in capsys.readouterr().out
    fault.passed()
