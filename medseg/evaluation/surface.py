"""Metrics that measure distances between boundaries, in mm; `boundary` defines what a boundary is."""

from __future__ import annotations

from medseg.evaluation.metrics import METRICS, Metric
from medseg.evaluation.pair import ClassPair


class Distance(Metric):
    """A distance in mm: 0 is best, the image's diagonal stands for a class that is missed or invented."""

    unit, best, worst = "mm", 0.0, "diagonal"


@METRICS.register("hausdorff_distance")
class HausdorffDistance(Distance):
    """Hausdorff distance."""

    key = "HD"
    definition = "Largest distance from a point of one boundary to the other boundary, in mm."

    def __call__(self, pair: ClassPair) -> float:
        return pair.distances.hausdorff()


@METRICS.register("hausdorff_distance_95")
class HausdorffDistance95(Distance):
    """Robust Hausdorff distance, as MONAI and surface-distance compute it under their definitions of a boundary."""

    key = "HD95"
    definition = (
        "95th percentile of the distances from each boundary to the other, the larger of the two directions, in mm."
    )

    def __call__(self, pair: ClassPair) -> float:
        return pair.distances.hausdorff(95)


@METRICS.register("assd")
class AverageSymmetricSurfaceDistance(Distance):
    """Average symmetric surface distance (Heimann et al., 2009)."""

    key = "ASSD"
    definition = "Mean distance to the other boundary over all points of both boundaries together, in mm."

    def __call__(self, pair: ClassPair) -> float:
        return pair.distances.average_symmetric()


@METRICS.register("nsd")
class NormalizedSurfaceDistance(Metric):
    """Normalised surface distance, also called surface Dice (Nikolov et al., 2018)."""

    key = "NSD"
    definition = "Share of both boundaries that lies within the tolerance (mm) of the other boundary."

    def __call__(self, pair: ClassPair) -> float:
        return pair.distances.within(pair.tolerance)
