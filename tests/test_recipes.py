"""The shipped recipes' values: the reference's recipes have the reference's, and docs/recipes.md lists all.

That each runs is the matter of tests/test_recipe_lifecycle.py.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import hydra
import pytest
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from nerf_trainer.config import build, prune
from nerf_trainer.experiment import Experiment

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIGS = REPOSITORY / "configs"
RECIPES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
FACTS = REPOSITORY / "tests" / "data_files" / "reference_recipes.tsv"
HEADING = "### Where the shipped recipes differ from the reference's"
SCHEMA = "default_config"
ABSENT = "absent"
LACKED = {
    "repro_multiseq_v2_nerf_ad": ["repro_multiseq_nerf_ad", "repro_multiseq_co3dv2_base", "_self_"],
    "repro_multiseq_v2_srn_wce_noharm": ["repro_multiseq_srn_wce_noharm", "repro_multiseq_co3dv2_base", "_self_"],
}
"""Recipes that the reference's documentation names and it has not, with what they derive from."""


def reference() -> dict[str, dict[str, Any]]:
    """By recipe, the options that it sets itself, and `defaults`."""
    found: dict[str, dict[str, Any]] = {recipe: {"defaults": parents} for recipe, parents in LACKED.items()}
    for line in FACTS.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            recipe, option, value = line.split("\t")
            found.setdefault(recipe, {})[option] = json.loads(value)
    return found


REFERENCE = reference()


def reference_values(recipe: str) -> dict[str, Any]:
    """Every option that the recipe and its parents set, as the order of `defaults` has it."""
    own = {option: value for option, value in REFERENCE[recipe].items() if option != "defaults"}
    found: dict[str, Any] = {}
    for parent in REFERENCE[recipe]["defaults"] or ["_self_"]:
        if parent != SCHEMA:
            found |= own if parent == "_self_" else reference_values(parent)
    return found


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(node, dict):
        yield prefix, node
        return
    for key, value in node.items():
        yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))


@pytest.fixture(scope="module")
def of_yaml() -> Callable[[str], DictConfig]:
    """Composes a recipe as Hydra does, but onto nothing: what it and its parents set, interpolations as written."""

    @cache
    def compose(recipe: str) -> DictConfig:
        ConfigStore.instance().store(name=SCHEMA, node={}, provider="nerf_trainer")
        GlobalHydra.instance().clear()
        with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
            return hydra.compose(recipe)

    return compose


# --- the reference's values ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """A line of the table in docs/config.md: patterns, and values as JSON or `absent`."""

    option: str
    recipes: tuple[str, ...]
    reference: str
    here: str

    def is_about(self, recipe: str, option: str) -> bool:
        return fnmatchcase(option, self.option) and any(fnmatchcase(recipe, pattern) for pattern in self.recipes)


def read_table(text: str) -> list[Difference]:
    """The lines below the heading: | `key` | `recipe`, `recipe` | `value` or absent | `value` or absent | why |."""
    section = re.split(r"^#+ ", text.partition(f"{HEADING}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    found = []
    for option, recipes, value, here, reason in rows[2:]:
        assert reason, f"{option}: no reason is given"
        names = tuple(re.findall(r"`([^`]+)`", recipes))
        found.append(Difference(option.strip("`"), names, value.strip("`"), here.strip("`")))
    return found


Differences = dict[tuple[str, str], tuple[str, str]]
"""By recipe and option: the reference's value and ours, as JSON or `absent`."""


def differences(recipe: str, expected: Mapping[str, Any], found: Mapping[str, Any]) -> Differences:
    def text(values: Mapping[str, Any], option: str) -> str:
        return json.dumps(values[option]) if option in values else ABSENT

    pairs = {option: (text(expected, option), text(found, option)) for option in {**expected, **found}}
    same = {option for option in expected if option in found and expected[option] == found[option]}
    return {(recipe, option): pair for option, pair in pairs.items() if option not in same}


def judged(found: Differences, table: list[Difference]) -> list[str]:
    """What is wrong with the recipes or with the table: one line each."""
    wrong, used = [], set()
    for (recipe, option), pair in found.items():
        lines = [line for line in table if line.is_about(recipe, option) and (line.reference, line.here) == pair]
        used |= {(line, pattern) for line in lines for pattern in line.recipes if fnmatchcase(recipe, pattern)}
        if not lines:
            wrong.append(f"{recipe}: {option}: {pair[0]} in the reference and {pair[1]} here, and not listed")
    idle = [(line, pattern) for line in table for pattern in line.recipes if (line, pattern) not in used]
    return wrong + [f"{line.option}: listed for {pattern}, which has no such difference" for line, pattern in idle]


def test_the_references_recipes_have_its_values(of_yaml: Callable[[str], DictConfig]) -> None:
    found: Differences = {}
    for recipe in REFERENCE:
        ours = dict(leaves(OmegaConf.to_container(of_yaml(recipe), resolve=False)))
        found |= differences(recipe, reference_values(recipe), ours)
    assert len(REFERENCE) == 40 and len(reference_values("repro_multiseq_srn_wce_noharm")) > 80
    wrong = judged(found, read_table((REPOSITORY / "docs" / "config.md").read_text(encoding="utf-8")))
    assert not wrong, "\n".join(wrong)


def test_a_difference_that_is_not_listed_is_found_and_so_is_a_line_too_many() -> None:
    table = read_table(
        f"{HEADING}\n\n| key | recipes | reference | here | why |\n|---|---|---|---|---|\n"
        "| `*.a` | `one*` | `1` | `2` | so |\n| `*.b` | `one`, `three` | absent | `[0]` | so |\n### next\n| `c` |\n"
    )
    listed = differences("one", {"x.a": 1, "x.c": 3}, {"x.a": 2, "x.b": [0], "x.c": 3.0})
    assert judged(listed, table) == ["*.b: listed for three, which has no such difference"]
    wrong = judged(differences("one", {"x.a": 1}, {"x.a": 3}), table)
    assert wrong[0] == "one: x.a: 1 in the reference and 3 here, and not listed" and len(wrong) == 4
    assert judged(differences("two", {"x.d": 1}, {}), [])[0].startswith("two: x.d: 1 in the reference and absent here")


@pytest.mark.parametrize("recipe", sorted(REFERENCE))
def test_the_references_recipes_derive_from_its_parents(recipe: str) -> None:
    assert yaml.safe_load((CONFIGS / f"{recipe}.yaml").read_text()).get("defaults", []) == REFERENCE[recipe]["defaults"]


# --- the page ------------------------------------------------------------------------------------------------------


class Listed(NamedTuple):
    """What docs/recipes.md says of a recipe."""

    trains: str
    parents: str
    variables: str


def listed_recipes() -> dict[str, Listed]:
    lines = (REPOSITORY / "docs" / "recipes.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]
    assert len({row[0] for row in rows}) == len(rows)
    assert all(len(row) == 5 and row[1] and row[2] for row in rows)
    return {row[0].strip("`"): Listed(row[1], row[3], row[4]) for row in rows}


def test_the_page_lists_every_recipe_with_its_parents_and_variables(of_yaml: Callable[[str], DictConfig]) -> None:
    def text(names: list[str]) -> str:
        return ", ".join(f"`{name}`" for name in names) or "—"

    expected = {}
    for recipe in RECIPES:
        parents = yaml.safe_load((CONFIGS / f"{recipe}.yaml").read_text()).get("defaults", [])
        chosen = OmegaConf.to_container(prune(of_yaml(recipe)), resolve=False)
        variables = {name for _, value in leaves(chosen) for name in re.findall(r"\$\{oc\.env:(\w+)\}", str(value))}
        expected[recipe] = (text([p for p in parents if p not in (SCHEMA, "_self_")]), text(sorted(variables)))
    assert {recipe: words[1:] for recipe, words in listed_recipes().items()} == expected


def test_every_recipe_is_named_on_a_page_of_its_method() -> None:
    pages = [path.read_text(encoding="utf-8") for path in (REPOSITORY / "docs" / "methods").glob("*.md")]
    named = {word for page in pages for word in re.findall(r"\w+", page)}
    parts = {recipe for recipe, words in listed_recipes().items() if words.trains.startswith("part: ")}
    assert len(parts) == 5
    assert sorted({*RECIPES} - parts - named) == []


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_head_of_a_recipe_names_no_other(recipe: str) -> None:
    """The command at the top of a file is a copy that was adapted."""
    text = (CONFIGS / f"{recipe}.yaml").read_text()
    head = re.split(r"^(?!#)", text, maxsplit=1, flags=re.MULTILINE)[0]
    assert head.startswith("# ")
    assert set(re.findall(r"--config-name (\w+)", head)) <= {recipe}


# --- what is built -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["nerf_blender", "overfit_singleseq_nerf_blender", "repro_singleseq_v2_nerf"])
def test_the_nerf_recipes_have_two_networks_of_the_paper(
    of_yaml: Callable[[str], DictConfig], monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    """595,844 parameters each: 8 layers of 256, one with the encoded position again, and the two heads."""
    for variable in re.findall(r"`(\w+)`", listed_recipes()[recipe].variables):
        monkeypatch.setenv(variable, "data")
    position, direction, width = 63, 27, 256
    trunk = (position + 1) * width + 6 * (width + 1) * width + (width + position + 1) * width
    heads = (width + 1) + (width + 1) * width + (width + direction + 1) * 128 + (128 + 1) * 3
    model = build(Experiment, of_yaml(recipe)).model_factory.new_model()
    assert sum(parameter.numel() for parameter in model.parameters()) == 2 * (trunk + heads)
