"""Metrics that measure distances between boundaries, in mm; `boundary` defines what a boundary is."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import numpy as np

from medseg.errors import UsageError
from medseg.evaluation.boundary import ROUNDING
from medseg.evaluation.metrics import METRICS, PARAMETERS, Metric
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


class HausdorffPercentile(Distance):
    """Robust Hausdorff distance, as MONAI and surface-distance compute it under their definitions of a boundary.

    Args:
        percentile: above 0, at most 100.

    Raises:
        UsageError: another percentile.
    """

    def __init__(self, percentile: float) -> None:
        if not 0 < percentile <= 100:
            raise UsageError(f"percentile of the Hausdorff distance is {percentile:g} (must be above 0, at most 100)")
        self.percentile, self.key = percentile, f"HD{percentile:g}"
        self.definition = (
            f"{percentile:g}th percentile of the distances from each boundary to the other, the larger of the two "
            "directions, in mm."
        )

    def __call__(self, pair: ClassPair) -> float:
        return pair.distances.hausdorff(self.percentile)


METRICS.register("hausdorff_distance_95")(partial(HausdorffPercentile, 95))
PARAMETERS["hausdorff_distance"] = HausdorffPercentile


@METRICS.register("assd")
class AverageSymmetricSurfaceDistance(Distance):
    """Average symmetric surface distance (Heimann et al., 2009)."""

    key = "ASSD"
    definition = "Mean distance to the other boundary over all points of both boundaries together, in mm."

    def __call__(self, pair: ClassPair) -> float:
        return pair.distances.average_symmetric()


@METRICS.register("masd")
class MeanAverageSurfaceDistance(Distance):
    """Mean average surface distance (Beneš and Zitová, 2015), as in Metrics Reloaded (Maier-Hein et al., 2024)."""

    key = "MASD"
    definition = "Mean distance from each boundary to the other, the mean of the two directions, in mm."

    def __call__(self, pair: ClassPair) -> float:
        return sum(pair.distances.average_directed()) / 2


@METRICS.register("nsd")
class NormalizedSurfaceDistance(Metric):
    """Normalised surface distance, also called surface Dice (Nikolov et al., 2018)."""

    key = "NSD"
    definition = "Share of both boundaries that lies within the tolerance (mm) of the other boundary."

    def __call__(self, pair: ClassPair) -> float:
        return pair.distances.within(pair.tolerance)


@METRICS.register("boundary_iou")
class BoundaryIoU(Metric):
    """Boundary IoU (Cheng et al., 2021), with distances in mm instead of steps of pixels."""

    key = "Boundary_IoU"
    definition = (
        "IoU of the voxels of both masks that lie within 2 % of the image's diagonal of their mask's own edge "
        "(Euclidean, in mm; outside the image is background)."
    )
    share: ClassVar[float] = 0.02

    def __call__(self, pair: ClassPair) -> float:
        rims = [inner_rim(mask, pair.spacing, self.share * pair.diagonal) for mask in pair.masks]
        return int((rims[0] & rims[1]).sum()) / int((rims[0] | rims[1]).sum())


def inner_rim(mask: np.ndarray, spacing: tuple[float, ...], width: float) -> np.ndarray:
    """Voxels of a mask (*S) within ``width`` mm of the background, at least the outermost layer."""
    import edt

    depth = edt.edt(mask, anisotropy=spacing, black_border=True)
    return mask & (depth <= max(width, *spacing) * (1 + ROUNDING))
