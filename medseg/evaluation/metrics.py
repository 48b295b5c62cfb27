"""What a metric is: a number for one class of one case, with its best and worst value and a rule for empty masks.

The rule is one for all scores, unless the user sets another. Class in neither label map: undefined (None), counted as
empty, in no mean. Class in only one of them, missed or invented: the metric's worst value, counted as penalised.
Quantities (counts, volumes) have no worst value and are defined always.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, Protocol, get_args

from medseg.errors import UsageError, nearest
from medseg.evaluation.pair import ClassPair
from medseg.registry import Registry

Situation = Literal["both_empty", "only_prediction", "only_reference"]
Verdict = Literal["undefined", "best", "worst"]
EMPTY: Mapping[Situation, Verdict] = {
    "both_empty": "undefined",
    "only_prediction": "worst",
    "only_reference": "worst",
}
METRICS: Registry[Metric] = Registry("metric", "medseg.evaluation")
PARAMETERS: dict[str, Callable[[float], Metric]] = {}  # base name -> metric with the percentage at a name's end


ALIASES = {"hd": "hausdorff_distance", "hd95": "hausdorff_distance_95", "jaccard": "iou"}


def canonical(name: str) -> str:
    """The metric's own name where another of the field is used: ``"hd95"`` -> ``"hausdorff_distance_95"``."""
    return ALIASES.get(name.lower(), name)


class Metric(ABC):
    """A metric; the class says all that a report must tell.

    Attributes:
        key: name in summary.json, nnU-Net's where it has one.
        unit: "" for a share, else "mm", "ml" or "voxels".
        best: value of a perfect prediction; None for a quantity.
        worst: value of a missed or invented class; "diagonal" is the image's diagonal in mm; None for a quantity.
        definition: one sentence for the report.
        version: of the definition; numbers of two versions are not comparable.
    """

    key: str
    unit: ClassVar[str] = ""
    best: ClassVar[float | None] = 1.0
    worst: ClassVar[float | Literal["diagonal"] | None] = 0.0
    definition: str
    version: ClassVar[int] = 1

    empty: Mapping[Situation, Verdict] = EMPTY

    @abstractmethod
    def __call__(self, pair: ClassPair) -> float:
        """The value for a class that is in both label maps (a quantity: for any class)."""

    def score(self, pair: ClassPair) -> float | None:
        """The value under the rule for empty masks."""
        situation = situation_of(pair)
        if self.worst is None or situation is None:
            return self(pair)
        verdict = self.empty[situation]
        return None if verdict == "undefined" else self.best if verdict == "best" else self.penalty(pair)

    def penalty(self, pair: ClassPair) -> float | None:
        """The worst value: of a missed or invented class, and of every class of a missing prediction."""
        return pair.diagonal if self.worst == "diagonal" else self.worst


class HasCounts(Protocol):
    """What tells how many voxels of a class both label maps have: a case, or the sum of all cases."""

    @property
    def tp(self) -> int: ...
    @property
    def fp(self) -> int: ...
    @property
    def fn(self) -> int: ...
    @property
    def tn(self) -> int: ...
    @property
    def n_ref(self) -> int: ...
    @property
    def n_pred(self) -> int: ...


class CountMetric(Metric):
    """A metric of voxel counts alone, which can therefore be pooled over cases."""

    def __call__(self, pair: ClassPair) -> float:
        """The value of one case."""
        return self.of_counts(pair)

    @abstractmethod
    def of_counts(self, counts: HasCounts) -> float:
        """The value of one case, or of all cases together."""


def situation_of(counts: HasCounts) -> Situation | None:
    """Which of the two masks are empty; None if neither is."""
    if counts.n_ref and counts.n_pred:
        return None
    return "only_reference" if counts.n_ref else "only_prediction" if counts.n_pred else "both_empty"


def empty_rule(empty: Mapping[str, Any] | None, metric: str) -> Mapping[Situation, Verdict]:
    """The rule for empty masks of one metric.

    Args:
        empty: situation -> verdict for all metrics, or metric name -> such a mapping; None is `EMPTY`.
        metric: name.

    Raises:
        UsageError: an unknown situation or verdict.
    """
    rule: dict[Any, Any] = dict(EMPTY)
    for part in (empty or {}, (empty or {}).get(metric, {})):
        rule.update({key: value for key, value in part.items() if not isinstance(value, Mapping)})
    for key, value in rule.items():
        for word, known in ((key, list(EMPTY)), (value, list(get_args(Verdict)))):
            if word not in known:
                raise UsageError(f"empty has '{word}': {nearest(str(word), known)}")
    return rule
