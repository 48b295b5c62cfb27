"""What a metric is: a number for one class of one case, with its best and worst value and a rule for empty masks.

The rule is one for all scores. Class in neither label map: undefined (None), counted as empty, in no mean.
Class in only one of them, missed or invented: the metric's worst value, counted as penalised.
Quantities (counts, volumes) have no worst value and are defined always.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from medseg.evaluation.pair import ClassPair
from medseg.registry import Registry

METRICS: Registry[Metric] = Registry("metric", "medseg.evaluation")


class Metric(ABC):
    """A metric; the class says all that a report must tell.

    Attributes:
        key: name in summary.json, nnU-Net's where it has one.
        unit: "" for a share, else "mm", "ml" or "voxels".
        best: value of a perfect prediction; None for a quantity.
        worst: value of a missed or invented class; "diagonal" is the image's diagonal in mm; None for a quantity.
        definition: one sentence for the report.
    """

    key: str
    unit: ClassVar[str] = ""
    best: ClassVar[float | None] = 1.0
    worst: ClassVar[float | Literal["diagonal"] | None] = 0.0
    definition: str

    @abstractmethod
    def __call__(self, pair: ClassPair) -> float:
        """The value for a class that is in both label maps (a quantity: for any class)."""

    def score(self, pair: ClassPair) -> float | None:
        """The value under the rule for empty masks."""
        if self.worst is None or (pair.n_ref and pair.n_pred):
            return self(pair)
        return self.penalty(pair) if pair.n_ref or pair.n_pred else None

    def penalty(self, pair: ClassPair) -> float | None:
        """The worst value: of a missed or invented class, and of every class of a missing prediction."""
        return pair.diagonal if self.worst == "diagonal" else self.worst
