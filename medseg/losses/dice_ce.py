"""Dice + cross-entropy of softmax logits as one operation with a gradient in closed form.

The plain composition of `cross_entropy` and `soft_dice_loss`, which defines the value and serves one sigmoid channel,
keeps about twice as much memory for its backward pass and is slower with many classes. Here only the probabilities, the
labels and the labelled mask are kept. With
dDice/dp_k = C_k + A_k [k = t], where t is the voxel's label, the gradient by the logits is

    dL/dx_k = p_k (C_k + w - s) + [k = t] (A_t p_t - w),    s = A_t p_t + sum_j C_j p_j,    w = ce_weight / N,

and zero at ignored voxels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from medseg.losses import LOSSES, Loss
from medseg.losses.cross_entropy import at_least_float32, cross_entropy
from medseg.losses.dice import foreground_channels, soft_dice_loss


class Options(NamedTuple):
    """What `make_dice_ce` was asked for."""

    dice_weight: float
    ce_weight: float
    batch_dice: bool
    include_background: bool
    smooth: float


@LOSSES.register("dice_ce")
def make_dice_ce(
    *,
    dice_weight: float = 1.0,
    ce_weight: float = 1.0,
    batch_dice: bool = True,
    include_background: bool = False,
    smooth: float = 1e-5,
) -> Loss:
    """``dice_weight * soft Dice loss + ce_weight * cross-entropy``, nnU-Net's loss (Isensee et al. 2021).

    Args:
        dice_weight: factor of the Dice loss.
        ce_weight: factor of the cross-entropy, a mean over labelled voxels.
        batch_dice: sum intersections over the batch before dividing; steadier where patches lack small classes.
        include_background: count the background in the Dice loss too.
        smooth: added to the numerator and denominator of the Dice.
    """
    options = Options(dice_weight, ce_weight, batch_dice, include_background, smooth)

    def dice_ce(logits: Tensor, labels: Tensor) -> Tensor:
        logits = at_least_float32(logits)
        if logits.shape[1] == 1:
            return plain_dice_ce(logits, labels, options)
        return _DiceCE.apply(logits, labels, options)

    return dice_ce


def plain_dice_ce(logits: Tensor, labels: Tensor, options: Options) -> Tensor:
    """The composition that defines the loss. logits: (B, K, *S) float32 or float64, labels: (B, 1, *S) int64."""
    p = logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)
    dice = soft_dice_loss(
        p, labels, batch_dice=options.batch_dice, include_background=options.include_background, smooth=options.smooth
    )
    return options.dice_weight * dice + options.ce_weight * cross_entropy(logits, labels)


class _DiceCE(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, options: Options) -> Tensor:
        log_p = logits.flatten(2).log_softmax(1)
        truth = labels.flatten(2)
        labelled = truth.ge(0).to(log_p)
        truth = truth.clamp(min=0)
        voxels = labelled.sum().clamp(min=1)
        log_p_true = log_p.gather(1, truth) * labelled
        p = log_p.exp_()
        dice, by_overlap, by_predicted = _dice_and_slopes(*_class_sums(p, log_p_true.exp(), truth, labelled), options)
        ctx.save_for_backward(p, truth, labelled, by_overlap, by_predicted, options.ce_weight / voxels)
        ctx.shape = logits.shape
        return options.dice_weight * (1 - dice) - options.ce_weight * log_p_true.sum() / voxels

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        p, truth, labelled, by_overlap, by_predicted, ce_slope = ctx.saved_tensors
        scale = labelled * grad
        pull = by_overlap.gather(1, truth[:, 0])[:, None] * p.gather(1, truth)  # A_t p_t
        common = _exact_matmul(by_predicted[:, None], p) + pull - ce_slope  # s - w
        grad_x = p * scale
        grad_x *= by_predicted[:, :, None] - common
        grad_x.scatter_add_(1, truth, (pull - ce_slope) * scale)
        return grad_x.view(ctx.shape), None, None


def _class_sums(p: Tensor, p_true: Tensor, truth: Tensor, labelled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Per sample and class, over labelled voxels: sum of p where the class is the label, sum of p, voxels; each (B, K).

    Counting by label (one pass) instead of multiplying with a one-hot tensor (K passes).
    """
    samples, classes = p.shape[:2]
    bins = (truth + classes * torch.arange(samples, device=p.device)[:, None, None]).flatten()
    overlap, reference = (
        torch.bincount(bins, weights.flatten(), minlength=samples * classes).view(samples, classes).to(p)
        for weights in (p_true * labelled, labelled)
    )
    return overlap, _exact_matmul(p, labelled.mT)[:, :, 0], reference


def _exact_matmul(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in their own precision: autocast would round sums over the whole patch to bfloat16."""
    with torch.autocast(a.device.type, enabled=False):
        return a @ b


def _dice_and_slopes(overlap: Tensor, predicted: Tensor, reference: Tensor, options: Options) -> tuple[Tensor, ...]:
    """Mean Dice, and the slopes of the weighted Dice loss by each class's overlap (A) and predicted sum (C): (B, K)."""
    samples = len(overlap)
    if options.batch_dice:
        overlap, predicted, reference = (s.sum(0, keepdim=True) for s in (overlap, predicted, reference))
    top, bottom = 2 * overlap + options.smooth, predicted + reference + options.smooth
    counted = torch.zeros_like(top)
    counted[:, foreground_channels(top.shape[1], options.include_background)] = 1
    weight = options.dice_weight * counted / counted.sum()
    dice = (top / bottom * counted).sum() / counted.sum()
    return dice, (-2 * weight / bottom).expand(samples, -1), (weight * top / bottom**2).expand(samples, -1)
