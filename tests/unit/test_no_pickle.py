"""No code of ours unpickles, evaluates or starts a shell (SUP-04); the checker sees what does."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "platform" / "hourglass"
MODULES = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle"}
CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen",
    "torch.load", "torch.jit.load", "torch.export.load", "torch.hub.load", "torch.package",
    "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "runpy.run_path",
    "pandas.read_pickle", "numpy.lib.format.read_array",
}  # fmt: skip
METHODS = {"load_model"}  # of MLflow, whose models are code
SWITCHES = {"shell": False, "allow_pickle": False, "weights_only": True}  # keyword: harmless value


def findings(source: str) -> list[str]:
    """Each forbidden import, call or switch in `source`, as `line: what`."""
    tree = ast.parse(source)
    return [f"{line}: {what}" for line, what in _walk(tree, _names(tree))]


def _names(tree: ast.AST) -> dict[str, str]:
    """Local name -> the dotted name it was imported from."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def _walk(tree: ast.AST, names: dict[str, str]) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            prefix = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            for alias in node.names:
                if MODULES & set(f"{prefix}{alias.name}".split(".")):
                    yield node.lineno, f"import {prefix}{alias.name}"
        elif isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Load):
            dotted = _dotted(node, names)
            if dotted in CALLS or dotted.rsplit(".", 1)[-1] in METHODS:
                yield node.lineno, dotted
        elif isinstance(node, ast.keyword) and node.arg in SWITCHES:
            value = node.value.value if isinstance(node.value, ast.Constant) else None
            if value is not SWITCHES[node.arg]:
                yield node.value.lineno, f"{node.arg}={ast.unparse(node.value)}"


def _dotted(node: ast.expr, names: dict[str, str]) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value, names)}.{node.attr}"
    return names.get(node.id, node.id) if isinstance(node, ast.Name) else "()"


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_our_package_is_clean(path: Path) -> None:
    assert findings(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import pickle", "1: import pickle"),
        ("import os, cloudpickle as c", "1: import cloudpickle"),
        ("from ray import cloudpickle", "1: import ray.cloudpickle"),
        ("from dill import loads", "1: import dill.loads"),
        ("def f():\n    import joblib", "2: import joblib"),
        ("import torch\ntorch.load('x')", "2: torch.load"),
        ("import torch as t\nt.load('x')", "2: torch.load"),
        ("from torch import load\nload('x')", "2: torch.load"),
        ("from torch import load as read\nopener = read", "2: torch.load"),
        ("import torch.export\ntorch.export.load('x.pt2')", "2: torch.export.load"),
        ("import numpy as np\nnp.load('x', allow_pickle=True)", "2: allow_pickle=True"),
        ("import numpy as np\nnp.load('x', allow_pickle=trust)", "2: allow_pickle=trust"),
        ("read('x', weights_only=False)", "1: weights_only=False"),
        ("import yaml\nyaml.load(text, Loader=yaml.Loader)", "2: yaml.load"),
        ("from yaml import unsafe_load\nunsafe_load(text)", "2: yaml.unsafe_load"),
        ("eval('1')", "1: eval"),
        ("exec(text)", "1: exec"),
        ("run = exec", "1: exec"),
        ("compile(text, 'f', 'exec')", "1: compile"),
        ("import os\nos.system('ls')", "2: os.system"),
        ("from os import system as s\ns('ls')", "2: os.system"),
        ("import subprocess\nsubprocess.run('ls', shell=True)", "2: shell=True"),
        ("import mlflow\nmlflow.pyfunc.load_model('m')", "2: mlflow.pyfunc.load_model"),
        ("from mlflow.pytorch import load_model", None),
        (
            "from mlflow.pytorch import load_model\nload_model('m')",
            "2: mlflow.pytorch.load_model",
        ),
        ("import yaml, json, re\nyaml.safe_load(t); json.load(f); re.compile('x')", None),
        ("model.eval()\nartifact.load(uri)\nself.compile(x)", None),
        ("import numpy as np\nnp.load('x', allow_pickle=False)", None),
        ("run(['ls'], shell=False)", None),
    ],
)
def test_the_checker_sees_what_is_planted(source: str, found: str | None) -> None:
    assert findings(source) == ([found] if found else [])


def test_the_source_root_is_no_package() -> None:
    """With an `__init__.py` it would shadow the standard library's `platform`."""
    assert PACKAGE.is_dir()
    assert not (PACKAGE.parent / "__init__.py").exists()
