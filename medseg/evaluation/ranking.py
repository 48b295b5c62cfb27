"""Rankings as challenges publish them, and how stable they are (Wiesenfarth et al., 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from medseg.errors import InputRefused, UsageError, nearest
from medseg.evaluation.measured import check_measured_alike
from medseg.evaluation.metrics import METRICS
from medseg.evaluation.pairing import pair_methods

if TYPE_CHECKING:
    import pandas as pd

Scheme = Literal["mean_then_rank", "rank_then_mean"]
SCHEMES: tuple[Scheme, ...] = ("mean_then_rank", "rank_then_mean")
RESAMPLES = 1000


@dataclass(frozen=True)
class Ranking:
    """Methods in their order.

    Attributes:
        cases: that it rests on.
        ranks: method -> rank, 1 is best; equal scores share the mean rank.
        frequency: method -> share of the bootstrap samples in which it has place 1, 2, ...; equal ones share places.
        kendall_tau: mean over bootstrap samples of Kendall's tau with the ranking, where two that are equal in both
            agree: 1 never changes. None with one case, which has only itself to be drawn.
    """

    scheme: Scheme
    cases: int
    ranks: dict[str, float]
    frequency: dict[str, list[float]]
    kendall_tau: float | None


def rank(
    methods: Mapping[str, pd.DataFrame],
    metric: str = "dice",
    *,
    scheme: Scheme = "mean_then_rank",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Ranking:
    """Rank methods over the cases and classes that all of them have a value for; a right empty class has the best.

    Args:
        methods: name -> table of cases.
        metric: column; whether more or less is better is known from the metric.
        scheme: rank the means over cases (of the means over classes), or average the ranks within the cases.
        resamples: bootstrap samples of cases.
        seed: of the bootstrap.

    Raises:
        UsageError: an unknown scheme, or a metric that is no score.
        InputRefused: no case with a value of every method; methods that were not measured alike; repeated rows.
    """
    if scheme not in SCHEMES:
        raise UsageError(f"unknown scheme '{scheme}': {nearest(scheme, SCHEMES)}")
    scores = _loss(methods, metric)
    ranks = _ranks(scores[None], scheme)[0]
    drawn = np.random.default_rng(seed).integers(0, scores.shape[1], (resamples, scores.shape[1]))
    sampled = _ranks(np.moveaxis(scores[:, drawn], 1, 0), scheme)
    names, places = list(methods), _places(sampled)
    return Ranking(
        scheme=scheme,
        cases=scores.shape[1],
        ranks={name: float(value) for name, value in zip(names, ranks, strict=True)},
        frequency={name: shares.tolist() for name, shares in zip(names, places, strict=True)},
        kendall_tau=float(np.mean(_kendall(sampled, ranks))) if scores.shape[1] > 1 else None,
    )


def _loss(methods: Mapping[str, pd.DataFrame], metric: str) -> np.ndarray:
    """(methods, cases): mean over the classes that all methods have a value for, as distance from the best."""
    from medseg.evaluation.arrays import build_metrics

    best = build_metrics([metric])[metric].best
    if best is None:
        raise UsageError(f"'{metric}' is a quantity, not a score: {nearest('dice', METRICS.names())}")
    check_measured_alike(methods)
    values = np.stack([own.to_numpy(float) for own in pair_methods(methods, metric).values.values()])
    defined = np.isfinite(values).all(axis=0)  # (cases, classes)
    if not defined.any():
        raise InputRefused("no case has a value of every method", fix="evaluate them on the same cases")
    kept = defined.any(axis=1)
    loss = np.where(defined, np.abs(values - best), 0)  # a signed error may miss the best on either side
    return loss[:, kept].sum(axis=2) / defined[kept].sum(axis=1)


def _ranks(scores: np.ndarray, scheme: Scheme) -> np.ndarray:
    """(samples, methods, cases) -> (samples, methods)."""
    from scipy.stats import rankdata

    if scheme == "rank_then_mean":
        scores = rankdata(scores, axis=1)
    return rankdata(np.round(scores.mean(axis=2), 12), axis=1)


def _places(sampled: np.ndarray) -> np.ndarray:
    """(methods, places): share of the samples, (samples, methods) ranks, in which a method has a place."""
    from scipy.stats import rankdata

    first, last = (rankdata(sampled, axis=1, method=end)[:, :, None] for end in ("min", "max"))
    place = np.arange(1, sampled.shape[1] + 1)
    return np.mean(((first <= place) & (place <= last)) / (last - first + 1), axis=0)


def _kendall(sampled: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Kendall's tau-a of each sampled ranking with the ranking: pairs in the same order minus pairs in the other.

    A pair that is equal in both is in the same order; one that is equal in one of them is in neither.
    """
    first, second = np.triu_indices(len(ranks), 1)
    order, others = np.sign(ranks[first] - ranks[second]), np.sign(sampled[:, first] - sampled[:, second])
    return np.where(order == others, 1, order * others).mean(axis=1)
