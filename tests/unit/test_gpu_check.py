"""scripts/gpu_check.sh, here without a GPU: what it says then, its checks on the CPU, and what it writes on the way."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"
# As on a machine where medseg is not installed and only torch, Lightning and what comes with them is.
BARE = """
import runpy, sys
sys.meta_path = [f for f in sys.meta_path if "editable" not in getattr(f, "__module__", "")]
sys.path.insert(0, sys.argv[1])
import _stand_ins
class Missing:
    busy = False
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in _stand_ins.PACKAGES:
            return None
        for finder in sys.meta_path:
            if isinstance(finder, _stand_ins.StandIns):
                return finder.find_spec(name, path, target)
        raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0] + "/gpu_check.py", run_name="__main__")
"""


@pytest.fixture(scope="module")
def checks() -> ModuleType:
    return load("_gpu_checks")


def load(name: str) -> ModuleType:
    if str(SCRIPTS) not in sys.path:
        sys.path.append(str(SCRIPTS))
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where its dataclasses look for their types
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tiny(checks: ModuleType) -> Any:
    return checks.Setting(device="cpu", gpus=0, patch=16, width=4, steps=4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so_and_ends_well(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", str(SCRIPTS / "gpu_check.sh"), "--output", str(tmp_path)], capture_output=True, text=True, check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "no GPU" in done.stdout
    assert not list(tmp_path.iterdir())


def test_on_a_bare_machine_every_check_is_a_row_and_both_files_are_written(tmp_path: Path) -> None:
    words = ["--device", "cpu", "--patch", "16", "--width", "2", "--steps", "2", "--output", str(tmp_path)]
    words += ["--seconds", "100000", "--only", "unet fp", "predict", "two", "out"]
    done = subprocess.run(
        [sys.executable, "-c", BARE, str(SCRIPTS), *words], capture_output=True, text=True, check=False, cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "gpu_report.json").read_text())
    assert report["finished"]
    assert {"torch", "pytorch_lightning", "processor"} <= set(report["machine"])
    assert {"nibabel", "pydantic"} <= set(report["machine"]["stood in for"])
    outcomes = {row["check"]: row["outcome"] for row in report["rows"]}
    ran, missed = ["unet fp32", "predict"], ["unet fp16", "out of memory", "two GPUs"]
    assert outcomes == dict.fromkeys(ran, "ok") | dict.fromkeys(missed, "not run")
    text = (tmp_path / "gpu_report.md").read_text()
    assert all(f"| {row['check']} | {row['outcome']} |" in text for row in report["rows"])
    assert text.strip() in done.stdout


def test_steps_in_bf16_follow_those_in_fp32_and_a_loss_that_does_not_is_a_failure(
    checks: ModuleType, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(checks.NotRun, match="fp32 did not run"):
        checks.check_training(tiny, "unet", "bf16")
    exact = checks.check_training(tiny, "unet", "fp32")
    row = checks.check_training(tiny, "unet", "bf16")
    assert 0 < row.figures["loss off by"] < checks.TOLERANCE["bf16"]
    assert row.figures["fp32 time / this"] == pytest.approx(exact.figures["s per step"] / row.figures["s per step"])
    monkeypatch.setitem(checks.TOLERANCE, "bf16", row.figures["loss off by"] / 2)
    with pytest.raises(AssertionError, match="is off by"):
        checks.check_training(tiny, "unet", "bf16")


def test_predict_compares_labels_voxel_by_voxel(checks: ModuleType, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert checks.check_predict(tiny).figures["voxels with the same label"] >= checks.AGREEMENT
    monkeypatch.setattr(checks, "AGREEMENT", 1.1)
    with pytest.raises(AssertionError, match="of the voxels have the same label"):
        checks.check_predict(tiny)


def test_a_failing_check_is_a_row_and_what_follows_still_runs(
    checks: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    command = load("gpu_check")

    def broken(setting: Any) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access\nsecond line")

    def listed() -> Any:
        yield "first", broken
        yield "second", lambda setting: checks.Row("second", figures={"s": 1.5}, note="a | b")

    monkeypatch.setattr(checks, "checks", listed)
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--device", "cpu"])
    found = [row for _, row in command.rows(command.parse())]
    assert [row["outcome"] for row in found] == ["failed", "ok"]
    assert found[0]["note"] == "RuntimeError: CUDA error: an illegal memory access"
    report = {"machine": {"card": "none"}, "rows": found, "finished": False}
    command.write(tmp_path, report)
    assert json.loads((tmp_path / "gpu_report.json").read_text()) == report
    assert "| second | ok | 1.5 | a / b |" in (tmp_path / "gpu_report.md").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"gpu_report.json", "gpu_report.md"}
