"""MetaImage and NRRD: ITK's LPS geometry becomes RAS and comes back number for number."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from medseg.io import Geometry, Volume, read_geometry, read_labels, read_volume, write_labels, write_volume

ENDINGS = (".mha", ".mhd", ".nrrd")
DIRECTION = (0.36, 0.48, -0.8, -0.8, 0.6, 0.0, 0.48, 0.64, 0.6)  # a rotation
SPACING, ORIGIN = (0.7, 1.0 / 3.0, 2.5), (10.123456789, -3.25, 7.0)


def itk_image(path: Path, *, compress: bool = False, vector: bool = False) -> SimpleITK.Image:
    shape = (4, 5, 6, 2) if vector else (4, 5, 6)
    voxels = np.random.default_rng(0).integers(0, 9, shape).astype(np.int16)
    image = SimpleITK.GetImageFromArray(voxels, isVector=vector)
    image.SetDirection(DIRECTION)
    image.SetSpacing(SPACING)
    image.SetOrigin(ORIGIN)
    SimpleITK.WriteImage(image, str(path), compress)
    return image


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_voxel_means_the_same_point(tmp_path: Path, ending: str, compress: bool) -> None:
    image = itk_image(tmp_path / f"a{ending}", compress=compress)
    volume = read_volume(tmp_path / f"a{ending}")
    assert volume.spatial_shape == (6, 5, 4)
    assert volume.array.flags.c_contiguous
    assert volume.spacing == pytest.approx(SPACING)
    for index in ((0, 0, 0), (5, 0, 0), (1, 2, 3), (5, 4, 3)):
        left, posterior, superior = image.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose((volume.affine @ (*index, 1))[:3], (-left, -posterior, superior))
        assert volume.array[(0, *index)] == image[index]


@pytest.mark.parametrize("ending", ENDINGS)
def test_labels_keep_direction_spacing_and_origin(tmp_path: Path, ending: str) -> None:
    itk_image(tmp_path / f"a{ending}")
    volume = read_volume(tmp_path / f"a{ending}")
    write_labels(tmp_path / f"b{ending}", volume.array[0].astype(np.int64), volume.geometry)
    source, target = (SimpleITK.ReadImage(str(tmp_path / f"{name}{ending}")) for name in "ab")
    exact = {"rel": 0, "abs": 4e-16 if ending == ".nrrd" else 0}  # NRRD stores direction times spacing
    assert target.GetDirection() == pytest.approx(source.GetDirection(), **exact)
    assert target.GetSpacing() == pytest.approx(source.GetSpacing(), **exact)
    assert target.GetOrigin() == source.GetOrigin()
    assert target.GetPixelIDTypeAsString() == "8-bit unsigned integer"
    labels = read_labels(tmp_path / f"b{ending}")
    np.testing.assert_array_equal(labels.array, volume.array)
    np.testing.assert_allclose(labels.affine, volume.affine, rtol=0, atol=1e-15)


@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
def test_vectors_are_channels(tmp_path: Path, ending: str) -> None:
    image = itk_image(tmp_path / f"a{ending}", vector=True)
    volume = read_volume(tmp_path / f"a{ending}")
    assert volume.array.shape == (2, 6, 5, 4)
    assert volume.array[:, 1, 2, 3].tolist() == list(image[1, 2, 3])
    write_volume(tmp_path / f"b{ending}", volume)
    np.testing.assert_array_equal(read_volume(tmp_path / f"b{ending}").array, volume.array)


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_header_alone_gives_the_geometry(tmp_path: Path, ending: str) -> None:
    itk_image(tmp_path / f"a{ending}", compress=True)
    geometry = read_geometry(tmp_path / f"a{ending}")
    assert geometry.shape == (6, 5, 4)
    np.testing.assert_array_equal(geometry.affine, read_volume(tmp_path / f"a{ending}").affine)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_slice_of_two_dimensions_stays_one(tmp_path: Path, ending: str) -> None:
    image = SimpleITK.GetImageFromArray(np.arange(20, dtype=np.uint8).reshape(4, 5))
    image.SetSpacing((0.5, 0.25))
    image.SetOrigin((3, 4))
    SimpleITK.WriteImage(image, str(tmp_path / f"a{ending}"))
    volume = read_volume(tmp_path / f"a{ending}")
    assert volume.spatial_shape == (5, 4, 1)
    assert volume.spacing == (0.5, 0.25, 1.0)
    write_labels(tmp_path / f"b{ending}", volume.array[0].astype(np.uint8), volume.geometry)
    written = SimpleITK.ReadImage(str(tmp_path / f"b{ending}"))
    assert written.GetSize() == (5, 4)
    assert written.GetSpacing() == (0.5, 0.25)
    assert written.GetOrigin() == (3, 4)


def test_itk_numbers_that_no_longer_describe_the_affine_are_not_used(tmp_path: Path) -> None:
    itk_image(tmp_path / "a.mha")
    affine = np.diag([1.0, -2.0, 3.0, 1.0])
    moved = replace(read_geometry(tmp_path / "a.mha"), affine=affine)
    write_labels(tmp_path / "b.mha", np.zeros((6, 5, 4), np.uint8), moved)
    np.testing.assert_array_equal(read_geometry(tmp_path / "b.mha").affine, affine)


def test_a_nifti_geometry_can_be_written_as_metaimage(tmp_path: Path) -> None:
    affine = np.array([[0.6, -1.6, 0, 5.25], [0.8, 1.2, 0, -6.5], [0, 0, 2.5, 7], [0, 0, 0, 1]])
    write_volume(tmp_path / "a.nii", Volume(np.ones((1, 2, 3, 4), np.float32), Geometry((2, 3, 4), affine)))
    volume = read_volume(tmp_path / "a.nii")
    write_volume(tmp_path / "a.mha", volume)
    np.testing.assert_allclose(read_geometry(tmp_path / "a.mha").affine, volume.affine, rtol=1e-12)
