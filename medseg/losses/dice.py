"""Soft Dice (Milletari et al. 2016, arXiv 1606.04797, with plain sums in the denominator as in nnU-Net)."""

from __future__ import annotations

import torch
from torch import Tensor

from medseg.losses import IGNORE, LOSSES, Loss
from medseg.losses.cross_entropy import at_least_float32


def soft_dice_loss(
    probabilities: Tensor,
    labels: Tensor,
    *,
    batch_dice: bool = True,
    include_background: bool = False,
    smooth: float = 1e-5,
) -> Tensor:
    """One minus the mean soft Dice, ``(2 sum(p y) + smooth) / (sum(p) + sum(y) + smooth)``.

    Args:
        probabilities: (B, K, *S) in 0..1.
        labels: (B, 1, *S) int64, `IGNORE` where unlabelled.
        batch_dice: sum over the batch before dividing; otherwise the mean over samples.
        include_background: count channel 0 too; it always counts when it is the only channel.
        smooth: makes the Dice of an absent, unpredicted class 1.
    """
    p, flat = probabilities.flatten(2), labels.flatten(2)
    labelled = flat != IGNORE
    one_hot = (
        torch.zeros_like(p).scatter_(1, flat.clamp(min=0), labelled.to(p)) if p.shape[1] > 1 else (flat == 1).to(p)
    )
    dice = _soft_dice(p, one_hot, labelled, batch_dice, smooth)
    return 1 - dice[:, foreground_channels(dice.shape[1], include_background)].mean()


def region_dice_loss(
    probabilities: Tensor, truth: Tensor, labelled: Tensor, *, batch_dice: bool = True, smooth: float = 1e-5
) -> Tensor:
    """One minus the mean soft Dice over regions that may overlap.

    Args:
        probabilities: (B, R, *S) in 0..1.
        truth: (B, R, *S) bool.
        labelled: (B, 1, *S) bool.
        batch_dice: as for `soft_dice_loss`.
        smooth: as for `soft_dice_loss`.
    """
    p, known = probabilities.flatten(2), labelled.flatten(2)
    return 1 - _soft_dice(p, (truth.flatten(2) & known).to(p), known, batch_dice, smooth).mean()


def _soft_dice(p: Tensor, truth: Tensor, labelled: Tensor, batch_dice: bool, smooth: float) -> Tensor:
    """Dice (B or 1, K) of flat probabilities and truth (B, K, N) over labelled voxels (B, 1, N)."""
    sums = ((p * truth).sum(2), (p * labelled).sum(2), truth.sum(2))
    overlap, predicted, reference = (s.sum(0, keepdim=True) if batch_dice else s for s in sums)
    return (2 * overlap + smooth) / (predicted + reference + smooth)


def foreground_channels(channels: int, include_background: bool) -> slice:
    """The channels that a Dice loss averages over."""
    return slice(0 if include_background or channels == 1 else 1, None)


@LOSSES.register("dice")
def make_dice(*, batch_dice: bool = True, include_background: bool = False, smooth: float = 1e-5) -> Loss:
    """Soft Dice alone, over softmax or (one channel) sigmoid probabilities; arguments as in `soft_dice_loss`."""

    def dice(logits: Tensor, labels: Tensor) -> Tensor:
        logits = at_least_float32(logits)
        p = logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)
        return soft_dice_loss(p, labels, batch_dice=batch_dice, include_background=include_background, smooth=smooth)

    return dice
