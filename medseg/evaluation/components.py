"""Connected components of two masks, and which of them are the same thing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

CONNECTIVITY = {2: 8, 3: 26}  # neighbours across corners count, as in BraTS and panoptica


@dataclass(frozen=True)
class Components:
    """Components of a prediction and of a reference, numbered from 1.

    Attributes:
        prediction: (*S) component of each voxel, 0 outside.
        reference: (*S) likewise.
        overlap: (R, P) voxels that a reference component shares with a predicted one.
        reference_sizes: (R,) voxels.
        prediction_sizes: (P,) voxels.
    """

    prediction: np.ndarray
    reference: np.ndarray
    overlap: np.ndarray
    reference_sizes: np.ndarray
    prediction_sizes: np.ndarray

    @property
    def iou(self) -> np.ndarray:
        """(R, P) intersection over union of every pair."""
        union = self.reference_sizes[:, None] + self.prediction_sizes[None] - self.overlap
        return self.overlap / union

    def matched(self, threshold: float) -> np.ndarray:
        """IoU of the pairs that are the same thing: one to one, each at least the threshold, as many as can be.

        Args:
            threshold: above 0, at most 1. From 0.5 on a component has one partner at most; below, the assignment with
                the most pairs is taken, and of those the one with the largest sum of IoU.
        """
        from scipy.optimize import linear_sum_assignment

        iou = self.iou
        allowed = iou >= threshold
        # Every pair is worth more than all IoU together, so no pair is given up for a better overlap elsewhere.
        worth = np.where(allowed, iou + min(iou.shape), 0)
        pairs = linear_sum_assignment(worth, maximize=True)
        return iou[pairs][allowed[pairs]]


def match_components(prediction: np.ndarray, reference: np.ndarray) -> Components:
    """Number the components of two masks (*S) bool and count their overlaps in one pass."""
    ours, theirs = label_components(prediction), label_components(reference)
    rows, columns = int(theirs.max()) + 1, int(ours.max()) + 1
    codes = theirs.astype(np.int64) * columns + ours
    table = np.bincount(codes.ravel(), minlength=rows * columns).reshape(rows, columns)
    return Components(ours, theirs, table[1:, 1:], table[1:].sum(axis=1), table[:, 1:].sum(axis=0))


def label_components(mask: np.ndarray, connectivity: int | None = None) -> np.ndarray:
    """Number of the component of each voxel of (*S) bool, 0 outside; `CONNECTIVITY` unless told otherwise."""
    import cc3d

    neighbours: Any = connectivity or CONNECTIVITY[mask.ndim]
    return np.asarray(cc3d.connected_components(mask, connectivity=neighbours))
