"""Every verb x every kind of bad output: exit 2 in one line, and every file of the user as it was."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from medseg.io import read_json, write_json

LABELS = {"background": 0, "organ": 1}
Tree, Run = Callable[[Path], dict[str, str]], Callable[[str], int]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_model: Callable, write_image: Callable) -> Path:
    """A model, scans, a dataset, two evaluations, and folders in which the user's own files have our names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache")))  # as it is
    monkeypatch.setenv("HOME", str(tmp_path))
    write_model(tmp_path / "model")
    for number, name in enumerate("ab"):
        write_image(tmp_path / "scans" / f"{name}.nii.gz", number)
        write_image(tmp_path / "roi" / f"{name}.nii.gz", number, labels=True)
        write_image(tmp_path / "data" / "imagesTr" / f"{name}_0000.nii.gz", number)
        for folder in ("data/labelsTr", "tool"):
            write_image(tmp_path / folder / f"{name}.nii.gz", number, labels=True)
        (tmp_path / f"eval_{name}").mkdir()
        (tmp_path / f"eval_{name}" / "cases.csv").write_text("case,class,dice\na,organ,0.5\nb,organ,0.7\n")
    facts = {"channel_names": {"0": "MR"}, "labels": LABELS, "numTraining": 2, "file_ending": ".nii.gz"}
    write_json(tmp_path / "data" / "dataset.json", facts)
    for name in MINE:
        path = tmp_path / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("the user's")
    (tmp_path / "also").symlink_to(tmp_path)
    return tmp_path


MINE = (
    *("labels/a.nii.gz", "shares/a_probabilities.nii.gz", "doubt/a_entropy.nii.gz", "record/predictions.json"),
    *("summary/summary.json", "table/cases.csv", "page/report.html", "points/landmarks.csv"),
    *("comparison/comparison.png", "onnx/model.onnx", "bundle/configs/inference.json", "licence/LICENSE"),
    *("run/config.json", "adapter/adapter/model.json", "curve/progress.png", "full/notes.txt"),
    *("below/predictions/predictions.json",),
)
SCANS = " input=scans"
PREDICT = f"predict device=cpu precision=fp32 model=model{SCANS}"
EVALUATE = "evaluate predictions=tool references=data/labelsTr"
COMMANDS = [
    f"{PREDICT} output=scans",
    f"{PREDICT} output=roi mask=roi",
    f"{PREDICT} output=model",
    f"{PREDICT} output=data/labelsTr",
    f"{PREDICT} output=data/imagesTr/new overwrite=false",
    f"{PREDICT}/a.nii.gz output=scans",
    f"{PREDICT}/a.nii.gz output=scans/a.nii.gz",
    f"{PREDICT.removesuffix(SCANS)} input=data output=data",
    f"{PREDICT.removesuffix(SCANS)} input=data output=data/imagesTr",
    f"{PREDICT} output=mine/labels",
    f"{PREDICT} output=mine/shares probabilities=true",
    f"{PREDICT} output=mine/doubt uncertainty=entropy",
    f"{PREDICT} output=mine/record overwrite=false",
    f"{EVALUATE} output=data/labelsTr",
    f"{EVALUATE} output=model",
    f"{EVALUATE} predictions=tool/a.nii.gz references=roi/a.nii.gz output=tool/a.nii.gz",
    f"{EVALUATE} references=roi output=roi",
    *(f"{EVALUATE} output=mine/{name}" for name in ("summary", "table", "page", "points")),
    "evaluate model=model references=data output=data",
    "evaluate model=model references=data output=mine/below",
    "compare a=eval_a b=eval_b output=eval_a",
    "compare a=eval_a b=eval_b output=mine/comparison",
    "compare a=eval_a b=eval_b output=model",
    "export model=model output=model",
    "export model=model format=monai output=model",
    "export model=model output=mine/onnx",
    "export model=model format=monai output=mine/bundle",
    "export model=model format=monai output=mine/licence",
    "adapt model=model data=data run_dir=model",
    *(f"adapt model=model data=data run_dir={name}" for name in ("data", "data/labelsTr", "mine/run", "mine/adapter")),
    *(f"pretrain data=data run_dir={name}" for name in ("data", "data/imagesTr", "mine/run", "mine/curve", "model")),
    *(f"train data=data run_dir={name}" for name in ("data", "data/labelsTr", "mine/run", "model")),
    "train data=data pretrained=model run_dir=model resume=true",
    "check data=data fix=true output=data",
    "check data=data fix=true output=data/repaired",
    "check data=data fix=true output=mine/full",
]
SPELLINGS: list[Callable[[str], str]] = [str, "./{}/".format, "absent/../{}".format, "also/{}".format, "~/{}".format]


@pytest.mark.parametrize(("number", "command"), enumerate(COMMANDS), ids=COMMANDS)
def test_the_files_of_the_user_are_as_they_were(
    world: Path, tree: Tree, run: Run, capsys: pytest.CaptureFixture[str], number: int, command: str
) -> None:
    before, spell = tree(world), SPELLINGS[number % len(SPELLINGS)]
    words = [
        f"{key}={spell(value)}" if key in ("output", "run_dir") and "nii" not in value else f"{key}={value}"
        for key, _, value in (word.partition("=") for word in command.split()[1:])
    ]
    code = run(" ".join([command.split()[0], *words]))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("medseg: ")]
    assert code == 2, lines
    assert len(lines) == 1
    left = {path: content for path, content in tree(world).items() if not path.endswith("/.lock")}  # of a run, empty
    assert left == before


AGAIN = [
    f"{PREDICT} output=out probabilities=true uncertainty=entropy",
    "evaluate model=model references=data output=out",
    "compare a=eval_a b=eval_b output=out",
    "export model=model format=monai output=out",
]


@pytest.mark.parametrize("command", AGAIN)
def test_what_medseg_wrote_is_replaced_until_somebody_changes_it(
    world: Path, tree: Tree, run: Run, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    for _ in range(2):
        assert run(command) == 0, capsys.readouterr().err
    files = [path for path in tree(world / "out") if not path.startswith(".")]
    changed = world / "out" / next(path for path in files if path.endswith((".json", ".gz")))
    changed.write_bytes(changed.read_bytes() + b" ")
    before = tree(world)
    assert run(command) == 2
    assert tree(world) == before


def test_one_name_from_two_places(
    world: Path, tree: Tree, run: Run, write_image: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second call neither replaces the result of the first nor takes it for its own."""
    assert run(f"{PREDICT}/a.nii.gz output=out") == 0
    other = write_image(world / "other" / "a.nii.gz", 7)
    before = tree(world)
    for more in ("", "overwrite=false"):
        assert run(f"{PREDICT.removesuffix(SCANS)} input=other/a.nii.gz output=out {more}") == 2
        assert "was made from" in capsys.readouterr().err
        assert tree(world) == before
    assert run(f"{PREDICT.removesuffix(SCANS)} input=other/a.nii.gz output=out2") == 0  # what the line advises
    other.rename(world / "other" / "c.nii.gz")
    assert run(f"{PREDICT.removesuffix(SCANS)} input=other output=out") == 0
    assert set(read_json(world / "out" / "predictions.json")["cases"]) == {"a", "c"}
    write_image(world / "scans" / "a.nii.gz", 8)  # the same place with new content, and the same content elsewhere
    assert run(f"{PREDICT}/a.nii.gz output=out") == 0
    (world / "scans").rename(world / "moved")
    assert run(f"{PREDICT.removesuffix(SCANS)} input=moved/a.nii.gz output=out overwrite=false") == 0


@pytest.mark.parametrize("last", ["b.nii.gz", "a_entropy.nii.gz"])
def test_two_cases_for_one_file(world: Path, run: Run, capsys: pytest.CaptureFixture[str], last: str) -> None:
    table = world / "list.csv"
    case = last.removesuffix(".nii.gz").replace("b", "a")
    table.write_text(f"case,image\na,scans/a.nii.gz\n{case},scans/b.nii.gz\n")
    assert run(f"{PREDICT.removesuffix(SCANS)} input=list.csv output=out uncertainty=entropy") in (2, 3)
    assert "two cases are called" in (said := capsys.readouterr().err) or "would both be written" in said
    assert not (world / "out").exists()
