"""Where a voxel is, is never lost: 48 axis orders, any spacing, oblique and sheared, through memory and files."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import aff2axcodes
from scipy.spatial.transform import Rotation

from medseg.errors import BadGeometry
from medseg.io import Geometry, Volume, from_canonical, read_geometry, read_volume, to_canonical, write_labels
from medseg.io.nifti_header import parse_header

SHAPE = (3, 4, 5)
TILT = Rotation.from_euler("xyz", [7, -11, 13], degrees=True).as_matrix()
KINDS = {
    "isotropic": np.eye(3),
    "anisotropic": np.diag([0.45, 0.7, 5.0]),
    "oblique": TILT @ np.diag([0.45, 0.7, 5.0]),
    "sheared": TILT @ np.array([[1.0, 0.2, 0.1], [0, 1.2, 0.3], [0, 0, 2.0]]),
}
ORDERS = [
    np.eye(3)[list(order)] * np.array(signs)[:, None]
    for order in permutations(range(3))
    for signs in product((1, -1), repeat=3)
]

finite = st.floats(-100, 100, allow_nan=False, width=32)
spacings = st.tuples(*[st.floats(0.125, 12, width=32)] * 3)
rotations = st.integers(0, 2**32 - 1).map(lambda seed: Rotation.random(random_state=seed).as_matrix())
shapes = st.tuples(*[st.integers(1, 6)] * 3)
shears = st.tuples(*[st.floats(-0.3, 0.3)] * 3).map(lambda s: np.array([[1, s[0], s[1]], [0, 1, s[2]], [0, 0, 1.0]]))


@st.composite
def affines(draw: st.DrawFn) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = draw(rotations) @ draw(shears) @ np.diag(draw(spacings))
    affine[:3, 3] = [draw(finite) for _ in range(3)]
    return affine


def affine_of(kind: str, order: np.ndarray) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = KINDS[kind] @ order
    affine[:3, 3] = 12.5, -7.25, 100.125
    return affine


def points(array: np.ndarray, affine: np.ndarray) -> dict[float, np.ndarray]:
    """Where each (unique) voxel value of (*S) lies, in mm."""
    return {float(array[index]): (affine @ (*index, 1))[:3] for index in np.ndindex(array.shape)}


@given(affines(), shapes, st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_canonical_keeps_every_voxel_in_its_place(affine: np.ndarray, shape: tuple[int, ...], channels: int) -> None:
    array = np.arange(channels * np.prod(shape), dtype=np.float32).reshape(channels, *shape)
    volume = Volume(array, Geometry(shape, affine))
    canonical = volume.canonical()
    before, after = points(array[-1], affine), points(canonical.array[-1], canonical.affine)
    assert before.keys() == after.keys()
    for value, place in before.items():
        np.testing.assert_allclose(after[value], place, atol=1e-9)
    back = from_canonical(to_canonical(array, volume.geometry), volume.geometry)
    np.testing.assert_array_equal(back, array)
    assert back.flags.c_contiguous


@given(affines(), shapes)
@settings(max_examples=40, deadline=None)
def test_canonical_spacing_and_shape_are_a_permutation(affine: np.ndarray, shape: tuple[int, ...]) -> None:
    geometry = Geometry(shape, affine)
    canonical = geometry.canonical()
    pairs = zip(geometry.shape, geometry.spacing, strict=True)
    canonical_pairs = zip(canonical.shape, canonical.spacing, strict=True)
    np.testing.assert_allclose(sorted(canonical_pairs), sorted(pairs), rtol=1e-9)


@given(affines(), shapes, st.integers(0, 2), st.floats(0.6, 5))
@settings(max_examples=40, deadline=None)
def test_a_grid_moved_along_an_axis_differs_by_as_many_voxels(affine, shape, axis, voxels) -> None:
    geometry = Geometry(shape, affine)
    moved = affine.copy()
    moved[:3, 3] += voxels * affine[:3, axis]
    assert geometry.difference(Geometry(shape, moved)) is not None
    assert geometry.difference(Geometry(shape, moved), tolerance_voxels=voxels + 1e-6) is None


@pytest.mark.parametrize("kind", KINDS)
def test_all_48_orders_become_ras(kind: str) -> None:
    for order in ORDERS:
        canonical = Geometry(SHAPE, affine_of(kind, order)).canonical()
        assert "".join(map(str, aff2axcodes(canonical.affine))) == "RAS"
        assert canonical.canonical() is canonical


@pytest.mark.parametrize("kind", KINDS)
def test_identity_prediction_through_nifti_for_all_48_orders(tmp_path: Path, kind: str) -> None:
    mask = np.random.default_rng(0).integers(0, 2, SHAPE).astype(np.int16)
    for number, order in enumerate(ORDERS):
        source, target = tmp_path / f"{number}.nii.gz", tmp_path / f"{number}_labels.nii.gz"
        nib.save(nib.Nifti1Image(mask, affine_of(kind, order)), source)
        _predict_identity(source, target)
        one, two = nib.load(source), nib.load(target)
        np.testing.assert_array_equal(two.affine, one.affine)
        np.testing.assert_array_equal(np.asarray(two.dataobj), mask)
        for code in ("sform_code", "qform_code", "pixdim", "srow_x", "srow_y", "srow_z"):
            np.testing.assert_array_equal(two.header[code], one.header[code])


@pytest.mark.parametrize("kind", ["anisotropic", "oblique"])
@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
def test_identity_prediction_through_itk_for_all_48_orders(tmp_path: Path, ending: str, kind: str) -> None:
    mask = np.random.default_rng(0).integers(0, 2, SHAPE).astype(np.int16)
    for number, order in enumerate(ORDERS):
        source, target = tmp_path / f"{number}{ending}", tmp_path / f"{number}_labels{ending}"
        affine = affine_of(kind, order)
        write_labels(source, mask, Geometry(SHAPE, affine))
        np.testing.assert_allclose(read_geometry(source).affine, affine, rtol=0, atol=1e-12)
        _predict_identity(source, target)
        np.testing.assert_allclose(read_geometry(target).affine, read_geometry(source).affine, rtol=0, atol=1e-13)
        np.testing.assert_array_equal(read_volume(target).array[0], mask)


def _predict_identity(source: Path, target: Path) -> None:
    volume = read_volume(source)
    labels = from_canonical((volume.canonical().array > 0.5).astype(np.uint8), volume.geometry)
    write_labels(target, labels[0], volume.geometry)


def header_with(sform: np.ndarray, qform: np.ndarray, shape: tuple[int, ...]) -> bytes:
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_sform(sform, 1)
    header.set_qform(qform, 1)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    return header.binaryblock + bytes(4)


@given(rotations, st.floats(0, 1e-3), spacings, st.booleans())
@settings(max_examples=200, deadline=None)
def test_a_right_qform_is_never_refused_for_its_single_precision(rotation, angle, spacing, half_turn) -> None:
    axis = rotation[:, 0]
    turned = Rotation.from_rotvec(axis * (np.pi - angle)).as_matrix() if half_turn else rotation
    affine = np.eye(4)
    affine[:3, :3] = turned * spacing
    affine[:3, 3] = -120.5, 33.25, 900
    assert parse_header(header_with(affine, affine, (512, 512, 300))).shape == (512, 512, 300)


@given(rotations, spacings, st.integers(0, 2), st.floats(0.11, 3))
@settings(max_examples=40, deadline=None)
def test_a_qform_moved_by_more_than_a_tenth_of_a_voxel_is_refused(rotation, spacing, axis, voxels) -> None:
    affine = np.eye(4)
    affine[:3, :3] = rotation * spacing
    moved = affine.copy()
    moved[:3, 3] += voxels * affine[:3, axis]
    with pytest.raises(BadGeometry, match="sform and qform disagree"):
        parse_header(header_with(affine, moved, SHAPE))
