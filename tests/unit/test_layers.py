"""Imports run downwards only: a part knows nothing of what is built upon it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "medseg"
LAYERS = (
    {"cli"},
    {"help", "launch", "sweep"},
    {"compose"},
    {"evaluate_model"},
    {"training"},
    {"settings"},
    {"inference"},
    {"evaluation"},
    {"data"},
    {"testing"},
    {"targets"},
    {"losses"},
    {"models"},
    {"blocks"},
    {"io"},
    {"device"},
    {"registry"},
    {"errors", "kernels", "configs", "tables", "termination"},
)
HEIGHT = {part: len(LAYERS) - level for level, parts in enumerate(LAYERS) for part in parts}


def imported_parts(path: Path) -> Iterator[tuple[str, int]]:
    """Parts of medseg that a module imports, anywhere in the file, with the line; not those for type checkers."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {id(node) for guard in ast.walk(tree) if _for_types_only(guard) for node in ast.walk(guard)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"medseg.{a.name}" for a in node.names] if node.module == "medseg" else [node.module]
        yield from ((name.split(".")[1], node.lineno) for name in names if name.startswith("medseg."))


def _for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_downwards(path: Path) -> None:
    part = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if part == "__init__":
        pytest.skip("names what is public, loads it lazily")
    upwards = [
        f"line {line}: {other}"
        for other, line in imported_parts(path)
        if other in HEIGHT and other != part and HEIGHT[other] >= HEIGHT[part]
    ]
    assert not upwards, f"{part} reaches up or sideways: {upwards}"


def test_every_part_has_its_layer() -> None:
    parts = {path.name.removesuffix(".py") for path in ROOT.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert {part for part in parts if not part.startswith("_")} <= set(HEIGHT)
