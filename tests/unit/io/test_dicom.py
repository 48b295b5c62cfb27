"""Folders of DICOM slices: the voxels in their places, and one line for what is no single image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medseg.errors import BadGeometry, BadVoxels, InputRefused, UnreadableFile
from medseg.io import holds_dicom, read_geometry, read_volume

Write = Callable[..., list[Path]]
SHAPE = (6, 5, 4)  # slices, rows, columns
ANGLE = np.deg2rad(20)
OBLIQUE = (np.cos(ANGLE), np.sin(ANGLE), 0, 0, 0, -1)


def voxels(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2000, SHAPE).astype(np.int16)


def lps(directions: tuple[float, ...], step: tuple[float, ...], index: tuple[int, int, int]) -> np.ndarray:
    """Where the standard puts pixel (column, row) of a slice: PS3.3, C.7.6.2.1.1."""
    column, row, k = index
    along, down = np.array(directions[:3]), np.array(directions[3:])
    return np.array([-10.0, 20.0, -30.0]) + k * np.array(step) + column * 0.75 * along + row * 0.5 * down


@pytest.mark.parametrize(
    ("directions", "step"),
    [
        ((1, 0, 0, 0, 1, 0), (0.0, 0.0, 2.5)),
        (OBLIQUE, tuple(2.5 * np.cross(OBLIQUE[:3], OBLIQUE[3:]))),
        ((1, 0, 0, 0, 1, 0), (0.0, 0.6, 2.4)),  # a tilted gantry shifts slices within their planes
    ],
    ids=["axial", "oblique", "tilted"],
)
def test_every_voxel_is_where_its_slice_says(tmp_path: Path, write_series: Write, directions, step) -> None:
    stored = voxels()
    write_series(tmp_path / "s", stored, directions=directions, step=step)
    volume = read_volume(tmp_path / "s")
    np.testing.assert_array_equal(volume.array[0], stored.T.astype(np.float32) - 1024)
    for index in [(0, 0, 0), (3, 0, 0), (0, 4, 0), (0, 0, 5), (3, 4, 5)]:
        ras = (volume.affine @ [*index, 1])[:3]
        np.testing.assert_allclose(ras * [-1, -1, 1], lps(directions, step, index), atol=1e-9)
    header = read_geometry(tmp_path / "s")
    assert header.shape == volume.spatial_shape
    np.testing.assert_array_equal(header.affine, volume.affine)


def test_each_slice_has_its_own_slope(tmp_path: Path, write_series: Write) -> None:
    stored = voxels()
    write_series(tmp_path / "s", stored, slope=lambda k: 1.0 if k == 5 else 0.25 * k + 0.1)
    slopes = np.array([1.0 if k == 5 else 0.25 * k + 0.1 for k in range(6)])[:, None, None]
    np.testing.assert_allclose(read_volume(tmp_path / "s").array[0], (stored * slopes - 1024).T, rtol=1e-6, atol=1e-3)


def test_a_single_slice_is_as_thick_as_it_says(tmp_path: Path, write_series: Write) -> None:
    write_series(tmp_path / "s", voxels()[:1])
    assert read_geometry(tmp_path / "s").spacing == pytest.approx((0.75, 0.5, 2.5))


def test_what_is_no_image_is_left_out(tmp_path: Path, write_series: Write) -> None:
    import pydicom

    first = write_series(tmp_path / "s", voxels())[0]
    report = pydicom.dcmread(first)
    for name in ("PixelData", "Rows", "Columns", "BitsAllocated", "PixelSpacing"):
        delattr(report, name)
    report.SOPClassUID = report.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"
    report.save_as(tmp_path / "s" / "report")
    (tmp_path / "s" / "readme.txt").write_text("exported on a Monday")
    (tmp_path / "s" / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    assert read_volume(tmp_path / "s").spatial_shape == (4, 5, 6)


def test_a_folder_without_dicom(tmp_path: Path) -> None:
    assert not holds_dicom(tmp_path)
    with pytest.raises(UnreadableFile, match="holds no DICOM image"):
        read_volume(tmp_path)


def test_a_missing_slice_is_named(tmp_path: Path, write_series: Write) -> None:
    write_series(tmp_path / "s", voxels())[2].unlink()
    with pytest.raises(BadGeometry, match=r"not evenly spaced: 5 mm between 005 and 003, 2.5 mm elsewhere"):
        read_geometry(tmp_path / "s")


def test_positions_rounded_by_the_scanner_are_no_gap(tmp_path: Path, write_series: Write) -> None:
    def rounded(ds, k):
        ds.ImagePositionPatient = [0.0, 0.0, round(0.625 * k, 1)]

    write_series(tmp_path / "s", voxels(), change=rounded)
    assert read_geometry(tmp_path / "s").spacing[2] == pytest.approx(0.625, rel=0.02)


def test_two_series(tmp_path: Path, write_series: Write) -> None:
    write_series(tmp_path / "s", voxels())
    write_series(tmp_path / "s", voxels()[:2], prefix="b")
    with pytest.raises(BadGeometry, match="holds 2 series, of 6 and 2 slices"):
        read_volume(tmp_path / "s")


def set_field(name: str, value: object, at: int = 3) -> Callable:
    return lambda ds, k: setattr(ds, name, value) if k == at else None


@pytest.mark.parametrize(
    ("change", "kind", "line"),
    [
        (set_field("ImagePositionPatient", [-10.0, 20.0, -25.0]), BadGeometry, "004: lies at the same place as 003"),
        (set_field("ImageOrientationPatient", [0, 1, 0, 0, 0, -1]), BadGeometry, "003: is not parallel to 001"),
        (set_field("PixelSpacing", [1, 1]), BadGeometry, "003: has 4x5 pixels of 1x1 mm, 001 4x5 pixels of 0.75x0.5"),
        (set_field("ImagePositionPatient", None), BadGeometry, "ImagePositionPatient is '' .expected 3 numbers"),
        (set_field("PixelSpacing", [0, 0.5]), BadGeometry, r"003: PixelSpacing is '0.0.0.5' .expected numbers above 0"),
    ],
    ids=["same place", "localiser", "zoomed", "no place", "no size"],
)
def test_slices_that_are_no_grid(tmp_path: Path, write_series: Write, change, kind, line) -> None:
    write_series(tmp_path / "s", voxels(), change=change)
    with pytest.raises(kind, match=line):
        read_geometry(tmp_path / "s")


def test_colour_and_frames(tmp_path: Path, write_series: Write) -> None:
    def colour(ds, k):
        ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
        ds.PixelData = bytes(4 * 5 * 3)

    def frames(ds, k):
        ds.SOPClassUID, ds.NumberOfFrames, ds.PixelData = "1.2.840.10008.5.1.4.1.1.7.3", 2, ds.PixelData * 2

    write_series(tmp_path / "colour", voxels(), change=colour)
    with pytest.raises(BadVoxels, match="is in colour: RGB"):
        read_volume(tmp_path / "colour")
    write_series(tmp_path / "frames", voxels(), change=frames)
    with pytest.raises(BadVoxels, match="multi-frame file of 2 frames"):
        read_volume(tmp_path / "frames")


@pytest.mark.parametrize("keep", [200, 700, -11], ids=["in the header", "before the pixels", "in the pixels"])
def test_a_truncated_slice_is_named(tmp_path: Path, write_series: Write, keep: int) -> None:
    path = write_series(tmp_path / "s", voxels())[2]
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputRefused, match="004"):
        read_volume(tmp_path / "s")
