"""Lesion-wise Dice and HD95 as in BraTS 2023 (Saluja et al., the organisers' BraTS-2023-Metrics).

True lesions: components of the reference dilated three times (18 neighbours), so that crumbs belong to the lesion they
lie beside. A lesion is compared with the union of all predicted components (26 neighbours) that touch its dilation; a
predicted component that touches none is a false positive. Lesions of at most 50 mm3 are left out; a missed lesion and a
false positive score 0, and 374 mm. The score of a case is the mean over the lesions that are left and the false
positives. In 2D the neighbourhoods are the whole 3x3 square, and mm3 assumes pixels 1 mm thick.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medseg.evaluation.boundary import surface_distances
from medseg.evaluation.components import label_components
from medseg.evaluation.metrics import METRICS, Metric
from medseg.evaluation.pair import ClassPair, union_box

DILATIONS = 3
SMALLEST_MM3 = 50.0
WORST_MM = 374.0  # longer than the diagonal of the 240 x 240 x 155 mm that BraTS images have


@dataclass(frozen=True)
class Lesion:
    """A true lesion and what was predicted of it: masks (*S) bool in a common box."""

    reference: np.ndarray
    prediction: np.ndarray

    @property
    def dice(self) -> float:
        """Over voxels; 0 if nothing was predicted."""
        return 2 * int((self.reference & self.prediction).sum()) / int(self.reference.sum() + self.prediction.sum())


def find_lesions(prediction: np.ndarray, reference: np.ndarray, spacing: tuple[float, ...]) -> tuple[list[Lesion], int]:
    """True lesions above the smallest volume, and the number of predicted components that touch no true lesion.

    Args:
        prediction: (*S) bool.
        reference: (*S) bool.
        spacing: mm along each axis.
    """
    from scipy import ndimage

    padded = [np.pad(mask, DILATIONS + 1) for mask in (prediction, reference)]
    around = ndimage.generate_binary_structure(prediction.ndim, 2)
    grown = label_components(ndimage.binary_dilation(padded[1], around, iterations=DILATIONS))
    found, true = label_components(padded[0]), np.where(padded[1], grown, 0)
    boxes, lesions, touched = ndimage.find_objects(found), [], set()
    for number, box in enumerate(ndimage.find_objects(true), 1):
        wide = tuple(slice(part.start - DILATIONS, part.stop + DILATIONS) for part in box)
        lesion = true[wide] == number
        near = ndimage.binary_dilation(lesion, around, iterations=DILATIONS)
        partners = sorted(set(np.unique(found[wide][near]).tolist()) - {0})
        touched |= set(partners)
        if lesion.sum() * np.prod(spacing) > SMALLEST_MM3:
            both = union_box([box, *(boxes[partner - 1] for partner in partners)])
            lesions.append(Lesion(true[both] == number, np.isin(found[both], partners)))
    return lesions, len(boxes) - len(touched)


@METRICS.register("lesionwise_dice")
class LesionwiseDice(Metric):
    """Mean Dice of lesions, false positives counting as 0."""

    key = "Lesionwise_Dice"
    definition = (
        "BraTS 2023: mean over lesions above 50 mm3 (grouped by three dilations) of the Dice with all predicted "
        "components that touch them; false positives count as 0."
    )

    def __call__(self, pair: ClassPair) -> float:
        lesions, invented = find_lesions(*pair.masks, pair.spacing)
        return _mean([lesion.dice for lesion in lesions] + [0.0] * invented, best=1.0)


@METRICS.register("lesionwise_hd95")
class LesionwiseHausdorff(Metric):
    """Mean HD95 of lesions, missed and invented ones counting as 374 mm."""

    key, unit, best, worst = "Lesionwise_HD95", "mm", 0.0, WORST_MM
    definition = (
        "BraTS 2023: mean over lesions above 50 mm3 (grouped by three dilations) of the HD95 to all predicted "
        "components that touch them; missed lesions and false positives count as 374 mm."
    )

    def __call__(self, pair: ClassPair) -> float:
        lesions, invented = find_lesions(*pair.masks, pair.spacing)
        return _mean([_hausdorff(lesion, pair) for lesion in lesions] + [WORST_MM] * invented, best=0.0)


def _hausdorff(lesion: Lesion, pair: ClassPair) -> float:
    if not lesion.prediction.any():
        return WORST_MM
    distances = surface_distances(lesion.prediction, lesion.reference, spacing=pair.spacing, surface=pair.surface)
    return distances.hausdorff(95)


def _mean(values: list[float], best: float) -> float:
    """Mean; if all lesions are too small to count and nothing was invented, there was nothing to do wrong."""
    return float(np.mean(values)) if values else best
