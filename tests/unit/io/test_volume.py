"""Geometry and canonical order."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from medseg.errors import BadGeometry
from medseg.io import Geometry, Volume, from_canonical, to_canonical

LPS = np.diag([-1.0, -2.0, 3.0, 1.0])


def volume(affine: np.ndarray = LPS, shape: tuple[int, ...] = (2, 3, 4)) -> Volume:
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(1, *shape)
    return Volume(array, Geometry(shape, affine))


def test_spacing_is_the_length_of_the_affines_columns() -> None:
    oblique = np.array([[0.6, -0.8, 0, 5], [0.8, 0.6, 0, 6], [0, 0, 2.5, 7], [0, 0, 0, 1]])
    assert volume(oblique).spacing == pytest.approx((1.0, 1.0, 2.5))


def test_canonical_flips_the_axes_and_moves_the_origin() -> None:
    canonical = volume().canonical()
    assert canonical.array[0].tolist() == volume().array[0, ::-1, ::-1].tolist()
    np.testing.assert_array_equal(canonical.affine, [[1, 0, 0, -1], [0, 2, 0, -4], [0, 0, 3, 0], [0, 0, 0, 1]])
    assert canonical.array.flags.c_contiguous


def test_canonical_permutes_shape_and_spacing_together() -> None:
    sagittal = np.array([[0, 0, 3.0, 0], [1.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 0, 1]])
    canonical = volume(sagittal).canonical()
    assert canonical.spatial_shape == (4, 2, 3)
    assert canonical.spacing == (3.0, 1.0, 2.0)


def test_a_canonical_volume_is_returned_as_it_is() -> None:
    already = volume(np.eye(4))
    assert already.canonical() is already
    assert already.geometry.canonical() is already.geometry


def test_an_image_is_canonical() -> None:
    image = Volume(np.zeros((3, 4, 5), np.float32), Geometry((4, 5), np.eye(4)))
    assert image.ndim == 2
    assert image.spacing == (1.0, 1.0)
    assert image.canonical() is image
    assert to_canonical(image.array, image.geometry) is image.array
    assert from_canonical(image.array, image.geometry) is image.array


def test_difference_is_none_within_the_tolerance() -> None:
    geometry = volume().geometry
    moved = LPS.copy()
    moved[2, 3] = 1.4  # 0.47 voxels of 3 mm
    assert geometry.difference(geometry) is None
    assert geometry.difference(Geometry((2, 3, 4), moved)) is None
    assert geometry.difference(Geometry((2, 3, 4), moved), tolerance_voxels=0.1) is not None


def test_difference_names_both_grids_in_one_line() -> None:
    moved = LPS.copy()
    moved[0, 3] = 2
    text = volume().geometry.difference(Geometry((2, 3, 4), moved))
    assert text is not None
    assert "origin (0, 0, 0), axes LPS" in text
    assert "origin (2, 0, 0)" in text
    assert "2 voxels apart" in text
    assert "\n" not in text


def test_difference_tells_shapes() -> None:
    text = volume().geometry.difference(Geometry((2, 3, 5), LPS))
    assert text is not None
    assert "2x3x4" in text
    assert "2x3x5" in text


def test_a_flip_is_a_difference() -> None:
    assert volume().geometry.difference(volume().geometry.canonical())


def test_the_affine_cannot_be_changed_behind_the_volumes_back() -> None:
    with pytest.raises(ValueError, match="read-only"):
        volume().affine[0, 0] = 5


def test_an_array_that_does_not_fit_is_refused() -> None:
    with pytest.raises(BadGeometry, match="does not fit"):
        Volume(np.zeros((2, 3, 4)), Geometry((2, 3, 4), LPS))


def test_volumes_travel_to_worker_processes() -> None:
    copy = pickle.loads(pickle.dumps(volume()))
    np.testing.assert_array_equal(copy.array, volume().array)
    np.testing.assert_array_equal(copy.affine, LPS)
