"""Damaged and odd DICOM folders: what is read has the voxels that were taken, and all else is refused in one line."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medseg.errors import BadGeometry, InputRefused, MedsegError, UnreadableFile
from medseg.io import dicom_child, holds_dicom, read_geometry, read_volume
from medseg.io.dicom_child import CHILD
from medseg.io.dicom_series import Series, read_series

pydicom = pytest.importorskip("pydicom")

Write = Callable[..., list[Path]]
VOXELS = np.random.default_rng(0).integers(-900, 3000, (3, 3, 2)).astype(np.int16)
PATIENT = "PatientName"
SHORTS = ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation")
DECIMALS = {
    "PixelSpacing": 2,
    "ImageOrientationPatient": 6,
    "ImagePositionPatient": 3,
    "RescaleSlope": 1,
    "RescaleIntercept": 1,
}
WORDS = ("PhotometricInterpretation", "SeriesInstanceUID", "SOPClassUID", "NumberOfFrames", "ImageType")


def values(series: Series) -> np.ndarray:
    return np.stack(list(series.values()))


def unchanged_or_refused(folder: Path, known: Series, expected: np.ndarray) -> str:
    """The one line of the refusal; empty where voxels and places are those that were taken."""
    try:
        series = read_series(folder)
        found = values(series)
    except InputRefused as error:
        return str(error)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(series.affine, known.affine, atol=1e-6)
    return ""


@pytest.fixture
def folder(tmp_path: Path, write_series: Write) -> Path:
    """Three slices of 2x3 pixels."""
    write_series(tmp_path / "s", VOXELS)
    return tmp_path / "s"


def edits() -> dict[str, Callable[[Any], None]]:
    """Each decisive element of one slice x {removed, empty, text, zero, negative, huge, not a number, too many}."""

    def put(keyword: str, representation: str, value: Any) -> Callable[[Any], None]:
        return lambda ds: ds.add_new(keyword, representation, value)

    found: dict[str, Callable[[Any], None]] = {}
    for keyword in (*SHORTS, *DECIMALS, *WORDS, "PixelData"):
        found[f"{keyword} removed"] = lambda ds, keyword=keyword: delattr(ds, keyword) if keyword in ds else None
        found[f"{keyword} text"] = put(keyword, "LO", "abc")
        found[f"{keyword} empty"] = put(keyword, "LO", "")
    for keyword in SHORTS:
        for value in (0, 65535, [1, 2]):
            found[f"{keyword} {value}"] = put(keyword, "US", value)
    for keyword, count in DECIMALS.items():
        for word in ("nan", "inf", "1e400", "1_0", "0,5", "0x10", *(["-1e9"] if count > 1 else [])):
            found[f"{keyword} {word}"] = put(keyword, "LO", [word] * count)
        found[f"{keyword} too many"] = put(keyword, "LO", ["1"] * (count + 1))
    found["half the pixels"] = lambda ds: setattr(ds, "PixelData", ds.PixelData[:6])
    found["two bytes more"] = lambda ds: setattr(ds, "PixelData", ds.PixelData + bytes(2))
    found["instance number removed"] = lambda ds: delattr(ds, "InstanceNumber")
    found["private elements"] = lambda ds: ds.private_block(0x0029, "X", create=True).add_new(1, "OB", bytes(64))
    found["modality lut"] = lambda ds: ds.add_new("ModalityLUTSequence", "SQ", [pydicom.Dataset()])
    found["mosaic"] = lambda ds: setattr(ds, "ImageType", ["ORIGINAL", "PRIMARY", "MOSAIC"])
    return found


HARMLESS = {"NumberOfFrames removed", "ImageType removed", "ImageType text", "HighBit removed", "private elements"}


def test_every_edit_of_a_header_leaves_the_voxels_or_is_refused(folder: Path, write_series: Write) -> None:
    known = read_series(folder)
    expected, path = values(known), sorted(folder.iterdir())[0]
    whole, accepted = path.read_bytes(), set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pydicom.config.settings, "writing_validation_mode", pydicom.config.IGNORE)
        patch.setattr(pydicom.config.settings, "reading_validation_mode", pydicom.config.IGNORE)
        for name, edit in edits().items():
            path.write_bytes(whole)
            ds = pydicom.dcmread(path)
            edit(ds)
            ds.save_as(path)
            if not unchanged_or_refused(folder, known, expected):
                accepted.add(name)
    assert accepted >= HARMLESS
    assert not {name for name in accepted if name.startswith(("Rows", "BitsA", "PixelSp", "Rescale", "PixelData"))}


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99"])
def test_a_slice_cut_off_anywhere_is_never_left_out(tmp_path: Path, write_series: Write, syntax: str) -> None:
    def change(ds: Any, k: int) -> None:
        ds.file_meta.TransferSyntaxUID = syntax

    path = write_series(tmp_path / "s", VOXELS, change=change)[-1]
    known, whole = read_series(tmp_path / "s"), path.read_bytes()
    expected = values(known)
    for keep in range(0, len(whole) - 1, 11):
        path.write_bytes(whole[:keep])
        assert path.name in unchanged_or_refused(tmp_path / "s", known, expected)


def test_an_unknown_value_representation_anywhere(folder: Path) -> None:
    known, path = read_series(folder), sorted(folder.iterdir())[-1]
    expected, whole, ds = values(known), path.read_bytes(), pydicom.dcmread(path)
    refused = []
    for element in (*ds.file_meta, *ds):
        start = element.tag.group.to_bytes(2, "little") + element.tag.element.to_bytes(2, "little")
        at = whole.index(start + element.VR.encode()) + 4
        for representation in (b"\x4f\xd7", b"U1"):
            path.write_bytes(whole[:at] + representation + whole[at + 2 :])
            refused.append(unchanged_or_refused(folder, known, expected))
    assert any("PixelData" in line for line in refused)
    assert any("no pixels" in line or "truncated" in line for line in refused)


@pytest.mark.parametrize(
    "kind",
    [
        "1.2.840.10008.5.1.4.1\xae1.2",  # bits flipped
        "1.2.840.10008.5.1.4.1.1.2\0\0\0UI@\0" + "1.2.826.0.1" * 9,  # its length damaged
        "1.2.840.10008.5.1.4.1.1.22",  # in the form of one, but none of the standard
        "1.2.840.10008.1.2.1",  # of the standard, but no class of objects
        "0.2.840.10008.5.1.4.1.1.2",
    ],
)
def test_a_slice_that_lost_its_pixels_and_its_class_is_not_left_out(folder: Path, kind: str) -> None:
    path = sorted(folder.iterdir())[0]
    ds = pydicom.dcmread(path)
    for name in ("PixelData", "Rows"):
        delattr(ds, name)
    if kind.startswith("1.2.840.10008."):
        ds.SeriesInstanceUID += ".9"
    ds.add_new("SOPClassUID", "LO", "x" * len(kind))
    ds.save_as(path)
    path.write_bytes(path.read_bytes().replace(b"x" * len(kind), kind.encode("latin-1")))
    with pytest.raises(
        UnreadableFile, match=r"^\S+: holds no pixels \(SOP class [ -~\xa1-\xff]+\)\. Fix: .*out of the folder"
    ):
        read_series(folder)


def test_every_file_of_a_folder_is_read_or_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = read_volume(folder).array
    report = pydicom.dcmread(sorted(folder.iterdir())[0])
    for name in ("PixelData", "Rows", "Columns", "BitsAllocated", "PixelSpacing"):
        delattr(report, name)
    report.SOPClassUID = report.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"
    report.SeriesInstanceUID += ".9"
    report.save_as(folder / "report")
    for name in ("README", "notes.txt", "DICOMDIR", ".DS_Store", "scan.pdf"):
        (folder / name).write_bytes(b"")
    (folder / "more").mkdir()
    with caplog.at_level(logging.WARNING, logger="medseg"):
        volume = read_volume(folder)
    np.testing.assert_array_equal(volume.array, expected)
    left_out = volume.geometry.source["left_out"]
    assert len(left_out) + len(volume.geometry.source["files"]) == len(list(folder.iterdir()))
    assert left_out["report"] == "holds no pixels (Basic Text SR Storage)"
    assert left_out["more"] == "is a folder"
    assert "notes.txt is no DICOM file" in caplog.text


def damage(kind: str, folder: Path) -> Path:
    path = sorted(folder.iterdir())[-1]
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "zeros":
        path.write_bytes(bytes(path.stat().st_size))
    elif kind == "error page":
        path.write_bytes(b"<html><body>502 Bad Gateway</body></html>")
    elif kind == "without mark":
        path.write_bytes(bytes(132) + path.read_bytes()[132:])
    elif kind == "broken link":
        path.unlink()
        path.symlink_to(folder / "gone")
    elif kind == "pipe":
        path.unlink()
        os.mkfifo(path)
    elif kind == "copy":
        (folder / "copy").write_bytes(path.read_bytes())
    return path


@pytest.mark.parametrize("kind", ["empty", "zeros", "error page", "without mark", "broken link", "pipe", "copy"])
def test_a_slice_that_is_none_any_more_is_not_left_out(folder: Path, kind: str) -> None:
    path = damage(kind, folder)
    with pytest.raises(InputRefused, match=path.name):
        read_series(folder)


@pytest.mark.parametrize("all_of_them", [True, False], ids=["all", "one"])
def test_slices_without_preamble_and_mark_are_read(folder: Path, all_of_them: bool) -> None:
    known = read_series(folder)
    for path in sorted(folder.iterdir())[: None if all_of_them else 1]:
        ds = pydicom.dcmread(path)
        del ds.file_meta
        pydicom.dcmwrite(path, ds, implicit_vr=True, little_endian=True, enforce_file_format=False)
    assert not unchanged_or_refused(folder, known, values(known))
    assert holds_dicom(folder)


@pytest.mark.parametrize(
    ("between", "thick", "expected"),
    [
        (4, 3, 4),
        (0, 3, 3),
        (None, 3, 3),
        (4, None, 4),
        (-4, 3, None),
        (None, 0, None),
        (None, -3, None),
        ("", "", None),
    ],
)
def test_the_thickness_of_a_single_slice(tmp_path: Path, write_series: Write, between, thick, expected) -> None:
    def change(ds: Any, k: int) -> None:
        ds.SliceThickness = thick
        if between is not None:
            ds.SpacingBetweenSlices = between

    write_series(tmp_path / "s", VOXELS[:1], change=change)
    if expected is None:
        with pytest.raises(BadGeometry, match="thickness of the only slice is"):
            read_series(tmp_path / "s")
    else:
        assert np.linalg.norm(read_series(tmp_path / "s").affine[:, 2]) == pytest.approx(expected)


def test_a_folder_that_cannot_be_opened_or_is_none(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match="holds no DICOM image"):
        read_geometry(tmp_path)
    with pytest.raises(MedsegError):
        read_geometry(tmp_path / "nothing")


def kill_in_the_middle(folder: Path) -> None:
    with CHILD.asked(folder, voxels=True) as (_, slices):
        next(slices)
        os.kill(CHILD.pid, signal.SIGKILL)
        list(slices)


def test_a_decoder_that_crashes_or_hangs_is_a_refusal(
    folder: Path, write_series: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = read_volume(folder).array
    write_series(folder.parent / "large", np.zeros((3, 200, 200), np.int16))  # a slice does not fit into a pipe
    with pytest.raises(InputRefused, match=r"002: broke the decoder \(exit code -9\)"):
        kill_in_the_middle(folder.parent / "large")
    np.testing.assert_array_equal(read_volume(folder).array, expected)
    monkeypatch.setattr(dicom_child, "SECONDS", 0.2)
    monkeypatch.setattr(dicom_child, "SECONDS_PER_FILE", 0.0)
    os.kill(CHILD.pid, signal.SIGSTOP)
    with pytest.raises(InputRefused, match=r"could not be read within 0 s"):
        read_volume(folder)
    monkeypatch.undo()
    np.testing.assert_array_equal(read_volume(folder).array, expected)


def test_a_deflated_file_that_grows_beyond_its_memory(
    tmp_path: Path, write_series: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    import zlib

    def change(ds: Any, k: int) -> None:
        ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"

    path = write_series(tmp_path / "s", VOXELS, change=change)[0]
    packer, whole = zlib.compressobj(1, zlib.DEFLATED, -15), path.read_bytes()
    start = 144 + int.from_bytes(whole[140:144], "little")  # after the meta information
    content = b"".join(packer.compress(bytes(2**24)) for _ in range(24)) + packer.flush()
    path.write_bytes(whole[:start] + content)
    monkeypatch.setattr(dicom_child, "MEMORY", 2**28)
    with pytest.raises(InputRefused, match=r"needs more than the 0\.3 GiB of memory"):
        read_volume(tmp_path / "s")
