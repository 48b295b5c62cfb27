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
from medseg.evaluation.components import count_overlaps, label_components
from medseg.evaluation.metrics import METRICS, Metric
from medseg.evaluation.pair import ClassPair, union_box

DILATIONS = 3
SMALLEST_MM3 = 50.0
WORST_MM = 374.0  # longer than the diagonal of the 240 x 240 x 155 mm that BraTS images have


@dataclass(frozen=True)
class Lesion:
    """A true lesion and what was predicted of it.

    Attributes:
        size: voxels of the lesion.
        predicted: voxels of all predicted components that touch it.
        shared: voxels of both.
        number: of the lesion in ``true``.
        partners: numbers of the predicted components in ``found``.
        box: that holds them all.
        true, found: (*S) numbered lesions and predicted components, common to all lesions.
    """

    size: int
    predicted: int
    shared: int
    number: int
    partners: tuple[int, ...]
    box: tuple[slice, ...]
    true: np.ndarray
    found: np.ndarray

    @property
    def dice(self) -> float:
        """Over voxels; 0 if nothing was predicted."""
        return 2 * self.shared / (self.size + self.predicted)

    def masks(self) -> tuple[np.ndarray, np.ndarray]:
        """Prediction and reference as bool, in a common box."""
        found = self.found[self.box]
        prediction = found == self.partners[0] if len(self.partners) == 1 else np.isin(found, self.partners)
        return prediction, self.true[self.box] == self.number


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
    # The dilations of all lesions, numbered as one map, are the dilation of each: one pass tells who touches whom.
    grown = label_components(ndimage.binary_dilation(padded[1], around, iterations=DILATIONS))
    found, true = label_components(padded[0]), np.where(padded[1], grown, 0)
    touching, shared = count_overlaps(grown, found), count_overlaps(true, found)
    found_sizes, sizes = np.bincount(found.ravel()), np.bincount(true.ravel())
    common = np.bincount(shared.first, shared.voxels, len(sizes)).astype(int)
    found_boxes, boxes = ndimage.find_objects(found), ndimage.find_objects(true)
    starts = np.searchsorted(touching.first, np.arange(1, len(sizes) + 1))
    lesions = []
    for number in np.flatnonzero(sizes[1:] * np.prod(spacing) > SMALLEST_MM3) + 1:
        partners = tuple(touching.second[starts[number - 1] : starts[number]].tolist())
        box = union_box([boxes[number - 1], *(found_boxes[partner - 1] for partner in partners)])
        predicted = int(found_sizes[list(partners)].sum())
        lesions.append(
            Lesion(int(sizes[number]), predicted, int(common[number]), int(number), partners, box, true, found)
        )
    return lesions, len(found_boxes) - len(np.unique(touching.second))


@METRICS.register("lesionwise_dice")
class LesionwiseDice(Metric):
    """Mean Dice of lesions, false positives counting as 0."""

    key = "Lesionwise_Dice"
    version = 2  # components of 2D images of odd width were wrong
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
    version = 2
    definition = (
        "BraTS 2023: mean over lesions above 50 mm3 (grouped by three dilations) of the HD95 to all predicted "
        "components that touch them; missed lesions and false positives count as 374 mm."
    )

    def __call__(self, pair: ClassPair) -> float:
        lesions, invented = find_lesions(*pair.masks, pair.spacing)
        return _mean([_hausdorff(lesion, pair) for lesion in lesions] + [WORST_MM] * invented, best=0.0)


def _hausdorff(lesion: Lesion, pair: ClassPair) -> float:
    if not lesion.partners:
        return WORST_MM
    return surface_distances(*lesion.masks(), spacing=pair.spacing, surface=pair.surface).hausdorff(95)


def _mean(values: list[float], best: float) -> float:
    """Mean; if all lesions are too small to count and nothing was invented, there was nothing to do wrong."""
    return float(np.mean(values)) if values else best
