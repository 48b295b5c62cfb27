"""The same scan twice: equal voxels or alike images, and whether a fold trains on one and validates on the other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np

# Correlation of thumbnails from which two images are taken for one. Measured: the most alike pairs of different scans
# reach 0.85 (MSD hippocampus), 0.85 (CHAOS MR), 0.91 (BraTS), 0.93 (phantoms), and in 2D 0.97 (chest X-ray), 0.95
# (ISIC 2017), 0.98 (blood cells). The same scan with noise of half its standard deviation, or at 70 % of its
# resolution, keeps 0.97 or more; cropped by two voxels on each side it falls to 0.81 to 0.99 and may be missed.
ALIKE = {3: 0.97, 2: 0.985}
THUMBNAIL = {3: 16, 2: 32}  # voxels per side

Pair = tuple[str, str, float]


def thumbnail(image: np.ndarray) -> np.ndarray:
    """Shrink (C, *S) to a small vector whose dot product with another is their correlation over space, -1 to 1.

    Each channel is averaged over equal boxes, `THUMBNAIL` per side, and has mean 0 and norm 1: contrast and brightness
    do not matter. A constant image gives zeros.
    """
    small = image
    for axis in range(1, image.ndim):
        small = _box_means(small, axis, THUMBNAIL[image.ndim - 1])
    flat = small.reshape(len(small), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(flat, axis=1, keepdims=True)
    unit = np.divide(flat, norms, out=np.zeros_like(flat), where=norms > 1e-6 * np.abs(small).max())
    return (unit / np.sqrt(len(unit))).astype(np.float32).ravel()


def exact_pairs(contents: Mapping[str, str]) -> list[Pair]:
    """Pairs of cases (id -> digest of its voxels) with equal voxels."""
    groups = defaultdict(list)
    for case, content in contents.items():
        groups[content].append(case)
    return [(*pair, 1.0) for cases in groups.values() for pair in combinations(sorted(cases), 2)]


def alike_pairs(thumbnails: Mapping[str, np.ndarray], spatial_dims: int) -> Iterator[Pair]:
    """Pairs of cases (id -> thumbnail) that correlate by more than `ALIKE`; row by row, so that memory stays small."""
    names = list(thumbnails)
    if not names:
        return
    stacked = np.stack(list(thumbnails.values()))
    for row, name in enumerate(names[:-1]):
        correlations = stacked[row + 1 :] @ stacked[row]
        for column in np.flatnonzero(correlations > ALIKE[spatial_dims]):
            yield name, names[row + 1 + column], float(correlations[column])


def leaks(pair: Pair, test: Collection[str], splits: Sequence[Mapping[str, Sequence[str]]]) -> str | None:
    """Say where one of a pair is trained on and the other is not, or None.

    Args:
        pair: two cases.
        test: ids of the test cases.
        splits: the folds.
    """
    first, second, _ = pair
    if (first in test) != (second in test):
        return "one is a training case, the other a test case"
    for number, split in enumerate(splits):
        for train, val in ((first, second), (second, first)):
            if train in split["train"] and val in split["val"]:
                return f"fold {number} trains on {train} and validates on {val}"
    return None


def _box_means(image: np.ndarray, axis: int, boxes: int) -> np.ndarray:
    """Means over equal boxes along an axis; their edges may cut voxels, which then count in part."""
    size = image.shape[axis]
    sums = np.cumsum(image, axis=axis, dtype=np.float64)
    sums = np.concatenate([np.zeros_like(np.take(sums, [0], axis)), sums], axis=axis)
    edges = np.linspace(0, size, boxes + 1)
    below = np.minimum(edges.astype(int), size - 1)
    part = (edges - below).reshape([-1 if a == axis else 1 for a in range(image.ndim)])
    at_edges = np.take(sums, below, axis) * (1 - part) + np.take(sums, below + 1, axis) * part
    return np.diff(at_edges, axis=axis) * (boxes / size)
