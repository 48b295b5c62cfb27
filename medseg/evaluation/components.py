"""Connected components of two masks, and which of them are the same thing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

CONNECTIVITY = {2: 8, 3: 26}  # neighbours across corners count, as in BraTS and panoptica


class Overlaps(NamedTuple):
    """Voxels that the numbered things of two maps share: only the pairs that do, sorted by the first map's.

    Attributes:
        first: (n,) number in the first map, from 1.
        second: (n,) number in the second map, from 1.
        voxels: (n,) shared.
    """

    first: np.ndarray
    second: np.ndarray
    voxels: np.ndarray


@dataclass(frozen=True)
class Components:
    """Components of a prediction and of a reference, numbered from 1.

    Attributes:
        overlaps: of reference (first) and predicted (second) components; a slide has thousands of each.
        reference_sizes: (R,) voxels.
        prediction_sizes: (P,) voxels.
    """

    overlaps: Overlaps
    reference_sizes: np.ndarray
    prediction_sizes: np.ndarray

    @property
    def iou(self) -> np.ndarray:
        """(n,) intersection over union of every pair that overlaps."""
        first, second, voxels = self.overlaps
        return voxels / (self.reference_sizes[first - 1] + self.prediction_sizes[second - 1] - voxels)

    def matched(self, threshold: float) -> np.ndarray:
        """IoU of the pairs that are the same thing: one to one, each at least the threshold, as many as can be.

        Args:
            threshold: above 0, at most 1. From 0.5 on a component has mostly one candidate; where there are more, the
                assignment with the most pairs is taken, and of those the one with the largest sum of IoU.
        """
        iou = self.iou
        allowed = iou >= threshold
        first, second, iou = self.overlaps.first[allowed], self.overlaps.second[allowed], iou[allowed]
        free = (np.bincount(first)[first] == 1) & (np.bincount(second)[second] == 1) if len(iou) else allowed[:0]
        return np.concatenate([iou[free], _assigned(first[~free], second[~free], iou[~free])])


def match_components(prediction: np.ndarray, reference: np.ndarray) -> Components:
    """Number the components of two masks (*S) bool and count their overlaps in one pass."""
    ours, theirs = label_components(prediction), label_components(reference)
    sizes = (np.bincount(labels.ravel())[1:] for labels in (theirs, ours))
    return Components(count_overlaps(theirs, ours), *sizes)


def count_overlaps(first: np.ndarray, second: np.ndarray) -> Overlaps:
    """Count the voxels that two maps (*S) of numbered things share, 0 being nothing."""
    both = (first > 0) & (second > 0)
    one, other = first[both].astype(np.int64), second[both].astype(np.int64)
    columns = int(other.max(initial=0)) + 1
    codes, voxels = np.unique(one * columns + other, return_counts=True)
    return Overlaps(codes // columns, codes % columns, voxels)


def label_components(mask: np.ndarray, connectivity: int | None = None) -> np.ndarray:
    """Number of the component of each voxel of (*S) bool, 0 outside; `CONNECTIVITY` unless told otherwise."""
    import cc3d

    # cc3d 4.1.1 gives wrong components of 2D bool arrays of odd width, and fails on some masks that are one voxel
    # thick, as 1x1x3 with a hole: not on numbers, within a rim of background.
    numbers = np.pad(mask.view(np.uint8), 1) if min(mask.shape) == 1 else mask.view(np.uint8)
    neighbours: Any = connectivity or CONNECTIVITY[mask.ndim]
    labels = np.asarray(cc3d.connected_components(numbers, connectivity=neighbours))
    return labels if labels.shape == mask.shape else labels[(slice(1, -1),) * mask.ndim]


def _assigned(first: np.ndarray, second: np.ndarray, iou: np.ndarray) -> np.ndarray:
    """IoU of the chosen ones of candidate pairs: the most pairs, then the largest sum."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    if not len(iou):
        return iou
    (_, rows), (_, columns) = (np.unique(numbers, return_inverse=True) for numbers in (first, second))
    m, n = int(rows.max()) + 1, int(columns.max()) + 1
    # A matching must be full, so every row has a partner of its own that is worth no pair; a real pair is worth more
    # than all IoU together, so none is given up for a better overlap elsewhere. No weight is 0, which would be no edge.
    worth = np.concatenate([iou + 1 + min(m, n), np.ones(m)])
    ends = np.concatenate([rows, np.arange(m)]), np.concatenate([columns, n + np.arange(m)])
    pairs = min_weight_full_bipartite_matching(coo_array((worth, ends), shape=(m, n + m)).tocsr(), maximize=True)
    chosen = np.full(m, n + m)
    chosen[pairs[0]] = pairs[1]
    return iou[chosen[rows] == columns]
