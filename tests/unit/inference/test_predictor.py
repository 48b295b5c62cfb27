"""The predictor's geometry, proven without training: a network that returns its input must paint the same voxels."""

import itertools

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from medseg.data.plan import Plan
from medseg.device import choose_profile
from medseg.errors import InputRefused, PartialFailure, UnreadableFile, UsageError
from medseg.inference import Predictor, predict_cases
from medseg.inference.inputs import find_cases
from medseg.inference.member import Member
from medseg.io import read_labels, save_model
from medseg.models import create_model
from medseg.targets import ExclusiveClasses

pytestmark = pytest.mark.numerics

LABELS = {"background": 0, "organ": 1}
FP32 = choose_profile("cpu", "fp32")
ORIENTATIONS = [
    (order, flips) for order in itertools.permutations(range(3)) for flips in itertools.product((1, -1), repeat=3)
]


class Threshold(nn.Module):
    """Logits that say "organ" where the image is above 0.5."""

    def forward(self, x):
        return torch.cat([torch.full_like(x, 0.5), x], dim=1) * 20


def plan(spacing, **changes):
    settings = {
        "dataset": "d", "spatial_dims": 3, "channel_names": ["MR"], "labels": LABELS, "ignore_label": None,
        "spacing": spacing, "patch_size": [8, 8, 8], "batch_size": 1, "strides": [[1, 1, 1]],
        "normalization": [{"scheme": "none"}], "crop_nonzero": True, "mirror_axes": [0], "mirror_swaps": {},
    }  # fmt: skip
    return Plan.from_dict({**settings, **changes})


def predictor(spacing, tta=False):
    return Predictor([Member(Threshold(), plan(spacing), ExclusiveClasses(labels=LABELS), FP32)], tta=tta)


def painted(path, order, flips, spacing=(1.0, 2.0, 3.0), shape=(9, 12, 7), seed=0):
    """A random blob in a file of that orientation, and its voxels."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(shape, np.uint8)
    mask[2:6, 3:9, 1:5] = rng.random((4, 6, 4)) < 0.7
    affine = np.zeros((4, 4))
    for column, (axis, sign) in enumerate(zip(order, flips, strict=True)):
        affine[axis, column] = sign * spacing[axis]
    affine[:3, 3], affine[3, 3] = [5, -7, 11], 1
    image = nib.Nifti1Image(mask.astype(np.float32), affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    nib.save(image, path)
    return mask


@pytest.mark.parametrize(("order", "flips"), ORIENTATIONS)
def test_the_same_voxels_come_back_in_every_orientation(tmp_path, order, flips):
    mask = painted(tmp_path / "case.nii.gz", order, flips)
    segmentation = predictor((1.0, 2.0, 3.0), tta=True).predict(tmp_path / "case.nii.gz")
    segmentation.save(tmp_path / "seg.nii.gz")
    written, original = nib.load(tmp_path / "seg.nii.gz"), nib.load(tmp_path / "case.nii.gz")
    assert np.array_equal(np.asarray(written.dataobj), mask)
    assert np.array_equal(written.affine, original.affine)
    assert (int(written.header["sform_code"]), int(written.header["qform_code"])) == (1, 1)


def test_resampling_keeps_the_place(tmp_path):
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    mask = np.zeros((20, 20, 20), np.float32)
    mask[4:12, 6:14, 8:16] = 1
    nib.save(nib.Nifti1Image(mask, affine), tmp_path / "case.nii.gz")
    labels = predictor((1.0, 1.0, 1.0)).predict(tmp_path / "case.nii.gz").labels
    assert np.array_equal(labels, mask)


def test_probabilities_on_the_files_grid(tmp_path):
    mask = painted(tmp_path / "case.nii.gz", (1, 0, 2), (1, -1, 1))
    segmentation = predictor((1.0, 2.0, 3.0)).predict(tmp_path / "case.nii.gz", probabilities=True)
    assert segmentation.probabilities.shape == (2, *mask.shape)
    inside = segmentation.probabilities[1][mask == 1]
    assert inside.min() > 0.99
    assert segmentation.volume_ml()["organ"] == pytest.approx(mask.sum() * 6 / 1000)


def test_mirroring_swaps_the_channels_of_a_left_right_pair():
    class Sides(nn.Module):
        """Class 1 on the first half of axis 0, class 2 on the second: what a network that knows sides would say."""

        def forward(self, x):
            first = torch.zeros_like(x)
            first[:, :, : x.shape[2] // 2] = 9
            return torch.cat([torch.zeros_like(x), first, 9 - first], 1)

    labels = {"background": 0, "kidney_right": 1, "kidney_left": 2}
    settings = plan((1.0, 1.0, 1.0), labels=labels, mirror_swaps={"0": [[1, 2]]})
    member = Member(Sides(), settings, ExclusiveClasses(labels=labels), FP32)
    windows = torch.ones(2, 1, 8, 8, 8)
    torch.testing.assert_close(member.logits(windows), member.logits(windows, mirror=True))


def test_wrong_channels_and_settings(tmp_path):
    painted(tmp_path / "case.nii.gz", (0, 1, 2), (1, 1, 1))
    two = [tmp_path / "case.nii.gz"] * 2
    with pytest.raises(InputRefused, match="expected 3D with 1: MR"):
        predictor((1.0, 1.0, 1.0)).predict(two)
    with pytest.raises(UsageError, match="overlap is 1"):
        Predictor(predictor((1.0, 1.0, 1.0)).members, overlap=1)


def test_one_bad_case_does_not_stop_the_others(tmp_path):
    images = tmp_path / "in"
    images.mkdir()
    for name in ("a", "b"):
        painted(images / f"{name}_0000.nii.gz", (0, 1, 2), (1, 1, 1))
    (images / "c_0000.nii.gz").write_bytes(b"not an image")
    cases = find_cases(images, channels=1)
    with pytest.raises(PartialFailure, match="1 of 3 cases failed: c") as error:
        predict_cases(predictor((1.0, 2.0, 3.0)), cases, tmp_path / "out", progress=False)
    assert error.value.exit_code == 6
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.nii.gz", "b.nii.gz"]
    before = (tmp_path / "out" / "a.nii.gz").stat().st_mtime_ns
    (images / "c_0000.nii.gz").unlink()
    predict_cases(predictor((1.0, 2.0, 3.0)), find_cases(images, 1), tmp_path / "out", overwrite=False, progress=False)
    assert (tmp_path / "out" / "a.nii.gz").stat().st_mtime_ns == before
    assert read_labels(tmp_path / "out" / "b.nii.gz").array.max() == 1


def test_a_case_without_all_channels(tmp_path):
    for channel in (0, 1):
        painted(tmp_path / f"x_000{channel}.nii.gz", (0, 1, 2), (1, 1, 1))
    with pytest.raises(UsageError, match="2 channel files"):
        find_cases(tmp_path, channels=3)
    assert [len(case.images) for case in find_cases(tmp_path, channels=2)] == [2]


def test_weights_of_another_model_are_refused(tmp_path):
    network = create_model("unet", base_channels=4, strides=[1, 2])
    arguments = {"name": "unet", "base_channels": 8, "strides": [1, 2]}
    target = ExclusiveClasses(labels=LABELS).to_dict()
    description = {"model": arguments, "target": target, "plan": plan((1.0, 1.0, 1.0)).to_dict()}
    save_model(tmp_path / "m", network.state_dict(), description)
    with pytest.raises(UnreadableFile, match="weights are not those of model 'unet'"):
        Predictor.from_pretrained(tmp_path / "m")
    save_model(tmp_path / "n", network.state_dict(), {"model": arguments})
    with pytest.raises(UnreadableFile, match="lacks plan, target"):
        Predictor.from_pretrained(tmp_path / "n")
