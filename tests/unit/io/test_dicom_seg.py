"""DICOM-SEG read back by highdicom: the same voxels, on the slices that they came from."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medseg.errors import BadGeometry, InputRefused, UsageError
from medseg.io import Geometry, check_segment_names, read_geometry, write_dicom_seg

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


def edit_slices(folder: Path, **values: object) -> None:
    """Set elements of every slice; None removes one."""
    import pydicom

    for path in folder.iterdir():
        ds = pydicom.dcmread(path)
        for name, value in values.items():
            if value is not None:
                setattr(ds, name, value)
            elif name in ds:
                delattr(ds, name)
        ds.save_as(path)


def test_any_character_set_becomes_utf_8(tmp_path: Path, series: Geometry) -> None:
    import highdicom

    patient = "Yamada^Tarou=山田^太郎=やまだ^たろう"
    edit_slices(tmp_path / "s", SpecificCharacterSet=["", "ISO 2022 IR 87"], PatientName=patient)
    labels = np.zeros(series.shape, np.uint8)
    labels[1, 2, 3], labels[0, 0, 0] = 1, 2
    write_dicom_seg(tmp_path / "seg.dcm", labels, series, {"background": 0, "肝臓": 1, "Ödem": 2})
    read = highdicom.seg.segread(tmp_path / "seg.dcm")
    assert read.SpecificCharacterSet == "ISO_IR 192"
    assert str(read.PatientName) == patient
    assert [read.get_segment_description(n).segment_label for n in (1, 2)] == ["肝臓", "Ödem"]
    assert read.SeriesDescription == "Segmentation by medseg"


def test_what_slices_may_leave_out_is_empty(tmp_path: Path, series: Geometry) -> None:
    import highdicom

    names = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
             "StudyTime", "ReferringPhysicianName", "Manufacturer", "SpecificCharacterSet")  # fmt: skip
    edit_slices(tmp_path / "s", **dict.fromkeys(names))
    labels = np.ones(series.shape, np.uint8)
    write_dicom_seg(tmp_path / "seg.dcm", labels, series, {"background": 0, "liver": 1})
    read = highdicom.seg.segread(tmp_path / "seg.dcm")
    assert not any(read.get(name) for name in names[:-2])
    assert read.pixel_array.all()


def test_simpleitk_reads_the_same_frames(tmp_path: Path, series: Geometry) -> None:
    import pydicom
    import SimpleITK

    labels = np.random.default_rng(0).integers(0, 2, series.shape).astype(np.uint8)
    write_dicom_seg(tmp_path / "seg.dcm", labels, series, {"background": 0, "liver": 1})
    frames = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "seg.dcm"))) != 0
    groups = pydicom.dcmread(tmp_path / "seg.dcm").PerFrameFunctionalGroupsSequence
    height = [float(group.PlanePositionSequence[0].ImagePositionPatient[2]) for group in groups]
    np.testing.assert_array_equal(frames[np.argsort(height)], labels.T != 0)


def test_class_names_that_dicom_cannot_hold_are_refused_or_cut_off(tmp_path: Path, series: Geometry) -> None:
    import highdicom

    for name in ("left\\right", "line\nbreak", "bell\a", "\ud800", " ", ""):
        with pytest.raises(InputRefused, match="cannot be named in a DICOM-SEG"):
            check_segment_names({"background": 0, name: 1})
    with pytest.raises(InputRefused, match="differ only after 64 characters"):
        check_segment_names({"background": 0, "x" * 64 + "a": 1, "x" * 64 + "b": 2})
    long = "ventricle " * 10
    write_dicom_seg(tmp_path / "seg.dcm", np.ones(series.shape, np.uint8), series, {"background": 0, long: 1})
    described = highdicom.seg.segread(tmp_path / "seg.dcm").SegmentSequence[0]
    assert described.SegmentLabel == long[:64].strip()
    assert described.SegmentDescription == long.strip()
