"""How sure a prediction is, voxel by voxel, from the probabilities of one network or of several.

Several: the members of an ensemble, the passes of Monte Carlo dropout, or all passes of all members.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from math import log

import torch
from torch import Tensor

from medseg.errors import UsageError, nearest


def predictive_entropy(parts: Sequence[Tensor]) -> Tensor:
    """Entropy of the mean probabilities, 0 (certain) to 1 (all classes alike).

    Args:
        parts: of each member (n, K, *R) probabilities; K = 1 is one class against the background.

    Returns:
        (n, *R) in units of log K (K = 1: log 2), so that numbers of classes can be compared.
    """
    return _entropy(reduce(torch.add, parts) / len(parts))  # a stack would hold all of them twice


def mutual_information(parts: Sequence[Tensor]) -> Tensor:
    """Entropy of the mean minus mean entropy of the members (Houlsby et al., 2011): where the members disagree.

    Args:
        parts: as for `predictive_entropy`, at least two.

    Returns:
        (n, *R), 0 (they agree) to 1, in the same units.
    """
    expected = torch.stack([_entropy(part) for part in parts]).mean(0)
    return (predictive_entropy(parts) - expected).clamp_(min=0)


def _entropy(probabilities: Tensor) -> Tensor:
    if probabilities.shape[1] == 1:
        probabilities = torch.cat([1 - probabilities, probabilities], 1)
    return torch.special.entr(probabilities).sum(1) / log(probabilities.shape[1])


MEASURES: dict[str, Callable[[Sequence[Tensor]], Tensor]] = {
    "entropy": predictive_entropy,
    "mutual_information": mutual_information,
}


def check_measure(name: str | None, networks: int) -> str | None:
    """The name, if it is one. Raises UsageError for an unknown one, or for disagreement of a single network."""
    if name is not None and name not in MEASURES:
        raise UsageError(f"unknown uncertainty '{name}': {nearest(name, MEASURES)}")
    if name == "mutual_information" and networks < 2:
        fix = "give several models, mc_dropout=10, or uncertainty=entropy"
        raise UsageError("mutual_information needs an ensemble or several passes of mc_dropout", fix=fix)
    return name
