"""Resampling: the coordinate convention, exactness where nothing changes, labels without invented classes."""

import numpy as np
import pytest
import torch

from medseg.data.resample import resample, resample_image, resample_labels


def test_same_shape_is_the_same_object():
    tensor, image, labels = torch.rand(2, 3, 4, 5), np.ones((1, 3, 4, 5), np.float32), np.ones((3, 4, 5), np.uint8)
    assert resample(tensor, (3, 4, 5)) is tensor
    assert resample_image(image, (3, 4, 5)) is image
    assert resample_labels(labels, (3, 4, 5)) is labels


@pytest.mark.parametrize("shape", [(20, 12, 7), (5, 6, 14)])
def test_a_ramp_in_voxel_centres_stays_the_same_ramp(shape):
    """Centres convention: position (i + 0.5) / n of the extent is kept, whatever n."""
    old = (10, 12, 7)
    ramp = np.indices(old).astype(np.float32) + 0.5
    out = resample_image(ramp, shape)
    for axis, (n, m) in enumerate(zip(old, shape, strict=True)):
        expected = (np.arange(m) + 0.5) * n / m
        got = np.moveaxis(out[axis], axis, 0)[:, 0, 0]
        inner = (expected > 0.5) & (expected < n - 0.5)
        np.testing.assert_allclose(got[inner], expected[inner], rtol=1e-5)


def test_channels_are_resampled_alike():
    image = np.random.default_rng(0).random((2, 5, 6), dtype=np.float32)
    whole = resample(torch.from_numpy(image), (9, 4)).numpy()
    np.testing.assert_array_equal(resample_image(image, (9, 4)), whole)


def test_labels_double_exactly():
    labels = np.random.default_rng(0).integers(0, 4, (4, 5, 6)).astype(np.int16)
    out = resample_labels(labels, (12, 15, 18))
    assert out.dtype == np.int16
    np.testing.assert_array_equal(out[1::3, 1::3, 1::3], labels)  # the middle of each tripled voxel is its centre


def test_labels_never_mix_to_a_value_between():
    labels = np.zeros((6, 6), np.uint8)
    labels[3:] = 200
    assert set(np.unique(resample_labels(labels, (11, 5)))) == {0, 200}


def test_labels_equal_one_hot_argmax():
    labels = np.random.default_rng(1).integers(0, 5, (7, 6, 5)).astype(np.uint8)
    one_hot = torch.nn.functional.one_hot(torch.from_numpy(labels).long()).movedim(-1, 0).float()
    expected = resample(one_hot, (5, 9, 4)).argmax(0).numpy()
    np.testing.assert_array_equal(resample_labels(labels, (5, 9, 4)), expected)


def test_one_slice():
    image = np.random.default_rng(0).random((1, 6, 6, 1), dtype=np.float32)
    out = resample_image(image, (6, 6, 3))
    for k in range(3):
        np.testing.assert_allclose(out[..., k], image[..., 0], rtol=1e-6)
    assert resample_labels(np.ones((4, 4, 1), np.uint8), (4, 4, 2)).all()
