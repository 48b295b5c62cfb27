"""Nested classes and regions through check, train, predict, evaluate and export: nothing else needs to know of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from medseg.cli import main
from medseg.compose import compose
from medseg.data.check import check_dataset
from medseg.data.dataset import open_dataset
from medseg.evaluation import evaluate_folders
from medseg.inference import Predictor
from medseg.io import load_model, read_json, write_json

REGIONS = "target.regions={organs:[2,3,4,1,5],liver:[liver,lesion],lesion:[lesion]}"
SMALL = [
    "plan.patch_size=[16,16,16]", "plan.strides=[[1,1,1],[2,2,2]]", "plan.batch_size=2", "model=residual_unet",
    "model.base_channels=4", "trainer.max_epochs=1", "trainer.steps_per_epoch=4", "trainer.progress=false",
    "trainer.threads=1", "trainer.tensorboard=false", "data.loader_workers=0",
]  # fmt: skip


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stop:
        main(list(words))
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out + captured.err


@pytest.fixture(scope="module")
def runs(tiny_phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One short training of each target."""
    from medseg.training import fit

    folder = tmp_path_factory.mktemp("runs")
    words = [f"data={tiny_phantoms}", f"cache_dir={folder / 'cache'}", *SMALL, REGIONS]
    return {
        name: fit(compose("train", [*words, f"target={name}", f"run_dir={folder / name}"]))
        for name in ("nested", "regions", "exclusive")
    }


@pytest.mark.parametrize("name", ["nested", "regions", "exclusive"])
def test_training_scores_the_regions(runs: dict[str, Path], name: str) -> None:
    _, description = load_model(runs[name])
    assert list(description["target"]["regions"]) == ["organs", "liver", "lesion"]
    assert description["model"]["out_channels"] == {"nested": 1, "regions": 3, "exclusive": 6}[name]
    summary = read_json(runs[name] / "validation" / "summary.json")
    assert list(summary["mean"]) == ["(2, 3, 4, 1, 5)", "(1, 5)", "5"]
    log = next((runs[name] / "logs").rglob("metrics.csv")).read_text()
    assert "val/dice_organs" in log


def test_prediction_probabilities_uncertainty_and_mirrors(runs: dict[str, Path], tiny_phantoms: Path) -> None:
    image = next((tiny_phantoms / "imagesTs").iterdir())
    predictor = Predictor.from_pretrained(runs["nested"], tta=True, uncertainty="entropy", threads=1)
    found = predictor.predict(image, probabilities=True)
    assert found.probabilities is not None
    assert found.uncertainty is not None
    assert found.probabilities.shape == (3, *found.labels.shape)
    assert (np.diff(found.probabilities, axis=0) <= 0).all()
    assert set(np.unique(found.labels)) <= {0, 1, 2, 5}
    assert 0 <= found.uncertainty.min() <= found.uncertainty.max() <= 1 + 1e-6


def test_folds_of_one_target_are_averaged_and_kinds_are_not_mixed(runs: dict[str, Path], tiny_phantoms: Path) -> None:
    from medseg.errors import UsageError

    image = next((tiny_phantoms / "imagesTs").iterdir())
    for name in ("nested", "regions"):
        one, two = (Predictor.from_pretrained([runs[name]] * n, threads=1) for n in (1, 2))
        assert np.array_equal(one.predict(image).labels, two.predict(image).labels)
    with pytest.raises(UsageError, match="in the same way"):
        Predictor.from_pretrained([runs["nested"], runs["regions"]])


def test_evaluate_takes_the_regions_of_the_model(
    runs: dict[str, Path], tiny_phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"model={runs['regions']}", f"references={tiny_phantoms}", f"output={tmp_path / 'out'}"]
    code, text = run(capsys, "evaluate", *words, "metrics=[dice,ece]")
    assert code == 0, text
    summary = read_json(tmp_path / "out" / "summary.json")
    assert list(summary["mean"]) == ["(2, 3, 4, 1, 5)", "(1, 5)", "5"]
    assert summary["mean"]["5"]["ECE"] is not None


@pytest.mark.parametrize("name", ["nested", "regions"])
def test_adapt_scores_held_out_cases_as_training_does(
    runs: dict[str, Path], tiny_phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    run_dir = tmp_path / "run"
    short = [word for word in SMALL if word.startswith(("trainer", "data"))]
    words = [f"data={tiny_phantoms}", f"model={runs[name]}", f"run_dir={run_dir}", "method=head", "data.folds=5"]
    code, text = run(capsys, "adapt", *words, *short, f"cache_dir={tmp_path / 'cache'}")
    assert code == 0, text
    regions = {"organs": [2, 3, 4, 1, 5], "liver": [1, 5], "lesion": [5]}
    (held_out,) = (run_dir / "before").glob("*.nii.gz")
    reference = tiny_phantoms / "labelsTr" / held_out.name
    report = evaluate_folders(held_out, reference, labels=regions, known=frozenset(range(6)))
    means = report.summary()["foreground_mean"]
    assert read_json(run_dir / "before.json")["Dice"] == pytest.approx(means["Dice"])


@pytest.mark.parametrize("name", ["nested", "regions"])
@pytest.mark.parametrize("kind", ["onnx", "monai"])
def test_exports(runs: dict[str, Path], tiny_phantoms: Path, tmp_path: Path, name: str, kind: str) -> None:
    from medseg.inference.export import export_model

    pytest.importorskip("onnxruntime")
    export_model(runs[name], tmp_path / "out", kind)
    if kind == "onnx":
        image = next((tiny_phantoms / "imagesTs").iterdir())
        plain = {"threads": 1, "precision": "fp32"}  # as ONNX Runtime computes, also where bf16 would be chosen
        labels = [Predictor.from_pretrained(f, **plain).predict(image).labels for f in (runs[name], tmp_path / "out")]
        assert (labels[0] == labels[1]).mean() > 0.999
    else:
        described = read_json(tmp_path / "out" / "configs" / "metadata.json")["network_data_format"]["outputs"]["pred"]
        names = {"nested": ["nested"], "regions": ["organs", "liver", "lesion"]}[name]
        assert list(described["channel_def"].values()) == names


BAD = [
    (["target=regions"], 2, "the dataset declares none"),
    (["target=nested"], 2, "needs levels or regions"),
    (
        ["target=nested", "target.levels=[liver,lesion]"],
        2,
        "labels 'spleen' (2), 'kidney_right' (3), 'kidney_left' (4) (",
    ),
    (["target=nested", "target.levels=[liver,lesion,liver]"], 2, "name 'liver' (1) twice"),
    (["target=nested", "target.levels=[liver,lesio]"], 2, "did you mean 'lesion'"),
    (["target=nested", "target.regions={liver:[1,2,3,4],lesion:[5]}"], 2, "'lesion' has label values [5] that 'liver'"),
]


@pytest.mark.parametrize(("words", "code", "told"), BAD)
def test_regions_that_cannot_be_stop_training_and_check(
    tiny_phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, told: str
) -> None:
    found, text = run(capsys, "train", f"data={tiny_phantoms}", f"run_dir={tmp_path / 'run'}", *words)
    assert found == code
    assert told in text
    assert len(text.strip().splitlines()) == 1
    assert not (tmp_path / "run" / "plan.json").exists()
    found, text = run(capsys, "check", f"data={tiny_phantoms}", "json=true", "workers=0", *words)
    assert found == 3
    assert told in text


def described(folder: Path, **changes: Any) -> Path:
    """Three tiny scans of nested boxes with a dataset.json of regions."""
    rng = np.random.default_rng(0)
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for case in range(3):
        labels = np.zeros((8, 8, 8), np.uint8)
        labels[1:7, 1:7, 1:7], labels[2:6, 2:6, 2:6] = 1, 2
        image = (labels + rng.normal(size=labels.shape)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), folder / "imagesTr" / f"c{case}_0000.nii.gz")
        nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), folder / "labelsTr" / f"c{case}.nii.gz")
    labels = {"background": 0, "whole": [1, 2], "core": 2}
    description = {"channel_names": {"0": "MR"}, "labels": labels, "numTraining": 3, "file_ending": ".nii.gz"}
    write_json(folder / "dataset.json", {**description, **changes})
    return folder


def faults(folder: Path, target: dict[str, Any] | None = None) -> list[str]:
    found = check_dataset(open_dataset(folder), target=target, workers=0, progress=False)
    return [finding.problem for finding in found.findings if finding.severity == "error"]


def test_check_knows_the_regions_of_dataset_json(tmp_path: Path) -> None:
    assert not faults(described(tmp_path / "good"))
    assert not faults(tmp_path / "good", {"name": "nested"})
    wrong = described(tmp_path / "order", regions_class_order=[2, 2])
    assert any("class_order paints region 'whole' with 2" in problem for problem in faults(wrong))
    reverse = {"background": 0, "core": 2, "whole": [1, 2]}
    inside_out = described(tmp_path / "inside_out", labels=reverse, regions_class_order=[2, 1])
    assert any("'whole' has label values [1] that 'core'" in p for p in faults(inside_out, {"name": "nested"}))


def test_faults_of_dataset_json_are_input_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = described(tmp_path / "order", regions_class_order=[2, 2])
    code, text = run(capsys, "train", f"data={folder}", f"run_dir={tmp_path / 'run'}", "target=regions")
    assert code == 3
    assert "class_order paints region 'whole' with 2" in text


@pytest.mark.parametrize("name", ["brats_nested", "wbc_nested", "hippocampus_nested"])
@pytest.mark.parametrize("target", ["nested", "regions", "exclusive"])
def test_experiments_compose_with_every_target(name: str, target: str) -> None:
    from medseg.targets.base import configure_target

    settings = compose("train", [f"experiment={name}", f"target={target}"])["target"]
    labels = {"background": 0} | {f"label_{v}": v for v in range(1, 5 if name == "brats_nested" else 3)}
    made = configure_target(settings, {"labels": labels})
    assert made.name == target
    assert len(made.classes) == (3 if name == "brats_nested" else 2)
