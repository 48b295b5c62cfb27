"""Boundaries of masks and the distances between them, in mm, under two named definitions.

``voxel``: foreground voxels with a background neighbour across a face, each counting once (as MONAI 1.6).
``surfel``: cells of 2x2x2 (2D: 2x2) voxels that hold both classes, weighted by the area (2D: length) that marching
cubes puts into them (as google-deepmind/surface-distance; Nikolov et al., 2018).
Outside the image is background in both, so a structure cut off by the image's border has a boundary there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from medseg.evaluation.surfels import cell_codes, element_sizes

Surface = Literal["voxel", "surfel"]
SURFACES: tuple[Surface, ...] = ("voxel", "surfel")
DENSE = 8  # a distance transform beats a tree of points when more than one voxel in eight is a boundary
LARGE = 2**16  # in a smaller box the exact tree is fast enough; the transform computes in single precision
ROUNDING = 1e-6  # distances of 3 x 0.1 mm are within 0.3 mm whatever the last bit says
ROUNDING_SHARE = 1e-9  # 19 of 20 equal elements are 95 % whatever the order of summation


@dataclass(frozen=True)
class SurfaceDistances:
    """Distance of every boundary element to the other boundary.

    Attributes:
        to_reference: (n,) mm, from the prediction's elements.
        to_prediction: (m,) mm, from the reference's elements.
        prediction_sizes: (n,) mm² (2D: mm) for ``surfel``; None where every element counts once.
        reference_sizes: (m,) likewise.
    """

    to_reference: np.ndarray
    to_prediction: np.ndarray
    prediction_sizes: np.ndarray | None = None
    reference_sizes: np.ndarray | None = None

    def hausdorff(self, percentile: float = 100) -> float:
        """Percentile of the distances in each direction, in mm; the larger of the two."""
        return max(
            _percentile(self.to_reference, self.prediction_sizes, percentile),
            _percentile(self.to_prediction, self.reference_sizes, percentile),
        )

    def average_symmetric(self) -> float:
        """Mean distance in mm over the elements of both boundaries together, weighted by size."""
        distances, sizes = self._pooled()
        return float(np.average(distances, weights=sizes))

    def average_directed(self) -> tuple[float, float]:
        """Mean distance in mm from the prediction's boundary to the reference's, and the other way round."""
        return (
            float(np.average(self.to_reference, weights=self.prediction_sizes)),
            float(np.average(self.to_prediction, weights=self.reference_sizes)),
        )

    def within(self, tolerance: float) -> float:
        """Share (0 to 1) of both boundaries that lies within ``tolerance`` mm of the other boundary."""
        distances, sizes = self._pooled()
        return float(np.average(distances <= tolerance * (1 + ROUNDING), weights=sizes))

    def _pooled(self) -> tuple[np.ndarray, np.ndarray | None]:
        distances = np.concatenate([self.to_reference, self.to_prediction])
        if self.prediction_sizes is None or self.reference_sizes is None:
            return distances, None
        return distances, np.concatenate([self.prediction_sizes, self.reference_sizes])


def surface_distances(
    prediction: np.ndarray, reference: np.ndarray, *, spacing: tuple[float, ...], surface: Surface
) -> SurfaceDistances:
    """Distances between the boundaries of two masks, neither of them empty.

    Args:
        prediction: (*S) bool; may be cropped to the box that holds both masks.
        reference: (*S) bool.
        spacing: mm along each axis.
        surface: which definition of the boundary.
    """
    if surface == "voxel":
        ours, theirs = voxel_boundary(prediction), voxel_boundary(reference)
        return SurfaceDistances(*_both_ways(ours, theirs, spacing))
    codes = cell_codes(prediction), cell_codes(reference)
    sizes, full = element_sizes(spacing), 2 ** (2**prediction.ndim) - 1
    ours, theirs = ((code != 0) & (code != full) for code in codes)
    return SurfaceDistances(*_both_ways(ours, theirs, spacing), sizes[codes[0][ours]], sizes[codes[1][theirs]])


def voxel_boundary(mask: np.ndarray) -> np.ndarray:
    """Foreground voxels of (*S) bool with a background voxel, or the outside, across a face."""
    padded = np.pad(mask, 1)
    inner = (slice(1, -1),) * mask.ndim
    surrounded = mask.copy()
    for axis in range(mask.ndim):
        for shifted in (slice(None, -2), slice(2, None)):
            surrounded &= padded[(*inner[:axis], shifted, *inner[axis + 1 :])]
    return mask & ~surrounded


def _both_ways(ours: np.ndarray, theirs: np.ndarray, spacing: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    if ours.size > LARGE and DENSE * (np.count_nonzero(ours) + np.count_nonzero(theirs)) > ours.size:
        return distance_by_transform(ours, theirs, spacing), distance_by_transform(theirs, ours, spacing)
    return distance_by_tree(ours, theirs, spacing), distance_by_tree(theirs, ours, spacing)


def distance_by_transform(start: np.ndarray, goal: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """Distance in mm from each true voxel of ``start`` (*S) to the nearest one of ``goal``, in C order."""
    import edt

    return np.sqrt(edt.edtsq(~goal, anisotropy=spacing)[start], dtype=np.float64)


def distance_by_tree(start: np.ndarray, goal: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """The same as `distance_by_transform`; time grows with the boundary, not with the box around it."""
    from scipy.spatial import cKDTree

    distances = np.zeros(np.count_nonzero(start))
    apart = ~goal[start]
    if apart.any():  # where boundaries coincide the distance is 0 and nobody need look
        # Splitting at the middle instead of the median builds faster; points on a grid keep such a tree shallow.
        tree = cKDTree(np.argwhere(goal) * spacing, leafsize=32, balanced_tree=False, compact_nodes=False)
        distances[apart] = tree.query(np.argwhere(start & ~goal) * spacing)[0]
    return distances


def _percentile(distances: np.ndarray, sizes: np.ndarray | None, percentile: float) -> float:
    """Linear between ranks where elements count once; else the first distance that covers the share of the area."""
    if percentile == 100:
        return float(distances.max())
    if sizes is None:
        return float(np.percentile(distances, percentile))
    order = np.lexsort((sizes, distances))
    share = np.cumsum(sizes[order]) / sizes[order].sum()
    rank = min(int(np.searchsorted(share, percentile / 100 - ROUNDING_SHARE)), len(order) - 1)
    return float(distances[order[rank]])
