"""A long run in one process holds no more and more memory or files: benchmarks/long_run.py, and a short run of it."""

import json
from pathlib import Path

import pytest

from benchmarks import long_run
from tests.faults.counts import LEVELS, level


def sampled(epochs: int, every: int = 20, **growing: float) -> list[dict[str, int]]:
    """A run's samples, flat but for what grows by so much an epoch."""
    flat = {
        "rss_bytes": 5e8,
        "open_files": 10,
        "threads": 3,
        "checkpoint_bytes": 1e6,
        "other_bytes": 1e5,
        "n_files": 19,
    }
    return [
        {
            "epoch": epoch,
            "log_bytes": 350 * epoch,
            **{name: round(value + growing.get(name, 0.0) * epoch) for name, value in flat.items()},
        }
        for epoch in range(every, epochs + 1, every)
    ]


def test_what_is_flat() -> None:
    found = long_run.judge(sampled(2000), 2000)
    assert all(found["flat"].values())
    assert found["rss_mib"] == 476.8 and found["log_bytes_per_epoch"] == 350.0


@pytest.mark.parametrize(
    ("kind", "an_epoch", "judged"),
    [
        ("rss_bytes", 20_000, "rss"),  # 4 % in a thousand epochs
        ("open_files", 0.01, "open_files"),
        ("threads", 0.001, "threads"),
        ("checkpoint_bytes", 1000, "checkpoint"),
        ("other_bytes", 100, "other"),
        ("n_files", 0.02, "n_files"),
    ],
)
def test_what_grows_is_named(kind: str, an_epoch: float, judged: str) -> None:
    flat = long_run.judge(sampled(2000, **{kind: an_epoch}), 2000)["flat"]
    assert [name for name, is_flat in flat.items() if not is_flat] == [judged]


def test_a_log_whose_lines_grow_is_named() -> None:
    samples = [{**one, "log_bytes": one["epoch"] ** 2} for one in sampled(2000)]
    assert not long_run.judge(samples, 2000)["flat"]["log"]


def test_too_few_samples_are_no_proof() -> None:
    with pytest.raises(ValueError, match="look more often"):
        long_run.judge(sampled(100), 100)


@pytest.mark.skipif(level() == LEVELS[0], reason="a long test of faults; `make test-faults` runs it")
def test_a_shorter_run_leaves_nothing_behind(tmp_path: Path) -> None:
    """Of so few epochs memory says nothing yet: what is imported late still counts. Files, threads and sizes do."""
    epochs, every = 120, 4
    words = ["--epochs", str(epochs), "--every", str(every), "--seconds-between-plots", "5"]
    long_run.main([*words, "--out", str(tmp_path), "--picture", str(tmp_path / "long_run.png")])
    record = json.loads((tmp_path / "long_run.json").read_text())
    assert len(record["samples"]) >= 20 and record["samples"][-1]["epoch"] >= epochs - 2 * every
    flat = record["found"]["flat"]
    assert flat["threads"] and flat["log"] and flat["checkpoint"], flat
    # The curves are drawn when it is time for them, on a busy machine late: two files, fonts that stay open, imports.
    first, last = record["samples"][0], record["samples"][-1]
    assert last["n_files"] <= first["n_files"] + 2
    assert last["open_files"] <= first["open_files"] + 6
    assert last["rss_bytes"] <= first["rss_bytes"] + 200 * 2**20
    assert (tmp_path / "long_run.png").stat().st_size > 10_000
