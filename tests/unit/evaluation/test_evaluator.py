"""Folders in, report out: the case list, penalties, counts, files."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from medseg.errors import UsageError
from medseg.evaluation import Evaluator, Report, evaluate_arrays, evaluate_command, evaluate_folders, pair_folders
from medseg.io import Geometry, read_labels, write_labels

SPACING = (2.0, 1.0, 1.0)
GRID = Geometry((10, 12, 14), np.diag([*SPACING, 1.0]))
DIAGONAL = float(np.linalg.norm([20, 12, 14]))


def brick(*, second: bool = True, shift: int = 0) -> np.ndarray:
    array = np.zeros(GRID.shape, np.uint8)
    array[2 + shift : 6 + shift, 2:6, 2:6] = 1
    if second:
        array[2:6, 7:10, 8:12] = 2
    return array


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """a: perfect. b: organ shifted, lesion missed. c: healthy, lesion invented. d: no prediction."""
    predictions, references = tmp_path / "predictions", tmp_path / "dataset" / "labelsTs"
    wanted = {"a": brick(), "b": brick(), "c": brick(second=False), "d": brick()}
    got = {"a": brick(), "b": brick(second=False, shift=1), "c": brick(), "stranger": brick()}
    for folder, maps in ((references, wanted), (predictions, got)):
        for name, labels in maps.items():
            write_labels(folder / f"{name}.nii.gz", labels, GRID)
    description = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "organ": 1, "lesion": 2}}
    (references.parent / "dataset.json").write_text(json.dumps({**description, "file_ending": ".nii.gz"}))
    return predictions, references


@pytest.fixture
def report(folders: tuple[Path, Path]) -> Report:
    return evaluate_folders(*folders, progress=False)


def test_outcomes_of_every_case(report: Report) -> None:
    assert [result.files.id for result in report.results] == ["a", "b", "c", "d"]
    assert [result.outcome("lesion") for result in report.results] == ["scored", "missed", "false_positive", "missing"]
    assert [result.outcome("organ") for result in report.results] == ["scored", "scored", "scored", "missing"]
    assert report.missing == ["d"]
    assert [path.name for path in report.extra] == ["stranger.nii.gz"]


def test_a_case_scores_as_its_arrays_do(report: Report, folders: tuple[Path, Path]) -> None:
    names = ("dice", "hausdorff_distance_95", "nsd")
    labels = {"organ": 1, "lesion": 2}
    expected = evaluate_arrays(
        brick(second=False, shift=1), brick(), spacing=SPACING, labels=labels, metrics=names, tolerance=1.0
    )
    for label in labels:
        assert {name: report.results[1].scores[label][name] for name in names} == pytest.approx(expected[label])


def test_missing_prediction_is_the_worst_everywhere(report: Report) -> None:
    for scores in report.results[3].scores.values():
        assert (scores["dice"], scores["nsd"], scores["tp"], scores["n_pred"]) == (0, 0, 0, 0)
        assert scores["hausdorff_distance_95"] == pytest.approx(DIAGONAL)
        assert scores["fn"] == scores["n_ref"]


def test_aggregates_stand_side_by_side(report: Report) -> None:
    lesion = report.aggregates["lesion"]
    counts = {key: value for key, value in lesion.items() if key.startswith("n_")}
    assert counts == {
        "n_cases": 4,
        "n_reference": 3,
        "n_detected": 1,
        "n_missed": 1,
        "n_false_positive": 1,
        "n_missing": 1,
        "n_penalised": 3,
        "n_empty": 0,
    }
    assert lesion["detection_rate"] == pytest.approx(1 / 3)
    dice = lesion["metrics"]["dice"]
    assert (dice["n"], dice["mean"], dice["median"], dice["mean_detected"]) == (4, 0.25, 0, 1)
    assert dice["sd"] == pytest.approx(0.5)
    distance = lesion["metrics"]["hausdorff_distance_95"]
    assert distance["mean"] == pytest.approx(0.75 * DIAGONAL)
    assert distance["mean_detected"] == 0


def test_empty_cases_are_counted_apart(folders: tuple[Path, Path]) -> None:
    predictions, references = folders
    write_labels(predictions / "c.nii.gz", brick(second=False), GRID)
    lesion = evaluate_folders(predictions, references, progress=False).aggregates["lesion"]
    assert (lesion["n_empty"], lesion["n_penalised"], lesion["metrics"]["dice"]["n"]) == (1, 2, 3)


def test_summary_keeps_the_keys_of_nnunet(report: Report, tmp_path: Path) -> None:
    report.save(tmp_path / "out")
    text = (tmp_path / "out" / "summary.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    summary = json.loads(text)
    first, last = summary["metric_per_case"][0], summary["metric_per_case"][-1]
    assert {"Dice", "IoU", "TP", "FP", "FN", "TN", "n_pred", "n_ref"} <= first["metrics"]["1"].keys()
    assert first["metrics"]["1"]["TP"] == 64
    assert first["prediction_file"].endswith("a.nii.gz")
    assert last["prediction_file"] is None
    assert summary["mean"]["2"]["Dice"] == 0.25
    organ = summary["mean"]["1"]["Dice"]
    assert organ == pytest.approx((1 + 2 * 48 / 128 + 1 + 0) / 4)
    assert summary["foreground_mean"]["Dice"] == pytest.approx((organ + 0.25) / 2)
    assert summary["aggregates"]["2"]["n_penalised"] == 3
    assert (summary["surface"], summary["labels"], summary["missing"]) == (
        "surfel",
        {"1": "organ", "2": "lesion"},
        ["d"],
    )
    assert {"Dice", "HD95", "NSD", "boundary", "penalised", "empty"} <= summary["definitions"].keys()


def test_table_of_cases_has_a_row_for_each_case_and_class(report: Report, tmp_path: Path) -> None:
    report.save(tmp_path)
    rows = list(csv.DictReader((tmp_path / "cases.csv").open()))
    assert [(row["case"], row["class"]) for row in rows[:3]] == [("a", "organ"), ("a", "lesion"), ("b", "organ")]
    assert (rows[3]["outcome"], float(rows[3]["dice"])) == ("missed", 0)


def test_page_needs_no_network_and_escapes_names(report: Report, tmp_path: Path) -> None:
    odd = replace(report.results[0].files, id="<script>alert(1)</script>")
    report = replace(report, results=(replace(report.results[0], files=odd), *report.results[1:]))
    page = report.save(tmp_path).read_text()
    assert (tmp_path / "overlay.png").read_bytes().startswith(b"\x89PNG")
    assert "://" not in page  # "http" may occur in a picture's base64
    assert "<script>" not in page
    assert page.count("data:image/png;base64,") == 5
    for text in ("No prediction, counted as worst (1): d", "stranger.nii.gz", "33.3 %", "organ", "surface-distance"):
        assert text in page


def test_console_table_names_classes_and_what_is_missing(report: Report) -> None:
    console = Console(width=80, record=True)
    report.print(console)
    text = console.export_text()
    for part in ("organ", "lesion", "found 1/3", "0.250±0.50", "No prediction, counted as worst (1): d"):
        assert part in text
    assert "…" not in text  # nothing is cut off on a terminal of 80 columns


def test_dataset_folder_gives_its_test_labels_and_images(folders: tuple[Path, Path]) -> None:
    predictions, references = folders
    for part in ("Ts", "Tr"):
        for name in ("a", "b"):
            write_labels(references.parent / f"images{part}" / f"{name}{part}_0000.nii.gz", brick(), GRID)
            write_labels(references.parent / f"labels{part}" / f"{name}{part}.nii.gz", brick(), GRID)
    write_labels(predictions / "aTr.nii.gz", brick(), GRID)
    assert [case.id for case in pair_folders(predictions, references.parent).cases] == ["aTr", "bTr"]
    write_labels(predictions / "aTs.nii.gz", brick(), GRID)
    cases = {case.id: case for case in pair_folders(predictions, references.parent).cases}
    assert cases["aTs"].image == references.parent / "imagesTs" / "aTs_0000.nii.gz"


def test_regions_and_ignore_label_come_from_the_dataset(folders: tuple[Path, Path]) -> None:
    predictions, references = folders
    labels = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}
    description = {"channel_names": {"0": "MRI"}, "labels": labels, "regions_class_order": [1, 2]}
    (references.parent / "dataset.json").write_text(json.dumps(description))
    report = evaluate_folders(predictions, references, metrics=["dice"], progress=False)
    assert report.settings.ignore_label == 3
    assert list(report.summary()["mean"]) == ["(1, 2)", "2"]
    assert report.results[2].scores["whole"]["dice"] == pytest.approx(2 * 64 / (64 + 64 + 48))


def test_labels_are_found_in_the_references_where_nothing_names_them(folders: tuple[Path, Path]) -> None:
    predictions, references = folders
    (references.parent / "dataset.json").unlink()
    assert list(evaluate_folders(predictions, references, progress=False).settings.classes) == ["1", "2"]


def test_processes_give_the_same_report(report: Report, folders: tuple[Path, Path]) -> None:
    assert evaluate_folders(*folders, workers=2, progress=False).summary() == report.summary()


def test_tolerance_by_class_name(folders: tuple[Path, Path]) -> None:
    report = evaluate_folders(*folders, tolerance={"organ": 2.0, "lesion": 0.5}, progress=False)
    assert report.results[1].scores["organ"]["nsd"] == 1.0
    assert report.summary()["tolerance_mm"] == {"1": 2.0, "2": 0.5}


def test_resampled_prediction_on_a_finer_grid(folders: tuple[Path, Path]) -> None:
    predictions, references = folders
    fine = Geometry((20, 12, 14), np.diag([1.0, 1, 1, 1]) + np.outer([1, 0, 0, 0], [0, 0, 0, -0.5]))
    write_labels(predictions / "a.nii.gz", brick().repeat(2, axis=0), fine)
    report = evaluate_folders(predictions, references, resample="nearest", progress=False)
    assert report.results[0].scores["organ"]["dice"] == 1.0
    assert report.summary()["resample"] == "nearest"


def test_flat_images_are_evaluated_and_drawn(tmp_path: Path) -> None:
    grid = Geometry((16, 18), np.eye(4))
    labels = np.zeros((16, 18), np.uint8)
    labels[4:10, 5:11] = 1
    write_labels(tmp_path / "r" / "x.png", labels, grid)
    write_labels(tmp_path / "p" / "x.png", np.roll(labels, 1, 0), grid)
    report = evaluate_folders(tmp_path / "p", tmp_path / "r", tmp_path / "out", progress=False)
    assert report.results[0].scores["1"]["hausdorff_distance_95"] == pytest.approx(1.0)
    assert (tmp_path / "out" / "report.html").exists()
    assert [report.unit(name) for name in ("hausdorff_distance_95", "volume_ml")] == ["px", "1000 px"]
    known = evaluate_folders(tmp_path / "p", tmp_path / "r", pixel_size=0.25, progress=False)
    assert known.results[0].scores["1"]["hausdorff_distance_95"] == pytest.approx(0.25)
    assert [known.unit(name) for name in ("hausdorff_distance_95", "volume_ml")] == ["mm", "1000 mm²"]
    assert known.summary()["pixel_size_mm"] == 0.25


@pytest.mark.parametrize(("size", "problem"), [(0.7, "this is a volume"), (0, "pixel_size is 0"), (-1.0, "above 0")])
def test_a_pixel_size_that_cannot_be(folders: tuple[Path, Path], size: float, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        evaluate_folders(*folders, pixel_size=size, progress=False)


def test_command_returns_6_while_predictions_are_missing(folders: tuple[Path, Path], tmp_path: Path) -> None:
    predictions, references = folders
    settings = {"predictions": str(predictions), "references": str(references), "output": None, "labels": None}
    assert evaluate_command(settings) == 6
    assert (predictions / "evaluation" / "report.html").exists()
    write_labels(predictions / "d.nii.gz", brick(), GRID)
    assert evaluate_command({**settings, "output": str(tmp_path / "out")}) == 0


def test_evaluator_works_on_cases_of_any_source(folders: tuple[Path, Path]) -> None:
    cases = pair_folders(*folders).cases[:1]
    report = Evaluator([1], metrics=["dice"], known=frozenset({2}), progress=False).evaluate(cases)
    assert report.results[0].scores["1"]["dice"] == 1.0


@pytest.mark.realdata
def test_real_references_against_themselves_are_perfect(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "Dataset004_Hippocampus" / "labelsTr"
    for path in sorted(source.glob("*.nii.gz"))[:2]:
        labels = read_labels(path)
        write_labels(tmp_path / "p" / path.name, labels.array[0], labels.geometry)
        write_labels(tmp_path / "r" / path.name, labels.array[0], labels.geometry)
    report = evaluate_folders(tmp_path / "p", tmp_path / "r", labels={"Anterior": 1, "Posterior": 2}, progress=False)
    for entry in report.aggregates.values():
        assert entry["metrics"]["dice"]["mean"] == 1
        assert entry["metrics"]["hausdorff_distance_95"]["mean"] == 0
