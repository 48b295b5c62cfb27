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


def test_gain_of_pretraining_is_paired_over_seeds(tmp_path: Path) -> None:
    bench = load("bench_pretrain")
    (tmp_path / "images").mkdir()
    for name in ("a", "b", "c"):
        (tmp_path / "images" / f"{name}.jpg").touch()
    (tmp_path / "val.txt").write_text("b\n")
    assert bench.write_split(tmp_path, tmp_path).read_text() == '[{"train": ["a", "c"], "val": ["b"]}]'
    row = {"model": "unet", "fraction": 0.05, "cases": 70, "steps": 9}
    rows = [
        {**row, "seed": seed, "start": start, "dice": dice}
        for seed, scratch, tuned in ((0, 0.70, 0.75), (1, 0.80, 0.81))
        for start, dice in (("scratch", scratch), ("pretrained", tuned))
    ]
    last = bench.table(rows).splitlines()[-1]
    assert last == "| unet | 5% | 70 | 0.7500 ± 0.0707 | 0.7800 ± 0.0424 | +0.0300 ± 0.0283 | 2 |"
    assert bench.limit(90.5) == "00:01:30:30"
