"""`docs/options.md` has every option, each with a sentence, and is what the sources say."""

import re
from pathlib import Path

import pytest

from tests import options_page

GOLDEN = Path(__file__).parent / "experiment.yaml"


def test_the_page_is_up_to_date() -> None:
    assert options_page.PAGE.read_text(encoding="utf-8") == options_page.page(), "run `make golden`"


def test_every_key_of_the_golden_configuration_is_on_it() -> None:
    """Keys of arguments of a choice (`x_<Name>_args`) are there by the heading of the part."""
    text = options_page.PAGE.read_text(encoding="utf-8")
    rows, headings = (
        set(re.findall(r"^\| `(\w+)`", text, re.MULTILINE)),
        set(re.findall(r"^### (\w+)", text, re.MULTILINE)),
    )
    choices = {key.removesuffix("_class_type") for key in rows if key.endswith("_class_type")}
    arguments = {f"{choice}_{heading}_args" for choice in choices for heading in headings}
    keys = set(re.findall(r"^ *(\w+):", GOLDEN.read_text(encoding="utf-8"), re.MULTILINE))
    within_options = {key for key in keys if re.fullmatch(r"loss_\w+_(mse|bce)|\d+", key)}
    """Keys of dictionaries: names of losses in `loss_weights`, epochs in `resolution_changes`."""
    assert len(keys) > 300 and not keys - rows - arguments - within_options


def test_every_option_has_a_sentence() -> None:
    lines = options_page.PAGE.read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if re.fullmatch(r"\| `\w+` \|[^|]*\|\s*(There is .*|One of: .*)?\|", line)]


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("a_b of `c_d`", r"a\_b of `c_d`"),
        ("(*rays 3) or\n    ``x | y``", r"(\*rays 3) or `x \| y`"),
    ],
)
def test_sentences_stand_in_a_table(text: str, cell: str) -> None:
    assert options_page.as_cell(text) == cell
