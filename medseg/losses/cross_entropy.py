"""Cross-entropy in float32 whatever the precision of the logits, over labelled voxels only."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from medseg.losses import IGNORE, LOSSES, Loss


def at_least_float32(logits: Tensor) -> Tensor:
    """bfloat16 and float16 -> float32; float32 and float64 as they are."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over labelled voxels; 0 where there are none.

    Args:
        logits: (B, K, *S); K = 1 is a sigmoid channel.
        labels: (B, 1, *S) int64, `IGNORE` where unlabelled.
    """
    logits, labelled = at_least_float32(logits), labels != IGNORE
    if logits.shape[1] == 1:
        truth = labels.clamp(min=0).to(logits.dtype)
        total = functional.binary_cross_entropy_with_logits(logits, truth, weight=labelled.to(truth), reduction="sum")
    else:
        total = functional.cross_entropy(logits, labels[:, 0], ignore_index=IGNORE, reduction="sum")
    return total / labelled.sum().clamp(min=1)


@LOSSES.register("cross_entropy")
def make_cross_entropy() -> Loss:
    """Cross-entropy alone."""
    return cross_entropy
