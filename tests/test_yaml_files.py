"""YAML that is looked at before anything is made of it."""

import time
from pathlib import Path

import pytest
import yaml

from nerf_trainer import yaml_files
from nerf_trainer.errors import ConfigError
from nerf_trainer.recipes import configs_folder
from nerf_trainer.yaml_files import MAX_BYTES, MAX_DEPTH, check_yaml, read_yaml_text, require_no_code

EACH_PARSER = [yaml.SafeLoader, *([yaml.CSafeLoader] if yaml.__with_libyaml__ else [])]


@pytest.fixture(params=EACH_PARSER, ids=lambda parser: parser.__name__, autouse=True)
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where libyaml is missing, PyYAML's own parser reads the same."""
    monkeypatch.setattr(yaml_files, "_PARSER", request.param)


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        check_yaml(text, "own.yaml")
    line = str(caught.value)
    assert line.startswith("own.yaml: ") and line.isprintable() and len(line) < 400
    return line


def test_recipes_are_harmless():
    for path in configs_folder().rglob("*.yaml"):
        assert read_yaml_text(path) == path.read_text()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "a: &x {b: 1}\nc: *x\nd: {<<: *x, e: 2}\n",
        "a: !!str 12",
        "a: _target_\nclass: logging.StreamHandler",
        "class: [1]",
        "? [1, 2]\n: 3\n",
        "class_type: os.system",
        "stream: ext://sys.stdout\nother: [ext://sys.stderr, text://a]",
        "class: logging.handlers.RotatingFileHandler",
        "a: " + "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1),
    ],
)
def test_what_is_harmless_passes(text):
    check_yaml(text, "own.yaml")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a: 1\nb: {_target_: os.system}", "line 2: _target_ is never called here"),
        ('"\\x5ftarget_": os.system', "_target_"),
        ("a: &k _target_\n*k : os.system", "line 2: _target_"),
        ("a: [{b: [{_target_: x}]}]", "_target_"),
        ("h: {(): os.system}", "line 1: '()' names what would be called"),
        ("h:\n  class: os.system", "line 2: class: 'os.system' would be called"),
        ("x: &v logging.os.system\nh: {class: *v}", "class: 'logging.os.system' would be called"),
        ("class: logging.StreamHandler.x", "class: "),
        ("class: ${oc.env:A}", "class: "),
        ("class: logging.handlers.QueueHandler", "class: "),  # its queue is made by the name of a function
        ("h: {stream: ext://os}", "line 1: 'ext://os' would be imported"),
        ("h: [1,\n  ext://sys.stdout.x]", "line 2: 'ext://sys.stdout.x'"),
        ("h: ${oc.env:A,ext://os}", "would be imported"),
        ("a: !!python/object/apply:os.system [x]", "line 1: the tag '!!python/object/apply:os.system'"),
        ("a: !!python/name:os.system", "the tag"),
        ("a: !mine 3", "the tag '!mine'"),
        ("a: !!int x", "the tag '!!int'"),
        ("a: &a [*a]", "line 1: *a stands within what it stands for"),
        ("a: &a {b: {c: *a}}", "*a stands within"),
        ("[" * (MAX_DEPTH + 1), "levels of nesting"),
        ("a: b: c", "line 1: mapping values are not allowed"),
        ("a: [1, 2", "expected YAML"),
        ("a: \x00", "expected YAML"),
    ],
)
def test_what_is_refused(text, found):
    assert found in refusal(text)


@pytest.mark.parametrize("link", ["[*a{0}, *a{0}]", "{{x: *a{0}, y: *a{0}}}", "{{<<: [*a{0}, *a{0}]}}"])
def test_a_file_that_unfolds_to_any_size_is_refused_at_once(link):
    text = "a0: &a0 {k: 1}\n" + "".join(f"a{i + 1}: &a{i + 1} {link.format(i)}\n" for i in range(60))
    started = time.monotonic()
    assert "unfolds to more than 100,000" in refusal(text)
    assert time.monotonic() - started < 1


def test_nodes_are_counted_exactly(monkeypatch):
    text = "a: &a [1, 2]\nb: *a\n"  # the file, two keys, two lists of three
    monkeypatch.setattr(yaml_files, "MAX_NODES", 9)
    check_yaml(text, "own.yaml")
    monkeypatch.setattr(yaml_files, "MAX_NODES", 8)
    assert "line 2: unfolds" in refusal(text)


def test_files_that_are_none(tmp_path: Path):
    for content, found in (
        (b"#" * (MAX_BYTES + 1), f"found {MAX_BYTES + 1:,} bytes"),
        (b"\xff\xfea", "no UTF-8 at 0"),
    ):
        (tmp_path / "own.yaml").write_bytes(content)
        with pytest.raises(ConfigError, match=found):
            read_yaml_text(tmp_path / "own.yaml")
    with pytest.raises(ConfigError, match="no regular file"):
        read_yaml_text(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("a._target_", "x"),
        ("_target_.a", "x"),
        ("a[_target_]", "x"),
        ("a", {"b": [{"_target_": "x"}]}),
        ("hydra.job_logging.handlers.x.class", "os.system"),
        ("hydra.job_logging.handlers.x", {"class": "logging.os.system"}),
        ("hydra.job_logging.handlers.x.class", ["logging.StreamHandler", "os.system"]),
        ("a", {"()": "x"}),
        ("hydra.job_logging.handlers.x.stream", "ext://os"),
        ("a", {"b": ["ext://os"]}),
    ],
)
def test_overrides_name_no_code(key, value):
    with pytest.raises(ConfigError, match=key.replace("[", r"\[")):
        require_no_code(key, value)


def test_other_overrides_may_be():
    require_no_code("a.b", {"c": "_target_", "class": "logging.StreamHandler", "class_type": "os.system"})
    require_no_code("", None)
