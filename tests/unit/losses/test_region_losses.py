"""Region losses: those of MONAI and torch on tied numbers, and those of a binary target for a single region."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from medseg.errors import UsageError
from medseg.losses.regions import make_region_loss
from medseg.targets import ExclusiveClasses, NestedClasses, Regions

LABELS = {"background": 0, "organ": 1, "lesion": 2}


def test_dice_and_cross_entropy_are_monais_and_torchs() -> None:
    from monai.losses import DiceLoss

    torch.manual_seed(0)
    logits, truth = torch.randn(2, 3, 4, 5, 6), torch.rand(2, 3, 4, 5, 6) < 0.3
    everywhere = torch.ones(2, 1, 4, 5, 6, dtype=torch.bool)
    dice = DiceLoss(sigmoid=True, batch=True, smooth_nr=1e-5, smooth_dr=1e-5)(logits, truth.float())
    torch.testing.assert_close(make_region_loss("dice")(logits, truth, everywhere), dice)
    entropy = functional.binary_cross_entropy_with_logits(logits, truth.float())
    torch.testing.assert_close(make_region_loss("cross_entropy")(logits, truth, everywhere), entropy)
    both = make_region_loss({"dice": 2, "cross_entropy": 0.5})(logits, truth, everywhere)
    torch.testing.assert_close(both, 2 * dice + 0.5 * entropy)


def test_one_region_is_a_binary_target() -> None:
    torch.manual_seed(0)
    labels = {"background": 0, "organ": 3}
    binary, region = ExclusiveClasses(labels=labels, binary=True), Regions(labels=labels, regions={"organ": [3]})
    logits, label = torch.randn(2, 1, 6, 6), 3 * torch.randint(0, 2, (2, 1, 6, 6))
    heads = [logits, logits[..., ::2, ::2]]
    torch.testing.assert_close(region.loss(heads, region.encode(label)), binary.loss(heads, binary.encode(label)))
    assert torch.equal(region.decode(region.activate(logits)), binary.decode(binary.activate(logits)))
    torch.testing.assert_close(region.entropy(region.activate(logits)), binary.entropy(binary.activate(logits)))


def test_one_level_is_a_binary_target_of_steepness_k() -> None:
    torch.manual_seed(0)
    labels = {"background": 0, "organ": 1}
    binary = ExclusiveClasses(labels=labels, binary=True)
    nested = NestedClasses(labels=labels, levels=["organ"], k=4.0)
    logits, label = torch.randn(2, 1, 6, 6), torch.randint(0, 2, (2, 1, 6, 6))
    torch.testing.assert_close(nested.loss(logits, label), binary.loss(4 * logits, label))
    torch.testing.assert_close(nested.activate(logits), binary.activate(4 * logits))


def test_regions_see_the_union_of_their_labels() -> None:
    target = Regions(labels=LABELS, regions={"whole": [1, 2], "lesion": [2]}, loss="cross_entropy")
    label = torch.tensor([0, 1, 2]).view(1, 1, 1, 3)
    right = 20.0 * torch.tensor([[[[-1, 1, 1]], [[-1, -1, 1]]]])
    assert target.loss(right, target.encode(label)) < 1e-6
    assert target.loss(-right, target.encode(label)) == pytest.approx(20)


def test_voxels_without_label_do_not_count() -> None:
    target = Regions(labels=LABELS, regions={"whole": [1, 2], "lesion": [2]}, ignore_label=9)
    label = torch.tensor([0, 1, 9, 9, 2]).view(1, 1, 1, 5)
    logits = torch.randn(1, 2, 1, 5, requires_grad=True)
    target.loss(logits, target.encode(label)).backward()
    assert logits.grad is not None
    assert logits.grad[..., 2:4].abs().sum() == 0
    assert logits.grad[..., [0, 1, 4]].all()
    assert target.loss(logits, target.encode(torch.full_like(label, 9))).isfinite()


@pytest.mark.parametrize("loss", ["dicee", {"dice": "much"}, {}])
def test_losses_that_cannot_be_are_refused(loss: object) -> None:
    with pytest.raises(UsageError, match=r"of the loss|the loss has no term"):
        make_region_loss(loss)  # type: ignore[arg-type]
