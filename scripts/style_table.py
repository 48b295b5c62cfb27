"""Style figures of this repository: sizes, types, documentation and tests, over its syntax trees.

python scripts/style_table.py

Files under 5 lines are skipped; a function's length includes its docstring; medians and 90th percentiles.
"""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from medseg.compose import compose
from medseg.errors import UsageError

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("medseg", "kernels")
SHAPE = re.compile(r"\([BCKN]\w*, [^)]*\)|\(\*S\)|\(B, \*S\)")  # (B, C, *S), (K, D, H, W) ...
Function = ast.FunctionDef | ast.AsyncFunctionDef


def python_files(*folders: str) -> list[Path]:
    """Python files of these folders with at least 5 lines."""
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return [path for path in paths if count_lines(path) >= 5]


def count_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def functions(path: Path) -> Iterator[tuple[Function, bool]]:
    """Every function of a file, and whether it is public: neither it nor its class starts with an underscore."""

    def walk(node: ast.AST, public: bool) -> Iterator[tuple[Function, bool]]:
        for child in ast.iter_child_nodes(node):
            named = isinstance(child, Function | ast.ClassDef)
            inner = public and not (named and child.name.startswith("_"))  # type: ignore[attr-defined]
            if isinstance(child, Function):
                yield child, inner
                yield from walk(child, False)
            else:
                yield from walk(child, inner)

    return walk(ast.parse(path.read_text(encoding="utf-8")), True)


def spread(values: Sequence[int]) -> str:
    """``median / 90th percentile / maximum``."""
    return f"{np.median(values):.0f} / {np.percentile(values, 90):.0f} / {max(values)}"


def share(flags: Sequence[bool]) -> str:
    """``97 % (of 120)``."""
    return f"{100 * sum(flags) / max(len(flags), 1):.0f} % (of {len(flags)})"


def composes(path: Path) -> bool:
    """Whether a config file composes, with the keys that it leaves to the user given."""
    required = {
        "predict": ["model=m", "input=i", "output=o"],
        "evaluate": ["predictions=p", "references=r"],
        "folder": ["data.name=n", "data.path=p"],
    }.get(path.stem, [])
    verb_file = path.parent.name == "configs"
    try:
        compose(
            path.stem if verb_file else "train",
            [*([] if verb_file else [f"{path.parent.name}={path.stem}"]), *required],
        )
    except UsageError:
        return False
    return True


def figures() -> dict[str, str]:
    """All figures, by what they say."""
    files = python_files(*SOURCES)
    found = [pair for path in files for pair in functions(path)]
    public = [function for function, is_public in found if is_public]
    forwards = [function for function in public if function.name == "forward"]
    source, tests = (sum(map(count_lines, paths)) for paths in (files, python_files("tests")))
    return {
        "files": str(len(files)),
        "file lines, median / p90 / max": spread([count_lines(path) for path in files]),
        "function lines, median / p90 / max": spread([f.end_lineno - f.lineno + 1 for f, _ in found if f.end_lineno]),
        "functions with a typed return": share([f.returns is not None for f, _ in found]),
        "public functions documented": share([ast.get_docstring(f) is not None for f in public]),
        "forwards that state shapes": share([bool(SHAPE.search(ast.get_docstring(f) or "")) for f in forwards]),
        "test lines / source lines": f"{tests / source:.2f} ({tests} / {source})",
        "YAML files that compose": share([composes(path) for path in sorted((ROOT / "configs").rglob("*.yaml"))]),
    }


def main() -> None:
    """Command line."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None).parse_args()
    print("| figure | medseg |\n|---|---|")
    for name, value in figures().items():
        print(f"| {name} | {value} |")


if __name__ == "__main__":
    main()
