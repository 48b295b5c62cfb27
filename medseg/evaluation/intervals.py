"""Bootstrap confidence intervals of means: BCa, over cases or over the patients that cases belong to."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A confidence interval of a mean.

    Attributes:
        low, high: its ends.
        confidence: e.g. 0.95.
        n: values that it rests on.
        clusters: independent units among them; equal to n without clusters.
    """

    low: float
    high: float
    confidence: float
    n: int
    clusters: int


def bootstrap_interval(
    values: Sequence[float | None] | np.ndarray,
    *,
    clusters: Sequence[Hashable] | None = None,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval | None:
    """BCa bootstrap interval of a mean (Efron, 1987); with clusters, whole clusters are drawn.

    Cases of one patient resemble each other, so an interval over cases is too narrow: give ``clusters`` where a
    patient has several.

    Args:
        values: numbers; None and NaN are left out.
        clusters: one for each value, e.g. the patient.
        confidence: between 0 and 1.
        resamples: bootstrap samples.
        seed: the same seed gives the same interval.

    Returns:
        The interval; None if there are fewer than two independent units.
    """
    numbers = np.array([np.nan if value is None else value for value in values], float)
    kept = np.isfinite(numbers)
    units = np.arange(len(numbers)) if clusters is None else _codes(clusters)
    _, units = np.unique(units[kept], return_inverse=True)
    sums, counts = np.bincount(units, numbers[kept]), np.bincount(units)
    if len(sums) < 2:
        return None
    drawn = _draws(len(sums), resamples, seed)
    means = (drawn @ sums) / (drawn @ counts)
    low, high = np.quantile(means, _levels(means, sums, counts, confidence))
    return Interval(float(low), float(high), confidence, int(kept.sum()), len(sums))


def mean_of_units(
    values: Sequence[float | None] | np.ndarray, clusters: Sequence[Hashable] | None = None
) -> np.ndarray:
    """(units,) mean of the values that are defined of each cluster; the values themselves without clusters."""
    numbers = np.array([np.nan if value is None else value for value in values], float)
    kept = np.isfinite(numbers)
    if clusters is None:
        return numbers[kept]
    _, units = np.unique(_codes(clusters)[kept], return_inverse=True)
    return np.bincount(units, numbers[kept]) / np.bincount(units)


@lru_cache(maxsize=4)
def _draws(units: int, resamples: int, seed: int) -> np.ndarray:
    """(resamples, units) float64: how often each unit is drawn. All metrics and classes of a test set share them."""
    return np.random.default_rng(seed).multinomial(units, np.full(units, 1 / units), resamples).astype(float)


def _codes(clusters: Sequence[Hashable]) -> np.ndarray:
    names = {name: code for code, name in enumerate(dict.fromkeys(clusters))}
    return np.array([names[name] for name in clusters])


def _levels(means: np.ndarray, sums: np.ndarray, counts: np.ndarray, confidence: float) -> np.ndarray:
    """Quantiles of the bootstrap distribution to take: corrected for its bias and for its skewness (acceleration)."""
    from scipy.stats import norm

    tails = np.array([1 - confidence, 1 + confidence]) / 2
    observed = sums.sum() / counts.sum()
    below = np.mean(means < observed) + np.mean(means == observed) / 2
    without = (sums.sum() - sums) / (counts.sum() - counts)
    deviation = without.mean() - without
    spread = np.sum(deviation**2)
    if not 0 < below < 1 or spread < np.finfo(float).tiny:  # all values are the same
        return tails
    acceleration = np.sum(deviation**3) / (6 * spread**1.5)
    bias = norm.ppf(below)
    shifted = bias + norm.ppf(tails)
    return norm.cdf(bias + shifted / (1 - acceleration * shifted))
