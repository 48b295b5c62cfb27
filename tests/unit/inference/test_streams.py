"""Scales of the test-time augmentation, and masks: the same voxels in the same places, and bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from medseg.data.dataset import Case
from medseg.data.resample import resample, resample_image
from medseg.errors import BadGeometry, MedsegError, UnreadableFile, UsageError
from medseg.inference import Predictor, predict_cases
from medseg.inference.member import Member
from medseg.inference.sliding_window import sliding_window
from medseg.inference.streams import check_scales, scaled_shape, support
from medseg.io import Geometry

pytestmark = pytest.mark.numerics

SPACING = (1.0, 1.0, 1.0)
MakePredictor = Callable[..., Predictor]


class Smooth(nn.Module):
    """Logits from a neighbourhood, so that windows and scales do change the result; counts the windows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.windows = nn.Conv3d(1, 2, 5, padding=2), 0

    def forward(self, x: Tensor) -> Tensor:
        self.windows += len(x)
        return self.conv(x) * 10


def smooth(threshold_predictor: MakePredictor, **changes: object) -> Member:
    return replace(threshold_predictor(**changes).members[0], network=Smooth())


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape, np.float32)


def test_logits_are_averaged_over_scales(threshold_predictor: MakePredictor) -> None:
    member, image, scales = smooth(threshold_predictor), noise(20, 13, 11), (0.75, 1.0, 1.3)
    predictor = Predictor([member], tta_scales=scales)
    found = predictor.predict(image, spacing=SPACING, probabilities=True)
    logits = []
    for scale in scales:
        array = torch.from_numpy(resample_image(image[None], scaled_shape(image.shape, scale)))
        logits.append(resample(sliding_window(member.logits, array, (8, 8, 8)), image.shape))
    expected = torch.stack(logits).mean(0).softmax(0).numpy()
    np.testing.assert_allclose(found.probabilities, expected, atol=2e-5)
    one = Predictor([member]).predict(image, spacing=SPACING, probabilities=True)
    assert np.abs(one.probabilities - found.probabilities).max() > 0.01


def test_a_scale_of_one_changes_nothing_and_another_keeps_the_place(threshold_predictor: MakePredictor) -> None:
    block = np.zeros((24, 20, 16), np.float32)
    block[4:12, 6:14, 2:10] = 1
    members = threshold_predictor().members
    assert np.array_equal(Predictor(members, tta_scales=[1]).predict(block, spacing=SPACING).labels, block)
    for scales in ([2.0], [0.5, 1.0, 2.0]):
        found = Predictor(members, tta=True, tta_scales=scales).predict(block, spacing=SPACING).labels
        assert np.array_equal(found[5:11, 7:13, 3:9], np.ones((6, 6, 6)))
        assert (found != block).sum() <= (0 if scales == [2.0] else 24 * 8)


def test_scales_are_counted_in_the_need(threshold_predictor: MakePredictor) -> None:
    members, grid = threshold_predictor().members, Geometry((64, 32, 32), np.eye(4))
    one, two, three = (Predictor(members, tta_scales=s).memory_need(grid) for s in ([1.0], [1.0, 2.0], [1.0, 2.0, 0.5]))
    assert two.image - one.image == 4 * 8 * 64 * 32 * 32
    assert one.logits < two.logits < three.logits
    assert Predictor(members, skip_empty=True).memory_need(grid).logits == one.logits + 4 * 2 * 8**3


@pytest.mark.parametrize("scales", [[], [1.0, 1.0], [0.1], [5], "1.0", 1.0, ["a"]])
def test_scales_that_cannot_be(scales: object) -> None:
    with pytest.raises(UsageError, match=r"tta_scales is .*tta_scales=\[1\.0,1\.25\]"):
        check_scales(scales)  # type: ignore[arg-type]


@settings(deadline=None, max_examples=40)
@given(st.tuples(*[st.integers(1, 9)] * 2), st.tuples(*[st.integers(1, 9)] * 2), st.integers(0, 99))
def test_the_support_of_a_mask_is_all_that_its_voxels_are_read_from(
    shape: tuple[int, int], coarse: tuple[int, int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    mask = torch.from_numpy(rng.random(shape) < 0.3)
    reads = support(mask, coarse)
    assert tuple(reads.shape) == coarse
    values = torch.from_numpy(rng.random((1, *coarse), np.float32))
    spoilt = torch.where(reads, values, 100.0)
    torch.testing.assert_close(resample(spoilt, shape)[0][mask], resample(values, shape)[0][mask])


@pytest.mark.parametrize("spacing", [[1.0, 1.0, 1.0], [1.6, 0.7, 1.0]])
@pytest.mark.parametrize("scales", [[1.0], [1.0, 1.2]])
def test_inside_a_mask_nothing_changes_and_outside_is_background(
    threshold_predictor: MakePredictor, spacing: list[float], scales: list[float]
) -> None:
    member, image = smooth(threshold_predictor, spacing=spacing), noise(40, 18, 16)
    predictor = Predictor([member], tta_scales=scales, uncertainty="entropy")
    whole = predictor.predict(image, spacing=SPACING, probabilities=True)
    everything, member.network.windows = member.network.windows, 0
    mask = np.zeros(image.shape, bool)
    mask[3:9, 4:7, 5:12], mask[12, 4, 5] = True, True
    found = predictor.predict(image, spacing=SPACING, probabilities=True, mask=mask)
    assert 0 < member.network.windows < everything
    assert np.array_equal(found.labels, np.where(mask, whole.labels, 0))
    np.testing.assert_allclose(found.probabilities[:, mask], whole.probabilities[:, mask], atol=1e-6)
    np.testing.assert_allclose(found.uncertainty, np.where(mask, whole.uncertainty, 0), atol=1e-5)
    assert 0 < found.labels.sum() < mask.sum()
    member.network.windows = 0
    assert not predictor.predict(image, spacing=SPACING, mask=np.zeros_like(mask)).labels.any()
    assert member.network.windows == 0


def test_empty_windows_are_skipped_without_changing_a_label(threshold_predictor: MakePredictor) -> None:
    member, image = smooth(threshold_predictor, spacing=[1.3, 1.0, 0.8]), np.full((60, 24, 20), -0.7, np.float32)
    image[10:22, 4:12, 3:9] = noise(12, 8, 6)
    plain, skipping = (Predictor([member], tta=True, skip_empty=skip) for skip in (False, True))
    expected = plain.predict(image, spacing=SPACING, probabilities=True)
    everything, member.network.windows = member.network.windows, 0
    found = skipping.predict(image, spacing=SPACING, probabilities=True)
    assert np.array_equal(found.labels, expected.labels)
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-5)
    assert 0 < member.network.windows < everything / 2


@pytest.fixture
def cases(tmp_path: Path) -> list[Case]:
    """Two images in another orientation than the canonical one, and a folder of masks for them."""
    affine = np.array([[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    (tmp_path / "masks").mkdir()
    for name in ("a", "b"):
        mask = np.zeros((14, 12, 10), np.uint8)
        mask[2:6, 3:9, :4] = 1
        nib.save(nib.Nifti1Image(np.ones(mask.shape, np.float32), affine), tmp_path / f"{name}.nii.gz")
        nib.save(nib.Nifti1Image(mask, affine), tmp_path / "masks" / f"{name}.nii.gz")
    return [Case(name, (tmp_path / f"{name}.nii.gz",)) for name in ("a", "b")]


def test_masks_from_files(threshold_predictor: MakePredictor, cases: list[Case], tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    for mask in (masks, masks / "a.nii.gz"):
        for file in predict_cases(threshold_predictor(), cases, tmp_path / "out", mask=mask, progress=False):
            expected = np.asarray(nib.load(masks / "a.nii.gz").dataobj)
            assert np.array_equal(np.asarray(nib.load(file).dataobj), expected)


def test_masks_that_do_not_fit(threshold_predictor: MakePredictor, cases: list[Case], tmp_path: Path) -> None:
    predictor, masks = threshold_predictor(), tmp_path / "masks"
    (masks / "b.nii.gz").unlink()
    with pytest.raises(MedsegError, match=r"b: .*has none for this case"):
        predict_cases(predictor, cases, tmp_path / "out", mask=masks, progress=False)
    nib.save(nib.Nifti1Image(np.ones((14, 12, 10), np.uint8), np.eye(4)), masks / "b.nii.gz")
    with pytest.raises(BadGeometry, match="the mask is on another grid"):
        predictor.predict(cases[0], mask=masks / "b.nii.gz")
    with pytest.raises(BadGeometry, match=r"its shape is \(3, 3, 3\)"):
        predictor.predict(cases[0], mask=np.ones((3, 3, 3)))
    with pytest.raises(UnreadableFile, match="No such file"):
        predictor.predict(cases[0], mask=tmp_path / "nowhere.nii.gz")
