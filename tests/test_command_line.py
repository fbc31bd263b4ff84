"""Printed commands, read back by a shell and by Hydra."""

import shlex
import sys
from argparse import Namespace

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from nerf_trainer.command_line import (
    assignment,
    chosen_config,
    chosen_words,
    given_keys,
    listing,
    run_verb,
    shell_line,
    without,
)
from nerf_trainer.errors import DataError

TEXTS = [
    "runs/quickstart",
    "/tmp/a run/with blanks",
    "runs/seed=1,lr=1e-4",
    "it's [here] {there} (or not)",
    'quo"ted',
    r"back\slash",
    r"before a quote\'s",
    r"at the end\\",
    "null",
    "True",
    "12",
    "1e3",
    "",
    "~/runs",
    "$HOME/${oc.env:HOME}",
    "a:b",
]


def read(word: str) -> object:
    """What Hydra and OmegaConf make of an override's value."""
    (override,) = OverridesParser.create().parse_overrides([word])
    assert not override.is_sweep_override()
    return OmegaConf.to_container(OmegaConf.create({"value": override.value()}), resolve=True)["value"]


@pytest.mark.parametrize("text", TEXTS)
def test_an_assignment_gives_its_text_through_shell_and_hydra(text: str) -> None:
    command, word = shlex.split(shell_line("nerf_visualizer", [assignment("exp_dir", text)]))
    assert command == "nerf_visualizer"
    assert read(word) == text


def test_quotes_within_a_word_can_be_read() -> None:
    words = [assignment("restrict_sequence_name", "100_12000_23000"), "it's $HOME"]
    line = shell_line("nerf_visualizer", words)
    assert line.startswith("""nerf_visualizer "restrict_sequence_name='100_12000_23000'" """)
    assert shlex.split(line)[1:] == words


def test_a_listing_gives_its_texts() -> None:
    assert read(listing("plugins", TEXTS)) == TEXTS


def test_plain_texts_stay_as_they_are() -> None:
    assert assignment("exp_dir", "./runs/seed-1_lr-1e-4") == "exp_dir=./runs/seed-1_lr-1e-4"
    assert listing("plugins", ["./my_file.py", "a.b"]) == "plugins=[./my_file.py,a.b]"


def test_without() -> None:
    words = ["--config-name", "x", "eval_only=True", "+eval_only=True", "exp_dir=a=b", "eval_only_of=1"]
    assert without(words, ["eval_only"]) == ["--config-name", "x", "exp_dir=a=b", "eval_only_of=1"]


def test_chosen_words_are_flags_then_overrides() -> None:
    args = Namespace(
        config_path=None, config_dir="my dir", config_name="mine", overrides=["a=1", "hydra.searchpath=[x]", "b=1,2"]
    )
    expected = ["--config-dir", "my dir", "--config-name", "mine", "hydra.searchpath=[x]", "a=1", "b=2"]
    assert chosen_words(args, ["a=1", "b=2"]) == expected


@pytest.mark.parametrize(
    ("words", "config", "keys"),
    [
        ([], None, []),
        (["seed=1"], None, ["seed"]),
        (["--config-dir", "here", "--config-name", "mine", "+a.b=x=y", "~c", "++d=[1,2]"], "mine", ["a.b", "d"]),
    ],
)
def test_words_say_which_configuration_and_which_keys(words: list[str], config: str | None, keys: list[str]) -> None:
    assert (chosen_config(words), given_keys(words)) == (config, keys)


def test_a_verb_runs_without_its_word_and_the_user_s_errors_are_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first word chooses; an error ends with its code, or is raised where it is debugged."""

    def fail() -> None:
        raise DataError(f"{sys.argv} is bad")

    monkeypatch.delenv("NERF_TRAINER_DEBUG", raising=False)
    for words, code, said in ((["fail", "x"], 3, "error: ['c', 'x'] is bad\n"), (["fial"], 2, "did you mean 'fail'?")):
        monkeypatch.setattr(sys, "argv", ["c", *words])
        with pytest.raises(SystemExit) as left:
            run_verb("c", "usage", {"fail": fail})
        assert left.value.code == code and said in capsys.readouterr().err
    for words in ([], ["-h"]):
        monkeypatch.setattr(sys, "argv", ["c", *words])
        run_verb("c", "usage", {"fail": fail})
        assert capsys.readouterr().out == "usage"
    monkeypatch.setenv("NERF_TRAINER_DEBUG", "1")
    monkeypatch.setattr(sys, "argv", ["c", "fail"])
    with pytest.raises(DataError):
        run_verb("c", "usage", {"fail": fail})
