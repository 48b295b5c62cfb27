"""The benchmark scripts: each can be asked for help, and what they make of rows is right. Their short versions are in
test_agreement.py, and in the tests of the parts they measure."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from medseg.io import Geometry, Volume, write_volume

SCRIPTS = Path(__file__).parents[2] / "scripts"


def load(name: str) -> ModuleType:
    """A script as a module."""
    if str(SCRIPTS) not in sys.path:
        sys.path.append(str(SCRIPTS))  # where a script finds its own helpers
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


def test_inference_agrees_with_the_peers_on_the_same_windows(tmp_path: Path) -> None:
    bench, startup = load("bench_inference"), load("bench_startup")
    startup.write_model(tmp_path / "model", base_channels=4, patch=16)
    image = np.random.default_rng(0).random((1, 40, 24, 16), np.float32)
    write_volume(tmp_path / "case.nii.gz", Volume(image, Geometry(image.shape[1:], np.eye(4))))
    ways = bench.contestants(tmp_path / "model")
    array = bench.prepare(tmp_path / "case.nii.gz", ways[bench.REFERENCE][1].plan)
    logits = {name: way(member, array).float() for name, (way, member) in ways.items() if "bf16" not in name}
    for name in ("medseg, fp32, channels-last", "medseg, fp32, contiguous"):
        assert (logits[name] - logits[bench.REFERENCE]).abs().max() < 1e-4, name
    table = bench.compare_times(ways, [tmp_path / "case.nii.gz"], repeats=1)
    assert table.startswith("1 image(s), 40x24x16 voxels, windows of [16, 16, 16]")
    assert f"| {bench.REFERENCE} |" in table
    assert "1.0000 | 0.0e+00 | 0.0e+00 | 0.0e+00 |" in table


def test_memory_of_a_case_is_measured_in_a_process_and_stopped_above_the_guard() -> None:
    bench = load("bench_inference")
    rows = bench.compare_memory([("medseg", 3, 24)], 32, most=8).splitlines()
    cells = [cell.strip() for cell in rows[2].strip("|").split("|")]
    assert cells[:3] == ["medseg", "3", "24"]
    assert 0 <= float(cells[3]) < 1
    assert 0 < float(cells[4]) < 1
    code, told = bench.guarded([sys.executable, "-c", "import time; held = bytearray(2**27); time.sleep(60)"], 0.05)
    assert code is None
    assert told.startswith("more than 0.")


def test_predict_reaches_the_network_without_what_only_training_needs(tmp_path: Path) -> None:
    startup = load("bench_startup")
    words = startup.predict_words(tmp_path, base_channels=4, patch=16)
    heavy = {"monai", "pytorch_lightning", "albumentations", "pandas", "matplotlib", "skimage", "sklearn", "timm"}
    heavy |= {"torchvision", "torch._dynamo", "sympy", "scipy.stats"}
    told = f"print('loaded:', *{heavy!r} & set(sys.modules), flush=True)"
    code = startup.UNTIL_THE_NETWORK.replace("os._exit(77)", f"({told}, os._exit(77))")
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 77, done.stderr
    assert done.stdout.splitlines()[-1].split() == ["loaded:"]
