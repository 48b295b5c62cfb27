"""NIfTI: what nibabel writes we read, what we write nibabel reads, in the same grid and codes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg.errors import BadGeometry
from medseg.io import Geometry, Volume, read_geometry, read_labels, read_volume, write_labels, write_volume

OBLIQUE = np.array([[0.6, -1.6, 0, 5.25], [0.8, 1.2, 0, -6.5], [0, 0, 2.5, 7], [0, 0, 0, 1]])
SHEARED = np.array([[0.9, 0.2, 0.1, 5], [0, 1.1, 0.3, -6], [0, 0, 2.5, 7], [0, 0, 0, 1]])
HEADER_FIELDS = (
    *("pixdim", "xyzt_units", "sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "dim_info"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
)
FORMS = {
    "sform only": (2, 0),
    "qform only": (0, 1),
    "both": (4, 1),
    "neither": (0, 0),
}


def image(affine: np.ndarray, sform: int, qform: int, *, shape: tuple[int, ...] = (5, 4, 3)) -> nib.Nifti1Image:
    voxels = np.random.default_rng(0).integers(0, 200, shape).astype(np.int16)
    picture = nib.Nifti1Image(voxels, affine)
    picture.set_sform(affine if sform else None, sform)
    picture.set_qform(affine if qform else None, qform)
    if not (sform or qform):
        picture.header["pixdim"][1:4] = 0.7, 1.3, 2.5
    return picture


def same_grid(first: Path, second: Path) -> None:
    one, two = nib.load(first), nib.load(second)
    np.testing.assert_array_equal(one.affine, two.affine)
    assert one.shape[:3] == two.shape
    for name in HEADER_FIELDS:
        np.testing.assert_array_equal(one.header[name], two.header[name], err_msg=name)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("forms", FORMS)
def test_labels_leave_in_the_grid_and_codes_of_the_file(tmp_path: Path, forms: str, ending: str) -> None:
    source, target = tmp_path / f"image{ending}", tmp_path / f"labels{ending}"
    nib.save(image(OBLIQUE, *FORMS[forms]), source)
    volume = read_volume(source)
    np.testing.assert_array_equal(volume.affine, nib.load(source).affine)
    write_labels(target, (volume.array[0] > 100).astype(np.uint8), volume.geometry)
    same_grid(source, target)
    np.testing.assert_array_equal(np.asarray(nib.load(target).dataobj), volume.array[0] > 100)


def test_a_sheared_sform_is_kept(tmp_path: Path) -> None:
    nib.save(image(SHEARED, 2, 0), tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz")
    write_labels(tmp_path / "b.nii.gz", np.zeros((5, 4, 3), np.uint8), volume.geometry)
    same_grid(tmp_path / "a.nii.gz", tmp_path / "b.nii.gz")


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.float64])
def test_data_types_are_read_exactly(tmp_path: Path, dtype: type) -> None:
    voxels = np.arange(60).reshape(5, 4, 3).astype(dtype)
    nib.save(nib.Nifti1Image(voxels, OBLIQUE, dtype=dtype), tmp_path / "a.nii")
    array = read_volume(tmp_path / "a.nii").array
    assert array.dtype == np.float32
    assert array.flags.c_contiguous
    np.testing.assert_array_equal(array[0], voxels)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_both_versions_and_byte_orders(tmp_path: Path, kind: type, order: str) -> None:
    voxels = np.arange(60, dtype=np.int16).reshape(5, 4, 3)
    header = kind.header_class(endianness=order)
    header.set_data_dtype(np.int16)
    nib.save(kind(voxels, OBLIQUE, header), tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(volume.array[0], voxels)
    write_labels(tmp_path / "b.nii.gz", voxels, volume.geometry)
    same_grid(tmp_path / "a.nii.gz", tmp_path / "b.nii.gz")
    assert isinstance(nib.load(tmp_path / "b.nii.gz"), kind)


def test_scaled_voxels_are_read_scaled_and_labels_written_unscaled(tmp_path: Path) -> None:
    picture = image(OBLIQUE, 1, 1)
    picture.header.set_slope_inter(0.5, -1024)
    picture = nib.Nifti1Image(np.asarray(picture.dataobj) * 0.5 - 1024, None, picture.header)
    picture.header.set_data_dtype(np.int16)
    nib.save(picture, tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(volume.array[0], nib.load(tmp_path / "a.nii.gz").get_fdata(), atol=1e-4)
    write_labels(tmp_path / "b.nii.gz", np.full((5, 4, 3), 3), volume.geometry)
    written = nib.load(tmp_path / "b.nii.gz")
    assert np.unique(written.get_fdata()).tolist() == [3]
    assert written.header.get_slope_inter() in ((1, 0), (None, None))
    assert written.get_data_dtype() == np.uint8


def test_a_label_file_with_a_slope_is_rounded(tmp_path: Path) -> None:
    labels = np.arange(60).reshape(5, 4, 3) % 4
    picture = nib.Nifti1Image((labels * 3).astype(np.int16), OBLIQUE)
    picture.header.set_slope_inter(1, 0)
    nib.save(picture, tmp_path / "a.nii")
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    raw[112:116] = np.float32(0.3333333).tobytes()  # scl_slope
    (tmp_path / "a.nii").write_bytes(raw)
    read = read_labels(tmp_path / "a.nii")
    assert read.array.dtype == np.uint8
    np.testing.assert_array_equal(read.array[0], labels)


def test_four_dimensions_become_channels_and_labels_come_out_three_dimensional(tmp_path: Path) -> None:
    nib.save(image(OBLIQUE, 1, 1, shape=(5, 4, 3, 2)), tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz")
    assert volume.array.shape == (2, 5, 4, 3)
    np.testing.assert_array_equal(volume.array[1], nib.load(tmp_path / "a.nii.gz").get_fdata()[..., 1])
    write_labels(tmp_path / "b.nii.gz", np.zeros((5, 4, 3), np.uint8), volume.geometry)
    same_grid(tmp_path / "a.nii.gz", tmp_path / "b.nii.gz")
    write_volume(tmp_path / "c.nii.gz", volume)
    np.testing.assert_array_equal(read_volume(tmp_path / "c.nii.gz").array, volume.array)


@pytest.mark.parametrize("shape", [(5, 4, 3, 1), (5, 4, 3, 1, 1)])
def test_trailing_ones_are_squeezed(tmp_path: Path, shape: tuple[int, ...]) -> None:
    nib.save(image(OBLIQUE, 1, 1, shape=shape), tmp_path / "a.nii")
    assert read_volume(tmp_path / "a.nii").array.shape == (1, 5, 4, 3)


@pytest.mark.parametrize("shape", [(5, 4, 1), (5, 4), (1, 1, 1), (1, 4, 3)])
def test_slices_come_back_in_their_own_shape(tmp_path: Path, shape: tuple[int, ...]) -> None:
    nib.save(image(np.diag([0.7, 0.8, 3, 1]), 1, 1, shape=shape), tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz")
    assert volume.spatial_shape == (*shape, 1)[:3]
    write_labels(tmp_path / "b.nii.gz", np.ones(volume.spatial_shape, np.uint8), volume.geometry)
    same_grid(tmp_path / "a.nii.gz", tmp_path / "b.nii.gz")


def test_the_header_alone_gives_the_same_geometry_and_reads_no_voxel(tmp_path: Path, monkeypatch) -> None:
    nib.save(image(OBLIQUE, 1, 1), tmp_path / "a.nii.gz")
    whole = read_volume(tmp_path / "a.nii.gz").geometry
    monkeypatch.setattr("medseg.io.nifti._read_voxels", None)
    geometry = read_geometry(tmp_path / "a.nii.gz")
    assert geometry.shape == whole.shape
    assert geometry.source == whole.source
    np.testing.assert_array_equal(geometry.affine, whole.affine)


def test_the_source_is_plain_data(tmp_path: Path) -> None:
    nib.save(image(OBLIQUE, 1, 1), tmp_path / "a.nii.gz")
    source = dict(read_geometry(tmp_path / "a.nii.gz").source)
    assert json.loads(json.dumps(source)) == source


@pytest.mark.parametrize(("unit", "factor"), [("meter", 1000.0), ("micron", 0.001), ("mm", 1.0), ("unknown", 1.0)])
def test_units_are_converted_to_mm_and_kept_in_the_file(tmp_path: Path, unit: str, factor: float, caplog) -> None:
    picture = image(np.diag([2.0, 2.0, 4.0, 1.0]), 1, 1)
    picture.header.set_xyzt_units(unit)
    nib.save(picture, tmp_path / "a.nii")
    with caplog.at_level("INFO"):
        geometry = read_geometry(tmp_path / "a.nii")
    assert geometry.spacing == pytest.approx((2 * factor, 2 * factor, 4 * factor))
    assert ("converted to mm" in caplog.text) is (factor != 1)
    write_labels(tmp_path / "b.nii", np.zeros((5, 4, 3), np.uint8), geometry)
    same_grid(tmp_path / "a.nii", tmp_path / "b.nii")


def test_a_header_that_no_longer_describes_the_affine_is_not_used(tmp_path: Path) -> None:
    nib.save(image(OBLIQUE, 1, 1), tmp_path / "a.nii")
    moved = replace(read_geometry(tmp_path / "a.nii"), affine=SHEARED)
    write_labels(tmp_path / "b.nii", np.zeros((5, 4, 3), np.uint8), moved)
    written = nib.load(tmp_path / "b.nii")
    np.testing.assert_allclose(written.affine, SHEARED, atol=1e-6)
    assert written.header["qform_code"] == 0  # a quaternion cannot hold the shear


def test_a_geometry_without_a_file_gets_both_forms(tmp_path: Path) -> None:
    write_volume(tmp_path / "a.nii.gz", Volume(np.ones((1, 5, 4, 3), np.float32), Geometry((5, 4, 3), OBLIQUE)))
    written = nib.load(tmp_path / "a.nii.gz")
    assert (int(written.header["sform_code"]), int(written.header["qform_code"])) == (1, 1)
    np.testing.assert_allclose(written.affine, OBLIQUE, atol=1e-6)
    np.testing.assert_allclose(written.get_qform(), OBLIQUE, atol=1e-5)
    assert written.header.get_xyzt_units()[0] == "mm"


def test_a_picture_can_be_written_as_nifti(tmp_path: Path) -> None:
    probabilities = np.random.default_rng(0).random((3, 6, 5)).astype(np.float32)
    write_volume(tmp_path / "a.nii.gz", Volume(probabilities, Geometry((6, 5), np.eye(4), {"format": "image"})))
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii.gz").array[..., 0], probabilities)


def test_a_large_axis_needs_version_two(tmp_path: Path) -> None:
    write_labels(tmp_path / "a.nii", np.ones((40000, 1, 1), np.uint8), Geometry((40000, 1, 1), np.eye(4)))
    assert isinstance(nib.load(tmp_path / "a.nii"), nib.Nifti2Image)
    assert read_labels(tmp_path / "a.nii").spatial_shape == (40000, 1, 1)


def test_equal_labels_make_equal_files(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "b.nii.gz"):
        write_labels(tmp_path / name, np.ones((5, 4, 3), np.uint8), Geometry((5, 4, 3), OBLIQUE))
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_gzip_is_told_by_its_content(tmp_path: Path) -> None:
    nib.save(image(OBLIQUE, 1, 1), tmp_path / "a.nii.gz")
    (tmp_path / "a.nii.gz").rename(tmp_path / "a.nii")
    assert read_volume(tmp_path / "a.nii").spatial_shape == (5, 4, 3)


def test_notes_of_other_programs_between_header_and_voxels_are_skipped(tmp_path: Path) -> None:
    picture = image(OBLIQUE, 1, 1)
    picture.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"scanned on a Monday"))
    nib.save(picture, tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii.gz").array[0], np.asarray(picture.dataobj))


def test_labels_of_another_shape_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadGeometry, match="does not fit"):
        write_labels(tmp_path / "a.nii", np.ones((5, 4, 2), np.uint8), Geometry((5, 4, 3), OBLIQUE))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.realdata
def test_real_files_are_read_as_nibabel_reads_them(shared_data: Path, tmp_path: Path) -> None:
    for dataset in ("Dataset004_Hippocampus", "Dataset038_CHAOS_MR", "Dataset043_BraTS_sample"):
        path = min((shared_data / dataset / "imagesTr").iterdir())
        volume, reference = read_volume(path), nib.load(path)
        np.testing.assert_array_equal(volume.array[0], reference.get_fdata(dtype=np.float32))
        write_labels(tmp_path / "labels.nii.gz", (volume.array[0] > 0).astype(np.uint8), volume.geometry)
        same_grid(path, tmp_path / "labels.nii.gz")
