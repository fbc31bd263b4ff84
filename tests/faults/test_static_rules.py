"""Row 58: nothing in the sources can run what a file names, by their syntax trees.

No unpickling (pickle and what is built on it, `weights_only=False`, `allow_pickle=True`), no `eval` or `exec`, no YAML
loader that makes objects, no archive unpacked to a disk, no shell, nothing of Hydra's that calls what a configuration
names, no state of Accelerate's that is pickled. The checker itself is shown to find each of them, by whatever name it
was imported. One place is let through: see `LET`.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.faults.counts import Fault

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCES = sorted(
    path
    for folder in ("nerf_trainer", "examples", "benchmarks", "scenes")
    for path in (REPOSITORY / folder).rglob("*.py")
)
KEEPS_THE_WORD = {
    "nerf_trainer/yaml_files.py": "refuses it",
    "nerf_trainer/launch.py": "Hydra finds its own call-back for sweeps by it, in a node that no file makes",
    "nerf_trainer/sweeps.py": "asks which sweeper Hydra has",
}
"""Files that may hold the word `_target_`, each with its reason."""

LET = {
    (
        "nerf_trainer/training/runtime.py",
        "torch.distributed.all_gather_object",
    ): "the processes of a job trust each other"
}
"""What one file may use, with its reason."""

PICKLERS = frozenset(
    {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "jsonpickle", "joblib", "shelve", "marshal"}
)
NAMES = frozenset(
    {
        *("eval", "exec", "__import__", "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"),
        *("asyncio.create_subprocess_shell", "os.spawnl", "os.spawnlp", "os.execl", "os.execlp"),
        *("runpy.run_path", "runpy.run_module", "code.interact", "pty.spawn"),
        *("torch.distributed.all_gather_object", "torch.distributed.gather_object"),
        *("torch.distributed.broadcast_object_list", "torch.distributed.scatter_object_list"),
        *("torch.distributed.recv_object_list", "accelerate.utils.gather_object"),
        *("accelerate.utils.broadcast_object_list", "multiprocessing.connection.Client"),
        *("torch.hub.load", "torch.jit.load", "torch.package.PackageImporter", "pandas.read_pickle"),
        *("hydra.utils.instantiate", "hydra.utils.call", "hydra.utils.get_method", "hydra.utils.get_class"),
        *("hydra.utils.get_object", "yaml.unsafe_load", "yaml.unsafe_load_all", "yaml.full_load", "yaml.full_load_all"),
        *("yaml.Loader", "yaml.UnsafeLoader", "yaml.FullLoader", "yaml.CLoader", "yaml.CUnsafeLoader"),
        *("yaml.CFullLoader", "shutil.unpack_archive"),
    }
)
"""What may not even be referred to: a call may come later, by another name."""
METHODS = frozenset({"extractall", "extract", "register_for_checkpointing", "load_state"})
"""Methods of whatever object: of archives, and of Accelerate."""
SHELLS = frozenset({"sh", "bash", "/bin/sh", "/bin/bash"})
SAFE_LOADERS = frozenset({"yaml.SafeLoader", "yaml.CSafeLoader"})


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def origins(module: ast.Module) -> dict[str, str]:
    """What the names that a module imports stand for."""
    found = {}
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                found[alias.asname or alias.name] = f"{node.module or '.'}.{alias.name}"
    return found


def dotted(node: ast.AST, imported: dict[str, str]) -> str:
    """`torch.load` for an expression that means it; "" for one that is no name."""
    if isinstance(node, ast.Name):
        return imported.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        before = dotted(node.value, imported)
        return f"{before}.{node.attr}" if before else ""
    return ""


def findings(module: ast.Module) -> Iterator[tuple[int, str]]:
    """The lines on which a module could run what a file names, and how."""
    imported = {name: origin.replace("numpy.", "np.") for name, origin in origins(module).items()}
    imported |= {name: "np" for name, origin in imported.items() if origin == "numpy"}
    for node in ast.walk(module):
        line = getattr(node, "lineno", 1)
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            if isinstance(node, ast.ImportFrom):
                names += [f"{node.module}.{alias.name}".removeprefix("builtins.") for alias in node.names]
            bad = (name for name in names if name.split(".")[0] in PICKLERS or name in NAMES)
            yield from ((line, f"imports {name}") for name in bad)
        elif isinstance(node, ast.Name | ast.Attribute):
            name = dotted(node, imported).removeprefix("builtins.")
            if name in NAMES:
                yield line, name
        elif isinstance(node, ast.Call):
            yield from ((line, problem) for problem in _of_call(node, imported))


def _of_call(call: ast.Call, imported: dict[str, str]) -> Iterator[str]:
    callee = dotted(call.func, imported)
    given = {k.arg: k.value.value if isinstance(k.value, ast.Constant) else ... for k in call.keywords}
    if callee.startswith("torch.") and callee.endswith(".load") and given.get("weights_only") is not True:
        yield f"{callee} without weights_only=True"
    if given.get("weights_only", True) is not True:
        yield "weights_only that is not True"
    if given.get("allow_pickle", False) is not False:
        yield "allow_pickle that is not False"
    if callee == "np.load" and len(call.args) > 2:
        yield "np.load with a positional allow_pickle"
    if given.get("shell", False) is not False:
        yield "shell=..."
    words = [node.value for arg in call.args[:1] for node in ast.walk(arg) if isinstance(node, ast.Constant)]
    if callee.startswith("subprocess.") and "-c" in words and SHELLS & {str(word) for word in words}:
        yield "a shell"
    if callee in ("yaml.load", "yaml.load_all"):
        loaders = [dotted(value, imported) for value in (*call.args[1:], *(k.value for k in call.keywords))]
        if not SAFE_LOADERS & set(loaders):
            yield f"{callee} with a loader that may make any object"
    if isinstance(call.func, ast.Attribute) and call.func.attr in METHODS:
        yield f".{call.func.attr}()"


@pytest.mark.fault(row=58)
def test_no_source_runs_what_a_file_names(fault: Fault):
    n = fault.times(len(SOURCES), quick=len(SOURCES))
    found = [
        (path.relative_to(REPOSITORY).as_posix(), what, line) for path in SOURCES for line, what in findings(tree(path))
    ]
    assert [f"{path}:{line}: {what}" for path, what, line in found if (path, what) not in LET] == [] and n > 250
    assert {(path, what) for path, what, _ in found} == set(LET), "what is no longer there needs no leave"
    fault.passed(n)


@pytest.mark.fault(row=58)
def test_nothing_is_made_of_targets():
    """Neither the sources nor the recipes have `_target_`, but for what stands above."""
    holding = {
        path.relative_to(REPOSITORY).as_posix()
        for path in SOURCES
        if any(isinstance(node, ast.Constant) and node.value == "_target_" for node in ast.walk(tree(path)))
    }
    assert holding == set(KEEPS_THE_WORD)
    recipes = sorted((REPOSITORY / "configs").rglob("*.yaml"))
    assert len(recipes) > 50
    assert [path.name for path in recipes if re.search(r"^\s*[\"']?_target_", path.read_text(), re.MULTILINE)] == []


SAMPLES = [
    "import pickle",
    "import pickle as p",
    "from pickle import loads",
    "from _pickle import Unpickler",
    "import joblib",
    "import dill",
    "import shelve",
    "import marshal",
    "import torch\ntorch.load(path)",
    "import torch\ntorch.load(path, weights_only=False)",
    "import torch\ntorch.load(path, weights_only=safe)",
    "from torch import load as read\nread(path)",
    "import torch.serialization as s\ns.load(path)",
    "import numpy\nnumpy.load(path, allow_pickle=True)",
    "import numpy as n\nn.load(path, None, True)",
    "from numpy import load\nload(path, allow_pickle=flag)",
    "np.lib.format.read_array(stream, allow_pickle=True)",
    "eval(text)",
    "run = eval",
    "import builtins\nbuiltins.exec(text)",
    "from builtins import exec as run\nrun(text)",
    "__import__(name)",
    "import yaml\nyaml.load(text, yaml.Loader)",
    "import yaml\nyaml.load(text, Loader=yaml.FullLoader)",
    "import yaml\nyaml.load(text, Loader=loader)",
    "from yaml import load\nload(text)",
    "from yaml import unsafe_load",
    "import yaml\nclass Own(yaml.UnsafeLoader): ...",
    "archive.extractall(folder)",
    "archive.extract(name, folder)",
    "import shutil\nshutil.unpack_archive(path)",
    "import subprocess\nsubprocess.run('ls', shell=True)",
    "import subprocess\nsubprocess.run('ls', shell=flag)",
    "import subprocess\nsubprocess.getoutput('ls')",
    "import subprocess\nsubprocess.run(['sh', '-c', text])",
    "from subprocess import Popen\nPopen(['/bin/bash', '-c', text])",
    "import torch.distributed as dist\ndist.broadcast_object_list(parts)",
    "import torch\ntorch.distributed.all_gather_object(parts, item)",
    "from accelerate.utils import gather_object",
    "import os\nos.system('ls')",
    "from os import system as run\nrun('ls')",
    "from os import popen",
    "import hydra\nhydra.utils.instantiate(node)",
    "from hydra.utils import instantiate as make\nmake(node)",
    "from hydra import utils\nutils.get_method(name)",
    "accelerator.register_for_checkpointing(model)",
    "accelerator.load_state(folder)",
    "import torch\ntorch.hub.load(repository, name)",
]
HARMLESS = [
    "import torch\ntorch.load(path, map_location='cpu', weights_only=True)",
    "import numpy as np\nnp.load(path, allow_pickle=False)\nnp.load(path)",
    "model.eval()\nmodel.compile()",
    "import yaml\nyaml.safe_load(text)\nyaml.load(text, Loader=yaml.CSafeLoader)\nclass Own(yaml.SafeLoader): ...",
    "import subprocess\nsubprocess.run(['ls'], shell=False)\nsubprocess.run(['ls', '-c'])",
    "import json\njson.load(stream)",
    "from safetensors.torch import load\nload(data)",
    "spec.loader.exec_module(module)",
]


@pytest.mark.fault(row=58)
def test_the_checker_finds_each(fault: Fault):
    n = fault.times(len(SAMPLES), quick=len(SAMPLES))
    missed = [text for text in SAMPLES[:n] if not list(findings(ast.parse(text)))]
    raised = {text: found for text in HARMLESS if (found := list(findings(ast.parse(text))))}
    assert missed == [] and raised == {}
    fault.passed(n)
