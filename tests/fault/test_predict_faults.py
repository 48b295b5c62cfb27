"""What `predict_cases` says when files, disks and settings are bad: one line, the right code, no half file."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from medseg.data.dataset import Case
from medseg.errors import BadVoxels, MedsegError, PartialFailure, ResourceError
from medseg.inference import Predictor, predict_cases
from medseg.inference.inputs import find_cases
from medseg.io import KNOWN_ENDINGS, atomic
from medseg.io.ledger import LEDGER

SHAPE = (9, 10, 8)


def save(path: Path, array: np.ndarray) -> Case:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    return Case(path.name.partition(".")[0], (path,))


def written(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {LEDGER} if folder.exists() else set()


@pytest.fixture
def predictor(threshold_predictor: Callable[..., Predictor]) -> Predictor:
    return threshold_predictor()


@pytest.fixture
def good(tmp_path: Path) -> Case:
    return save(tmp_path / "in" / "good.nii.gz", np.random.default_rng(0).random(SHAPE, np.float32))


def truncated(path: Path) -> Case:
    case = save(path / "in" / "bad.nii.gz", np.ones(SHAPE, np.float32))
    case.images[0].write_bytes(case.images[0].read_bytes()[:-20])
    return case


def no_image(path: Path) -> Case:
    case = save(path / "in" / "bad.nii", np.ones(SHAPE, np.float32))
    case.images[0].write_bytes(b"\0" * 400)
    return case


def nan(path: Path) -> Case:
    array = np.ones(SHAPE, np.float32)
    array[2, 3, 4] = np.nan
    return save(path / "in" / "bad.nii.gz", array)


def two_channels(path: Path) -> Case:
    return save(path / "in" / "bad.nii.gz", np.ones((*SHAPE, 2), np.float32))


def absent(path: Path) -> Case:
    return Case("bad", (path / "in" / "bad.nii.gz",))


def two_grids(path: Path) -> Case:
    one, two = (save(path / "in" / f"bad_{n}.nii", np.ones((8, 8, 8 + n), np.float32)) for n in (0, 1))
    return Case("bad", (*one.images, *two.images))


FAULTS = [
    (truncated, "its gzip stream is truncated"),
    (no_image, "bad.nii: "),
    (nan, "1 of 720 voxels are NaN or infinite"),
    (two_channels, r"3D with 2 channel\(s\) .expected 3D with 1: MR"),
    (absent, "cannot be read: No such file"),
    (two_grids, "is on another grid than bad_0.nii"),
]


@pytest.mark.parametrize(("make", "line"), FAULTS, ids=[make.__name__ for make, _ in FAULTS])
def test_a_bad_case_alone_and_among_others(
    tmp_path: Path, predictor: Predictor, good: Case, make: Callable[[Path], Case], line: str
) -> None:
    bad = make(tmp_path)
    with pytest.raises(MedsegError, match=line) as alone:
        predict_cases(predictor, [bad], tmp_path / "alone", progress=False)
    assert alone.value.exit_code == 3
    assert "case bad" in str(alone.value)
    assert "\n" not in str(alone.value)
    assert written(tmp_path / "alone") == set()
    with pytest.raises(PartialFailure, match="1 of 3 cases failed: bad: ") as among:
        predict_cases(predictor, [good, bad, Case("again", good.images)], tmp_path / "out", progress=False)
    assert among.value.exit_code == 6
    assert written(tmp_path / "out") == {"good.nii.gz", "again.nii.gz"}


def test_nan_as_zero_is_said(tmp_path: Path, predictor: Predictor, caplog: pytest.LogCaptureFixture) -> None:
    file = predict_cases(predictor, [nan(tmp_path)], tmp_path / "out", nan="zero", progress=False)[0]
    assert "bad.nii.gz: 1 NaN or infinite voxels were set to 0" in caplog.text
    labels = np.asarray(nib.load(file).dataobj)
    assert labels[2, 3, 4] == 0
    assert labels.sum() == np.prod(SHAPE) - 1


def test_an_output_that_cannot_be_written_is_told_before_the_work(
    tmp_path: Path, predictor: Predictor, good: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(predictor, "predict_many", lambda *_, **__: pytest.fail("work began"))
    for output in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/medseg")):
        with pytest.raises(ResourceError, match="cannot be written") as error:
            predict_cases(predictor, [good], output, progress=False)
        assert error.value.exit_code == 4


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file of a case named ``large`` can be synced: the moment at which many file systems say that they are full."""
    real = atomic.sync

    def sync(path: Path) -> None:
        if "large" in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path)

    monkeypatch.setattr(atomic, "sync", sync)


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_leaves_no_partial_file_and_the_old_one(tmp_path: Path, predictor: Predictor, good: Case) -> None:
    large, out = Case("large", good.images), tmp_path / "out"
    out.mkdir()
    (out / "large.nii.gz").write_bytes(b"old")
    with pytest.raises(PartialFailure, match="large: cannot be written: No space left on device"):
        predict_cases(predictor, [large, good], out, progress=False)
    assert {path.name for path in out.iterdir()} == {"large.nii.gz", "good.nii.gz"}
    assert (out / "large.nii.gz").read_bytes() == b"old"
    with pytest.raises(ResourceError) as error:
        predict_cases(predictor, [large], tmp_path / "new", probabilities=True, progress=False)
    assert error.value.exit_code == 4
    assert written(tmp_path / "new") == set()


def test_dicom_seg_without_its_package_is_told_before_anything_is_predicted(
    tmp_path: Path, predictor: Predictor, write_series: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_series(tmp_path / "ct", np.zeros((3, 8, 8), np.int16))
    monkeypatch.setitem(__import__("sys").modules, "highdicom", None)
    with pytest.raises(MedsegError, match=r'pip install "medseg\[dicom\]"') as error:
        predict_cases(predictor, [Case("ct", (tmp_path / "ct",))], tmp_path / "out", dicom_seg=True, progress=False)
    assert error.value.exit_code == 2
    assert written(tmp_path / "out") == set()


class Overflowing(nn.Module):
    """Answers with what is not finite where the image is above 2."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = torch.cat([torch.full_like(x, 0.5), x], dim=1)
        return torch.where((x > 2).any(), torch.full_like(logits, self.value), logits)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_an_answer_that_is_not_finite_is_no_segmentation(
    tmp_path: Path, predictor: Predictor, good: Case, value: float
) -> None:
    network = Predictor([replace(predictor.members[0], network=Overflowing(value))])
    array = np.zeros(SHAPE, np.float32)
    array[-1, -1, -1] = 3
    bad = save(tmp_path / "in" / "bad.nii.gz", array)
    with pytest.raises(BadVoxels, match=r"case bad: the network's output is not finite \(it ran in fp32\)"):
        predict_cases(network, [bad], tmp_path / "alone", progress=False)
    with pytest.raises(PartialFailure, match="1 of 2 cases failed: bad: the network's output is not finite"):
        predict_cases(network, [bad, good], tmp_path / "out", progress=False)
    assert written(tmp_path / "out") == {"good.nii.gz"}


def test_files_that_are_no_images_do_not_stop_the_others(tmp_path: Path, predictor: Predictor, good: Case) -> None:
    folder = good.images[0].parent
    for number, ending in enumerate(KNOWN_ENDINGS):
        (folder / f"empty{number}{ending}").write_bytes(b"")
        (folder / f"noise{number}{ending}").write_bytes(np.random.default_rng(number).bytes(500))
        (folder / f"folder{number}{ending}").mkdir()
        (folder / f"nowhere{number}{ending}").symlink_to("nowhere")
        (folder / f"circle{number}{ending}").symlink_to(f"circle{number}{ending}")
        (folder / f"closed{number}{ending}").write_bytes(b"")
        (folder / f"closed{number}{ending}").chmod(0)  # root reads it all the same
    bad = 6 * len(KNOWN_ENDINGS)
    with pytest.raises(PartialFailure, match=rf"{bad} of {bad + 1} cases failed: ") as error:
        predict_cases(predictor, find_cases(folder, 1), tmp_path / "out", progress=False)
    assert error.value.exit_code == 6
    assert written(tmp_path / "out") == {"good.nii.gz"}


def test_a_folder_of_slices_that_cannot_be_listed(tmp_path: Path, write_series: Callable) -> None:
    for name in ("a", "b"):
        write_series(tmp_path / "in" / name, np.zeros((3, 8, 8), np.int16))
    (tmp_path / "in" / "b").chmod(0)
    try:
        assert [case.id for case in find_cases(tmp_path / "in", 1)] == ["a", "b"]
    finally:
        (tmp_path / "in" / "b").chmod(0o755)


def test_a_class_that_dicom_cannot_name_is_told_before_anything_is_predicted(
    tmp_path: Path, threshold_predictor: Callable[..., Predictor], write_series: Callable
) -> None:
    write_series(tmp_path / "ct", np.zeros((3, 8, 8), np.int16))
    predictor, case = threshold_predictor(labels={"background": 0, "left\\right": 1}), Case("ct", (tmp_path / "ct",))
    with pytest.raises(MedsegError, match="cannot be named in a DICOM-SEG") as error:
        predict_cases(predictor, [case], tmp_path / "out", dicom_seg=True, progress=False)
    assert error.value.exit_code == 3
    assert written(tmp_path / "out") == set()


def test_slices_that_allow_no_dicom_seg_still_have_their_labels(
    tmp_path: Path, threshold_predictor: Callable[..., Predictor], write_series: Callable
) -> None:
    def change(ds: object, k: int) -> None:
        del ds.FrameOfReferenceUID  # type: ignore[attr-defined]

    write_series(tmp_path / "ct", np.zeros((3, 8, 8), np.int16), change=change)
    with pytest.raises(MedsegError, match=r"do not allow a DICOM-SEG.*The labels are in .*ct.nii.gz"):
        predict_cases(
            threshold_predictor(), [Case("ct", (tmp_path / "ct",))], tmp_path / "out", dicom_seg=True, progress=False
        )
    assert written(tmp_path / "out") == {"ct.nii.gz"}
