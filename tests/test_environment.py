"""Values from environment variables: what is not set is said at once, by each command that runs a recipe."""

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nerf_trainer import experiment
from nerf_trainer.environment import require_variables
from nerf_trainer.errors import MAX_LINE, ConfigError

V1 = "data_source_ImplicitronDataSource_args.dataset_map_provider_JsonIndexDatasetMapProvider_args"
V2 = "data_source_ImplicitronDataSource_args.dataset_map_provider_JsonIndexDatasetMapProviderV2_args"
BLENDER = "data_source_ImplicitronDataSource_args.dataset_map_provider_BlenderDatasetMapProvider_args"
SET, UNSET = "${oc.env:A_SET_VARIABLE}", "${oc.env:AN_UNSET_VARIABLE}"


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SET_VARIABLE", "")
    monkeypatch.delenv("AN_UNSET_VARIABLE", raising=False)
    monkeypatch.delenv("ANOTHER", raising=False)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"root": SET, "deep": {"list": [SET, 3, None, True]}},
        {"root": "${oc.env:AN_UNSET_VARIABLE,/data}", "other": "${oc.env:AN_UNSET_VARIABLE,null}"},
        {"root": r"\${oc.env:AN_UNSET_VARIABLE}", "other": "AN_UNSET_VARIABLE", "third": "${root}"},
    ],
)
def test_what_is_set_falls_back_or_is_no_interpolation_passes(values: dict) -> None:
    require_variables(values, "recipe")


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (
            {"data": {"root": f"{UNSET}/x"}},
            "data.root: recipe takes this from AN_UNSET_VARIABLE, which is not set; export AN_UNSET_VARIABLE=..., or"
            " give it on the command line",
        ),
        ({"roots": [SET, UNSET]}, "roots[1]: recipe takes this from AN_UNSET_VARIABLE"),
        (
            {"exp_dir": UNSET, "data": {"root": "${oc.env: ANOTHER }/" + UNSET, "name": UNSET}},
            "data.root: recipe takes this, exp_dir and name from ANOTHER and AN_UNSET_VARIABLE, which are not set;"
            " export ANOTHER=... AN_UNSET_VARIABLE=..., or give them on the command line",
        ),
        ({"typed": UNSET}, "typed: the command line takes this from AN_UNSET_VARIABLE"),
    ],
)
def test_all_that_is_unset_is_in_one_line(values: dict, line: str) -> None:
    with pytest.raises(ConfigError) as refused:
        require_variables(values, "recipe", typed=["typed"])
    assert str(refused.value).startswith(line)


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty working directory, and no variable that names data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("CO3D_DATASET_ROOT", "CO3DV2_DATASET_ROOT", "BLENDER_DATASET_ROOT", "BLENDER_SINGLESEQ_CLASS"):
        monkeypatch.delenv(name, raising=False)
    handlers, level = list(logging.root.handlers), logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


def failure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[object, str]:
    """The exit code of `nerf_runner` in this process, and what it wrote to stderr."""
    monkeypatch.delenv("NERF_TRAINER_DEBUG", raising=False)
    monkeypatch.setattr(sys, "argv", ["nerf_runner", *words])
    with pytest.raises(SystemExit) as left:
        experiment.main()
    return left.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("recipe", "words", "key", "unset"),
    [
        ("overfit_singleseq_base", ["eval_only=True"], f"{V1}.dataset_root", ["CO3D_DATASET_ROOT"]),
        (
            "repro_singleseq_nerf_blender",
            [],
            f"{BLENDER}.base_dir",
            ["BLENDER_DATASET_ROOT", "BLENDER_SINGLESEQ_CLASS"],
        ),
    ],
)
def test_a_recipe_whose_variable_is_unset_ends_with_one_line(
    shell: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    recipe: str,
    words: list[str],
    key: str,
    unset: list[str],
) -> None:
    code, err = failure(monkeypatch, capsys, "--config-name", recipe, *words)
    assert code == 2
    assert err.startswith(f"error: {key}: {recipe} takes this") and err.count("\n") == 1 and len(err) <= MAX_LINE + 1
    assert f"export {' '.join(f'{name}=...' for name in unset)}, or give" in err
    assert not any(tmp_path.iterdir())


def test_a_key_on_the_command_line_takes_the_variables_place(
    shell: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    co3d_category: Path,
) -> None:
    """What is missing there is the category, and those there are get listed."""
    words = [f"{V1}.dataset_root={co3d_category / 'v1'}", f"{V1}.category=teddybear"]
    code, err = failure(monkeypatch, capsys, "--config-name", "repro_singleseq_nerf", *words)
    assert code == 3 and err.count("\n") == 1
    assert err.startswith("error: category: 'teddybear' is no category in ") and "expected one of solids" in err


def test_the_configuration_is_shown_without_its_variables(
    shell: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["nerf_runner", "--config-name", "nerf_blender", "--cfg", "job"])
    experiment.main()
    assert "base_dir: ${oc.env:BLENDER_DATASET_ROOT}/${oc.env:BLENDER_SINGLESEQ_CLASS}" in capsys.readouterr().out


def test_a_sweep_says_it_once(shell: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config-name", "repro_multiseq_v2_srn_wce", "exp_dir=swept", "--multirun", "seed=1,2"]
    code, err = failure(monkeypatch, capsys, *words)
    assert code == 2
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert errors[0].startswith(f"error: job 0: {V2}.dataset_root: repro_multiseq_v2_srn_wce takes this from CO3DV2_")
    assert errors[1:] == ["error: job 1: as job 0"]


def test_a_sweep_into_a_folder_named_by_an_unset_variable_names_it(
    shell: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("BLENDER_DATASET_ROOT", "scenes")
    code, err = failure(monkeypatch, capsys, "--config-name", "nerf_blender", "--multirun", "seed=1,2")
    assert code == 2 and err.startswith("error: exp_dir: does not resolve: ") and err.count("\n") == 1
    assert "export BLENDER_SINGLESEQ_CLASS=..." in err
    assert not any(tmp_path.iterdir())


def test_a_root_that_is_no_folder_names_the_variable(
    shell: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CO3DV2_DATASET_ROOT", "nowhere")
    code, err = failure(monkeypatch, capsys, "--config-name", "repro_singleseq_v2_nerf")
    assert code == 3 and err.startswith("error: dataset_root (CO3DV2_DATASET_ROOT): found nothing at nowhere, expected")
    assert err.count("\n") == 1


def test_a_category_that_was_not_given_says_how_to_give_it(
    shell: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CO3D_DATASET_ROOT", "somewhere")
    code, err = failure(monkeypatch, capsys, "--config-name", "repro_singleseq_nerf")
    assert code == 2
    key = f"{V1}.category"
    assert err == f"error: {key}: ??? (missing): this value must be given; on the command line: {key}=...\n"
    assert len(err) <= MAX_LINE + 1
