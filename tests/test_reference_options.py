"""The reference's options: here, with the same defaults, or listed in docs/config.md with the reason."""

import json
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from nerf_trainer.config import schema
from nerf_trainer.experiment import Experiment

REPOSITORY = Path(__file__).resolve().parent.parent
OPTIONS = REPOSITORY / "tests" / "data_files" / "reference_options.tsv"
DOCUMENT = REPOSITORY / "docs" / "config.md"
HEADING = "Options of the reference that are not here, or differ"
ABSENT = "absent"


@dataclass(frozen=True)
class Difference:
    """A line of the table: patterns of options, their value in the reference and here, as JSON, or `absent`."""

    patterns: tuple[str, ...]
    reference: str
    here: str

    def is_about(self, option: str) -> bool:
        return any(fnmatchcase(option, pattern) for pattern in self.patterns)


def read_table(text: str) -> list[Difference]:
    """The lines of the table below the heading: | `pattern`, `pattern` | `value` | `value` here or absent | why |."""
    section = re.split(r"^#+ ", text.partition(f"# {HEADING}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    found = []
    for patterns, reference, here, reason in rows[2:]:
        assert reason, f"{patterns}: no reason is given"
        found.append(Difference(tuple(re.findall(r"`([^`]+)`", patterns)), reference.strip("`"), here.strip("`")))
        assert found[-1].patterns, f"{patterns}: no pattern in backquotes"
    return found


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of a configuration by dotted key; an empty node is a leaf."""
    if not isinstance(node, dict) or not node:
        return {prefix: node}
    below = [flat(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in node.items()]
    return {key: value for part in below for key, value in part.items()}


def judged(reference: dict[str, Any], ours: dict[str, Any], table: list[Difference]) -> list[str]:
    """What is wrong with the table, or with the options: one line each."""
    wrong, used = [], set()
    for option, value in reference.items():
        default, here = json.dumps(value), json.dumps(ours[option]) if option in ours else ABSENT
        is_same = option in ours and ours[option] == value and isinstance(ours[option], bool) == isinstance(value, bool)
        lines = [line for line in table if line.is_about(option)]
        used.update(lines)
        if not is_same and not lines:
            wrong.append(f"{option}: {here}, not {default}, and not listed")
        for line in lines:
            if is_same:
                wrong.append(f"{option}: is as in the reference, but listed as {line.patterns}")
            elif (line.reference, line.here) != (default, here):
                wrong.append(f"{option}: {default} and here {here}, but listed as {line.reference} and {line.here}")
    return wrong + [f"{line.patterns}: listed, but about no option" for line in table if line not in used]


def reference_options() -> dict[str, Any]:
    lines = [line for line in OPTIONS.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return {option: json.loads(default) for option, _, default in (line.partition("\t") for line in lines)}


def our_options() -> dict[str, Any]:
    return flat(OmegaConf.to_container(OmegaConf.structured(schema(Experiment)), enum_to_str=True))


def test_every_option_is_here_or_listed() -> None:
    reference, ours = reference_options(), our_options()
    assert len(reference) > 850 and len(ours) > 850
    wrong = judged(reference, ours, read_table(DOCUMENT.read_text(encoding="utf-8")))
    assert not wrong, f"{len(wrong)} differences between docs/config.md and the options:\n" + "\n".join(wrong)


TABLE = f"""
## {HEADING}

| option | reference | here | why |
|---|---|---|---|
| `a.size`, `b.size` | `400` | `null` | another default |
| `*.gone` | `3` | absent | not needed |

## Next
| `x` | `1` | absent | not of this table |
"""


def test_the_table_is_read() -> None:
    assert read_table(TABLE) == [
        Difference(("a.size", "b.size"), "400", "null"),
        Difference(("*.gone",), "3", ABSENT),
    ]


OURS = {"a.size": None, "b.size": None, "a.kept": 1.0, "c": True}
REFERENCE = {"a.size": 400, "b.size": 400, "a.gone": 3, "b.gone": 3, "a.kept": 1, "c": True}


@pytest.mark.parametrize(
    ("reference", "ours", "complaint"),
    [
        ({}, {}, None),
        ({"d": 2}, {}, "d: absent, not 2, and not listed"),
        ({}, {"a.kept": 2}, "a.kept: 2, not 1, and not listed"),
        ({"c": 1}, {}, "c: true, not 1, and not listed"),
        ({}, {"a.gone": 3}, "a.gone: is as in the reference, but listed"),
        ({}, {"a.gone": 4}, "a.gone: 3 and here 4, but listed as 3 and absent"),
        ({}, {"a.size": 500}, "a.size: 400 and here 500, but listed as 400 and null"),
        ({"b.gone": 7}, {}, "b.gone: 7 and here absent, but listed as 3 and absent"),
    ],
    ids=str,
)
def test_what_is_wrong_is_found(reference: dict[str, Any], ours: dict[str, Any], complaint: str | None) -> None:
    wrong = judged(REFERENCE | reference, OURS | ours, read_table(TABLE))
    assert (wrong == []) if complaint is None else any(line.startswith(complaint) for line in wrong), wrong


def test_a_line_about_nothing_is_found() -> None:
    left = {name: value for name, value in REFERENCE.items() if not name.endswith("gone")}
    assert judged(left, OURS, read_table(TABLE)) == ["('*.gone',): listed, but about no option"]
