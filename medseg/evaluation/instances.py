"""Metrics that count things instead of voxels: lesions found, missed and invented, and panoptic quality.

A thing is a connected component (26 neighbours; 2D: 8). A predicted and a true one are the same if they are paired one
to one with an IoU of at least 50 %, or of the percentage at the end of the metric's name: ``lesion_f1_10``.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from medseg.errors import UsageError
from medseg.evaluation.metrics import METRICS, PARAMETERS, Metric
from medseg.evaluation.pair import ClassPair

DEFAULT_PERCENT = 50.0


class InstanceMetric(Metric):
    """A metric of paired components.

    Args:
        percent: least IoU of a pair.

    Raises:
        UsageError: not above 0, or above 100.
    """

    base: ClassVar[str]
    version = 2  # components of 2D images of odd width were wrong
    formula: ClassVar[str]

    def __init__(self, percent: float = DEFAULT_PERCENT) -> None:
        if not 0 < percent <= 100:
            raise UsageError(f"IoU of {self.base} is {percent:g} % (must be above 0, at most 100)")
        self.percent = percent
        self.key = self.base if percent == DEFAULT_PERCENT else f"{self.base}_{percent:g}"
        self.definition = (
            f"{self.formula}, over connected components paired one to one with an IoU of at least {percent:g} %."
        )

    def __call__(self, pair: ClassPair) -> float:
        iou = pair.components.matched(self.percent / 100)
        found = len(iou)
        invented, missed = len(pair.components.prediction_sizes) - found, len(pair.components.reference_sizes) - found
        return self.value(found, invented, missed, float(iou.sum()))

    @abstractmethod
    def value(self, tp: int, fp: int, fn: int, iou: float) -> float:
        """The metric from the numbers of paired, invented and missed things and the sum of the IoU of the pairs."""


class LesionPrecision(InstanceMetric):
    """Share of the predicted things that exist."""

    base, formula = "Lesion_precision", "Paired / predicted things"

    def value(self, tp: int, fp: int, fn: int, iou: float) -> float:
        return tp / (tp + fp)


class LesionRecall(InstanceMetric):
    """Share of the things that were found."""

    base, formula = "Lesion_recall", "Paired / true things"

    def value(self, tp: int, fp: int, fn: int, iou: float) -> float:
        return tp / (tp + fn)


class LesionF1(InstanceMetric):
    """Recognition quality (Kirillov et al., 2019), the F1 score of things."""

    base, formula = "Lesion_F1", "2 paired / (2 paired + invented + missed things)"

    def value(self, tp: int, fp: int, fn: int, iou: float) -> float:
        return 2 * tp / (2 * tp + fp + fn)


class SegmentationQuality(InstanceMetric):
    """Segmentation quality (Kirillov et al., 2019)."""

    base, formula = "SQ", "Mean IoU of the pairs (0 if there is none)"

    def value(self, tp: int, fp: int, fn: int, iou: float) -> float:
        return iou / tp if tp else 0.0


class PanopticQuality(InstanceMetric):
    """Panoptic quality (Kirillov et al., 2019): segmentation quality times recognition quality."""

    base, formula = "PQ", "Sum of the IoU of the pairs / (paired + invented / 2 + missed / 2)"

    def value(self, tp: int, fp: int, fn: int, iou: float) -> float:
        return iou / (tp + fp / 2 + fn / 2)


for _name, _metric in {
    "lesion_precision": LesionPrecision,
    "lesion_recall": LesionRecall,
    "lesion_f1": LesionF1,
    "segmentation_quality": SegmentationQuality,
    "panoptic_quality": PanopticQuality,
}.items():
    METRICS.register(_name)(_metric)
    PARAMETERS[_name] = _metric
