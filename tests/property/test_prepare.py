"""restore_labels(preprocess_labels) is the identity: every orientation, with crop, without resampling."""

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.data.plan import Plan
from medseg.data.prepare import preprocess, preprocess_labels, restore_channels, restore_labels
from medseg.io import Geometry, Volume

ORIENTATIONS = [(order, signs) for order in permutations(range(3)) for signs in product((1, -1), repeat=3)]


def plan(spacing, crop=True):
    return Plan(
        dataset="toy",
        spatial_dims=len(spacing),
        channel_names=("MRI",),
        labels={"background": 0, "organ": 1},
        ignore_label=None,
        spacing=spacing,
        patch_size=(8,) * len(spacing),
        batch_size=2,
        strides=((1,) * len(spacing),),
        normalization=({"scheme": "zscore", "nonzero": False},),
        crop_nonzero=crop,
        mirror_axes=(),
        mirror_swaps={},
    )


def volumes(shape, affine, seed=0):
    """An image with an empty border, and labels inside of it."""
    rng = np.random.default_rng(seed)
    inner = tuple(slice(1, n) for n in shape)
    image, labels = np.zeros(shape, np.float32), np.zeros(shape, np.uint8)
    image[inner] = rng.uniform(1, 2, image[inner].shape)
    labels[inner] = rng.integers(0, 4, labels[inner].shape)
    geometry = Geometry(shape, affine, {})
    return Volume(image[None], geometry), Volume(labels[None], geometry)


def affine_of(order, signs, spacing):
    """Voxel axis a runs along world axis order[a]; spacing is that of the world axes."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (world, sign) in enumerate(zip(order, signs, strict=True)):
        affine[world, axis] = sign * spacing[world]
    affine[:3, 3] = (-10, 20, 5)
    return affine


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_all_48_orientations_come_back_exactly(order, signs):
    spacing = (0.5, 1.25, 3.0)
    image, labels = volumes((5, 6, 7), affine_of(order, signs, spacing))
    array, done = preprocess(image, plan(spacing))
    assert done.cropped_shape == done.resampled_shape == array.shape[1:]
    assert np.prod(done.cropped_shape) == 4 * 5 * 6
    prepared = preprocess_labels(labels, done)
    assert prepared.shape == array.shape[1:]
    np.testing.assert_array_equal(restore_labels(prepared, done), labels.array[0])


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS[::7])
def test_outside_of_the_crop_is_0(order, signs):
    image, _ = volumes((5, 6, 7), affine_of(order, signs, (1.0, 1.0, 1.0)))
    _, done = preprocess(image, plan((1.0, 1.0, 1.0)))
    restored = restore_labels(np.ones(done.cropped_shape, np.uint8), done)
    np.testing.assert_array_equal(restored, (image.array[0] != 0).astype(np.uint8))
    filled = restore_channels(np.zeros((2, *done.cropped_shape), np.float32), done, outside=1.0)
    assert filled.shape == (2, 5, 6, 7)
    assert filled.sum() == 2 * (5 * 6 * 7 - 4 * 5 * 6)


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS[::5])
def test_anatomy_lands_at_the_same_index_whatever_the_orientation(order, signs):
    """One marked point in mm: every storage order gives the same prepared array."""
    canonical = np.zeros((6, 7, 8), np.float32)
    canonical[1, 2, 5] = 3.0
    stored = np.moveaxis(canonical, order, (0, 1, 2))  # voxel axis a is world axis order[a]
    affine = affine_of(order, signs, (1.0, 1.0, 1.0))
    for axis, sign in enumerate(signs):
        if sign < 0:
            stored = np.flip(stored, axis)
            affine[order[axis], 3] = canonical.shape[order[axis]] - 1
        else:
            affine[order[axis], 3] = 0
    volume = Volume(np.ascontiguousarray(stored)[None], Geometry(stored.shape, affine, {}))
    array, _ = preprocess(volume, plan((1.0, 1.0, 1.0), crop=False))
    assert np.unravel_index(array[0].argmax(), array.shape[1:]) == (1, 2, 5)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 17)] * 3),
    order=st.permutations(range(3)),
    signs=st.tuples(*[st.sampled_from((1, -1))] * 3),
    factor=st.sampled_from((0.4, 0.9, 1.0, 1.7, 4.0)),
)
def test_any_size_and_spacing_comes_back_in_the_files_grid(shape, order, signs, factor):
    image, labels = volumes(shape, affine_of(order, signs, (1.0, 1.0, 1.0)))
    array, done = preprocess(image, plan((factor, 1.0, factor)))
    assert np.isfinite(array).all()
    prepared = preprocess_labels(labels, done)
    assert prepared.shape == array.shape[1:] == done.resampled_shape
    assert set(np.unique(prepared)) <= set(np.unique(labels.array))
    assert restore_labels(np.zeros(done.cropped_shape, np.uint8), done).shape == shape


def test_2d_keeps_rows_and_columns():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (1, 9, 7)).astype(np.uint8)
    geometry = Geometry((9, 7), np.eye(4), {})
    _, done = preprocess(Volume(rng.random((1, 9, 7), dtype=np.float32) + 1, geometry), plan((1.0, 1.0)))
    np.testing.assert_array_equal(restore_labels(preprocess_labels(Volume(labels, geometry), done), done), labels[0])
