"""Configurations that are wrong or that mean harm: what the commands refuse to read.

- Row 54: overrides with a wrong key, a typing error or a value of another type, made of the real options. Exit 2, one
  line below 400 characters, the nearest key named, nothing written.
- Row 55: `_target_`, tags of Python's objects, classes of logging and a pickle for Hydra, as overrides, in YAML of
  one's own, and in what a run's folder keeps. Exit 2, and nothing that they name is called.
- Row 56: YAML that unfolds to any size, by aliases or by interpolations, is nested without end or is too large,
  wherever YAML is read. Exit 2 at once.

Each payload of row 55 is live: a test shows that it runs where it is let.
"""

import logging
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from nerf_trainer import experiment, launch, model, visualize
from nerf_trainer.config import defaults, prune
from nerf_trainer.dataset import main as nerf_data
from nerf_trainer.errors import MAX_LINE
from nerf_trainer.yaml_files import MAX_BYTES
from tests.command_kit import Typed, typed
from tests.faults.counts import Fault
from tests.peak_memory import memory_grows_by_less_than

MAINS = {
    "nerf_runner": experiment.main,
    "nerf_visualizer": visualize.main,
    "nerf_data": nerf_data,
    "nerf_model": model.main,
}


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[[str], Typed]]:
    """A command by its name, in an empty working directory."""
    handlers, level = list(logging.root.handlers), logging.root.level
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("NERF_TRAINER_DEBUG", raising=False)
    yield lambda name: typed(name, MAINS[name], monkeypatch, capsys)
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


def refusal(found: tuple[int, str, str], words: object) -> str:
    """The line that a command was ended with."""
    code, out, err = found
    assert code == 2, (words, code, err)
    assert err.startswith("error: ") and err.count("\n") == 1 and len(err) <= MAX_LINE + 1, (words, err)
    assert "Traceback" not in out + err, words
    return err


# --- 54 -----------------------------------------------------------------------------------------------------------


Override = tuple[str, str]
"""What is typed, and what the message has to hold."""


def leaves(node: DictConfig, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every option that a configuration has, with its value as it is written."""
    for name in node:
        below, full = node._get_node(name), f"{key}.{name}" if key else str(name)
        if isinstance(below, DictConfig) and len(below):
            yield from leaves(below, full)
        elif isinstance(name, str) and below is not None:
            yield full, None if OmegaConf.is_config(below) else below._value()


def mistyped(word: str, draw: random.Random) -> str:
    """A word with a letter left out, doubled, changed or swapped with the next."""
    i = draw.randrange(1, len(word) - 1)
    return draw.choice(
        (
            word[:i] + word[i + 1 :],
            word[:i] + word[i] + word[i:],
            word[:i] + draw.choice("qxz") + word[i + 1 :],
            word[:i] + word[i + 1] + word[i] + word[i + 2 :],
        )
    )


def mutated(options: dict[str, Any], draw: random.Random) -> Override:
    """One override that is wrong."""
    while True:
        key, value = draw.choice(sorted(options.items()))
        *parents, last = key.split(".")
        way = draw.choice(("typo", "typo of a section", "unknown", "type", "type"))
        if way == "typo" and len(last) > 4 and "loss_weights" not in parents:
            wrong = mistyped(last, draw)
            if wrong not in options and wrong != last:
                return ".".join([*parents, wrong]) + "=1", f"did you mean '{last}'?"
        elif way == "typo of a section" and parents:
            i = draw.randrange(len(parents))
            wrong = mistyped(parents[i], draw)
            if wrong != parents[i]:
                return ".".join([*parents[:i], wrong, *parents[i + 1 :], last]) + "=1", f"did you mean '{parents[i]}'?"
        elif way == "unknown":
            return ".".join([*parents, "surely_no_option"]) + "=1", "surely_no_option"
        elif way == "type" and last.endswith("_class_type") and isinstance(value, str):
            wrong = mistyped(value, draw)
            return f"{key}={wrong}", f"did you mean '{value}'?"
        elif way == "type" and isinstance(value, bool):
            return f"{key}={draw.choice(('perhaps', '[1]', '{a: 1}'))}", last
        elif way == "type" and isinstance(value, int | float):
            return f"{key}={draw.choice(('many', '[1]', '{a: 1}', 'null'))}", last


PARTS = 4
"""Tests that the hundred overrides are divided among."""


@pytest.mark.fault(row=54)
@pytest.mark.parametrize("part", [0, 1, pytest.param(2, marks=pytest.mark.fault(row=54, long=True)), 3])
def test_overrides_that_are_wrong(
    fault: Fault, command: Callable[[str], Typed], monkeypatch: pytest.MonkeyPatch, part: int
):
    """Of three commands: the options that the quickstart uses, those of its data, and those of the visualizer."""
    composed: list[DictConfig] = []
    monkeypatch.setattr("sys.argv", ["nerf_runner", "--config-name", "quickstart"])
    launch.run_hydra(lambda: experiment.Experiment, lambda config, _: composed.append(config))
    options = {
        "nerf_runner": dict(leaves(prune(composed[0]))),
        "nerf_visualizer": dict(leaves(defaults(visualize.VisualizeConfig))),
    }
    assert len(options["nerf_runner"]) > 100 and len(options["nerf_visualizer"]) > 15
    options["nerf_data"] = {k: v for k, v in options["nerf_runner"].items() if k.startswith("data_source")}
    ahead = {
        "nerf_runner": ("--config-name", "quickstart", "exp_dir=run"),
        "nerf_visualizer": ("exp_dir=run",),
        "nerf_data": ("check", "--config-name", "quickstart"),
    }
    names = ("nerf_runner", "nerf_visualizer", "nerf_visualizer", "nerf_data")
    n = fault.times(100 // PARTS, quick=1)
    for i in range(part, PARTS * n, PARTS):
        name = names[(i + i // PARTS) % len(names)]
        word, expected = mutated(options[name], random.Random(i))
        line = refusal(command(name)(*ahead[name], word), (name, word))
        assert expected in line, (name, word, line)
        assert os.listdir() == [], (name, word)
        fault.passed()


# --- 55 -----------------------------------------------------------------------------------------------------------

CALLS = (
    "{_target_: os.system, command: RUN}",
    "{_target_: posix.system, _args_: [RUN]}",
    "{_target_: logging.os.system, _args_: [RUN]}",
    "{_target_: subprocess.Popen, args: [sh, -c, RUN]}",
    "{_target_: builtins.exec, _args_: [PYTHON]}",
    "{_target_: pathlib.Path.touch, _args_: [{_target_: pathlib.Path, _args_: [SENTINEL]}]}",
    "{_target_: hydra.utils.call, _args_: [{_target_: os.system, command: RUN}]}",
)
"""What Hydra's instantiate would be given."""
LOGGERS = (
    "{(): os.system, command: RUN}",
    "{class: os.system, command: RUN}",
    "{class: logging.os.system, command: RUN}",
)
"""What logging would be given for a handler."""
TAGS = (
    "!!python/object/apply:os.system [RUN]",
    "!!python/object/apply:subprocess.Popen [[sh, -c, RUN]]",
    "!!python/object/new:os.system [RUN]",
)
"""What a YAML loader that makes objects would be given."""
HOLDING = (
    "CALL",
    "seed: CALL",
    "model_factory_ImplicitronModelFactory_args: CALL",
    "model_factory_ImplicitronModelFactory_args: {model_OverfitModel_args: {renderer_args: [[CALL]]}}",
    "plugins: [CALL]",
    "hydra: {callbacks: {x: CALL}}",
    "a: &k CALL\nb: *k",
)
"""Where in a file a call may stand."""


def filled(text: str, sentinel: Path) -> str:
    return (
        text.replace("RUN", f"'touch {sentinel}'")
        .replace("PYTHON", f"\"open('{sentinel}', 'w')\"")
        .replace("SENTINEL", f"'{sentinel}'")
    )


def contents(sentinel: Path) -> list[str]:
    """Files that mean harm: every place with some call, every call in some place."""
    n = len(CALLS) * 2
    texts = [HOLDING[i % len(HOLDING)].replace("CALL", CALLS[(i * 3) % len(CALLS)]) for i in range(n)]
    texts += [f"hydra: {{job_logging: {{handlers: {{x: {call}}}}}}}" for call in LOGGERS]
    texts += [f"seed: {tag}" for tag in TAGS]
    return [filled(text, sentinel) for text in texts]


def own_yaml(command: Callable[[str], Typed], text: str) -> tuple[int, str, str]:
    """As a YAML of one's own."""
    Path("mine").mkdir(exist_ok=True)
    Path("mine/evil.yaml").write_text(text)
    return command("nerf_runner")("--config-dir", "mine", "--config-name", "evil", "exp_dir=run")


def included_yaml(command: Callable[[str], Typed], text: str) -> tuple[int, str, str]:
    """As one that a YAML of one's own is laid over."""
    Path("mine").mkdir(exist_ok=True)
    Path("mine/part.yaml").write_text(text)
    Path("mine/whole.yaml").write_text("defaults: [part, _self_]\nseed: 1\n")
    return command("nerf_data")("check", "--config-path", "mine", "--config-name", "whole")


def visualized_run(command: Callable[[str], Typed], text: str) -> tuple[int, str, str]:
    """As what a run's folder keeps, which is shown."""
    Path("saved").mkdir(exist_ok=True)
    Path("saved/expconfig.yaml").write_text(text)
    return command("nerf_visualizer")("exp_dir=saved")


def continued_run(command: Callable[[str], Typed], text: str) -> tuple[int, str, str]:
    """As what a run's folder keeps, which is continued."""
    Path("going/checkpoints/step-00000004").mkdir(parents=True, exist_ok=True)
    Path("going/expconfig.yaml").write_text(text)
    return command("nerf_runner")("--config-name", "quickstart", "exp_dir=going")


READERS = (own_yaml, visualized_run, included_yaml, visualized_run, continued_run)


@pytest.mark.fault(row=55)
def test_what_files_name_is_not_called(fault: Fault, command: Callable[[str], Typed], tmp_path: Path):
    """Twenty of the thirty payloads: files, read in four places."""
    sentinel = tmp_path / "sentinel"
    texts, n = contents(sentinel), fault.times(20, quick=5)
    assert len(texts) == 20
    for i in range(n):
        text = texts[i * 7 % len(texts)]
        refusal(READERS[i % len(READERS)](command, text), text)
        assert not sentinel.exists(), text
        fault.passed()


OVERRIDES = (
    ("_target_=os.system",),
    ("+model_factory_ImplicitronModelFactory_args._target_=logging.os.system",),
    ("+hydra.callbacks.x._target_=os.system", "+hydra.callbacks.x.command=RUN"),
    ("+hydra.callbacks.x={_target_: posix.system, _args_: [RUN]}",),
    ("+hydra.callbacks={x: {_target_: builtins.exec, _args_: [PYTHON]}}",),
    ("-m", "hydra.launcher._target_=os.system"),
    ("-m", "hydra.sweeper={_target_: os.system, command: RUN}"),
    ("-m", "+hydra.callbacks.x={_target_: os.system},{_target_: posix.system}"),
    ("+hydra.job_logging.handlers.x={class: os.system, command: RUN}",),
    ("hydra.job_logging.handlers.console.class=logging.os.system",),
    ("seed='!!python/object/apply:os.system [touch SENTINEL]'",),
    ("--experimental-rerun", "run.pickle"),
)


@pytest.mark.fault(row=55)
def test_what_overrides_name_is_not_called(fault: Fault, command: Callable[[str], Typed], tmp_path: Path):
    """The other ten, typed."""
    sentinel, n = tmp_path / "sentinel", fault.times(len(OVERRIDES), quick=len(OVERRIDES))
    tmp_path.joinpath("run.pickle").write_bytes(f"cos\nsystem\n(Vtouch {sentinel}\ntR.".encode())
    for words in OVERRIDES[:n]:
        filled_in = [filled(word.replace("touch SENTINEL", f"touch {sentinel}"), sentinel) for word in words]
        refusal(command("nerf_runner")("--config-name", "quickstart", "exp_dir=run", *filled_in), words)
        assert not sentinel.exists(), words
        fault.passed()


WRITTEN = (
    'hydra: {callbacks: {x: "${oc.create:CALL}"}}',
    "hydra: {callbacks: {x: \"${oc.create:'CALL'}\"}}",
    "hydra: {callbacks: {x: \"${oc.decode:'CALL'}\"}}",
    'hydra: {callbacks: {x: "${oc.select:nothing,CALL}"}}',
    "seed: 1\nplugins: []\nhydra: {job: {name: _target_}, callbacks: {x: \"${oc.decode:'NAMED'}\"}}",
)
"""Calls that are in no file, but come out of what OmegaConf's interpolations write."""
WRITTEN_CALL = "{_target_: pathlib.Path.touch, _args_: [{_target_: pathlib.Path, _args_: [SENTINEL]}]}"


@pytest.mark.fault(row=55)
def test_what_interpolations_write_is_not_called(fault: Fault, command: Callable[[str], Typed], tmp_path: Path):
    sentinel, n = tmp_path / "sentinel", fault.times(len(WRITTEN), quick=2)
    for text in WRITTEN[:n]:
        call = WRITTEN_CALL.replace("SENTINEL", str(sentinel))
        named = call.replace("_target_", "${hydra.job.name}")
        text = f"defaults: [quickstart, _self_]\n{text.replace('CALL', call).replace('NAMED', named)}"
        line = refusal(own_yaml(command, text), text)
        assert "hydra.callbacks" in line and "_target_ is never called here" in line, line
        assert not sentinel.exists(), text
        fault.passed()


@pytest.mark.fault(row=55)
def test_they_run_where_they_are_let(tmp_path: Path):
    """Hydra refuses some names of its own accord; one that it lets through shows that the payloads are live."""
    sentinel = tmp_path / "sentinel"
    instantiate(yaml.safe_load(filled(CALLS[5], sentinel)))
    assert sentinel.exists()
    sentinel.unlink()
    yaml.unsafe_load(f"a: {filled(TAGS[0], sentinel)}")
    assert sentinel.exists()


# --- 56 -----------------------------------------------------------------------------------------------------------


def laughs(link: str, n: int) -> str:
    return "a0: &a0 {k: 1}\n" + "".join(f"a{i + 1}: &a{i + 1} {link.format(i)}\n" for i in range(n))


BOMBS = {
    "lists": laughs("[*a{0},*a{0},*a{0},*a{0},*a{0},*a{0},*a{0},*a{0},*a{0}]", 9),
    "mappings": laughs("{{x: *a{0}, y: *a{0}}}", 40),
    "merged": laughs("{{<<: [*a{0}, *a{0}]}}", 40),
    "within itself": "seed: &a [*a]",
    "deep": "seed: " + "[" * 100_000,
    "deeper": "\n".join(" " * i + "a:" for i in range(1200)),
    "many": "seed: [" + "1," * 150_000 + "1]",
    "large": "#" * (MAX_BYTES + 1),
}


def imported_run(command: Callable[[str], Typed], text: str) -> tuple[int, str, str]:
    """As what lies beside another project's weights."""
    Path("other").mkdir(exist_ok=True)
    Path("other/expconfig.yaml").write_text(text)
    torch.save({"_implicit_functions.0._fn.density_layer.weight": torch.zeros(1)}, "other/model_epoch_00000001.pth")
    return command("nerf_model")("import", "other/model_epoch_00000001.pth", "exp_dir=new")


@pytest.mark.fault(row=56)
def test_bombs(fault: Fault, command: Callable[[str], Typed]):
    """Each in some place that YAML is read from, and one in each place."""
    places = (own_yaml, visualized_run, continued_run, included_yaml, imported_run)
    pairs = [("lists", place) for place in places] + [(name, places[i % 2]) for i, name in enumerate(BOMBS)]
    n = fault.times(len(pairs), quick=len(places))
    visualized_run(command, "a: 1")  # what is imported late is imported now
    for name, place in pairs[:n]:
        started = time.process_time()
        with memory_grows_by_less_than(200):
            line = refusal(place(command, BOMBS[name]), (name, place.__name__))
        assert ".yaml" in line, line
        # Hydra takes a second or two for itself; reading takes a tenth: tests/test_yaml_files.py.
        assert time.process_time() - started < 12, (name, place.__name__)
        fault.passed()


def doubling(line: str, last: str) -> str:
    return "".join(line.format(i=i, j=i + 1) for i in range(60)) + last


UNFOLDING = {
    "plugins": "plugins:\n" + doubling("- ${{plugins.{j}}}${{plugins.{j}}}\n", "- x\n"),
    "exp_dir": "exp_dir: ${hydra:job.env_set.a0}\nhydra:\n  job:\n    env_set:\n"
    + doubling("      a{i}: ${{.a{j}}}${{.a{j}}}\n", "      a60: x\n"),
    "seed": "seed: ${hydra:callbacks.a0}\nhydra:\n  callbacks:\n"
    + doubling("    a{i}: ${{oc.create:[${{.a{j}}}, ${{.a{j}}}]}}\n", "    a60: x\n"),
}
"""Some hundred bytes a line of which doubles what the next one stands for."""


@pytest.mark.fault(row=56)
def test_interpolations_that_unfold(fault: Fault, command: Callable[[str], Typed]):
    n = fault.times(len(UNFOLDING), quick=1)
    own_yaml(command, "a: 1")  # what is imported late is imported now
    for name, text in list(UNFOLDING.items())[:n]:
        with memory_grows_by_less_than(200):
            line = refusal(own_yaml(command, f"defaults: [quickstart, _self_]\n{text}"), name)
        assert "unfold to more than 100,000 keys and values" in line or "recursion" in line, line
        fault.passed()
