"""Every `nerf_runner` line of README and docs composes: the recipes and keys that it names exist."""

import dataclasses
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

from nerf_trainer.config import schema
from nerf_trainer.experiment import Experiment
from nerf_trainer.launch import SHORTHANDS

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
NOT_A_RUN = ("--help", "--cfg", "--info", "-sc", "--multirun", "--config-dir", "plugins", "my_run")
"""Words of lines that ask for something else than a run, or for files that a reader has yet to write."""


def commands(text: str) -> list[list[str]]:
    """The words behind `nerf_runner` of each line in a block of shell, its variables put in."""
    found = []
    for block in re.findall(r"^```(?:bash|sh)?\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        variables: dict[str, str] = {}
        for line in block.replace("\\\n", " ").splitlines():
            for name, value in variables.items():
                line = re.sub(rf"\$({name}\b|{{{name}}})", value, line)
            if assigned := re.fullmatch(r"([A-Z])=(\S+)", line):
                variables[assigned[1]] = assigned[2]
            if re.search(r"(^|\s)nerf_runner\s", line):
                words = shlex.split(line, comments=True)
                found.append(words[words.index("nerf_runner") + 1 :])
    return [words for words in found if not any(word.startswith(NOT_A_RUN) for word in words)]


LINES = [(page.relative_to(REPOSITORY).as_posix(), words) for page in PAGES for words in commands(page.read_text())]


def test_lines_are_found() -> None:
    pages = {page for page, _ in LINES}
    assert len(LINES) > 20 and {"README.md", "docs/data/co3d.md", "docs/data/llff.md"} <= pages


def test_words_are_read_as_a_shell_reads_them() -> None:
    text = (
        "```bash\nP=a.b\nROOT=x nerf_runner --config-name r $P.c=1 \\\n  ${P}.d='2 3'  # why\nnerf_runner --help\n```\n"
    )
    assert commands(text) == [["--config-name", "r", "a.b.c=1", "a.b.d=2 3"]]


@pytest.mark.parametrize(("page", "words"), LINES, ids=[f"{page}: {' '.join(words)[:60]}" for page, words in LINES])
def test_recipes_and_keys_exist(page: str, words: list[str]) -> None:
    flag, recipe, *overrides = words
    assert flag == "--config-name" and (REPOSITORY / "configs" / f"{recipe}.yaml").is_file(), page
    known = {field.name for field in dataclasses.fields(schema(Experiment))} | set(SHORTHANDS)
    assert {word.partition("=")[0].partition(".")[0] for word in overrides} <= known


NESTED = [(page, words) for page, words in LINES if any("." in word.partition("=")[0] for word in words)]


@pytest.mark.parametrize(("page", "words"), NESTED, ids=[page for page, _ in NESTED])
def test_nested_keys_compose(compose: Callable[..., DictConfig], page: str, words: list[str]) -> None:
    compose(words[1], *words[2:])
