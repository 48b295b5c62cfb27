"""How sure a prediction is, voxel by voxel, from the probabilities of one network or of several.

Several: the members of an ensemble, the passes of Monte Carlo dropout, or all passes of all members.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

import torch
from torch import Tensor

from medseg.errors import UsageError, nearest
from medseg.targets.base import categorical_entropy

Entropy = Callable[[Tensor], Tensor]


def predictive_entropy(parts: Sequence[Tensor], entropy: Entropy = categorical_entropy) -> Tensor:
    """Entropy of the mean probabilities, 0 (certain) to 1 (all classes alike).

    Args:
        parts: of each member (n, P, *R) probabilities.
        entropy: of probabilities, 0 to 1, as the target has it; for classes in units of log K (K = 1: log 2), so that
            numbers of classes can be compared.

    Returns:
        (n, *R).
    """
    return entropy(reduce(torch.add, parts) / len(parts))  # a stack would hold all of them twice


def mutual_information(parts: Sequence[Tensor], entropy: Entropy = categorical_entropy) -> Tensor:
    """Entropy of the mean minus mean entropy of the members (Houlsby et al., 2011): where the members disagree.

    Args:
        parts: as for `predictive_entropy`, at least two.
        entropy: as for `predictive_entropy`.

    Returns:
        (n, *R), 0 (they agree) to 1, in the same units.
    """
    expected = torch.stack([entropy(part) for part in parts]).mean(0)
    return (predictive_entropy(parts, entropy) - expected).clamp_(min=0)


MEASURES: dict[str, Callable[[Sequence[Tensor], Entropy], Tensor]] = {
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
