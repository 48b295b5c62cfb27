"""Rankings as challenges publish them, and how stable they are (Wiesenfarth et al., 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from medseg.errors import InputRefused, UsageError, nearest
from medseg.evaluation.metrics import METRICS
from medseg.evaluation.statistics import table

if TYPE_CHECKING:
    import pandas as pd

Scheme = Literal["mean_then_rank", "rank_then_mean"]
SCHEMES: tuple[Scheme, ...] = ("mean_then_rank", "rank_then_mean")
RESAMPLES = 1000


@dataclass(frozen=True)
class Ranking:
    """Methods in their order.

    Attributes:
        ranks: method -> rank, 1 is best; equal scores share the mean rank.
        frequency: method -> share of the bootstrap samples in which it has rank 1, 2, ...
        kendall_tau: mean over bootstrap samples of Kendall's tau with the ranking; 1 is perfectly stable.
    """

    scheme: Scheme
    ranks: dict[str, float]
    frequency: dict[str, list[float]]
    kendall_tau: float


def rank(
    methods: Mapping[str, pd.DataFrame],
    metric: str = "dice",
    *,
    scheme: Scheme = "mean_then_rank",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Ranking:
    """Rank methods over the cases and classes that all of them have a value for.

    Args:
        methods: name -> table of cases.
        metric: column; whether more or less is better is known from the metric.
        scheme: rank the means over cases (of the means over classes), or average the ranks within the cases.
        resamples: bootstrap samples of cases.
        seed: of the bootstrap.

    Raises:
        UsageError: an unknown scheme, or a metric that is no score.
        InputRefused: no case with a value of every method.
    """
    if scheme not in SCHEMES:
        raise UsageError(f"unknown scheme '{scheme}': {nearest(scheme, SCHEMES)}")
    scores = _loss(methods, metric)
    ranks = _ranks(scores[None], scheme)[0]
    drawn = np.random.default_rng(seed).integers(0, scores.shape[1], (resamples, scores.shape[1]))
    sampled = _ranks(np.moveaxis(scores[:, drawn], 1, 0), scheme)
    names = list(methods)
    return Ranking(
        scheme=scheme,
        ranks={name: float(value) for name, value in zip(names, ranks, strict=True)},
        frequency={
            name: [float(np.mean(np.floor(column) == place)) for place in range(1, len(names) + 1)]
            for name, column in zip(names, sampled.T, strict=True)
        },
        kendall_tau=float(np.mean(_kendall(sampled, ranks))),
    )


def _loss(methods: Mapping[str, pd.DataFrame], metric: str) -> np.ndarray:
    """(methods, cases): mean over classes, turned so that less is better."""
    from medseg.evaluation.arrays import build_metrics

    best = build_metrics([metric])[metric].best
    if best is None:
        raise UsageError(f"'{metric}' is a quantity, not a score: {nearest('dice', METRICS.names())}")
    tables = [table(frame, metric).mean(axis=1) for frame in methods.values()]
    cases = sorted(set.intersection(*(set(column.dropna().index) for column in tables)))
    if not cases:
        raise InputRefused("no case has a value of every method", fix="evaluate them on the same cases")
    values = np.array([column.reindex(cases).to_numpy(float) for column in tables])
    return -values if best == 1 else values


def _ranks(scores: np.ndarray, scheme: Scheme) -> np.ndarray:
    """(samples, methods, cases) -> (samples, methods)."""
    from scipy.stats import rankdata

    if scheme == "rank_then_mean":
        scores = rankdata(scores, axis=1)
    return rankdata(np.round(scores.mean(axis=2), 12), axis=1)


def _kendall(sampled: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Kendall's tau-a of each sampled ranking with the ranking: pairs in the same order minus pairs in the other."""
    first, second = np.triu_indices(len(ranks), 1)
    order, others = np.sign(ranks[first] - ranks[second]), np.sign(sampled[:, first] - sampled[:, second])
    return (order * others).mean(axis=1)
