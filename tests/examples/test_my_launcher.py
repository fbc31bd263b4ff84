"""A launcher of one's own on `Experiment`: its option, its runs, its table."""

import logging
import re
import sys
from pathlib import Path

import pytest

from examples.my_launcher import RateComparison, compare
from nerf_trainer.launch import run_hydra

LOADER = "data_source_ImplicitronDataSource_args.data_loader_map_provider_ResidentDataLoaderMapProvider_args"
MODEL = "model_factory_ImplicitronModelFactory_args.model_OverfitModel_args"
TINY = (
    "--config-name=quickstart",
    "max_epochs=1",
    f"{LOADER}.dataset_length_train=2",
    f"{LOADER}.dataset_length_test=1",
    f"{MODEL}.raysampler_AdaptiveRaySampler_args.n_rays_total_training=64",
    f"{MODEL}.raysampler_AdaptiveRaySampler_args.n_pts_per_ray_evaluation=8",
    f"{MODEL}.render_image_height=16",
    f"{MODEL}.render_image_width=16",
)


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs the launcher with the given words, in an empty folder."""
    handlers, level = list(logging.root.handlers), logging.root.level
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*words: str) -> None:
        monkeypatch.setattr(sys, "argv", ["my_launcher", *words])
        run_hydra(lambda: RateComparison, compare, name="my_launcher")

    yield run
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


def test_each_rate_has_its_run_and_its_line(launch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    launch(*TINY, "exp_dir=rates", "rates=[0.01,0.001]")
    for rate in ("0.01", "0.001"):
        folder = tmp_path / "rates" / f"lr-{rate}"
        assert f"  lr: {rate}\n" in (folder / "expconfig.yaml").read_text()
        assert (folder / "results_test.json").is_file()
    table = capsys.readouterr().out.split("learning rate   test PSNR\n")[1]
    lines = [re.fullmatch(r"(\S+) +(\S+) dB", line) for line in table.splitlines()]
    found = {line[1]: float(line[2]) for line in lines if line}
    assert set(found) == {"0.01", "0.001"}
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_its_own_option_is_checked(launch, capsys: pytest.CaptureFixture[str]) -> None:
    for words, line in (
        (["rates=[]"], "rates: []; expected one or more numbers above 0"),
        (["rate=[1]"], "rate: 'rate' is not a key of RateComparison"),
    ):
        with pytest.raises(SystemExit) as left:
            launch(*TINY, *words)
        assert left.value.code == 2
        assert line in capsys.readouterr().err
