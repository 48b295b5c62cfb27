"""The data doctor: every fault is found, all at once, and a repaired copy passes the check."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from medseg.data.check import check_command, check_dataset
from medseg.data.dataset import SegmentationDataset, open_dataset
from medseg.data.duplicates import ALIKE, thumbnail
from medseg.data.findings import Finding, Findings
from medseg.data.landmark_files import read_landmarks
from medseg.errors import UsageError
from medseg.io import Geometry, read_json, read_labels, read_volume, write_json, write_labels

SIZE = (12, 10, 8)
Change = Callable[[Path], None]


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine), path)


def scan(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Smooth random image, as unlike the others as scans are, and a label map with all classes."""
    from scipy.ndimage import gaussian_filter

    image = gaussian_filter(np.random.default_rng(number).normal(size=SIZE), 1.5).astype(np.float32)
    labels = np.zeros(SIZE, np.uint8)
    labels[2:4, 3:6, 3:6], labels[8:10, 3:6, 3:6] = 1, 2  # RAS+: the first axis grows to the right
    return image, labels


@pytest.fixture
def root(tmp_path) -> Path:
    folder = tmp_path / "Dataset009_Test"
    for number in range(6):
        image, labels = scan(number)
        save(folder / f"imagesTr/c{number}_0000.nii.gz", image)
        save(folder / f"labelsTr/c{number}.nii.gz", labels)
    names = {"background": 0, "kidney_left": 1, "kidney_right": 2}
    description = {"channel_names": {"0": "MR"}, "labels": names, "numTraining": 6, "file_ending": ".nii.gz"}
    write_json(folder / "dataset.json", description)
    return folder


def check(root: Path, **arguments: object) -> Findings:
    return check_dataset(open_dataset(root, strict=False), workers=0, progress=False, **arguments)


def image_path(root: Path, case: int) -> Path:
    return root / f"imagesTr/c{case}_0000.nii.gz"


def label_path(root: Path, case: int) -> Path:
    return root / f"labelsTr/c{case}.nii.gz"


def describe(root: Path, **fields: object) -> None:
    write_json(root / "dataset.json", read_json(root / "dataset.json") | fields)


def shifted(voxels: float) -> np.ndarray:
    affine = np.eye(4)
    affine[0, 3] = voxels
    return affine


def test_a_clean_dataset_has_no_findings(root):
    findings = check(root)
    assert findings.findings == ()
    assert findings.summary == "Dataset009_Test: 6 cases, no errors, no warnings, no notes."


def truncate(root: Path) -> None:
    path = image_path(root, 1)
    path.write_bytes(path.read_bytes()[:-200])


def spoil_label(values: float, root: Path) -> None:
    labels = scan(1)[1].astype(np.float32)
    labels[labels == 2] = values
    save(label_path(root, 1), labels)


def spoil_image(value: float, root: Path) -> None:
    image = scan(1)[0]
    image[3, 3, 3] = value
    save(image_path(root, 1), image)


def second_image(root: Path, case: int, change: Callable[[np.ndarray], np.ndarray]) -> None:
    save(image_path(root, case), np.ascontiguousarray(change(scan(0)[0])))


def reoriented(root: Path) -> None:
    """Case 1 becomes case 0, stored from right to left."""
    for array, path in zip(scan(0), (image_path(root, 1), label_path(root, 1)), strict=True):
        save(path, np.ascontiguousarray(array[::-1]), np.diag([-1, 1, 1, 1]))


def positive(root: Path) -> None:
    for number in range(6):
        save(image_path(root, number), np.abs(scan(number)[0]))


FAULTS: dict[str, tuple[Change, str, str]] = {
    "truncated": (truncate, "error", "truncated|damaged|ends"),
    "missing label": (
        lambda r: label_path(r, 1).rename(r / "labelsTr/c11.nii.gz"),
        "warning",
        "did you mean 'c11.nii.gz'",
    ),
    "NaN": (lambda r: spoil_image(np.nan, r), "error", "1 of 960 voxels are NaN"),
    "infinite": (lambda r: spoil_image(np.inf, r), "error", "1 of 960 voxels are NaN or infinite"),
    "constant": (lambda r: save(image_path(r, 1), np.ones(SIZE, np.float32)), "warning", "all voxels have the same"),
    "interpolated": (lambda r: spoil_label(1.6, r), "error", r"not integers, e\.g\. 1\.6"),
    "nearly whole": (lambda r: spoil_label(1.98, r), "error", r"not integers, e\.g\. 1\.98"),
    "out of range": (lambda r: spoil_label(255, r), "error", r"255 \(18 voxels\) are not in the dataset"),
    "no foreground": (lambda r: save(label_path(r, 1), np.zeros(SIZE, np.uint8)), "warning", "no foreground"),
    "shape": (lambda r: save(label_path(r, 1), scan(1)[1][:-1]), "error", "11x10x8 voxels"),
    "spacing": (lambda r: save(label_path(r, 1), scan(1)[1], np.diag([1, 1, 1.5, 1])), "error", "1x1x1.5 mm"),
    "flip": (lambda r: save(label_path(r, 1), scan(1)[1], np.diag([-1, 1, 1, 1])), "error", "axes LAS"),
    "large shift": (lambda r: save(label_path(r, 1), scan(1)[1], shifted(3)), "error", "3 voxels apart"),
    "half a voxel": (lambda r: save(label_path(r, 1), scan(1)[1], shifted(0.6)), "error", "0.6 voxels apart"),
    "sub-voxel": (lambda r: save(label_path(r, 1), scan(1)[1], shifted(0.3)), "note", "0.3 voxels apart"),
    "channels": (lambda r: save(image_path(r, 1), np.ones((*SIZE, 2), np.float32)), "error", "has 2 channels"),
    "orphan label": (lambda r: image_path(r, 1).unlink(), "warning", "label without an image"),
    "count": (lambda r: describe(r, numTraining=7), "warning", "numTraining is 7, but there are 6"),
    "absent class": (
        lambda r: describe(r, labels={"background": 0, "kidney_left": 1, "kidney_right": 2, "tumour": 3}),
        "warning",
        r"'tumour' \(3\) occurs in no case",
    ),
    "swapped everywhere": (
        lambda r: describe(r, labels={"background": 0, "kidney_left": 2, "kidney_right": 1}),
        "warning",
        "in all 6 cases 'kidney_left' lies to the right",
    ),
    "swapped once": (
        lambda r: save(label_path(r, 1), np.ascontiguousarray(scan(1)[1][::-1])),
        "warning",
        "unlike in 5 cases",
    ),
    "exact duplicate": (lambda r: second_image(r, 1, lambda a: a), "error", "exactly the voxels of c1: fold . trains"),
    "reoriented duplicate": (lambda r: reoriented(r), "error", "exactly the voxels of c1"),
    "near duplicate": (lambda r: second_image(r, 1, lambda a: 3 * a + 7), "warning", "looks like .* c1: fold . trains"),
    "unknown fold": (
        lambda r: write_json(r / "splits_final.json", [{"train": ["c0"], "val": ["zz"]}]),
        "error",
        "zz are not in the dataset",
    ),
    "patient leak": (
        lambda r: (r / "metadata.csv").write_text("case,patient\n" + "".join(f"c{n},p\n" for n in range(6))),
        "error",
        "trains and validates on the same",
    ),
    "CT by another name": (
        lambda r: [save(image_path(r, n), scan(n)[0] * 10 - 1000) for n in range(6)],
        "note",
        "as CT does, but is not called CT",
    ),
    "not CT": (lambda r: describe(r, channel_names={"0": "CT"}) or positive(r), "warning", "never goes below"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found(root, fault):
    change, severity, message = FAULTS[fault]
    change(root)
    findings = check(root).findings
    matching = [f for f in findings if re.search(message, f.problem)]
    assert len(matching) >= 1, findings
    assert matching[0].severity == severity
    if fault not in ("spacing", "flip", "shape", "unknown fold", "patient leak", "orphan label"):
        assert all(f.severity != "error" for f in findings if f not in matching), findings


def test_spacing_outlier(root):
    for array, path in zip(scan(1), (image_path(root, 1), label_path(root, 1)), strict=True):
        save(path, array, np.diag([1, 1, 4, 1]))
    (finding,) = check(root).findings
    assert (finding.case, finding.severity) == ("c1", "warning")
    assert "1 x 1 x 4 mm" in finding.problem


def test_channels_on_different_grids(root):
    for number in range(6):
        save(root / f"imagesTr/c{number}_0001.nii.gz", scan(number + 50)[0], shifted(2) if number == 3 else None)
    describe(root, channel_names={"0": "T1", "1": "T2"})
    (finding,) = check(root).findings
    assert finding.case == "c3"
    assert finding.file == root / "imagesTr/c3_0001.nii.gz"
    assert "another grid than c3_0000.nii.gz" in finding.problem


def test_a_missing_channel(root):
    save(root / "imagesTr/c0_0001.nii.gz", scan(0)[0])
    describe(root, channel_names={"0": "T1", "1": "T2"})
    missing = [finding for finding in check(root).findings if "file is missing" in finding.problem]
    assert [finding.case for finding in missing] == ["c1", "c2", "c3", "c4", "c5"]


def test_training_and_test(root):
    shutil.copytree(root / "imagesTr", root / "imagesTs")
    for number in range(1, 6):
        (root / f"imagesTs/c{number}_0000.nii.gz").unlink()
    (root / "imagesTs/c0_0000.nii.gz").rename(root / "imagesTs/t_0000.nii.gz")
    (root / "metadata.csv").write_text("case,patient\nc3,p1\nt,p1\n")
    problems = [finding.problem for finding in check(root).findings]
    assert any("one is a training case, the other a test case" in problem for problem in problems)
    assert any("patient p1 of this test case is also that of training case c3" in problem for problem in problems)


def test_duplicates_within_a_group_are_only_a_warning(root):
    second_image(root, 1, lambda a: a)
    (root / "metadata.csv").write_text("case,patient\n" + "".join(f"c{n},p{max(n, 1)}\n" for n in range(6)))
    (finding,) = check(root, split={"group_by": "patient", "folds": 5}).findings
    assert (finding.severity, finding.case) == ("warning", "c0")


def break_many(root: Path) -> None:
    spoil_image(np.nan, root)
    save(label_path(root, 2), scan(2)[1] + np.float32(0.01))
    save(label_path(root, 3), scan(3)[1], shifted(0.5))
    save(label_path(root, 4), scan(4)[1], shifted(3))
    write_json(root / "splits_final.json", [{"train": ["c0", "c1", "c2", "c3"], "val": ["c4", "c5"]}])


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_the_repaired_copy_is_whole_and_clean(root, tmp_path):
    break_many(root)
    before = contents(root)
    findings = check(root, fix=tmp_path / "new")
    assert findings.left_out == ("c4",)
    assert "without 1 case beyond repair (c4)" in findings.summary
    assert contents(root) == before
    repaired = open_dataset(tmp_path / "new")
    assert [case.id for case in repaired.training] == ["c0", "c1", "c2", "c3", "c5"]
    assert check(tmp_path / "new").count("error") == 0
    assert read_volume(image_path(tmp_path / "new", 1)).array[0, 3, 3, 3] == 0
    assert np.array_equal(read_labels(label_path(tmp_path / "new", 2)).array[0], scan(2)[1])
    assert np.array_equal(read_labels(label_path(tmp_path / "new", 3)).affine, np.eye(4))
    assert contents(tmp_path / "new")["labelsTr/c5.nii.gz"] == before["labelsTr/c5.nii.gz"]
    assert read_json(tmp_path / "new/dataset.json")["numTraining"] == 5
    assert read_json(tmp_path / "new/splits_final.json")[0]["val"] == ["c5"]


def test_a_decathlon_list_loses_what_is_left_out(root, tmp_path):
    paths = [{"image": f"./imagesTr/c{n}_0000.nii.gz", "label": f"./labelsTr/c{n}.nii.gz"} for n in range(6)]
    describe(root, modality={"0": "MR"}, training=paths, test=[])
    truncate(root)
    check(root, fix=tmp_path / "new")
    assert read_json(tmp_path / "new/dataset.json")["training"] == [paths[n] for n in (0, 2, 3, 4, 5)]
    assert len(open_dataset(tmp_path / "new").training) == 5


def pictures(root: Path) -> list[str]:
    """Six pictures with masks, of which c1's is truncated."""
    for part in ("images", "masks", "landmarks"):
        (root / part).mkdir(parents=True)
    for n in range(6):
        for part, array in (("images", np.full((8, 9), 40 * n, np.uint8)), ("masks", np.eye(8, 9, n, dtype=np.uint8))):
            Image.fromarray(array).save(root / part / f"c{n}.png")
    (root / "images/c1.png").write_bytes((root / "images/c1.png").read_bytes()[:40])
    return [f"c{n}" for n in (0, 2, 3, 4, 5)]


def test_landmarks_go_along_with_a_copy(tmp_path):
    left = pictures(tmp_path / "data")
    write_json(tmp_path / "data/landmarks/landmarks.json", {"structures": {"ring": 3}})
    for n in range(3):
        np.save(tmp_path / f"data/landmarks/c{n}.npy", np.full((3, 2), 4.0))
    rows = [f"c{n},{point},4,{point}" for n in (3, 4, 5) for point in range(3)]
    (tmp_path / "data/landmarks.csv").write_text("\n".join(["case,point,x,y", *rows]))
    check(tmp_path / "data", fix=tmp_path / "new")
    copied = open_dataset(tmp_path / "new")
    assert [case.id for case in copied.training] == left
    assert copied.landmarks == open_dataset(tmp_path / "data").landmarks
    assert all(read_landmarks(case.landmarks, case.id).shape == (3, 2) for case in copied.training)


def test_a_list_loses_the_rows_of_what_is_left_out(tmp_path):
    left = pictures(tmp_path / "data")
    rows = [f"images/c{n}.png,masks/c{n}.png,p{n}" for n in range(6)]
    (tmp_path / "data/cases.csv").write_text("\n".join(["image,mask,patient", *rows]))
    check(tmp_path / "data/cases.csv", fix=tmp_path / "new")
    assert [case.id for case in open_dataset(tmp_path / "new/cases.csv").training] == left


def test_a_copy_never_overwrites(root, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(UsageError, match="not empty"):
        check(root, fix=tmp_path / "full")
    with pytest.raises(UsageError, match="never changed"):
        check(root, fix=root / "inside")


def test_command_prints_one_table_and_returns_3(root, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert check_command({"data": {"path": str(root)}}) == 0
    break_many(root)
    assert check_command({"data": {"path": str(root), "folds": 5, "group_by": None}, "fix": False}) == 3
    shown = capsys.readouterr().out
    assert shown.count("problem") == 1
    for case in ("c1", "c2", "c3", "c4"):
        assert case in shown
    assert "6 cases, 3 errors, no warnings, 1 note" in shown


def test_command_writes_json_and_the_copy_beside(root, capsys):
    break_many(root)
    assert check_command({"data": {"path": str(root)}, "json": True, "fix": True, "output": None}) == 3
    report = json.loads(capsys.readouterr().out)
    assert (report["cases"], report["errors"], report["notes"]) == (6, 3, 1)
    assert report["findings"][0]["file"] == "imagesTr/c1_0000.nii.gz"
    assert report["repaired"] == str(root.with_name("Dataset009_Test_repaired"))
    with pytest.raises(UsageError, match="fix=true"):
        check_command({"data": {"path": str(root)}, "output": "somewhere"})


def test_workers_give_the_same(root):
    break_many(root)
    dataset = open_dataset(root, strict=False)
    in_workers = check_dataset(dataset, workers=1, progress=False)
    assert in_workers == check(root)


def test_pictures(tmp_path):
    geometry = Geometry((20, 24), np.eye(4))
    for number in range(6):
        colours = np.random.default_rng(number).integers(0, 255, (20, 24, 3), dtype=np.uint8)
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "masks").mkdir(exist_ok=True)
        from PIL import Image

        Image.fromarray(colours).save(tmp_path / f"images/{number}.png")
        write_labels(tmp_path / f"masks/{number}.png", (colours[..., 0] > 100).astype(np.uint8), geometry)
    assert check(tmp_path).findings == ()
    write_labels(tmp_path / "masks/3.png", np.zeros((19, 24), np.uint8), Geometry((19, 24), np.eye(4)))
    assert {finding.case for finding in check(tmp_path).findings} == {"3"}


@pytest.mark.parametrize("dims", [2, 3])
def test_thumbnails_ignore_contrast_and_resolution(dims):
    from scipy.ndimage import gaussian_filter, zoom

    rng = np.random.default_rng(0)
    image = np.stack([gaussian_filter(rng.normal(size=(50, 44, 40)[:dims]), 3) for _ in range(2)])
    other = np.stack([gaussian_filter(rng.normal(size=(50, 44, 40)[:dims]), 3) for _ in range(2)])
    small = thumbnail(image)
    assert small @ small == pytest.approx(1, abs=1e-5)
    assert small @ thumbnail(image * 5 - 3) == pytest.approx(1, abs=1e-4)
    assert small @ thumbnail(-image) == pytest.approx(-1, abs=1e-5)
    assert small @ thumbnail(zoom(image, (1, *[0.7] * dims), order=1)) > ALIKE[dims]
    assert small @ thumbnail(image + rng.normal(0, image.std() / 2, image.shape)) > ALIKE[dims] - 0.02
    assert abs(small @ thumbnail(other)) < 0.6
    assert not thumbnail(np.full_like(image, 3.7)).any()


def test_summary_counts_are_english():
    found = tuple(Finding(severity, "x") for severity in ("error", "warning", "warning"))
    assert Findings("d", Path(), 1, found).summary == "d: 1 case, 1 error, 2 warnings, no notes."


def test_no_torch_is_imported():
    code = "import sys, medseg.data.check, medseg.data.phantom; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["Dataset004_Hippocampus", "Dataset038_CHAOS_MR"])
def test_real_datasets_are_clean(name, shared_data):
    """Also the calibration of near-duplicates: 19,900 pairs of different hippocampus scans, none taken for one."""
    dataset: SegmentationDataset = open_dataset(shared_data / name)
    assert check_dataset(dataset, workers=0, progress=False).findings == ()
