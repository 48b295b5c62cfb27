"""Metrics that count voxels."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from medseg.evaluation.metrics import METRICS, Metric
from medseg.evaluation.pair import ClassPair


@METRICS.register("dice")
class Dice(Metric):
    """Dice similarity coefficient (Dice, 1945)."""

    key = "Dice"
    definition = "2 TP / (2 TP + FP + FN), over voxels."

    def __call__(self, pair: ClassPair) -> float:
        return 2 * pair.tp / (2 * pair.tp + pair.fp + pair.fn)


@METRICS.register("iou")
class IoU(Metric):
    """Intersection over union (Jaccard, 1912)."""

    key = "IoU"
    definition = "TP / (TP + FP + FN), over voxels."

    def __call__(self, pair: ClassPair) -> float:
        return pair.tp / (pair.tp + pair.fp + pair.fn)


@METRICS.register("precision")
class Precision(Metric):
    """Positive predictive value."""

    key = "Precision"
    definition = "TP / (TP + FP), over voxels."

    def __call__(self, pair: ClassPair) -> float:
        return pair.tp / pair.n_pred


@METRICS.register("recall")
class Recall(Metric):
    """Sensitivity."""

    key = "Recall"
    definition = "TP / (TP + FN), over voxels."

    def __call__(self, pair: ClassPair) -> float:
        return pair.tp / pair.n_ref


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
