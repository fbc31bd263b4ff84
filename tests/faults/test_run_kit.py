"""The kit itself: runs that share what Hydra composed are the runs that Hydra composes."""

from pathlib import Path

from tests.faults.nursery import Nursery
from tests.faults.run_kit import N_EPOCHS, N_STEPS, train
from tests.training.run_records import final, logged, newest


def test_a_shared_composition_changes_nothing_of_a_run(tmp_path: Path):
    with Nursery(tmp_path) as nursery:
        runs = [
            train(nursery, "composed", composes_once=False),
            train(nursery, "leaving", "max_epochs=2"),
            train(nursery, "leaving"),
            train(nursery, "taking"),
        ]
        assert [run.code for run in runs] == [0] * 4, [run.err for run in runs]
    for name in ("leaving", "taking"):
        run, composed = tmp_path / name, tmp_path / "composed"
        assert logged(run) == logged(composed)
        assert final(run) == final(composed)
        text = (composed / "expconfig.yaml").read_text()
        assert (run / "expconfig.yaml").read_text() == text.replace("exp_dir: composed", f"exp_dir: {name}")
        assert (run / "status.json").exists()
    assert newest(tmp_path / "taking").name == f"step-{N_EPOCHS * N_STEPS:08d}"


def test_a_shared_composition_ends_with_the_codes_of_the_command(tmp_path: Path):
    with Nursery(tmp_path) as nursery:
        for _ in range(2):
            child = train(nursery, "run", "seed=1.5")
            assert child.code == 2 and child.err.startswith("error: seed: "), child.err
        for name in ("first", "second"):
            (tmp_path / name).write_text("a file in the way")
            assert train(nursery, name).code == 6
