"""Printed commands, read back by a shell and by Hydra."""

import shlex
from argparse import Namespace

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from nerf_trainer.command_line import assignment, chosen_config, chosen_words, given_keys, listing, shell_line, without

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
