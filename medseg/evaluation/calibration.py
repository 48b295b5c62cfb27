"""Metrics of probabilities, one class against all others, over all voxels of the image that are not ignored."""

from __future__ import annotations

import numpy as np

from medseg.evaluation.metrics import METRICS, Metric
from medseg.evaluation.pair import ClassPair

BINS = 15


class CalibrationMetric(Metric):
    """A metric of probabilities; it needs no predicted voxel, so it is defined whenever probabilities are."""

    best, worst = 0.0, 1.0

    def score(self, pair: ClassPair) -> float | None:
        """The value, for empty masks too."""
        return self(pair)


@METRICS.register("ece")
class ExpectedCalibrationError(CalibrationMetric):
    """Expected calibration error (Naeini et al., 2015)."""

    key = "ECE"
    definition = (
        f"Mean over voxels of |share of the class - mean probability| of their bin ({BINS} equal bins of probability), "
        "one class against all others; the background makes it small."
    )

    def __call__(self, pair: ClassPair) -> float:
        truth, probability = pair.truth_and_probability
        bins = np.minimum((probability * BINS).astype(np.int64), BINS - 1)
        gaps = np.bincount(bins, truth, BINS) - np.bincount(bins, probability, BINS)
        return float(np.abs(gaps).sum() / len(truth))


@METRICS.register("brier")
class BrierScore(CalibrationMetric):
    """Brier score (Brier, 1950)."""

    key = "Brier"
    definition = "Mean over voxels of (probability - truth) squared, one class against all others."

    def __call__(self, pair: ClassPair) -> float:
        truth, probability = pair.truth_and_probability
        return float(np.mean((probability - truth) ** 2, dtype=np.float64))
