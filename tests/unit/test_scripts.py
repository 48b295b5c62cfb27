"""The benchmark scripts: each can be asked for help, and what they make of rows is right. Their short versions are in
test_agreement.py, and in the tests of the parts they measure."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


def load(name: str) -> ModuleType:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", sorted(SCRIPTS.glob("[a-z]*.py")), ids=lambda path: path.stem)
def test_every_script_can_be_asked_for_help(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(path), "--help"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_dice_against_minutes_is_the_mean_over_folds(tmp_path: Path) -> None:
    bench = load("bench_hippocampus")
    row = {"what": "medseg unet", "minutes": 6.0, "steps": 1000, "anterior": 0.9, "posterior": 0.8}
    rows = [{**row, "fold": fold, "dice": dice} for fold, dice in ((1, 0.86), (0, 0.84))]
    rows.append({**row, "what": "nnU-Net v2", "fold": 0, "dice": 0.5})
    summary = bench.summarise(rows)
    assert [(one["what"], one["folds"], round(one["dice"], 4)) for one in summary] == [
        ("medseg unet", [0, 1], 0.85),
        ("nnU-Net v2", [0], 0.5),
    ]
    assert "| medseg unet | 6 | 0 1 | 1000 | 0.8500 | 0.9000 | 0.8000 |" in bench.table(summary)
    bench.draw(rows, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_nested_methods_are_compared_over_seeds_and_folds() -> None:
    bench = load("bench_nested")
    row = {"data": "brats", "budget": "90s", "method": "regions", "steps": 10, "violating_cases": 1, "cases": 1}
    dice = {(0, 0): 0.8, (0, 1): 0.6, (1, 0): 0.9, (1, 1): 0.7}
    rows = [{**row, "seed": s, "fold": f, "violations": 5, "dice": {"whole": d}} for (s, f), d in dice.items()]
    assert bench.table(rows).splitlines()[2:] == [
        "| brats | 90s | sigmoid regions | 2 | 10 | whole 0.7500 ± 0.0500 | 20 | 4 of 4 |"
    ]
    assert bench.budget_words("90s") == ["trainer.max_time=00:00:01:30"]
    assert bench.budget_words("200 steps") == ["trainer.max_epochs=1", "trainer.steps_per_epoch=200"]
