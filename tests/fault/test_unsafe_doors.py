"""Unpickling, extracting, evaluating: one door each, in medseg/io. A second one fails here."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOORS = ROOT / "medseg" / "io"
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
CALLS = {
    *("torch.load", "torch.jit.load", "torch.hub.load", "numpy.load", "np.load", "numpy.fromregex"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "pandas.read_pickle", "pd.read_pickle"),
    "joblib.load",  # joblib.Parallel opens nothing
    *("os.system", "shutil.unpack_archive", "hydra.utils.instantiate", "OmegaConf.register_new_resolver"),
}
METHODS = {"extractall", "load_from_checkpoint", "unpack_archive", "read_pickle", "unsafe_load"}


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def unsafe_uses(source: str) -> Iterator[str]:
    """Every import or call in ``source`` that can run what a file says."""
    imported: dict[str, str] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.asname or alias.name: alias.name for alias in node.names}
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            imported |= names
            yield from (name for name in names.values() if name in CALLS or node.module.split(".")[0] in MODULES)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = dotted(node.func)
            first, _, rest = name.partition(".")
            full = imported.get(first, first) + ("." + rest if rest else "")
            if full in CALLS or name in BUILTINS or name.split(".")[-1] in METHODS:
                yield f"line {node.lineno}: {name}"
            yield from (f"line {node.lineno}: {word.arg}" for word in node.keywords if _switches_safety_off(word))


def _switches_safety_off(word: ast.keyword) -> bool:
    value = word.value.value if isinstance(word.value, ast.Constant) else None
    return (word.arg, value) in {("weights_only", False), ("allow_pickle", True), ("shell", True)}


def python_files() -> list[Path]:
    folders = ("medseg", "configs", "kernels", "scripts")
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", python_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_only_io_opens_the_unsafe_doors(path: Path) -> None:
    if DOORS not in path.parents:
        assert list(unsafe_uses(path.read_text(encoding="utf-8"))) == []


def test_even_io_never_switches_safety_off_nor_evaluates() -> None:
    allowed = {"pickle", "torch.load", "np.load"}  # pickle: for the name of its error
    for path in DOORS.glob("*.py"):
        uses = {use.partition(": ")[2] or use for use in unsafe_uses(path.read_text(encoding="utf-8"))}
        assert uses <= allowed, path


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import joblib as j\nj.load('a')",
        "from joblib import load",
        "from pickle import loads",
        "from torch import load as innocent",
        "import torch\ntorch.load('a')",
        "import torch as t\nt.load('a')",
        "import numpy\nnumpy.load('a')",
        "import numpy as n\nn.load('a')",
        "eval('1')",
        "exec('1')",
        "archive.extractall()",
        "import shutil\nshutil.unpack_archive('a')",
        "import yaml\nyaml.load('a')",
        "import pandas as p\np.read_pickle('a')",
        "import subprocess\nsubprocess.run('a', shell=True)",
        "anything(weights_only=False)",
        "from hydra.utils import instantiate",
    ],
)
def test_the_test_sees_every_door(source: str) -> None:
    assert list(unsafe_uses(source))


@pytest.mark.parametrize("source", ["import re\nre.compile('a')", "model.eval()", "json.load(file)", "x = 'eval(1)'"])
def test_the_test_does_not_cry_wolf(source: str) -> None:
    assert list(unsafe_uses(source)) == []
