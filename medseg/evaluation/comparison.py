"""Two or more methods on the same cases: paired tests, corrected for their number, with intervals and effect sizes.

Penalised values (missed, invented, no prediction) take part with the metric's worst value, as in every mean; a class
that a method is right to leave empty takes part with the best one, so that what another invents there costs it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from medseg.errors import InputRefused, UsageError
from medseg.evaluation.intervals import CONFIDENCE, bootstrap_interval, mean_of_units
from medseg.evaluation.measured import check_measured_alike
from medseg.evaluation.pairing import Paired, pair_methods
from medseg.evaluation.statistics import FEWEST, LEAST_DIFFERENCE, clusters_of, resolvable_difference

if TYPE_CHECKING:
    import pandas as pd

EXACT = 15  # differences up to which all signs are gone through
PERMUTATIONS = 10_000


@dataclass(frozen=True)
class PairedResult:
    """Method b against method a in one class; differences are b - a.

    Attributes:
        n: cases; all that the methods share, but those whose value a chosen rule leaves undefined.
        units: independent ones among them: clusters, or cases.
        empty_a, empty_b: cases in which the method is right to leave the class empty.
        invented_a, invented_b: cases in which the class is in its prediction alone.
        low, high: interval of the mean difference; None with fewer than two cases.
        wilcoxon: two-sided p of the signed-rank test, zero differences by Pratt's rule.
        permutation: two-sided p of the sign-flip test of the mean difference.
        holm: ``permutation`` corrected by Holm over all classes and pairs of one metric.
        rank_biserial: share of the rank sum in favour of b minus that in favour of a, -1 to 1 (Kerby, 2014).
        cohens_dz: mean difference / SD of the differences; None if they are all the same.
        smallest_difference: mean difference that these cases could show with a power of 80 %; None if they are too
            few, or the differences all the same.
    """

    metric: str
    name: str
    a: str
    b: str
    n: int
    units: int
    empty_a: int
    empty_b: int
    invented_a: int
    invented_b: int
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
        unshared_classes: method -> classes that not every method has, which take no part.
        absent: classes that are in no case of any method, which take no part.
        unclustered: cases of which the metadata does not say what they belong to: each is a cluster of its own.
        unmeasured: methods of which nothing says how they were measured.
    """

    results: tuple[PairedResult, ...]
    unshared: Mapping[str, tuple[str, ...]]
    unshared_classes: Mapping[str, tuple[str, ...]]
    absent: tuple[str, ...] = ()
    unclustered: tuple[str, ...] = ()
    unmeasured: tuple[str, ...] = ()

    def remarks(self) -> list[str]:
        """One line for everything that took no part, or that a reader of the numbers must know."""
        lines = [
            f"Only some methods have, left out of all ({name}): {kind} {', '.join(names)}"
            for kind, left_out in (("cases", self.unshared), ("classes", self.unshared_classes))
            for name, names in left_out.items()
            if names
        ]
        if self.absent:
            lines.append(f"In no case of any method, left out: classes {', '.join(self.absent)}")
        if self.unmeasured:
            names = ", ".join(self.unmeasured)
            lines.append(f"No summary.json says how these were measured, so nobody knows if alike: {names}")
        if self.unclustered:
            problem = "Nothing says what these belong to, each is a cluster of its own"
            lines.append(f"{problem}: {', '.join(self.unclustered)}")
        if few := sorted({result.units for result in self.results if result.units < FEWEST}):
            lines.append(f"Too few independent cases ({few[0]}): below {FEWEST} no difference has a p below 0.05")
        return lines

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
        methods: name -> table of cases (`medseg.evaluation.compare_command.read_cases`, or `Report.frame`).
        metrics: columns.
        metadata: table with a column ``case``.
        cluster: its column that says which cases belong together, e.g. the patient: intervals draw whole clusters, and
            signs are flipped by cluster. The Wilcoxon test knows no clusters.
        confidence: of the intervals.
        seed: of the bootstrap and the permutations.

    Raises:
        UsageError: fewer than two methods, a metric that one of them lacks, or a cluster without metadata.
        InputRefused: they share no case, or no class; they were not measured alike; rows are repeated.
    """
    if cluster is not None and metadata is None:
        raise UsageError(f"cluster '{cluster}' is a column of a table", fix="give metadata=, a table with it")
    unmeasured = check_measured_alike(methods)
    results: list[PairedResult] = []
    absent: dict[str, None] = {}
    groups, alone = None, ()
    for metric in metrics:
        paired = pair_methods(methods, metric)
        if cluster is not None and metadata is not None and groups is None:
            groups, alone = clusters_of(paired.cases, metadata, cluster)
        found = [
            _paired(metric, name, a, b, paired, groups, confidence, seed)
            for a, b in combinations(methods, 2)
            for name in paired.classes
            if (paired.values[a][name].notna() & paired.values[b][name].notna()).any()
        ]
        results += _corrected(found)
        absent |= dict.fromkeys(paired.absent)
    if not results:
        raise InputRefused("the methods share no class with a value", fix="evaluate them with the same labels")
    return Comparison(
        tuple(results),
        _unshared(methods, "case"),
        _unshared(methods, "class"),
        absent=tuple(absent),
        unclustered=alone,
        unmeasured=unmeasured,
    )


def _unshared(methods: Mapping[str, pd.DataFrame], column: str) -> dict[str, tuple[str, ...]]:
    own = {name: dict.fromkeys(frame[column]) for name, frame in methods.items()}
    shared = set.intersection(*map(set, own.values()))
    return {name: tuple(str(value) for value in values if value not in shared) for name, values in own.items()}


def _paired(
    metric: str,
    name: str,
    a: str,
    b: str,
    paired: Paired,
    groups: Sequence[str] | None,
    confidence: float,
    seed: int,
) -> PairedResult:
    left, right = paired.values[a][name], paired.values[b][name]
    both = (left.notna() & right.notna()).to_numpy()
    first, second = left.to_numpy(float)[both], right.to_numpy(float)[both]
    difference = second - first
    difference[np.abs(difference) < LEAST_DIFFERENCE] = 0.0
    units = np.arange(len(difference)) if groups is None else np.unique(np.array(groups)[both], return_inverse=True)[1]
    interval = bootstrap_interval(difference, clusters=units.tolist(), confidence=confidence, seed=seed)
    sd = float(difference.std(ddof=1)) if len(difference) > 1 else 0.0
    outcomes = {method: paired.outcomes[method][name] for method in (a, b)}
    empty, invented = (
        [int((outcomes[method] == word).sum()) for method in (a, b)] for word in ("empty", "false_positive")
    )
    return PairedResult(
        metric=metric,
        name=name,
        a=a,
        b=b,
        n=len(difference),
        units=int(units.max()) + 1,
        empty_a=empty[0],
        empty_b=empty[1],
        invented_a=invented[0],
        invented_b=invented[1],
        mean_a=float(first.mean()),
        mean_b=float(second.mean()),
        difference=float(difference.mean()),
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        wilcoxon=wilcoxon_p(difference),
        permutation=permutation_p(difference, units, seed=seed),
        holm=1.0,
        rank_biserial=rank_biserial(difference),
        cohens_dz=float(difference.mean()) / sd if sd > LEAST_DIFFERENCE else None,
        smallest_difference=resolvable_difference(mean_of_units(difference, units.tolist())),
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
