"""The loss that the official code of UNet++ trains with: half the binary cross-entropy, minus Dice.

Read in its Keras code (MrGiovanni/UNetPlusPlus, helper_functions.py, `bce_dice_loss`; Zhou et al. 2019, arXiv
1912.05074). The loss named `hybrid` weighs the cross-entropy twice as much as this one.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from medseg.losses import IGNORE, LOSSES, Loss
from medseg.losses.cross_entropy import at_least_float32

SMOOTH = 1.0
SMALLEST = 1e-7  # Keras' epsilon, which bounds the probabilities that it takes logarithms of


@LOSSES.register("bce_dice")
def make_bce_dice() -> Loss:
    """0.5 BCE - Dice, from -1 (perfect) up, as in the official code of UNet++."""
    return bce_dice


def bce_dice(logits: Tensor, labels: Tensor) -> Tensor:
    """0.5 BCE - (2 sum(p y) + 1) / (sum(p) + sum(y) + 1), with one sum over all voxels and channels of the batch.

    BCE is the mean over voxels and channels of -y log p - (1 - y) log(1 - p). With one channel p is a sigmoid; with
    more, it is the softmax and y is one-hot, background included, as the official script has it for several classes.
    Computed from logits: Keras bounds sigmoids at 1e-7, beyond which they have no gradient; here they keep it.

    Args:
        logits: (B, K, *S).
        labels: (B, 1, *S) int64, `IGNORE` where unlabelled.
    """
    logits, labelled = at_least_float32(logits), labels != IGNORE
    channels = logits.shape[1]
    if channels == 1:
        truth, log_p, log_rest = labels == 1, logsigmoid(logits), logsigmoid(-logits)
    else:
        truth = labels == torch.arange(channels, device=labels.device).view(1, -1, *[1] * (labels.ndim - 2))
        log_p = logits.log_softmax(1)
        log_rest = (-torch.expm1(log_p)).clamp(min=SMALLEST).log()
    entropy = -(torch.where(truth, log_p, log_rest) * labelled).sum() / (channels * labelled.sum()).clamp(min=1)
    p = log_p.exp() * labelled
    dice = (2 * (p * truth).sum() + SMOOTH) / (p.sum() + truth.sum() + SMOOTH)
    return 0.5 * entropy - dice
