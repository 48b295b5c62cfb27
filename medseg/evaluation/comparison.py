"""Two or more methods on the same cases: paired tests, corrected for their number, with intervals and effect sizes.

Penalised values (missed, invented, no prediction) take part with the metric's worst value, as in every mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from medseg.errors import InputRefused, UsageError
from medseg.evaluation.intervals import CONFIDENCE, bootstrap_interval
from medseg.evaluation.statistics import column_of_cases, smallest_difference, table

if TYPE_CHECKING:
    import pandas as pd

EXACT = 15  # differences up to which all signs are gone through
PERMUTATIONS = 10_000
LEAST_DIFFERENCE = 1e-12  # below it two scores are the same


@dataclass(frozen=True)
class PairedResult:
    """Method b against method a in one class; differences are b - a.

    Attributes:
        n: cases that both have a value for.
        low, high: interval of the mean difference; None with fewer than two cases.
        wilcoxon: two-sided p of the signed-rank test, zero differences by Pratt's rule.
        permutation: two-sided p of the sign-flip test of the mean difference.
        holm: ``permutation`` corrected by Holm over all classes and pairs of one metric.
        rank_biserial: share of the rank sum in favour of b minus that in favour of a, -1 to 1 (Kerby, 2014).
        cohens_dz: mean difference / SD of the differences; None if they are all the same.
        smallest_difference: mean difference that these cases could show with a power of 80 %.
    """

    metric: str
    name: str
    a: str
    b: str
    n: int
    mean_a: float
    mean_b: float
    difference: float
    low: float | None
    high: float | None
    wilcoxon: float
    permutation: float
    holm: float
    rank_biserial: float
    cohens_dz: float | None
    smallest_difference: float | None


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        results: one for each metric, class and pair of methods.
        unshared: method -> cases that not every method has, which take no part.
    """

    results: tuple[PairedResult, ...]
    unshared: Mapping[str, tuple[str, ...]]

    @property
    def frame(self) -> pd.DataFrame:
        """One row for each result."""
        import pandas as pd

        return pd.DataFrame([asdict(result) for result in self.results]).rename(columns={"name": "class"})


def compare(
    methods: Mapping[str, pd.DataFrame],
    metrics: Sequence[str] = ("dice",),
    *,
    metadata: pd.DataFrame | None = None,
    cluster: str | None = None,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Comparison:
    """Compare methods in pairs, class by class, on the cases that all of them have.

    Args:
        methods: name -> table of cases (cases.csv, or `Report.frame`).
        metrics: columns.
        metadata: table with a column ``case``.
        cluster: its column that says which cases belong together, e.g. the patient: intervals draw whole clusters, and
            signs are flipped by cluster. The Wilcoxon test knows no clusters.
        confidence: of the intervals.
        seed: of the bootstrap and the permutations.

    Raises:
        UsageError: fewer than two methods, or a metric that one of them lacks.
        InputRefused: they share no case, or no class.
    """
    if len(methods) < 2:
        raise UsageError(f"there is nothing to compare: {len(methods)} method(s)", fix="give at least two")
    cases = {name: set(frame["case"]) for name, frame in methods.items()}
    shared = sorted(set.intersection(*cases.values()))
    if not shared:
        raise InputRefused(f"the methods {', '.join(methods)} share no case", fix="evaluate them on the same cases")
    groups = None
    if cluster is not None and metadata is not None:
        import pandas as pd

        groups = column_of_cases(pd.Series(shared), metadata, cluster)
    results: list[PairedResult] = []
    for metric in metrics:
        tables = {name: table(frame, metric).reindex(shared) for name, frame in methods.items()}
        found = [
            _paired(metric, str(column), a, b, tables[a][column], tables[b][column], groups, confidence, seed)
            for a, b in combinations(tables, 2)
            for column in tables[a].columns
            if column in tables[b].columns and (tables[a][column].notna() & tables[b][column].notna()).any()
        ]
        results += _corrected(found)
    if not results:
        raise InputRefused("the methods share no class with a value", fix="evaluate them with the same labels")
    return Comparison(tuple(results), {name: tuple(sorted(own - set(shared))) for name, own in cases.items()})


def _paired(
    metric: str,
    name: str,
    a: str,
    b: str,
    left: Any,
    right: Any,
    groups: np.ndarray | None,
    confidence: float,
    seed: int,
) -> PairedResult:
    both = (left.notna() & right.notna()).to_numpy()
    first, second = left.to_numpy(float)[both], right.to_numpy(float)[both]
    difference = second - first
    difference[np.abs(difference) < LEAST_DIFFERENCE] = 0.0
    units = np.arange(len(difference)) if groups is None else np.unique(groups[both], return_inverse=True)[1]
    interval = bootstrap_interval(difference, clusters=units.tolist(), confidence=confidence, seed=seed)
    sd = float(difference.std(ddof=1)) if len(difference) > 1 else 0.0
    return PairedResult(
        metric=metric,
        name=name,
        a=a,
        b=b,
        n=len(difference),
        mean_a=float(first.mean()),
        mean_b=float(second.mean()),
        difference=float(difference.mean()),
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        wilcoxon=wilcoxon_p(difference),
        permutation=permutation_p(difference, units, seed=seed),
        holm=1.0,
        rank_biserial=rank_biserial(difference),
        cohens_dz=float(difference.mean()) / sd if sd else None,
        smallest_difference=smallest_difference(sd, len(difference)),
    )


def wilcoxon_p(difference: np.ndarray) -> float:
    """Two-sided p of the Wilcoxon signed-rank test with Pratt's zeros; 1 if nothing differs."""
    from scipy.stats import wilcoxon

    return float(wilcoxon(difference, zero_method="pratt").pvalue) if difference.any() else 1.0


def permutation_p(difference: np.ndarray, units: np.ndarray | None = None, *, seed: int = 0) -> float:
    """Two-sided p of the mean difference under flips of sign: all of them if few, else (count + 1) / (draws + 1).

    Args:
        difference: (n,).
        units: (n,) number of the unit whose sign is flipped as one; None: each difference is a unit.
        seed: of the draws.
    """
    sums = difference if units is None else np.bincount(units, difference)
    if len(sums) <= EXACT:
        codes = np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums)) & 1
        totals = np.abs((1 - 2 * codes) @ sums)
        return float(np.mean(totals >= abs(sums.sum()) - LEAST_DIFFERENCE))
    signs = np.random.default_rng(seed).integers(0, 2, (PERMUTATIONS, len(sums)), np.int8)
    totals = np.abs((1 - 2 * signs) @ sums)
    return float((np.sum(totals >= abs(sums.sum()) - LEAST_DIFFERENCE) + 1) / (PERMUTATIONS + 1))


def rank_biserial(difference: np.ndarray) -> float:
    """(rank sum of positive - of negative differences) / their sum, ranks of sizes; 0 if nothing differs."""
    from scipy.stats import rankdata

    moved = difference[difference != 0]
    ranks = rankdata(np.abs(moved))
    return float((ranks * np.sign(moved)).sum() / ranks.sum()) if len(moved) else 0.0


def holm(values: Sequence[float]) -> list[float]:
    """p values corrected by Holm (1979): the k-th smallest of m times m - k + 1, never below a smaller one's."""
    order = np.argsort(values, kind="stable")
    steps = np.asarray(values)[order] * np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return corrected.tolist()


def _corrected(results: Sequence[PairedResult]) -> list[PairedResult]:
    corrected = holm([result.permutation for result in results])
    return [replace(result, holm=p) for result, p in zip(results, corrected, strict=True)]
