"""Intensity normalisation."""

import numpy as np
import pytest

from medseg.data.normalize import normalize
from medseg.errors import UsageError


@pytest.fixture
def image():
    return np.random.default_rng(0).normal(500, 30, (1, 6, 7, 8)).astype(np.float32)


def test_zscore_has_mean_0_and_std_1(image):
    out = normalize(image, [{"scheme": "zscore", "nonzero": False}])
    assert out.dtype == np.float32
    assert out.mean() == pytest.approx(0, abs=1e-5)
    assert out.std() == pytest.approx(1, abs=1e-5)


def test_zscore_over_tissue_keeps_the_background_at_0(image):
    image[:, :3] = 0
    out = normalize(image, [{"scheme": "zscore", "nonzero": True}])
    assert not out[:, :3].any()
    assert out[:, 3:].mean() == pytest.approx(0, abs=1e-5)
    assert out[:, 3:].std() == pytest.approx(1, abs=1e-5)


def test_tissue_is_where_any_channel_is_not_0():
    image = np.zeros((2, 4), np.float32)
    image[0] = [0, 0, 1, 3]
    image[1] = [0, 5, 5, 5]
    out = normalize(image[:, :, None], [{"scheme": "zscore", "nonzero": True}] * 2)
    assert out[0, 0] == 0
    assert out[0, 1] < 0  # dark, but inside


def test_ct_clips_and_uses_the_datasets_statistics():
    image = np.array([[[-1000.0, 0.0, 3000.0]]])
    scheme = {"scheme": "ct", "lower": -100.0, "upper": 300.0, "mean": 100.0, "std": 50.0}
    np.testing.assert_allclose(normalize(image, [scheme])[0, 0], [-4, -2, 4])


def test_percentile_maps_to_0_1(image):
    out = normalize(image, [{"scheme": "percentile", "lower": 1, "upper": 99}])
    assert out.min() == 0
    assert out.max() == pytest.approx(1)


def test_none_changes_nothing_and_copies(image):
    out = normalize(image, [{"scheme": "none"}])
    np.testing.assert_array_equal(out, image)
    assert not np.shares_memory(out, image)


@pytest.mark.parametrize("nonzero", [True, False])
def test_a_constant_image_becomes_0(nonzero):
    for value in (0.0, 7.0):
        out = normalize(np.full((1, 3, 3), value), [{"scheme": "zscore", "nonzero": nonzero}])
        assert not out.any()


@pytest.mark.parametrize("unit", [1e-30, 2e-12, 1e-7, 1e7, 1e30])
@pytest.mark.parametrize("scheme", ["zscore", "tissue", "percentile", "minmax255", "ct"])
def test_the_unit_of_the_intensities_does_not_matter(image, scheme, unit):
    image[:, :2] = 0
    of_ct = {"lower": 450.0, "upper": 560.0, "mean": 500.0, "std": 30.0}
    outs = []
    for scale in (1.0, unit):
        numbers = {key: value * scale for key, value in of_ct.items()} if scheme == "ct" else {}
        made = {"scheme": "zscore", "nonzero": True} if scheme == "tissue" else {"scheme": scheme, **numbers}
        outs.append(normalize(image * np.float32(scale), [made]))
    np.testing.assert_allclose(outs[1], outs[0], rtol=1e-4, atol=1e-4)
    assert outs[1].std() > 0.1


def test_rounding_is_no_contrast():
    image = np.full((1, 5, 5), 1000, np.float32)
    image[0, 0, 0] = np.nextafter(np.float32(1000), np.float32(1001))
    assert np.abs(normalize(image, [{"scheme": "zscore"}])).max() < 1e-3


def test_unknown_scheme_is_told_the_nearest(image):
    with pytest.raises(UsageError, match="did you mean 'zscore'"):
        normalize(image, [{"scheme": "z-score"}])


def test_number_of_channels_must_agree(image):
    with pytest.raises(UsageError, match="1 channels"):
        normalize(image, [{"scheme": "none"}] * 2)


def test_fixed_scales_of_pictures():
    picture = np.arange(24, dtype=np.uint8).reshape(2, 3, 4) * 11
    unit = normalize(picture, [{"scheme": "unit", "full": 255.0}] * 2)
    np.testing.assert_allclose(unit, picture / 255, rtol=1e-6)
    scaled = normalize(picture, [{"scheme": "imagenet", "full": 255.0, "mean": 0.5, "std": 0.25}] * 2)
    np.testing.assert_allclose(scaled, (picture / 255 - 0.5) / 0.25, atol=1e-6)


def test_minmax255_is_over_all_channels():
    """As Att-SwinU-Net's official code: one minimum and one maximum for the whole picture."""
    picture = np.stack([np.full((3, 4), 10.0), np.full((3, 4), 60.0), np.full((3, 4), 110.0)])
    scaled = normalize(picture, [{"scheme": "minmax255"}] * 3)
    np.testing.assert_allclose(scaled[:, 0, 0], [0, 127.5, 255])


def test_a_scheme_without_its_numbers_is_refused(image):
    with pytest.raises(UsageError, match="'imagenet' lacks full, mean, std"):
        normalize(image, [{"scheme": "imagenet"}] * len(image))
