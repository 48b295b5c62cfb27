"""Barlow Twins (Zbontar et al., ICML 2021, arXiv 2103.03230): the embeddings of two views shall agree.

Not in the registry of `medseg.losses`: it compares two embeddings, not logits with labels.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cross_correlation(first: Tensor, second: Tensor, *, eps: float = 1e-5) -> Tensor:
    """C = Z_a^T Z_b / B, where each dimension is a z-score over the batch (population standard deviation).

    Args:
        first: (B, D) embeddings of one view.
        second: (B, D) embeddings of the other view of the same images.
        eps: added to the variances, so that a dimension that is constant over the batch gives 0 and not NaN.

    Returns:
        (D, D) in float32 (float64 for float64 embeddings).
    """
    scores = [_z_scores(z.to(torch.promote_types(z.dtype, torch.float32)), eps) for z in (first, second)]
    with torch.autocast(first.device.type, enabled=False):  # bfloat16 would round correlations to two decimals
        return scores[0].mT @ scores[1] / len(first)


def correlation_loss(correlation: Tensor, *, redundancy: float = 5e-3) -> Tensor:
    """sum_i (1 - C_ii)^2 + lambda sum_{i != j} C_ij^2 (equation 1); 0 where C is the identity.

    Args:
        correlation: (D, D).
        redundancy: lambda.
    """
    squared = correlation.square()
    diagonal = correlation.diagonal()
    return (1 - diagonal).square().sum() + redundancy * (squared.sum() - squared.diagonal().sum())


def barlow_twins_loss(first: Tensor, second: Tensor, *, redundancy: float = 5e-3, eps: float = 1e-5) -> Tensor:
    """The loss of two (B, D) embeddings, a scalar in float32.

    A batch of B gives C a rank of at most B - 1, so with B <= D the off-diagonal part cannot vanish. With C's diagonal
    at 1 the sum of squares of a matrix of that rank is at least D^2 / (B - 1), hence a floor of about
    lambda (D^2 / (B - 1) - D): 20.6 for B = 16, D = 256. Losses of different batch sizes cannot be compared.
    """
    return correlation_loss(cross_correlation(first, second, eps=eps), redundancy=redundancy)


def _z_scores(z: Tensor, eps: float) -> Tensor:
    centred = z - z.mean(0)
    return centred * (centred.square().mean(0) + eps).rsqrt()
