"""The rules of size and idiom, read off the syntax trees of the sources.

The order of the rooms is import-linter's business (pyproject.toml, `make check`). An exception to a rule stands here
with its reason; a reason that no longer applies fails the test too, so that the lists don't outlive the code.
"""

import ast
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 60

# Exceptions, each with its reason. Keys are "path" or "path:qualified name", paths from the repository's root.
LONG_MODULES: dict[str, str] = {
    "nerf_trainer/config.py": "the configuration system is one file, to be read from top to bottom",
}
LONG_FUNCTIONS: dict[str, str] = {
    "nerf_trainer/ops/kernels/packed.py:_composite_backward": "one kernel, a line for each of its 26 arguments",
}
KEYWORD_TUNNELS: dict[str, str] = {
    "nerf_trainer/config.py:_initialise_plain_base_first.construct": "the fields of a class, as constructors have them",
    "nerf_trainer/config.py:Factory.of": "the fields of a class, as constructors have them",
    "nerf_trainer/config.py:Factory.__call__": "the fields of a class, as constructors have them",
    "nerf_trainer/config.py:build": "the fields of a class, as constructors have them",
}
DYNAMIC_ATTRIBUTES: dict[str, str] = {
    "nerf_trainer/renderers/chunking.py": "joins outputs field by field",
}
TESTS_OF_THE_WHOLE: dict[str, str] = {
    "tests/test_architecture.py": "the rules, over all sources",
    "tests/test_typing_canary.py": "the shape checks of the test run",
    "tests/gpu/test_training_step.py": "the training step on a device, whole",
    "tests/gpu/test_captured_step.py": "the training step as a graph of a device, whole",
    "tests/gpu/test_packed_step.py": "the fast path's step on a device, whole",
    "tests/gpu/test_deterministic.py": "deterministic ops and steps on a device, twice each",
    "tests/gpu/test_lost_ranks.py": "processes on several devices, of which one is lost",
    "tests/gpu/test_streaming.py": "pools that come to a device while it is busy",
    "tests/test_experiment_cli.py": "nerf_runner as it is typed",
    "tests/test_known_scene.py": "the scene that tests of formats write",
    "tests/test_documented_commands.py": "README and docs",
    "tests/test_every_format.py": "all formats and datasets, one beside the other",
    "tests/test_component_matrix.py": "every field under every renderer",
    "tests/test_golden.py": "every option of every component",
    "tests/test_options_page.py": "the page of every option of every component",
    "tests/test_quick_copies.py": "quick copies of configurations, for tests",
    "tests/test_reference_options.py": "every option of the reference",
    "tests/test_recipe_lifecycle.py": "the recipes, each through all that is done with a run",
    "tests/test_other_projects_recipes.py": "recipes that follow other projects",
    "tests/test_resume.py": "the recipes, stopped and continued",
    "tests/test_growing_grids.py": "recipes of each kind of grid, whose grids grow within a training",
    "tests/test_quickstart.py": "what a recipe reaches",
    "tests/test_multirun.py": "trainings that other commands start",
    "tests/test_source_views.py": "what whole runs need beside their targets",
    "tests/training/test_captured_runs.py": "whole runs whose steps are captured",
    "tests/training/test_two_processes.py": "nerf_runner on two ranks",
    "tests/test_wheel.py": "the package as it is installed",
    "tests/scenes/test_quickstart_scene.py": "the embedded scene as it is shipped",
}

FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "tools", "misc", "third_party"}

Finding = tuple[str, str]
"""The key of an exception, and what was found where."""


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (REPOSITORY / folder).rglob("*.py"))


PACKAGE = sources("nerf_trainer")
PROGRAMS = sources("nerf_trainer", "examples", "benchmarks", "scenes")
EVERYTHING = PROGRAMS + sources("tests")


def named(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def functions(path: Path) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function of a module with its qualified name."""

    def walk(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield prefix + child.name, child
                yield from walk(child, f"{prefix}{child.name}.")
            else:
                yield from walk(child, f"{prefix}{child.name}." if isinstance(child, ast.ClassDef) else prefix)

    yield from walk(tree(path), "")


def nodes(paths: list[Path], *kinds: type[ast.AST]) -> Iterator[tuple[Path, ast.AST]]:
    for path in paths:
        for node in ast.walk(tree(path)):
            if isinstance(node, kinds):
                yield path, node


def dotted(node: ast.AST) -> str:
    """`torch.optim.Adam` for the expression of that name; "" for any other expression."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return f"{before}.{node.attr}" if before else ""
    return ""


def keyword(call: ast.Call, name: str) -> object:
    """The constant given for a keyword of a call; None where it isn't given or is no constant."""
    values = [k.value.value for k in call.keywords if k.arg == name and isinstance(k.value, ast.Constant)]
    return values[0] if values else None


def calls(paths: list[Path], *names: str) -> Iterator[tuple[Path, ast.Call]]:
    """Calls of a function by its dotted name or the end of it (".load" for any method load)."""
    for path, node in nodes(paths, ast.Call):
        assert isinstance(node, ast.Call)
        callee = dotted(node.func)
        if any(callee == name or (name.startswith(".") and callee.endswith(name)) for name in names):
            yield path, node


def at(path: Path, node: ast.AST, text: str) -> Finding:
    return named(path), f"{named(path)}:{getattr(node, 'lineno', 1)}: {text}"


def judge(findings: Iterator[Finding] | list[Finding], exceptions: dict[str, str] | None = None) -> None:
    """Fails with everything found that no exception covers, and with exceptions that nothing needs."""
    exceptions = exceptions or {}
    found = list(findings)
    unexcused = [text for key, text in found if key not in exceptions]
    idle = sorted(set(exceptions) - {key for key, _ in found})
    assert not unexcused, "\n" + "\n".join(unexcused)
    assert not idle, f"exceptions that nothing needs any more: {idle}"


def test_modules_are_short():
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in PROGRAMS}
    judge(
        [
            (named(p), f"{named(p)} has {n} lines of {MAX_MODULE_LINES}")
            for p, n in lines.items()
            if n > MAX_MODULE_LINES
        ],
        LONG_MODULES,
    )


def test_functions_are_short():
    def long_ones() -> Iterator[Finding]:
        for path in EVERYTHING:
            for name, function in functions(path):
                n_lines = (function.end_lineno or function.lineno) - function.lineno + 1
                if n_lines > MAX_FUNCTION_LINES:
                    key = f"{named(path)}:{name}"
                    yield key, f"{key} has {n_lines} lines of {MAX_FUNCTION_LINES}"

    judge(long_ones(), LONG_FUNCTIONS)


def test_modules_are_named_after_their_subject():
    def ill_named() -> Iterator[Finding]:
        for path in EVERYTHING:
            words = {
                word for part in path.relative_to(REPOSITORY).with_suffix("").parts for word in (part, *part.split("_"))
            }
            for word in sorted((words - {"third", "party"}) & FORBIDDEN_NAMES):
                yield named(path), f"{named(path)}: {word!r} names no subject"

    judge(ill_named())


def is_renderer_signature(path: Path, function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Plug-ins are written with `forward(self, ..., **kwargs)`; renderers take it, and pass nothing on."""
    in_renderers = path.parent.name == "renderers" and function.name == "forward"
    kwarg = function.args.kwarg
    used = any(isinstance(node, ast.Name) and node.id == "kwargs" for node in ast.walk(function))
    return in_renderers and kwarg is not None and kwarg.arg == "kwargs" and not used


def test_no_keyword_tunnels():
    def tunnels() -> Iterator[Finding]:
        for path in PACKAGE:
            for name, function in functions(path):
                # A cooperative __init_subclass__ passes on what it does not know; the language asks for it.
                cooperative = function.name == "__init_subclass__"
                if function.args.kwarg and not cooperative and not is_renderer_signature(path, function):
                    key = f"{named(path)}:{name}"
                    yield key, f"{key} takes **{function.args.kwarg.arg}"

    judge(tunnels(), KEYWORD_TUNNELS)


def test_no_questions_to_objects_about_their_attributes():
    """`hasattr`, and `getattr` of a name that is no dataclass field's (`getattr(x, f.name)` walks over fields)."""

    def questions() -> Iterator[Finding]:
        for path, call in calls(PACKAGE, "hasattr", "getattr", "setattr"):
            over_fields = isinstance(call.args[1], ast.Attribute) and call.args[1].attr == "name"
            if dotted(call.func) == "hasattr" or not over_fields:
                yield at(path, call, ast.unparse(call))

    judge(questions(), DYNAMIC_ATTRIBUTES)


def test_no_comparison_of_class_names():
    def is_class_name(node: ast.AST) -> bool:
        if not (isinstance(node, ast.Attribute) and node.attr in ("__name__", "__qualname__")):
            return False
        owner = node.value
        return (isinstance(owner, ast.Attribute) and owner.attr == "__class__") or (
            isinstance(owner, ast.Call) and dotted(owner.func) == "type"
        )

    judge(
        at(path, node, ast.unparse(node))
        for path, node in nodes(PROGRAMS, ast.Compare, ast.match_case, ast.Match)
        if any(is_class_name(part) for part in ast.walk(node))
    )


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module or ''}.{alias.name}".lstrip(".") for alias in node.names]
    return []


def test_components_know_no_configuration_library():
    """Hydra is known to `launch`, `hydra_errors`, `sweeps`, `override_words`, `config_sources` and the commands;
    OmegaConf to these, to `config`, to `interpolations`, to writer and reader of a run's own configuration, and to
    `imports`, which lays models over configurations; "???" to anyone."""
    readers = {"launch.py", "sweeps.py", "override_words.py", "config_sources.py", "hydra_errors.py"}
    commands = readers | {"experiment.py", "visualize.py", "dataset.py", "model.py"}
    files = {"config.py", "interpolations.py", "training/run_config.py", "training/saved_run.py"}

    def found() -> Iterator[Finding]:
        for path, node in nodes(PACKAGE, ast.Import, ast.ImportFrom):
            place = path.relative_to(REPOSITORY / "nerf_trainer").as_posix()
            for name in imported(node):
                library = name.split(".")[0]
                allowed = commands | files if library == "omegaconf" else commands
                known = place in allowed or (library == "omegaconf" and place.startswith("imports/"))
                if library in ("hydra", "omegaconf") and not known and name != "omegaconf.MISSING":
                    yield at(path, node, f"imports {name}")

    judge(found())


def test_a_forward_warns_nobody():
    def found() -> Iterator[Finding]:
        for path in PACKAGE:
            for name, function in functions(path):
                if function.name not in ("forward", "__call__"):
                    continue
                for node in ast.walk(function):
                    if isinstance(node, ast.Call) and dotted(node.func).split(".")[-1] in (
                        "warn",
                        "warning",
                        "warn_once",
                    ):
                        yield at(path, node, f"{name} warns")

    judge(found())


def test_tests_mirror_the_sources():
    """tests/rays/test_refine.py tests nerf_trainer/rays/refine.py; tests/scenes and tests/examples those folders.

    tests/faults has the table of faults for its subject, and its rows (test_every_row.py).
    """

    def has_subject(path: Path) -> bool:
        if path.parent == REPOSITORY / "tests" / "faults":
            return True
        place = path.relative_to(REPOSITORY / "tests").with_name(path.stem.removeprefix("test_"))
        subjects = [REPOSITORY / "nerf_trainer" / place, REPOSITORY / place]
        return any(s.with_suffix(".py").is_file() or (s / "__init__.py").is_file() for s in subjects)

    judge(
        [
            (named(path), f"{named(path)} has no module that it tests")
            for path in sources("tests")
            if path.name.startswith("test_") and not has_subject(path)
        ],
        TESTS_OF_THE_WHOLE,
    )


RULES_SHOWN_TO_BITE: list[tuple[str, Callable[[], None], str]] = [
    ("nerf_trainer/probe.py", test_components_know_no_configuration_library, "from omegaconf import OmegaConf"),
    ("nerf_trainer/probe.py", test_components_know_no_configuration_library, "import hydra"),
    ("nerf_trainer/renderers/probe.py", test_no_keyword_tunnels, "def forward(x, **kwargs): f(**kwargs)"),
    ("nerf_trainer/probe.py", test_no_comparison_of_class_names, "x = type(a).__name__ == 'B'"),
    ("nerf_trainer/probe.py", test_no_questions_to_objects_about_their_attributes, "hasattr(a, 'b')"),
    ("nerf_trainer/probe.py", test_no_keyword_tunnels, "def f(**options): ..."),
    ("nerf_trainer/probe.py", test_a_forward_warns_nobody, "def forward(x):\n    warnings.warn('x')"),
    ("nerf_trainer/probe.py", test_functions_are_short, "def f():\n" + "    pass\n" * MAX_FUNCTION_LINES),
    ("nerf_trainer/probe.py", test_modules_are_short, "pass\n" * (MAX_MODULE_LINES + 1)),
    ("nerf_trainer/some_utils.py", test_modules_are_named_after_their_subject, ""),
]


@pytest.mark.parametrize(("place", "rule", "text"), RULES_SHOWN_TO_BITE)
def test_rules_bite(place: str, rule: Callable[[], None], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each rule, over a tree that holds one module which breaks it."""
    path = tmp_path / place
    path.parent.mkdir(parents=True)
    path.write_text(text)
    for name in ("PACKAGE", "PROGRAMS", "EVERYTHING"):
        monkeypatch.setitem(globals(), name, [path])
    for name in ("LONG_MODULES", "LONG_FUNCTIONS", "KEYWORD_TUNNELS", "DYNAMIC_ATTRIBUTES"):
        monkeypatch.setitem(globals(), name, {})
    monkeypatch.setitem(globals(), "REPOSITORY", tmp_path)
    with pytest.raises(AssertionError, match=re.escape(place)):
        rule()
