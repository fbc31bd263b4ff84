"""The kit itself: runs that share what Hydra composed are the runs that Hydra composes."""

from pathlib import Path

from tests.faults.nursery import Nursery
from tests.faults.run_kit import N_EPOCHS, N_STEPS, train
from tests.training.run_records import final, logged, newest

OWN, OTHER = "seed=77", "seed=78"
"""Words that no other test has, so that nothing was composed before."""


def test_a_shared_composition_changes_nothing_of_a_run(nursery: Nursery, tmp_path: Path):
    runs = [
        train(nursery, "composed", OWN, cwd=tmp_path, composes_once=False),
        train(nursery, "leaving", OWN, "max_epochs=2", cwd=tmp_path),
        train(nursery, "leaving", OWN, cwd=tmp_path),
        train(nursery, "taking", OWN, cwd=tmp_path),
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


def test_a_shared_composition_ends_with_the_codes_of_the_command(nursery: Nursery, tmp_path: Path):
    for _ in range(2):
        child = train(nursery, "run", "seed=1.5", cwd=tmp_path)
        assert child.code == 2 and child.err.startswith("error: seed: "), child.err
    for name in ("first", "second"):
        (tmp_path / name).write_text("a file in the way")
        assert train(nursery, name, OTHER, cwd=tmp_path).code == 6
