"""docs/options.md: every option of `nerf_runner`, its default, and the sentence under its field.

python -m tests.options_page        # write it anew; `make golden` does so too
"""

import ast
import dataclasses
import enum
import functools
import importlib
import inspect
import pkgutil
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import MISSING

import nerf_trainer
from nerf_trainer.config import _CHILD, Configurable, _configured, _held, _hint, registry
from nerf_trainer.experiment import Experiment

PAGE = Path(__file__).resolve().parent.parent / "docs" / "options.md"

HEAD = """\
# Options

Every option that a configuration can have, by the part that has it, with its default and what it means. Where a part
stands in a configuration, and which values a recipe gives it, is what `nerf_runner --config-name NAME --cfg job`
prints; `???` has to be given, or chosen. [Configuration](config.md#the-grammar) has the grammar of the names.
"""

ROOMS = {
    "experiment": "The run",
    "training": "Training",
    "evaluation": "Evaluation",
    "data": "Data",
    "models": "Models",
    "losses": "Losses",
    "renderers": "Renderers",
    "occupancy": "Occupancy",
    "fields": "Fields",
    "networks": "Networks",
    "conditioning": "Conditioning",
    "rays": "Rays",
}
"""Headings of the rooms (a module's first name within the package), in the order of the page."""

Field = dataclasses.Field[Any]


@functools.cache
def sentences(cls: type) -> dict[str, str]:
    """What stands under each field that the class's own statement declares."""
    statement = ast.parse(inspect.cleandoc("\n" + inspect.getsource(cls))).body[0]
    assert isinstance(statement, ast.ClassDef)
    found = {}
    for field, said in zip(statement.body, statement.body[1:], strict=False):
        match field, said:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = text
    return found


def declared_in(cls: type, field: str) -> list[type]:
    """The classes among `cls` and its bases whose statements declare a field: the first counts."""
    return [base for base in cls.__mro__ if field in inspect.get_annotations(base)]


def children(cls: type, field: Field) -> list[type]:
    """The classes of the package that can fill a field; none for a plain one."""
    child = field.metadata.get(_CHILD)
    if child is None:
        return []
    base = _held(child).base
    found = registry.get_all(base) if child.kind == "choice" else [base]
    return [c for c in found if c.__module__.startswith("nerf_trainer.") and not issubclass(c, cls)]


def parts() -> list[type[Configurable]]:
    """Every class that a run's configuration can reach, in the order in which a configuration names them."""
    for module in pkgutil.walk_packages(nerf_trainer.__path__, "nerf_trainer."):
        importlib.import_module(module.name)
    reached: list[type] = [Experiment]
    for cls in reached:
        reached += [c for c in dict.fromkeys(c for f in _configured(cls) for c in children(cls, f)) if c not in reached]
    return reached


def values_of(hint: Any) -> list[str]:
    """The names that an option may have, or each entry of a list of them; none where they are not a few."""
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return [member.name for member in hint]
    if typing.get_origin(hint) is typing.Literal:
        return [str(value) for value in typing.get_args(hint) if isinstance(value, str)]
    return [value for inner in typing.get_args(hint) if inner is not ... for value in values_of(inner)]


def plain_default(field: Field) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return written(field.default_factory())
    return MISSING if field.default is dataclasses.MISSING else written(field.default)


def written(value: Any) -> str:
    """A value as YAML has it."""
    match value:
        case None | bool():
            return {None: "null", True: "true", False: "false"}[value]
        case enum.Enum():
            return value.name
        case str():
            return value or "''"
        case list() | tuple():
            return f"[{', '.join(map(written, value))}]"
        case dict():
            return f"{{{', '.join(f'{key}: {written(v)}' for key, v in value.items())}}}"
        case _:
            return str(value)


def rows(cls: type, field: Field) -> Iterator[tuple[str, str, str]]:
    """The keys that a field makes: name, default, meaning."""
    said = next(
        (sentences(base)[field.name] for base in declared_in(cls, field.name) if field.name in sentences(base)), ""
    )
    child = field.metadata.get(_CHILD)
    if child is None:
        values = values_of(_hint(cls, field.name))
        told = all(re.search(rf"\b{value}\b", said) for value in values)
        yield field.name, plain_default(field), as_cell(said) + ("" if told else f" One of: `{'`, `'.join(values)}`.")
        return
    links = ", ".join(f"[{c.__name__}](#{c.__name__.lower()})" for c in children(cls, field))
    if child.kind == "choice":
        which = f"One of: {links}." if "," in links else f"There is {links}."
        yield f"{field.name}_class_type", written(child.default), f"{as_cell(said)} {which}"
    else:
        if child.enabled is not None:
            yield f"{field.name}_enabled", written(child.enabled), as_cell(said)
        yield f"{field.name}_args", "", f"{as_cell(said) if child.enabled is None else ''} Options of {links}.".strip()


def as_cell(text: str) -> str:
    """A sentence within a table: one line, with what Markdown would read as its own taken from it."""
    text = " ".join(text.split()).replace("``", "`").replace("|", "\\|")
    return "".join(
        piece if i % 2 else re.sub(r"([*_<$])", r"\\\1", piece) for i, piece in enumerate(re.split(r"(`[^`]*`)", text))
    )


def section(cls: type) -> Iterator[str]:
    """A part's heading, sentence and table; the options that bases declare are named where they are explained."""
    yield f"### {cls.__name__}\n"
    if cls.__doc__:
        yield as_cell(inspect.cleandoc(cls.__doc__).split("\n\n")[0]) + "\n"
    fields = list(_configured(cls))
    own = [field for field in fields if declared_in(cls, field.name)[0] is cls]
    if own:
        yield "| option | default | means |\n|---|---|---|"
        for field in own:
            for name, default, means in rows(cls, field):
                yield f"| `{name}` | {f'`{default}`' if default else ''} | {means} |"
        yield ""
    inherited = dict.fromkeys(declared_in(cls, f.name)[0] for f in fields if f not in own)
    if inherited:
        yield f"Options of {', '.join(f'[{base.__name__}](#{base.__name__.lower()})' for base in inherited)} as well.\n"
    elif not own:
        yield "No options.\n"


def page() -> str:
    """The whole page."""
    shown: dict[str, dict[type, None]] = {room: {} for room in ROOMS}
    for cls in parts():
        owners = [declared_in(cls, field.name)[0] for field in _configured(cls)]
        for owner in (*[c for c in cls.__mro__[::-1] if c in owners and c is not cls], cls):
            shown[owner.__module__.split(".")[1]][owner] = None
    lines = [HEAD]
    for room, classes in shown.items():
        lines.append(f"## {ROOMS[room]}\n")
        for cls in classes:
            lines += section(cls)
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
