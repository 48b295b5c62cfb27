"""Losses of overlapping regions, each with a sigmoid of its own (as nnU-Net's region-based training)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from medseg.losses import loss_terms
from medseg.losses.cross_entropy import at_least_float32
from medseg.losses.dice import region_dice_loss

RegionLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


def region_cross_entropy(logits: Tensor, truth: Tensor, labelled: Tensor) -> Tensor:
    """Mean binary cross-entropy over regions and labelled voxels; 0 where there are none. Shapes as `region_dice`."""
    weight = labelled.to(logits).expand_as(logits)
    total = functional.binary_cross_entropy_with_logits(logits, truth.to(logits), weight, reduction="sum")
    return total / weight.sum().clamp(min=1)


def region_dice(logits: Tensor, truth: Tensor, labelled: Tensor) -> Tensor:
    """Soft Dice loss, sums over the batch. logits (B, R, *S), truth (B, R, *S) bool, labelled (B, 1, *S) bool."""
    return region_dice_loss(logits.sigmoid(), truth, labelled)


REGION_TERMS: dict[str, RegionLoss] = {"cross_entropy": region_cross_entropy, "dice": region_dice}


def make_region_loss(loss: str | Mapping[str, float]) -> RegionLoss:
    """A weighted sum of `REGION_TERMS`, in float32 whatever the precision of the logits.

    Raises:
        UsageError: as `medseg.losses.loss_terms`.
    """
    terms = loss_terms(loss, REGION_TERMS)

    def total(logits: Tensor, truth: Tensor, labelled: Tensor) -> Tensor:
        logits = at_least_float32(logits)
        return torch.stack([w * REGION_TERMS[name](logits, truth, labelled) for name, w in terms.items()]).sum()

    return total
