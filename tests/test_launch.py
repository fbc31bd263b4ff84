"""Hydra commands on a small stand-in for the experiment."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import field
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from nerf_trainer.config import Configurable, ReplaceableBase, build, choice, prune, registry
from nerf_trainer.errors import MAX_LINE, ConfigError, DataError
from nerf_trainer.launch import apply_shorthands, run_hydra
from nerf_trainer.recipes import configs_folder

LOOP = "training_loop_LaunchLoop_args"
MODEL = "model_factory_LaunchModel_args"


class LoopBase(ReplaceableBase):
    """A namespace."""


@registry.register
class LaunchLoop(LoopBase):
    eval_only: bool = False
    test_when_finished: bool = False
    max_epochs: int = 1000
    milestones: tuple[int, ...] = ()


@registry.register
class BareLoop(LoopBase):
    speed: float = 1.0


class RendererBase(ReplaceableBase):
    """A namespace."""


@registry.register
class PlainRenderer(RendererBase):
    n_points: int = 8


class ModelBase(ReplaceableBase):
    """A namespace."""


@registry.register
class LaunchModel(ModelBase):
    resume: bool = True
    resume_epoch: int = -1
    force_resume: bool = False
    loss_weights: dict[str, float] = field(default_factory=lambda: {"loss_rgb_mse": 1.0})
    names: tuple[str, ...] = ()
    word: str = ""
    of: dict[str, str] = field(default_factory=dict)
    renderer: RendererBase = choice("PlainRenderer")


class Root(Configurable):
    exp_dir: str = "out/default"
    seed: int = 42
    plugins: tuple[str, ...] = ()
    eval_only: bool | None = None
    test_when_finished: bool | None = None
    max_epochs: int | None = None
    resume: bool | None = None
    resume_epoch: int | None = None
    force_resume: bool | None = None
    training_loop: LoopBase = choice("LaunchLoop")
    model_factory: ModelBase = choice("LaunchModel")


Launch = Callable[..., list[tuple[Root, DictConfig]]]


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Launch]:
    """Runs the command in an empty working directory; answers what its jobs were given."""
    handlers, level = list(logging.root.handlers), logging.root.level
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("NERF_TRAINER_DEBUG", raising=False)

    def run(*words: str) -> list[tuple[Root, DictConfig]]:
        jobs: list[tuple[Root, DictConfig]] = []

        def task(cfg: DictConfig, overrides: list[str]) -> None:
            made = build(Root, cfg)
            jobs.append((made, cfg))
            if made.seed == 13:
                raise DataError("scene.json: 13 frames, expected 14")
            if made.seed == 14:
                raise RuntimeError("a bug")

        monkeypatch.setattr(sys, "argv", ["command", *words])
        run_hydra(lambda: Root, task)
        return jobs

    yield run
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


def one(jobs: list[tuple[Root, DictConfig]]) -> Root:
    assert len(jobs) == 1
    return jobs[0][0]


def test_a_run_builds_what_the_command_line_says_and_writes_nothing(launch: Launch, tmp_path: Path) -> None:
    made = one(launch("seed=7", f"{LOOP}.milestones=[1,2]"))
    assert made.seed == 7
    assert isinstance(made.training_loop, LaunchLoop)
    assert made.training_loop.milestones == (1, 2)
    assert list(tmp_path.iterdir()) == []


def test_flags_may_stand_between_overrides(launch: Launch) -> None:
    jobs = launch("seed=3", "--multirun", "exp_dir=a,b", "--config-name", "default_config", "max_epochs=2")
    assert [(made.exp_dir, made.seed, vars(made.training_loop)["max_epochs"]) for made, _ in jobs] == [
        ("a", 3, 2),
        ("b", 3, 2),
    ]


def test_names_of_digits_and_underscores_are_no_numbers(launch: Launch, capsys: pytest.CaptureFixture[str]) -> None:
    """CO3D's sequences have such names, and dates are written so; Hydra reads 2024_11_22 as 20241122."""
    made = one(launch("exp_dir=2024_11_22", f"{MODEL}.names=[397_49943_98337,100_1_2]", f"+{MODEL}.of={{a: 1_2}}"))
    assert made.exp_dir == "2024_11_22"
    assert (vars(made.model_factory)["names"], vars(made.model_factory)["of"]) == (
        ("397_49943_98337", "100_1_2"),
        {"a": "1_2"},
    )
    jobs = launch("-m", "exp_dir=1_2,3_4", f"{MODEL}.names=[5_6]")
    assert [made.exp_dir for made, _ in jobs] == ["1_2", "3_4"]
    jobs = launch("-m", "exp_dir=runs", f"{MODEL}.names=[a]", f"{MODEL}.word=1_2,12")
    assert [made.exp_dir for made, _ in jobs] == ["runs/word-1_2", "runs/word-12"]
    assert [vars(made.model_factory)["word"] for made, _ in jobs] == ["1_2", "12"]
    capsys.readouterr()
    for word, line in (
        ("exp_dir=1_2,3_4", "Ambiguous value for argument 'exp_dir=1_2,3_4'"),
        ("training_loop_class_type=1_2", "training_loop_class_type: '1_2' is"),
    ):
        with pytest.raises(SystemExit):
            launch(word)
        assert line in capsys.readouterr().err


def test_numbers_may_be_typed_with_underscores(launch: Launch) -> None:
    words = (f"{LOOP}.max_epochs=2_000", f"{LOOP}.milestones=[1_000,2_0]", f"+{MODEL}.loss_weights.x=1_5")
    made = one(launch("max_epochs=2_000", "seed=1_1", *words))
    assert (made.seed, vars(made.training_loop)["max_epochs"]) == (11, 2000)
    assert vars(made.training_loop)["milestones"] == (1000, 20)
    assert vars(made.model_factory)["loss_weights"]["x"] == 15.0
    assert one(launch("max_epochs=2_000", f"{LOOP}.max_epochs=2000")).seed == 42, "the same number in both spellings"


def test_own_yaml_on_a_recipe_by_either_flag(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "base.yaml").write_text(f"defaults: [default_config, _self_]\n{LOOP}: {{max_epochs: 5}}\n")
    (tmp_path / "mine" / "top.yaml").write_text("defaults: [base, _self_]\nseed: 3\n")
    for flag in ("--config-dir", "--config-path", "-cd", "-cp"):
        made = one(launch(flag, "mine", "--config-name", "top"))
        assert made.seed == 3
        assert isinstance(made.training_loop, LaunchLoop)
        assert made.training_loop.max_epochs == 5
    assert one(launch("seed=4", "--config-path=mine", "--config-name=top")).seed == 4


def test_a_yaml_without_defaults_is_checked_and_writes_nothing(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "bare.yaml").write_text(f"seed: 3\n{LOOP}: {{max_epochs: 5}}\n")
    made = one(launch("-cd", ".", "-cn", "bare"))
    assert (made.seed, vars(made.training_loop)["max_epochs"]) == (3, 5)
    assert [path.name for path in tmp_path.iterdir()] == ["bare.yaml"]
    (tmp_path / "bare.yaml").write_text("sede: 3\n")
    with pytest.raises(SystemExit):
        launch("-cd", ".", "-cn", "bare")


def test_the_shipped_recipes_are_found_beside_own_yamls(launch: Launch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        launch("--config-dir", ".", "--config-name", "nerf_blendr")
    shipped = sorted(path.stem for path in configs_folder().glob("*.yaml"))
    line = capsys.readouterr().err
    assert "did you mean 'nerf_blender'?" in line
    assert shipped[0] in line


PLUGIN = """
from nerf_trainer.config import registry
from {module} import RendererBase

@registry.register
class {name}(RendererBase):
    power: float = 2.0
"""


def write_plugin(path: Path, name: str) -> None:
    path.write_text(PLUGIN.format(module=RendererBase.__module__, name=name))


@pytest.mark.parametrize("spelling", ["./plug_{}.py", "plug_{}"])
def test_plugins_on_the_command_line(launch: Launch, tmp_path: Path, spelling: str) -> None:
    name = f"CliRenderer{'File' if '/' in spelling else 'Module'}"
    write_plugin(tmp_path / f"plug_{name}.py", name)
    made = one(
        launch(
            f"plugins=[{spelling.format(name)}]",
            f"{MODEL}.renderer_class_type={name}",
            f"{MODEL}.renderer_{name}_args.power=3",
        )
    )
    assert isinstance(made.model_factory, LaunchModel)
    assert type(made.model_factory.renderer).__name__ == name
    assert vars(made.model_factory.renderer) == {"power": 3.0}


def test_plugins_in_a_yaml_are_sought_beside_it(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    write_plugin(tmp_path / "mine" / "beside.py", "YamlRenderer")
    (tmp_path / "mine" / "top.yaml").write_text(
        f"defaults: [default_config, _self_]\nplugins: [./beside.py]\n"
        f"{MODEL}: {{renderer_class_type: YamlRenderer, renderer_YamlRenderer_args: {{power: 4}}}}\n"
    )
    for made in (one(launch("-cd", "mine", "-cn", "top")), one(launch("-cp", "mine", "-cn", "top"))):
        assert isinstance(made.model_factory, LaunchModel)
        assert vars(made.model_factory.renderer) == {"power": 4.0}


def test_plugins_are_kept_as_they_are_found_from_the_working_directory(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command that reads the run knows nothing of the folder that `--config-dir` named."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "top.yaml").write_text("defaults: [default_config, _self_]\nplugins: [./near.py, ./here.py]\n")
    write_plugin(tmp_path / "mine" / "near.py", "NearRenderer")
    write_plugin(tmp_path / "here.py", "HereRenderer")
    ((made, kept),) = launch("-cd", "mine", "-cn", "top")
    assert made.plugins == ("mine/near.py", "./here.py") and list(kept.plugins) == ["mine/near.py", "./here.py"]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    write_plugin(elsewhere / "here.py", "HereRenderer2")
    monkeypatch.chdir(elsewhere)
    assert one(launch("-cd", "../mine", "-cn", "top")).plugins == (f"{tmp_path}/mine/near.py", "./here.py")


def test_plugins_of_installed_packages(launch: Launch, tmp_path: Path) -> None:
    write_plugin(tmp_path / "installed_plug.py", "InstalledRenderer")
    info = tmp_path / "installed_plug-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: installed_plug\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[nerf_trainer.plugins]\nplug = installed_plug\n")
    made = one(launch(f"{MODEL}.renderer_class_type=InstalledRenderer"))
    assert isinstance(made.model_factory, LaunchModel)
    assert type(made.model_factory.renderer).__name__ == "InstalledRenderer"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["sede=3"], r"sede: 'sede' is not a key of Root; expected one of .*did you mean 'seed'?"),
        (["+sede=3"], r"sede: 'sede' is not a key of Root; "),
        (["seed=many"], r"seed: 'many' does not fit, expected int"),
        (
            [f"{LOOP}.max_epoch=3"],
            f"{LOOP}.max_epoch: 'max_epoch' is not a key of LaunchLoop; expected one of eval_only, ",
        ),
        ([f"{LOOP}=3"], f"{LOOP}: 3 does not fit, expected keys and values"),
        ([f"{MODEL}.renderer_class_type=PlanRenderer"], f"{MODEL}.renderer_class_type: 'PlanRenderer' is not a known"),
        (
            [f"{MODEL}.loss_weights.loss_rgb_mes=1"],
            f"{MODEL}.loss_weights.loss_rgb_mes: 'loss_rgb_mes' is not there yet (to add it, put a + before the key); "
            "expected one of loss_rgb_mse; did you mean 'loss_rgb_mse'?",
        ),
        ([f"{MODEL}.loss_weights={{loss_x: 1}}"], f"{MODEL}.loss_weights.loss_x: 'loss_x' is not there yet"),
        ([f"+{MODEL}.loss_weights.loss_x=much"], f"{MODEL}.loss_weights.loss_x: 'much' does not fit, expected float"),
        (["seed=[1"], "command line: 'seed=[1' is no override"),
        (["seed"], "command line: 'seed' is no override"),
        (["~nothing"], "Could not delete from config. 'nothing' does not exist."),
        (["hydra.sede=1"], "hydra.sede: Key 'sede' not in 'HydraConf'"),
        (["plugins=[no_such_plugin]"], "plugins: no_such_plugin: can't be imported: ModuleNotFoundError: "),
        (
            ["plugins=[./no_such_plugin.py]"],
            "plugins: ./no_such_plugin.py: can't be imported: FileNotFoundError: no such",
        ),
        (["plugins=3"], "plugins: 3 does not fit, expected list[str]"),
        (["--config-name", "nerf_blendr"], "--config-name: 'nerf_blendr' is not a known config; expected one of "),
        (["--config-dir", "nowhere"], "nowhere: no such folder"),
        (
            ["--exp_dir", "runs/e"],
            "command line: '--exp_dir' is no flag; options are typed without dashes: exp_dir=runs/e;",
        ),
        (
            ["--exp_dir=runs/e", "seed=3"],
            "'--exp_dir=runs/e' is no flag; options are typed without dashes: exp_dir=runs/e;",
        ),
        (["seed=3", "--resume"], "'--resume' is no flag; options are typed without dashes: resume=...;"),
        (["--config-name"], "command line: argument --config-name/-cn: expected one argument; --help lists the flags"),
        (["seed=1,2"], "Ambiguous value for argument 'seed=1,2'"),
        (
            ["exp_dir=${oc.env:UNSET_FOLDER}", "--cfg", "job", "-p", "exp_dir"],
            "exp_dir: does not resolve: Environment var",
        ),
        (["--cfg", "job", "--multirun"], "Only one of --run, --multirun, --cfg, --info and --shell_completion"),
        (["max_epochs=3", f"{LOOP}.max_epochs=4"], f"max_epochs: 3, but {LOOP}.max_epochs is 4; give one"),
        (
            ["eval_only=true", "training_loop_class_type=BareLoop"],
            "eval_only: True stands for training_loop_BareLoop_args",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    launch: Launch, capsys: pytest.CaptureFixture[str], words: list[str], line: str
) -> None:
    with pytest.raises(SystemExit) as left:
        launch(*words)
    assert left.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert len(err) <= MAX_LINE
    for part in line.split(".*"):
        assert part in err


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("sede: 3\n", "wrong.yaml: sede: 'sede' is not a key of Root"),
        (f"{LOOP}: {{max_epoch: 3}}\n", f"wrong.yaml: {LOOP}.max_epoch: 'max_epoch' is not a key of LaunchLoop"),
        (f"{LOOP}: {{max_epochs: x}}\n", f"wrong.yaml: {LOOP}.max_epochs: 'x' does not fit, expected int"),
        (f"{LOOP}: 3\n", "LaunchLoop_args) is given as int, expected keys and values"),
        ("seed: [1\n", "wrong.yaml: line 3: "),
        ("seed: ${nothing}\n", "seed: '${nothing}' does not resolve"),
    ],
)
def test_a_mistake_in_a_yaml_names_the_file_and_the_key(
    launch: Launch, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, line: str
) -> None:
    (tmp_path / "wrong.yaml").write_text(f"defaults: [default_config, _self_]\n{text}")
    with pytest.raises(SystemExit) as left:
        launch("-cd", ".", "-cn", "wrong")
    assert left.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert line in err


@pytest.mark.parametrize("name", ["mine", "mine.yaml"])
@pytest.mark.parametrize(
    ("text", "words", "line"),
    [
        (
            "defaults: [nerf_blendr, _self_]\n",
            [],
            "error: mine.yaml: defaults: 'nerf_blendr' is not a known config; expected one of ",
        ),
        ("defaults: [default_config, _self_]\nsede: 3\n", [], "error: mine.yaml: sede: 'sede' is not a key of Root"),
        (
            "seed: 3\n",
            ["exp_dir=here"],
            "mine.yaml: found no defaults there, so exp_dir can't be set; expected 'defaults: [RECIPE, _self_]'",
        ),
        ("seed: 3\n", [f"{LOOP}.max_epochs=3"], "mine.yaml: found no defaults there, so training_loop_LaunchLoop_args"),
    ],
)
def test_a_yaml_with_wrong_defaults_is_named(
    launch: Launch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    text: str,
    words: list[str],
    line: str,
) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(SystemExit) as left:
        launch("-cd", ".", "-cn", name, *words)
    assert left.value.code == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert line in said and len(said) <= MAX_LINE


def test_a_plugin_that_fails_names_its_line(launch: Launch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.py").write_text("x = 1\nraise ValueError('no luck')\n")
    with pytest.raises(SystemExit) as left:
        launch("plugins=[./broken.py]")
    assert left.value.code == 2
    assert "plugins: ./broken.py: can't be imported: ValueError: no luck (broken.py, line 2)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["milestones=[1]"], f"milestones: 'milestones' is not a key of Root; did you mean {LOOP}.milestones?"),
        (["n_points=3", "milestones=[1]"], f"did you mean {MODEL}.renderer_PlainRenderer_args.n_points?"),
        (["renderer_PlainRenderer_args.n_points=3"], f"mean {MODEL}.renderer_PlainRenderer_args.n_points?"),
        (["speed=3"], "speed: 'speed' is not a key of Root; expected one of "),  # of a loop that is not chosen
        (["speed=3", "training_loop_class_type=BareLoop"], "did you mean training_loop_BareLoop_args.speed?"),
        (["--multirun", "milestones=[1],[2]"], f"did you mean {LOOP}.milestones?"),
    ],
)
def test_a_nested_key_without_its_path_is_told_with_it(
    launch: Launch, capsys: pytest.CaptureFixture[str], words: list[str], line: str
) -> None:
    with pytest.raises(SystemExit) as left:
        launch(*words)
    assert left.value.code == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert line in said and len(said) <= MAX_LINE


def test_errors_of_the_task_keep_their_exit_code(launch: Launch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        launch("seed=13")
    assert left.value.code == DataError.exit_code == 3
    assert capsys.readouterr().err == "error: scene.json: 13 frames, expected 14\n"
    with pytest.raises(RuntimeError, match="a bug"):
        launch("seed=14")


def test_debugging_shows_tracebacks(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NERF_TRAINER_DEBUG", "1")
    with pytest.raises(DataError):
        launch("seed=13")
    with pytest.raises(ConfigError):
        launch("sede=13")


# --- shorthands ----------------------------------------------------------------------------------------------------


def test_a_shorthand_on_the_command_line_wins_over_a_nested_value(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        f"defaults: [default_config, _self_]\n{LOOP}: {{max_epochs: 5, milestones: ['${{{LOOP}.max_epochs}}']}}\n"
        f"{MODEL}: {{resume: false}}\n"
    )
    ((made, cfg),) = launch(
        "-cd", ".", "-cn", "recipe", "max_epochs=9", "resume=true", "resume_epoch=2", "eval_only=True"
    )
    assert isinstance(made.training_loop, LaunchLoop)
    assert isinstance(made.model_factory, LaunchModel)
    assert made.training_loop.max_epochs == 9
    assert made.training_loop.milestones == (9,)
    assert made.training_loop.eval_only is True
    assert made.training_loop.test_when_finished is False
    assert made.model_factory.resume is True
    assert made.model_factory.resume_epoch == 2
    saved = OmegaConf.to_container(prune(cfg), resolve=False)
    assert isinstance(saved, dict)
    assert saved["max_epochs"] is None
    assert saved[LOOP]["max_epochs"] == 9
    assert one(launch("-cd", ".", "-cn", "recipe")).model_factory.resume is False  # pyright: ignore


def shortened(overrides: list[str], **top: Any) -> Any:
    cfg = OmegaConf.create(
        {"training_loop_class_type": "LaunchLoop", LOOP: {"max_epochs": 5}, "max_epochs": None, **top}
    )
    apply_shorthands(cfg, overrides)
    return cfg[LOOP]["max_epochs"]


def test_which_spelling_wins() -> None:
    assert shortened([]) == 5
    assert shortened([], max_epochs=6) == 6
    assert shortened(["max_epochs=7"], max_epochs=7) == 7
    # The long spelling on the command line against the shorthand of a YAML.
    assert shortened([f"{LOOP}.max_epochs=5"], max_epochs=6) == 5
    assert shortened(["max_epochs=5", f"{LOOP}.max_epochs=5"], max_epochs=5) == 5
    with pytest.raises(ConfigError, match=f"^max_epochs: 6, but {LOOP}.max_epochs is 5; give one$"):
        shortened(["max_epochs=6", f"{LOOP}.max_epochs=5"], max_epochs=6)


# --- Hydra's own flags ---------------------------------------------------------------------------------------------


def test_cfg_job_shows_every_key_and_runs_nothing(launch: Launch, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch("--cfg", "job", "seed=8") == []
    shown = OmegaConf.create(capsys.readouterr().out)
    assert shown.seed == 8
    assert shown[LOOP].max_epochs == 1000
    assert "hydra" not in shown
    assert launch("--cfg", "job", "-p", LOOP) == []
    assert "max_epochs: 1000" in capsys.readouterr().out


def test_info_names_the_shipped_recipes(launch: Launch, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch("--info", "searchpath") == []
    assert str(configs_folder()) in capsys.readouterr().out


def test_help_needs_no_root_class(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def root() -> type[Configurable]:
        raise AssertionError("imported for nothing")

    for words in (["--help"], ["-sc", "install=bash"]):
        monkeypatch.setattr(sys, "argv", ["command", *words])
        try:
            run_hydra(root, lambda cfg, overrides: None)
        except SystemExit as left:
            assert left.code in (0, None)
    out = capsys.readouterr().out
    assert "nerf_blender" in out
    assert "--multirun" in out
    assert "complete " in out


def test_tab_completion_knows_the_keys(
    launch: Launch, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"nerf_runner {LOOP}.max"
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    assert launch("-sc", "query=bash") == []
    assert capsys.readouterr().out.split() == [f"{LOOP}.max_epochs="]


# --- sweeps --------------------------------------------------------------------------------------------------------


def test_a_sweep_gives_each_job_a_folder(launch: Launch, tmp_path: Path) -> None:
    jobs = launch("--multirun", "exp_dir=runs/", "seed=1,2", f"{LOOP}.max_epochs=3,4")
    assert [made.exp_dir for made, _ in jobs] == [
        f"runs/seed-{seed}_max_epochs-{epochs}" for seed in (1, 2) for epochs in (3, 4)
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    varying = launch("--multirun", "exp_dir=other/a,other/b")
    assert [made.exp_dir for made, _ in varying] == ["other/a", "other/b"]
    interpolated = launch("--multirun", "exp_dir=third/${seed}", "seed=5,6")
    assert [made.exp_dir for made, _ in interpolated] == ["third/5", "third/6"]
    for made, _ in jobs:
        assert one(launch(f"exp_dir={made.exp_dir}")).exp_dir == made.exp_dir, "as it is, without quotes"
    odd = launch("--multirun", "exp_dir=runs", "plugins=[os],[sys]")
    assert [made.exp_dir for made, _ in odd] == ["runs/0", "runs/1"]


def test_a_task_gets_the_words_that_give_its_configuration_again(
    tmp_path: Path, launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my dir").mkdir()
    (tmp_path / "my dir" / "mine.yaml").write_text("defaults: [default_config, _self_]\nmax_epochs: 5\n")
    seen: list[list[str]] = []

    def words_of(*words: str) -> list[list[str]]:
        seen.clear()
        monkeypatch.setattr(sys, "argv", ["command", *words])
        run_hydra(lambda: Root, lambda cfg, given: seen.append(given))
        return list(seen)

    flags = ["--config-dir", "my dir", "--config-name", "mine"]
    assert words_of("seed=3", *flags, "exp_dir=a") == [[*flags, "seed=3", "exp_dir=a"]]
    assert words_of("exp_dir=1_2", f"{MODEL}.word='3_4'") == [["exp_dir=1_2", f"{MODEL}.word='3_4'"]], "as typed"
    assert words_of("-m", "exp_dir=a", f"{MODEL}.word=1_2,x") == [
        [f"{MODEL}.word={word}", f"exp_dir=a/word-{word}"] for word in ("1_2", "x")
    ]
    assert words_of("-m", *flags, "seed=1,2", "exp_dir=a") == [
        [*flags, f"seed={i}", f"exp_dir=a/seed-{i}"] for i in (1, 2)
    ]


def test_a_sweep_goes_on_after_a_failed_job_and_fails_at_the_end(
    launch: Launch, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit) as left:
        launch("--multirun", "seed=1,13,2")
    assert left.value.code == 3
    captured = capsys.readouterr()
    assert captured.err.count("error: job 1: scene.json: 13 frames, expected 14\n") == 1
    assert "#2 : seed=2" in captured.out


# --- as a program --------------------------------------------------------------------------------------------------


def test_as_a_program_without_torch(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        "from nerf_trainer.config import Configurable\n"
        "from nerf_trainer.launch import run_hydra\n"
        "class Root(Configurable):\n"
        "    plugins: tuple[str, ...] = ()\n"
        "    seed: int = 1\n"
        "def task(cfg, overrides):\n"
        "    print('ran', cfg.seed, overrides, 'torch' in sys.modules)\n"
        "if __name__ == '__main__':\n"
        "    run_hydra(lambda: Root, task)\n"
    )

    def start(*words: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
        command = [sys.executable, str(program), *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120)

    good = start("seed=5")
    assert (good.returncode, good.stdout, good.stderr) == (0, "ran 5 ['seed=5'] False\n", "")
    bad = start("seed=x")
    assert (bad.returncode, bad.stdout, bad.stderr) == (2, "", "error: seed: 'x' does not fit, expected int\n")
