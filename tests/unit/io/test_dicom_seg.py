"""DICOM-SEG read back by highdicom: the same voxels, on the slices that they came from."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medseg.errors import BadGeometry, InputRefused, UsageError
from medseg.io import Geometry, read_geometry, write_dicom_seg

NAMES = {"background": 0, "liver": 3, "tumour": 7}


@pytest.fixture
def series(tmp_path: Path, write_series: Callable[..., list[Path]]) -> Geometry:
    write_series(tmp_path / "s", np.zeros((5, 8, 6), np.int16))
    return read_geometry(tmp_path / "s")


def test_the_same_voxels_on_the_same_slices(tmp_path: Path, series: Geometry) -> None:
    import highdicom
    import pydicom

    labels = np.random.default_rng(0).choice([0, 3, 7], series.shape).astype(np.uint8)
    labels[:, :, 2] = 0
    write_dicom_seg(tmp_path / "seg.dcm", labels, series, NAMES)
    read = highdicom.seg.segread(tmp_path / "seg.dcm")
    sources = [pydicom.dcmread(path).SOPInstanceUID for path in series.source["files"]]
    found = read.get_pixels_by_source_instance(sources, assert_missing_frames_are_empty=True)  # (k, j, i, segment)
    assert [read.get_segment_description(n).segment_label for n in (1, 2)] == ["liver", "tumour"]
    for segment, value in enumerate((3, 7)):
        np.testing.assert_array_equal(found[..., segment].T, labels == value)
    assert read.PatientID == "P1"
    assert len(read.PerFrameFunctionalGroupsSequence) == 8  # the empty slice has no frames


def test_nothing_found_is_a_file_too(tmp_path: Path, series: Geometry) -> None:
    import highdicom

    write_dicom_seg(tmp_path / "seg.dcm", np.zeros(series.shape, np.uint8), series, NAMES)
    assert not highdicom.seg.segread(tmp_path / "seg.dcm").pixel_array.any()


def test_what_cannot_be_written(tmp_path: Path, series: Geometry, monkeypatch: pytest.MonkeyPatch) -> None:
    import pydicom

    with pytest.raises(UsageError, match="needs DICOM slices"):
        write_dicom_seg(tmp_path / "a.dcm", np.zeros((2, 2, 2), np.uint8), Geometry((2, 2, 2), np.eye(4)), NAMES)
    with pytest.raises(BadGeometry, match="do not fit the slices"):
        write_dicom_seg(tmp_path / "a.dcm", np.zeros((2, 2, 2), np.uint8), series, NAMES)
    for path in (tmp_path / "s").iterdir():
        ds = pydicom.dcmread(path)
        del ds.FrameOfReferenceUID
        ds.save_as(path)
    with pytest.raises(InputRefused, match=r"do not allow a DICOM-SEG: .*Frame Of Reference UID"):
        write_dicom_seg(tmp_path / "a.dcm", np.zeros(series.shape, np.uint8), series, NAMES)
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(UsageError, match=r'pip install "medseg\[dicom\]"'):
        write_dicom_seg(tmp_path / "a.dcm", np.zeros(series.shape, np.uint8), series, NAMES)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
