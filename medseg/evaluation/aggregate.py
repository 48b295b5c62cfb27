"""From cases to a table: penalised mean, mean over detected cases and detection rate stand side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from medseg.evaluation.case import CaseResult, Outcome
from medseg.evaluation.intervals import CONFIDENCE
from medseg.evaluation.metrics import CountMetric, Metric
from medseg.evaluation.statistics import describe


@dataclass(frozen=True)
class Counts:
    """Voxels of a class, summed over cases."""

    tp: int
    fp: int
    fn: int
    tn: int

    @property
    def n_ref(self) -> int:
        """Voxels of the class in the references."""
        return self.tp + self.fn

    @property
    def n_pred(self) -> int:
        """Voxels of the class in the predictions."""
        return self.tp + self.fp


PENALISED: tuple[Outcome, ...] = ("missed", "false_positive", "missing")


def aggregate(
    results: Sequence[CaseResult],
    classes: Iterable[str],
    metrics: Iterable[str],
    *,
    clusters: Mapping[str, str] | None = None,
    confidence: float = CONFIDENCE,
) -> dict[str, Any]:
    """Summarise every class.

    Args:
        results: of the cases.
        classes: names.
        metrics: names.
        clusters: case id -> what it belongs to, e.g. its patient, for the intervals.
        confidence: of the intervals.

    Returns:
        By class: ``n_cases``; ``n_reference`` (cases whose reference has the class); ``n_detected`` (of those, the
        prediction has it too); ``n_missed``, ``n_false_positive``, ``n_missing`` (no prediction), which together are
        ``n_penalised``; ``n_empty`` (class in neither); ``detection_rate`` = n_detected / n_reference; and
        ``metrics``: by metric what `describe` says of all cases but the empty ones, and ``mean_detected`` of the
        detected. What cannot be computed is None.
    """
    names, units = tuple(metrics), None if clusters is None else [clusters[result.files.id] for result in results]
    return {name: _summarise(results, name, names, units, confidence) for name in classes}


def pool(
    results: Sequence[CaseResult], classes: Iterable[str], metrics: Mapping[str, Metric]
) -> dict[str, dict[str, float | None]]:
    """Metrics of voxel counts over all cases together (micro average), as skin-lesion papers report them.

    Large structures and large images weigh more than in the mean over cases; a missing prediction is all misses.

    Returns:
        By class and metric; None for a class without a voxel in any case.
    """
    counted = {name: metric for name, metric in metrics.items() if isinstance(metric, CountMetric)}
    pooled = {}
    for name in classes:
        sums = Counts(*(sum(int(r.scores[name][key] or 0) for r in results) for key in ("tp", "fp", "fn", "tn")))
        pooled[name] = {key: _of(metric, sums) for key, metric in counted.items()}
    return pooled


def _of(metric: CountMetric, counts: Counts) -> float | None:
    """Precision of nothing predicted, recall of nothing there: no number, whatever the rule for single cases."""
    try:
        return metric.of_counts(counts)
    except ZeroDivisionError:
        return None


def foreground_mean(aggregates: Mapping[str, Any], metric: str) -> float | None:
    """Mean over classes of the penalised means; None if no class has one."""
    return mean_of(entry["metrics"][metric]["mean"] for entry in aggregates.values())


def _summarise(
    results: Sequence[CaseResult], name: str, metrics: Sequence[str], units: Sequence[str] | None, confidence: float
) -> dict[str, Any]:
    outcomes = Counter(result.outcome(name) for result in results)
    n_reference = sum(1 for result in results if result.scores[name]["n_ref"])
    return {
        "n_cases": len(results),
        "n_reference": n_reference,
        "n_detected": outcomes["scored"],
        "n_missed": outcomes["missed"],
        "n_false_positive": outcomes["false_positive"],
        "n_missing": outcomes["missing"],
        "n_penalised": sum(outcomes[outcome] for outcome in PENALISED),
        "n_empty": outcomes["empty"],
        "detection_rate": outcomes["scored"] / n_reference if n_reference else None,
        "metrics": {metric: _statistics(results, name, metric, units, confidence) for metric in metrics},
    }


def _statistics(
    results: Sequence[CaseResult], name: str, metric: str, units: Sequence[str] | None, confidence: float
) -> dict[str, float | int | None]:
    values = [result.scores[name][metric] for result in results]
    return {
        **describe(values, clusters=units, confidence=confidence),
        "mean_detected": mean_of(result.scores[name][metric] for result in results if result.outcome(name) == "scored"),
    }


def mean_of(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are defined; None if none is."""
    defined = [value for value in values if value is not None]
    return fmean(defined) if defined else None
