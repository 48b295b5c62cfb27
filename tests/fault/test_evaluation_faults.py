"""Bad input of the evaluator: one line each with the right exit code, or a skipped case that is listed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from medseg.errors import BadDataset, BadGeometry, BadLabels, MedsegError, ResourceError, UnreadableFile, UsageError
from medseg.evaluation import evaluate_command, evaluate_folders
from medseg.io import Geometry, Volume, write_labels, write_volume

GRID = Geometry((6, 6, 6), np.eye(4))
LABELS = np.zeros((6, 6, 6), np.uint8)
LABELS[1:4, 1:4, 1:4] = 1


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for folder in ("p", "r"):
        for name in ("good", "bad"):
            write_labels(tmp_path / folder / f"{name}.nii.gz", LABELS, GRID)
    return tmp_path / "p", tmp_path / "r"


def refusal(folders: tuple[Path, Path], kind: type[MedsegError], **settings: object) -> str:
    with pytest.raises(kind) as refused:
        evaluate_folders(*folders, folders[0].parent / "out", progress=False, **settings)
    assert not (folders[0].parent / "out").exists()
    line = str(refused.value)
    assert "\n" not in line
    return line


def shifted(path: Path) -> None:
    affine = np.eye(4)
    affine[0, 3] = 7.0
    write_labels(path, LABELS, Geometry((6, 6, 6), affine))


def smaller(path: Path) -> None:
    write_labels(path, LABELS[:5], Geometry((5, 6, 6), np.eye(4)))


def soft(path: Path) -> None:
    write_volume(path, Volume((LABELS * 0.4)[None].astype(np.float32), GRID))


def unknown(path: Path) -> None:
    write_labels(path, LABELS * 5, GRID)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


FAULTS = [
    (shifted, BadGeometry, ("origin (7, 0, 0)", "origin (0, 0, 0)", "resample=nearest")),
    (smaller, BadGeometry, ("5x6x6", "6x6x6")),
    (soft, BadLabels, ("0.4",)),
    (unknown, BadLabels, ("unknown label values 5", "known: 0, 1")),
    (truncated, UnreadableFile, ()),
]


@pytest.mark.parametrize(("fault", "kind", "says"), FAULTS)
def test_bad_prediction_is_refused_by_name(fault, kind, says, folders) -> None:
    fault(folders[0] / "bad.nii.gz")
    line = refusal(folders, kind)
    for part in ("case bad", "bad.nii.gz", *says):
        assert part in line


@pytest.mark.parametrize(("fault", "workers"), [*((fault, 1) for fault, *_ in FAULTS), (soft, 2)])
def test_skipped_case_is_listed_and_in_no_mean(fault, workers, folders, tmp_path) -> None:
    fault(folders[0] / "bad.nii.gz")
    settings = {"predictions": folders[0], "references": folders[1], "output": tmp_path / "out", "on_error": "skip"}
    assert evaluate_command({**settings, "workers": workers}) == 6
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [case["case"] for case in summary["skipped"]] == ["bad"]
    assert summary["aggregates"]["1"]["n_cases"] == 1
    assert "Skipped, in no mean (1): bad" in (tmp_path / "out" / "report.html").read_text()


def test_all_cases_bad_is_refused_even_when_skipping(folders) -> None:
    for name in ("good", "bad"):
        unknown(folders[0] / f"{name}.nii.gz")
    refusal(folders, BadLabels, on_error="skip")


def test_unknown_value_in_a_reference_is_refused(folders) -> None:
    unknown(folders[1] / "bad.nii.gz")
    assert "unknown label values 5" in refusal(folders, BadLabels, labels=[1])


@pytest.mark.parametrize("side", [0, 1])
def test_missing_or_empty_folder(side: int, folders, tmp_path) -> None:
    given = list(folders)
    given[side] = tmp_path / "nowhere"
    assert "no such folder" in refusal(tuple(given), BadDataset)
    given[side].mkdir()
    assert "no label maps" in refusal(tuple(given), BadDataset)


def test_folders_of_different_cases(folders) -> None:
    for name in ("good", "bad"):
        (folders[0] / f"{name}.nii.gz").rename(folders[0] / f"pred_{name}.nii.gz")
    assert "named like" in refusal(folders, BadDataset)


def test_two_files_of_one_case(folders) -> None:
    write_labels(folders[0] / "bad.mha", LABELS, GRID)
    assert "bad.mha and bad.nii.gz" in refusal(folders, BadDataset)


def test_references_without_any_label(folders) -> None:
    for name in ("good", "bad"):
        write_labels(folders[1] / f"{name}.nii.gz", 0 * LABELS, GRID)
    assert "labels=" in refusal(folders, BadLabels)


def test_dataset_json_that_is_broken(folders) -> None:
    (folders[1] / "dataset.json").write_text("{")
    assert "line 1" in refusal(folders, UnreadableFile)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"metrics": ["dise"]}, "did you mean 'dice'"),
        ({"surface": "voxels"}, "did you mean 'voxel'"),
        ({"on_error": "skipp"}, "did you mean 'skip'"),
        ({"resample": "linear"}, "unknown resample 'linear'"),
        ({"tolerance": {"liver": 1.0}}, "none for class '1'"),
    ],
)
def test_wrong_setting_names_the_right_one(settings: dict, says: str, folders) -> None:
    assert says in refusal(folders, UsageError, **settings)


def test_command_without_folders() -> None:
    with pytest.raises(UsageError, match="references is not set"):
        evaluate_command({"predictions": "p", "references": None})


def test_output_that_cannot_be_written(folders, tmp_path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResourceError):
        evaluate_folders(*folders, tmp_path / "file" / "out", progress=False)
    assert (tmp_path / "file").read_text() == "in the way"
