"""Metrics that count voxels."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import numpy as np

from medseg.evaluation.metrics import METRICS, CountMetric, HasCounts, Metric
from medseg.evaluation.pair import ClassPair


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Dice of two masks (*S) bool, 1 if both are empty: for code that compares masks and reports no metric."""
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else 1.0


@METRICS.register("dice")
class Dice(CountMetric):
    """Dice similarity coefficient (Dice, 1945)."""

    key = "Dice"
    definition = "2 TP / (2 TP + FP + FN), over voxels."

    def of_counts(self, counts: HasCounts) -> float:
        return 2 * counts.tp / (2 * counts.tp + counts.fp + counts.fn)


@METRICS.register("iou")
class IoU(CountMetric):
    """Intersection over union (Jaccard, 1912)."""

    key = "IoU"
    definition = "TP / (TP + FP + FN), over voxels."

    def of_counts(self, counts: HasCounts) -> float:
        return counts.tp / (counts.tp + counts.fp + counts.fn)


@METRICS.register("precision")
class Precision(CountMetric):
    """Positive predictive value."""

    key = "Precision"
    definition = "TP / (TP + FP), over voxels."

    def of_counts(self, counts: HasCounts) -> float:
        return counts.tp / counts.n_pred


@METRICS.register("recall")
class Recall(CountMetric):
    """Sensitivity."""

    key = "Recall"
    definition = "TP / (TP + FN), over voxels."

    def of_counts(self, counts: HasCounts) -> float:
        return counts.tp / counts.n_ref


@METRICS.register("specificity")
class Specificity(CountMetric):
    """True negative rate."""

    key = "Specificity"
    definition = "TN / (TN + FP), over voxels; near 1 for any small structure."

    def of_counts(self, counts: HasCounts) -> float:
        return counts.tn / max(1, counts.tn + counts.fp)  # nothing else in the image: no false alarm was possible


@METRICS.register("accuracy")
class Accuracy(CountMetric):
    """Share of voxels that are right."""

    key = "Accuracy"
    definition = "(TP + TN) / all voxels; near 1 for any small structure."

    def of_counts(self, counts: HasCounts) -> float:
        return (counts.tp + counts.tn) / (counts.tp + counts.fp + counts.fn + counts.tn)


@METRICS.register("volumetric_similarity")
class VolumetricSimilarity(CountMetric):
    """Volumetric similarity (Taha and Hanbury, 2015): how alike the volumes are, wherever they lie."""

    key = "VS"
    definition = "1 - |FP - FN| / (2 TP + FP + FN), over voxels; blind to where the voxels lie."

    def of_counts(self, counts: HasCounts) -> float:
        return 1 - abs(counts.fp - counts.fn) / (2 * counts.tp + counts.fp + counts.fn)


class Quantity(Metric):
    """A count or a volume: neither good nor bad, so it is never penalised."""

    best: ClassVar[None] = None
    worst: ClassVar[None] = None


@METRICS.register("volume_ml")
class Volume(Quantity):
    """Predicted volume."""

    key, unit = "Volume_ml", "ml"
    definition = "Volume of the predicted class in millilitres (2D: pixels taken as 1 mm thick)."

    def __call__(self, pair: ClassPair) -> float:
        return pair.n_pred * pair.voxel_ml


@METRICS.register("reference_volume_ml")
class ReferenceVolume(Quantity):
    """Reference volume."""

    key, unit = "Reference_volume_ml", "ml"
    definition = "Volume of the reference class in millilitres (2D: pixels taken as 1 mm thick)."

    def __call__(self, pair: ClassPair) -> float:
        return pair.n_ref * pair.voxel_ml


class VolumeError(Metric):
    """A difference of volumes: 0 is best, nothing is worst, and it is defined for every class."""

    unit, best, worst = "ml", 0.0, None


@METRICS.register("volume_error_ml")
class SignedVolumeError(VolumeError):
    """Predicted minus reference volume."""

    key = "Volume_error_ml"
    definition = "Predicted minus reference volume in millilitres; its mean is the bias."

    def __call__(self, pair: ClassPair) -> float:
        return (pair.n_pred - pair.n_ref) * pair.voxel_ml


@METRICS.register("absolute_volume_error_ml")
class AbsoluteVolumeError(VolumeError):
    """Size of the difference of the volumes."""

    key = "Absolute_volume_error_ml"
    definition = "Predicted minus reference volume in millilitres, without its sign."

    def __call__(self, pair: ClassPair) -> float:
        return abs(pair.n_pred - pair.n_ref) * pair.voxel_ml


COUNTS = {
    "tp": ("TP", "Voxels of the class in both."),
    "fp": ("FP", "Voxels of the class in the prediction only."),
    "fn": ("FN", "Voxels of the class in the reference only."),
    "tn": ("TN", "Voxels of the class in neither; ignored voxels are left out."),
    "n_pred": ("n_pred", "Voxels of the class in the prediction."),
    "n_ref": ("n_ref", "Voxels of the class in the reference."),
}


class Count(Quantity):
    """A count of voxels, one of `COUNTS`."""

    unit = "voxels"

    def __init__(self, name: str) -> None:
        self.name = name
        self.key, self.definition = COUNTS[name]

    def __call__(self, pair: ClassPair) -> float:
        return int(getattr(pair, self.name))


for _name in COUNTS:
    METRICS.register(_name)(partial(Count, _name))
