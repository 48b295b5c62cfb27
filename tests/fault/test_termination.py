"""SIGTERM within a command: 143, one line that says what is done, nothing half written, and the rest later."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medseg.evaluation import evaluator
from medseg.inference.member import Member
from medseg.io import read_json
from medseg.io.ledger import LEDGER

CASES = "abcd"
Run = Callable[[str], int]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_model: Callable, write_image: Callable) -> Path:
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "model")
    for number, name in enumerate(CASES):
        write_image(tmp_path / "in" / f"{name}.nii.gz", number)
        write_image(tmp_path / "labels" / f"{name}.nii.gz", number, labels=True)
    return tmp_path


def signal_at(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int, signum: int = signal.SIGTERM) -> None:
    """Send this process a signal at the n-th call of a function."""
    real, calls = getattr(owner, name), []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        if len(calls) == call:
            os.kill(os.getpid(), signum)
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("done", [0, 2])
def test_predict(
    world: Path,
    tree: Callable,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    done: int,
    signum: int,
    code: int,
) -> None:
    words = "predict device=cpu precision=fp32 overlap=0 model=model input=in output=out"
    windows = 4  # of each case
    with monkeypatch.context() as patch:
        signal_at(patch, Member, "logits", done * windows + windows // 2, signum)
        assert run(words) == code
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("medseg: ")]
    assert len(said) == 1
    assert f"stopped after {done} of {len(CASES)} cases" in said[0]
    expected = {f"{name}.nii.gz" for name in CASES[:done]} | ({"predictions.json", LEDGER} if done else set())
    assert {path.name for path in (world / "out").iterdir()} == expected
    before = tree(world / "out")
    assert run(f"{words} overwrite=false") == 0  # what the line advises
    after = tree(world / "out")
    assert all(after[f"{name}.nii.gz"] == before[f"{name}.nii.gz"] for name in CASES[:done])
    assert set(read_json(world / "out" / "predictions.json")["cases"]) == set(CASES)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_evaluate(world: Path, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    signal_at(monkeypatch, evaluator, "evaluate_case", 2)
    assert run("evaluate predictions=labels references=labels output=out") == 143
    assert "No report was written to out" in capsys.readouterr().err
    assert not (world / "out").exists()


def test_evaluate_with_a_model(
    world: Path, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (world / "in").rename(world / "images")
    signal_at(monkeypatch, Member, "logits", 14)
    assert run("evaluate model=model references=. output=out") == 143
    assert "of 4 cases" in capsys.readouterr().err
