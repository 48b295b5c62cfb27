"""Every verb runs with the config that is shipped, from the command line's own door, on tiny phantoms."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from medseg.cli import COMMANDS, run
from medseg.compose import compose
from medseg.settings import settings_of

FAST = ["trainer.max_epochs=1", "trainer.steps_per_epoch=1", "trainer.precision=fp32", "trainer.progress=false"]
SMALL = ["model.base_channels=4", "data.loader_workers=0", "trainer.tensorboard=false", "data.folds=2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where everything goes: the cache, the run, what is made of it."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("verbs")
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def model(folder: Path, tiny_phantoms: Path) -> Path:
    words = [f"data={tiny_phantoms}", "plan.patch_size=[16,16,16]", "plan.batch_size=1", f"run_dir={folder / 'run'}"]
    assert run(["train", *words, *FAST, *SMALL]) == 0
    return folder / "run"


def test_check(folder: Path, tiny_phantoms: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", f"data={tiny_phantoms}", "json=true"]) == 0
    assert json.loads(capsys.readouterr().out)["errors"] == 0


def test_prepare_and_a_plan_of_its_own(folder: Path, tiny_phantoms: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["prepare", f"data={tiny_phantoms}"]) == 0
    [plan] = (folder / "cache").rglob("plan.json")
    assert str(plan.parent.name) in capsys.readouterr().out.replace("\n", "")
    before = plan.read_bytes()
    assert run(["prepare", f"data={tiny_phantoms}", f"plan.file={plan}"]) == 0
    assert plan.read_bytes() == before
    assert "spacing" in json.loads(before)


def test_predict_evaluate_compare(model: Path, tiny_phantoms: Path) -> None:
    assert run(["predict", f"model={model}", f"input={tiny_phantoms}", "output=a", "precision=fp32"]) == 0
    assert run(["evaluate", "predictions=a", f"references={tiny_phantoms}"]) == 0
    shutil.copytree("a", "b")
    assert run(["compare", "a=a", "b=b", "output=difference"]) == 0
    assert (Path("difference") / "comparison.json").is_file()


def test_adapt(folder: Path, model: Path, tiny_phantoms: Path) -> None:
    words = [word for word in SMALL if not word.startswith(("model.", "data.folds"))]
    adapter = folder / "adapted"
    assert run(["adapt", f"model={model}", f"data={tiny_phantoms}", f"run_dir={adapter}", *FAST, *words]) == 0
    assert (adapter / "adapter").is_dir()


def test_models_and_skips(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models"]) == 0
    assert run(["skips", "model.base_channels=4"]) == 0
    text = capsys.readouterr().out
    assert "unetpp_nnunet" in text
    assert "…" not in text


def test_the_other_verbs_take_their_shipped_config() -> None:
    """pretrain and export run in tests of their own, with images and with ONNX."""
    for verb, words in (("pretrain", []), ("export", ["model=m", "output=o"])):
        assert settings_of(verb, compose(verb, words)).to_config()
    assert len(COMMANDS) == 11
