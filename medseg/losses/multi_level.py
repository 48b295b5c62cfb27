"""The multi-level activation and its losses: one logit x whose thresholds are the borders of nested levels.

Papers: Piraud et al. 2018 (arXiv 1804.01910), who propose the activation and three losses for it; Hu et al. 2018 (arXiv
1810.09488), who segment gliomas with it. a(x) = sum_j s_j with s_j = sigmoid(k (x - t_j)) and t_1 < ... < t_L symmetric
about 0, h apart. It has plateaus at 0, 1, ..., L; s_1 >= ... >= s_L, so nesting holds whatever the network says.

The texts of the papers were not at hand. Remembered: the form of a, k = 10, h = 0.5, and the names of the losses
modified cross-entropy, normalised cross-entropy and quadratic. Reconstructed: the exact formulas of these losses. Ours:
`level_dice`, class weights, and sums of several terms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from medseg.errors import UsageError
from medseg.losses import IGNORE, Loss, loss_terms
from medseg.losses.cross_entropy import at_least_float32
from medseg.losses.dice import region_dice_loss


@dataclass(frozen=True)
class MultiLevel:
    """The activation of `levels` nested levels.

    Args:
        levels: L, at least 1.
        k: steepness of every step, > 0.
        h: distance of neighbouring thresholds, > 0.

    Raises:
        UsageError: for numbers out of range.
    """

    levels: int
    k: float = 10.0
    h: float = 0.5

    def __post_init__(self) -> None:
        if self.levels < 1 or not 0 < self.k < math.inf or not 0 < self.h < math.inf:
            raise UsageError(f"multi-level activation with {self.levels} levels, k {self.k}, h {self.h} (all above 0)")

    @property
    def thresholds(self) -> list[float]:
        """t_1 < ... < t_L: (0), (-h/2, h/2), (-h, 0, h), ..."""
        return [self.h * (j - (self.levels - 1) / 2) for j in range(self.levels)]

    def steps(self, x: Tensor) -> Tensor:
        """k (x - t_j), the logits of s_j. x: (B, 1, *S) -> (B, L, *S)."""
        thresholds = torch.tensor(self.thresholds, dtype=x.dtype, device=x.device)
        return self.k * (x - thresholds.view(1, -1, *[1] * (x.ndim - 2)))

    def class_log_probabilities(self, x: Tensor) -> Tensor:
        """log P_c of levels c = 0..L, P_c = s_c - s_(c+1) with s_0 = 1 and s_(L+1) = 0.

        As log s_c + log (1 - s_(c+1)) + log (1 - exp(-k h)), which is the same and loses no digits in the tails.

        Args:
            x: (B, 1, *S).

        Returns:
            (B, L + 1, *S); their exponentials sum to 1.
        """
        steps = self.steps(x)
        nothing = torch.zeros_like(x)
        above = torch.cat([nothing, functional.logsigmoid(steps)], 1)
        below = torch.cat([functional.logsigmoid(-steps), nothing], 1)
        between = math.log(-math.expm1(-self.k * self.h))
        constant = torch.tensor([0.0, *[between] * (self.levels - 1), 0.0], dtype=x.dtype, device=x.device)
        return above + below + constant.view(1, -1, *[1] * (x.ndim - 2))


Term = Callable[[Tensor, Tensor, MultiLevel, Sequence[float]], Tensor]


def modified_cross_entropy(x: Tensor, level: Tensor, activation: MultiLevel, weights: Sequence[float]) -> Tensor:
    """-log P of the voxel's level, a mean with the weights of the levels over labelled voxels.

    Args:
        x: (B, 1, *S) float32 or float64.
        level: (B, 1, *S) int64 in 0..L, `IGNORE` where unlabelled.
        activation: with L levels.
        weights: of levels 0..L.
    """
    log_p = activation.class_log_probabilities(x)
    scale = torch.tensor(list(weights), dtype=x.dtype, device=x.device)
    return functional.nll_loss(log_p, level[:, 0], scale, ignore_index=IGNORE, reduction="sum") / _mass(level, scale)


def normalised_cross_entropy(x: Tensor, level: Tensor, activation: MultiLevel, weights: Sequence[float]) -> Tensor:
    """Binary cross-entropy of a / L against level / L; arguments as in `modified_cross_entropy`."""
    steps = activation.steps(x)
    share = level.clamp(min=0).to(x) / activation.levels
    log_a = functional.logsigmoid(steps).logsumexp(1, keepdim=True) - math.log(activation.levels)
    log_rest = functional.logsigmoid(-steps).logsumexp(1, keepdim=True) - math.log(activation.levels)
    return _mean(-share * log_a - (1 - share) * log_rest, level, weights)


def quadratic(x: Tensor, level: Tensor, activation: MultiLevel, weights: Sequence[float]) -> Tensor:
    """(a - level)^2; arguments as in `modified_cross_entropy`. It saturates once |x| is beyond the thresholds."""
    return _mean((activation.steps(x).sigmoid().sum(1, keepdim=True) - level) ** 2, level, weights)


def level_dice(x: Tensor, level: Tensor, activation: MultiLevel, weights: Sequence[float]) -> Tensor:
    """Soft Dice loss of s_j against the region of level j and above; the weights of levels do not enter."""
    truth = torch.cat([level >= j for j in range(1, activation.levels + 1)], 1)
    return region_dice_loss(activation.steps(x).sigmoid(), truth, level != IGNORE)


TERMS: dict[str, Term] = {
    "modified_ce": modified_cross_entropy,
    "normalised_ce": normalised_cross_entropy,
    "quadratic": quadratic,
    "region_dice": level_dice,
}


def make_multi_level_loss(
    loss: str | Mapping[str, float], activation: MultiLevel, class_weights: Sequence[float] | None = None
) -> Loss:
    """A weighted sum of `TERMS`, in float32 whatever the precision of the logits.

    Args:
        loss: name of a term, or term -> weight.
        activation: of the logit.
        class_weights: of levels 0..L. None: all 1.

    Raises:
        UsageError: as `medseg.losses.loss_terms`, or for another number of class weights.
    """
    terms = loss_terms(loss, TERMS)
    weights = [1.0] * (activation.levels + 1) if class_weights is None else [float(w) for w in class_weights]
    if len(weights) != activation.levels + 1 or min(weights) < 0 or not any(weights):
        raise UsageError(f"class_weights is {weights} (expected {activation.levels + 1} of at least 0, outside first)")

    def total(logits: Tensor, level: Tensor) -> Tensor:
        x = at_least_float32(logits)
        return torch.stack([w * TERMS[name](x, level, activation, weights) for name, w in terms.items()]).sum()

    return total


def _mean(values: Tensor, level: Tensor, weights: Sequence[float]) -> Tensor:
    scale = torch.tensor(list(weights), dtype=values.dtype, device=values.device)
    return (values * scale[level.clamp(min=0)] * (level != IGNORE)).sum() / _mass(level, scale)


def _mass(level: Tensor, scale: Tensor) -> Tensor:
    """Sum of the weights of all labelled voxels; 1 where there are none."""
    mass = (scale[level.clamp(min=0)] * (level != IGNORE)).sum()
    return torch.where(mass > 0, mass, torch.ones_like(mass))
