"""What can be evaluated: two files, a table of pairs, other label values, probabilities; groups and patients."""

import json
import re

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medseg.cli import main
from medseg.errors import BadDataset, BadGeometry, BadLabels, BadVoxels, UsageError
from medseg.evaluation import Evaluator, evaluate_folders
from medseg.io import Geometry, Volume, write_labels, write_volume


def save(path, array, dtype=np.uint8):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.asarray(array).astype(dtype), np.eye(4)), path)
    return path


def cube(start=2, value=1):
    labels = np.zeros((12, 12, 12), np.uint8)
    labels[start : start + 6, 2:8, 2:8] = value
    return labels


def saved_mask(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.repeat(np.asarray(values, np.uint8), 20).reshape(-1, 20)).save(path)
    return path


@pytest.mark.parametrize("form", ["dataset", "folder", "file", "table"])
@pytest.mark.parametrize(
    ("stored", "choice"),
    [((0, 3, 1, 7, 0, 2) * 4, {"instances": True}), ((4, 250, 255, 140, 90, 128) * 4, {"mask_threshold": 128})],
)
def test_references_that_are_one_class_by_choice(tmp_path, form, stored, choice):
    classes = np.array(stored) >= choice.get("mask_threshold", 1)
    for i in range(2):
        saved_mask(tmp_path / "data/images" / f"c{i}.png", range(24))
        saved_mask(tmp_path / "data/instances" / f"c{i}.png", stored)
        saved_mask(tmp_path / "out" / f"c{i}.png", classes)
    (tmp_path / "pairs.csv").write_text("prediction,reference\nout/c0.png,data/instances/c0.png\n")
    given = {
        "dataset": (tmp_path / "out", tmp_path / "data"),
        "folder": (tmp_path / "out", tmp_path / "data/instances"),
        "file": (tmp_path / "out/c0.png", tmp_path / "data/instances/c0.png"),
        "table": (tmp_path / "pairs.csv", None),
    }[form]
    report = evaluate_folders(*given, **choice)
    assert report.summary()["foreground_mean"]["Dice"] == 1
    words = [f"predictions={given[0]}", f"references={given[1]}" if given[1] else ""]
    words += [f"{key}={value}" for key, value in choice.items()] + [f"output={tmp_path / 'report'}"]
    assert evaluate(*filter(None, words)) == 0
    assert json.loads((tmp_path / "report/summary.json").read_text())["foreground_mean"]["Dice"] == 1


@pytest.fixture
def folders(tmp_path):
    for i in range(6):
        save(tmp_path / "ref" / f"c{i}.nii.gz", cube())
        save(tmp_path / "pred" / f"c{i}.nii.gz", cube(2 + i % 3))
    return tmp_path


def evaluate(*words):
    with pytest.raises(SystemExit) as end:
        main(["evaluate", *words])
    return end.value.code


def test_two_files(folders):
    report = evaluate_folders(folders / "pred" / "c1.nii.gz", folders / "ref" / "c1.nii.gz", progress=False)
    assert [result.files.id for result in report.results] == ["c1"]
    assert report.results[0].scores["1"]["dice"] == pytest.approx(5 / 6)
    with pytest.raises(BadDataset, match="two files or two folders"):
        evaluate_folders(folders / "pred" / "c1.nii.gz", folders / "ref")


def test_a_table_of_pairs_with_its_patients(folders):
    rows = [
        {
            "prediction": f"pred/c{i}.nii.gz",
            "reference": f"ref/c{i}.nii.gz",
            "patient": f"p{i // 2}",
            "site": "AB"[i % 2],
        }
        for i in range(6)
    ]
    rows[5]["prediction"] = "pred/missing.nii.gz"
    pd.DataFrame(rows).to_csv(folders / "pairs.csv", index=False)
    words = [f"predictions={folders / 'pairs.csv'}", "cluster=patient", "stratify=site", f"output={folders / 'out'}"]
    assert evaluate(*words) == 6
    summary = json.loads((folders / "out" / "summary.json").read_text())
    assert summary["missing"] == ["c5"]
    assert set(summary["strata"]) == {"A", "B"}
    assert summary["strata"]["A"]["1"]["n_cases"] == 3
    dice = summary["aggregates"]["1"]["metrics"]["Dice"]
    assert dice["low"] <= dice["mean"] <= dice["high"]
    assert summary["intervals"]["clusters"] == 3
    page = (folders / "out" / "report.html").read_text()
    assert "whole clusters drawn" in page


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("reference\nref/c0.nii.gz\n", "no column 'prediction'"),
        ("prediction,reference\n", "has no rows"),
        ("prediction,reference\npred/c0.nii.gz,ref/x.nii.gz\npred/c0.nii.gz,ref/y.nii.gz\n", r"2 file\(s\).*x.*y"),
        ("prediction,reference\na,ref/c0.nii.gz\nb,ref/c0.nii.gz\n", "occur twice: c0"),
    ],
)
def test_tables_that_cannot_be_used(folders, table, message):
    (folders / "pairs.csv").write_text(table, encoding="utf-8")
    with pytest.raises(BadDataset, match=message):
        evaluate_folders(folders / "pairs.csv", None)


def test_labels_of_another_tool(folders):
    for i in range(6):
        save(folders / "other" / f"c{i}.nii.gz", cube(2 + i % 3, value=7))
    arguments = {"predictions": folders / "other", "references": folders / "ref", "progress": False}
    with pytest.raises(BadLabels, match="unknown label values 7"):
        evaluate_folders(**arguments)
    mapped = evaluate_folders(**arguments, relabel={7: 1})
    plain = evaluate_folders(folders / "pred", folders / "ref", progress=False)
    assert [r.scores for r in mapped.results] == [r.scores for r in plain.results]
    with pytest.raises(UsageError, match="relabel is"):
        Evaluator([1], relabel={7: "liver"})


def test_probabilities_beside_the_predictions(folders):
    for i in range(6):
        channels = np.stack([1 - cube(), cube()], axis=-1).astype(np.float32)
        save(folders / "pred" / f"c{i}_probabilities.nii.gz", channels, np.float32)
    report = evaluate_folders(folders / "pred", folders / "ref", metrics=["dice", "ece", "brier"], progress=False)
    assert not report.extra
    assert [result.scores["1"]["brier"] for result in report.results] == [0.0] * 6
    (folders / "pred" / "c0_probabilities.nii.gz").unlink()
    with pytest.raises(BadDataset, match=r"case c0, .*expected c0_probabilities.nii.gz beside its prediction"):
        evaluate_folders(folders / "pred", folders / "ref", metrics=["ece"], progress=False)
    listed = evaluate_folders(folders / "pred", folders / "ref", metrics=["ece"], on_error="skip", progress=False)
    assert [case.id for case in listed.skipped] == ["c0"]
    (folders / "pred" / "c0.nii.gz").unlink()  # no prediction at all: the worst value
    report = evaluate_folders(folders / "pred", folders / "ref", metrics=["brier"], progress=False)
    assert report.results[0].scores["1"]["brier"] == 1
    save(folders / "pred" / "c1_probabilities.nii", channels, np.float32)
    with pytest.raises(BadDataset, match=r"c1_probabilities.nii and c1_probabilities.nii.gz are of one case"):
        evaluate_folders(folders / "pred", folders / "ref", metrics=["brier"], progress=False)


def placed(channels, *, flips=(), shift=0.0, spacing=1):
    """The same probabilities (K, *S) in the same place, stored with flipped axes; or moved, or on a finer grid."""
    affine = np.eye(4)
    for axis in flips:
        channels = np.flip(channels, axis + 1)
        affine[axis, 3], affine[axis, axis] = channels.shape[axis + 1] - 1, -1
    affine[0, 3] += shift
    if spacing != 1:
        channels = channels.repeat(2, axis=1)
        affine[0, 0], affine[0, 3] = 0.5, -0.25
    return Volume(np.ascontiguousarray(channels, np.float32), Geometry(channels.shape[1:], affine))


@pytest.mark.parametrize("how", [{"flips": (0,)}, {"flips": (0, 2)}, {"shift": 2.0}, {"spacing": 0.5}])
def test_probabilities_are_matched_by_their_place_not_by_their_shape(tmp_path, how):
    save(tmp_path / "ref" / "a.nii.gz", cube())
    save(tmp_path / "pred" / "a.nii.gz", cube())
    shares = np.stack([1 - cube(), cube()]) * 0.9 + 0.05
    write_volume(tmp_path / "pred" / "a_probabilities.nii.gz", placed(shares, **how))
    settings = {"metrics": ["brier"], "progress": False}
    with pytest.raises(BadGeometry, match=r"case a, .*a_probabilities.nii.gz: .*grids.* set resample=nearest"):
        evaluate_folders(tmp_path / "pred", tmp_path / "ref", **settings)
    report = evaluate_folders(tmp_path / "pred", tmp_path / "ref", resample="nearest", **settings)
    moved = 2 * 2 * 36 * (0.95**2 - 0.05**2) / 12**3 if "shift" in how else 0.0  # two layers on either side are wrong
    edge = 2 * 144 * 0.05**2 / 12**3 if "shift" in how else 0.0  # beyond the image is background for sure
    assert report.results[0].scores["1"]["brier"] == pytest.approx(0.05**2 + moved - edge, abs=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda shares: shares * 10 - 5, r"the probabilities are in -4.5 to 4.5 \(must be 0 to 1"),
        (lambda shares: shares * 0.9, r"of labels \[0, 1\] add up to 0.9 in a voxel \(must be 1\)"),
        (lambda shares: np.concatenate([shares[:1], shares[1:] * 0 + 0.9]), r"add up to 1.85 in a voxel"),
        (
            lambda shares: np.moveaxis(shares, 3, 0),
            "with their channels first.*channels as the last axis",
        ),
        (lambda shares: np.where(shares > 0.5, np.inf, shares), "NaN or infinite"),
    ],
)
def test_what_are_no_probabilities(tmp_path, capsys, change, message):
    save(tmp_path / "ref" / "a.nii.gz", cube())
    save(tmp_path / "pred" / "a.nii.gz", cube())
    shares = np.stack([1 - cube(), cube()]) * 0.9 + 0.05
    file = tmp_path / "pred" / "a_probabilities.nii.gz"
    save(file, np.moveaxis(change(shares), 0, -1), np.float32)
    words = [f"predictions={tmp_path / 'pred'}", f"references={tmp_path / 'ref'}", "metrics=[ece]"]
    assert evaluate(*words, f"output={tmp_path / 'out'}") in (2, 3)
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.search(message, line)
    assert "a_probabilities.nii.gz" in line
    save(file, np.moveaxis(shares, 0, -1), np.float32)
    assert evaluate(*words, f"output={tmp_path / 'out'}") == 0


@pytest.fixture
def rings(tmp_path):
    """Pictures of labels 2 around 1 around 4, and probabilities of the regions that these make up."""
    distance = np.hypot(*(np.mgrid[:24, :30] - np.array([12, 15])[:, None, None]))
    labels = np.select([distance < 3, distance < 6, distance < 9], [4, 1, 2]).astype(np.uint8)
    grid = Geometry(labels.shape, np.eye(4))
    sure = np.array([0.9, 0.8, 0.7], np.float32)[:, None, None]
    regions = np.stack([np.isin(labels, group) for group in ([2, 1, 4], [1, 4], [4])])
    for part in ("ref", "pred"):
        write_labels(tmp_path / part / "a.png", labels, grid)
    shares = np.where(regions, sure, 1 - sure)
    write_volume(tmp_path / "pred" / "a_probabilities.nii.gz", Volume(shares, grid))
    return tmp_path


def brier_of(folder, labels):
    settings = {"labels": labels, "metrics": ["brier"], "known": frozenset({1, 2, 4}), "progress": False}
    (result,) = evaluate_folders(folder / "pred", folder / "ref", **settings).results
    return {name: scores["brier"] for name, scores in result.scores.items()}


def test_channels_of_regions_are_not_taken_for_labels(rings):
    with pytest.raises(
        UsageError, match=r"nothing says what the 3 channels .*labels \[0, 1, 2, 4\].* Fix: set labels="
    ):
        brier_of(rings, [1, 2, 4])
    by_order = {"whole": [2, 1, 4], "core": [1, 4], "inner": 4}
    assert brier_of(rings, by_order) == pytest.approx({"whole": 0.01, "core": 0.04, "inner": 0.09})


def test_predict_says_what_channels_stand_for(rings):
    record = {"cases": {"a": {"file": "a.png", "channels": [[2, 1, 4], [1, 4], [4]]}}}
    (rings / "pred" / "predictions.json").write_text(json.dumps(record))
    shuffled = {"inner": 4, "core": [4, 1], "whole": [1, 2, 4]}
    assert brier_of(rings, shuffled) == pytest.approx({"whole": 0.01, "core": 0.04, "inner": 0.09})
    assert brier_of(rings, [4]) == pytest.approx({"4": 0.09})
    for absent in ([1, 2, 4], {"edges": [1, 2]}):
        with pytest.raises(UsageError, match="no channel of the probabilities is of class"):
            brier_of(rings, absent)


def test_one_sigmoid_channel_of_a_picture(rings):
    file = rings / "pred" / "a_probabilities.nii.gz"
    whole = nib.load(file).slicer[..., :1]
    nib.save(nib.Nifti1Image(np.asarray(whole.dataobj), whole.affine), file)
    assert brier_of(rings, {"whole": [2, 1, 4]}) == pytest.approx({"whole": 0.01})


def test_nan_probabilities_are_refused(folders):
    channels = np.full((12, 12, 12, 2), np.nan)
    for i in range(6):
        save(folders / "pred" / f"c{i}_probabilities.nii.gz", channels, np.float32)
    with pytest.raises(BadVoxels, match=r"case c0.*voxels are NaN"):
        evaluate_folders(folders / "pred", folders / "ref", metrics=["ece"], progress=False)


def test_files_for_papers_and_for_programs(folders):
    report = evaluate_folders(folders / "pred", folders / "ref", folders / "out", progress=False)
    frame = report.frame
    assert list(frame.columns[:4]) == ["case", "class", "outcome", "dice"]
    assert frame["dice"].mean() == pytest.approx(report.aggregates["1"]["metrics"]["dice"]["mean"])
    text = (folders / "out" / "report.md").read_text()
    assert text.startswith("| Class | Dice |")
    assert "6/6" in text
    dice = report.aggregates["1"]["metrics"]["dice"]
    assert f"{dice['mean']:.3f} ({dice['low']:.3f} to {dice['high']:.3f}) / {dice['median']:.3f}" in text
    assert "missed and invented structures at the worst value" in text
    tex = (folders / "out" / "table.tex").read_text()
    assert r"\toprule" in tex
    assert tex.count(r"\\") == 2


def test_a_chosen_rule_for_empty_masks_stands_where_the_default_did(folders):
    rule = {"dice": {"both_empty": "best"}}
    evaluate_folders(folders / "pred", folders / "ref", folders / "out", empty=rule, progress=False)
    for file in ("report.md", "table.tex", "report.html"):
        text = (folders / "out" / file).read_text()
        assert "both empty: best" in text
        assert "structures at the worst value" not in text


def test_latex_survives_odd_names(folders):
    report = evaluate_folders(folders / "pred", folders / "ref", labels={"a_b & 50 %": 1}, progress=False)
    from medseg.evaluation.tables import to_latex

    assert r"a\_b \& 50 \%" in to_latex(report)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["predictions=pred"], 2, "references is not set"),
        (["references=ref"], 2, "exactly one of model and predictions"),
        (["predictions=pred", "references=ref", "cluster=patient"], 2, "metadata=FILE.csv"),
        (["predictions=pred", "references=ref", "confidence=95"], 2, "above 0 and below 1"),
        (["predictions=pred", "references=ref", "empty={both_empty: great}"], 2, "'great'"),
        (["predictions=pred", "references=ref", "metadata=none.csv"], 3, "not a CSV table"),
    ],
)
def test_wrong_words(folders, monkeypatch, capsys, words, code, message):
    monkeypatch.chdir(folders)
    assert evaluate(*words) == code
    assert message in capsys.readouterr().err


def test_a_model_and_a_dataset(threshold_predictor, monkeypatch, tmp_path):
    from medseg.inference import Predictor

    data = tmp_path / "Dataset001_Cubes"
    for name in ("a", "b"):
        save(data / "imagesTr" / f"{name}_0000.nii.gz", cube(), np.float32)
        save(data / "labelsTr" / f"{name}.nii.gz", cube())
    description = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "organ": 1}, "numTraining": 2}
    (data / "dataset.json").write_text(json.dumps({**description, "file_ending": ".nii.gz"}), encoding="utf-8")
    monkeypatch.setattr(Predictor, "from_pretrained", lambda *_, **__: threshold_predictor())
    words = ["model=any", f"references={data}", "metrics=[dice,ece]"]
    assert evaluate(*words, f"output={tmp_path / 'out'}") == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["mean"]["1"]["Dice"] == 1
    assert summary["mean"]["1"]["ECE"] < 0.01
    assert evaluate(*words) == 2
    assert evaluate(*words, "predictions=x") == 2
