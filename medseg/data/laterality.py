"""Left and right: which labels change places in a mirror, and when a mirror image would be wrong anatomy.

Mirroring doubles the data only if a mirrored scan could exist. A body with the liver on the left hardly does, and a
mirrored left kidney is a right kidney. Two sources are used: the names of the labels, and where each class lies in the
body, measured over the cases (``side_offsets``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

SIDES = {"left": "left", "l": "left", "lt": "left", "lh": "left", "right": "right", "r": "right", "rt": "right"}
SIDES["rh"] = "right"

MIN_CASES = 4
# Of half the body's width: liver and spleen lie at 0.5; 0.2, as in the MSD hippocampus crops, is a crop off centre.
MIN_OFFSET = 0.25
MIN_SAME_SIDE = 0.9
MAX_PAIR_IMBALANCE = 0.3  # of half the body's width: how far a pair's middle may lie from the body's middle
MAX_PAIR_VOLUME_RATIO = 2.0


@dataclass(frozen=True)
class Mirroring:
    """Spatial axes that may be mirrored, the label pairs that an axis (as a string) swaps, and why."""

    axes: tuple[int, ...]
    swaps: dict[str, list[list[int]]]
    reason: str


def left_right_axis(spatial_dims: int) -> int:
    """The axis that runs left to right: 0 of a canonical (RAS+) volume, 1 (columns) of an image."""
    return 0 if spatial_dims == 3 else 1


def side_and_stem(name: str) -> tuple[str | None, str]:
    """Split a label name: "kidney_left" and "Left-Kidney" give ("left", "kidney"), "liver" gives (None, "liver")."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
    spaced = re.sub(r"^(left|right)(?=[a-z])|(?<=[a-z])(left|right)$", r" \1\2 ", spaced)
    tokens = [token for token in re.split(r"[^a-z0-9]+", spaced) if token]
    sides = [SIDES[token] for token in tokens if token in SIDES]
    stem = "_".join(sorted(token for token in tokens if token not in SIDES))
    return (sides[0], stem) if len(sides) == 1 and stem else (None, "_".join(sorted(tokens)))


def lateral_pairs(labels: Mapping[str, int]) -> tuple[list[tuple[int, int]], list[str]]:
    """Pairs of label values ``(left, right)`` by name, and the names that state a side without a counterpart."""
    sided = {name: side_and_stem(name) for name in labels}
    lefts = {stem: name for name, (side, stem) in sided.items() if side == "left"}
    rights = {stem: name for name, (side, stem) in sided.items() if side == "right"}
    pairs = [(labels[lefts[stem]], labels[rights[stem]]) for stem in lefts if stem in rights]
    alone = [(lefts | rights)[stem] for stem in sorted(set(lefts) ^ set(rights))]
    # A bare "l" or "r" may be part of any name; only the whole word proves a side where the counterpart is missing.
    return sorted(pairs), [name for name in alone if re.search("left|right", name, re.IGNORECASE)]


def side_offsets(image: np.ndarray, labels: np.ndarray, values: Sequence[int], axis: int) -> dict[int, float]:
    """How far from the body's middle each class lies along one axis, in units of half the body's width.

    Args:
        image: (*S), one channel in canonical orientation; the body is what is brighter than the mean.
        labels: (*S) integers.
        values: label values to measure; absent ones are left out of the answer.
        axis: the left-right axis.

    Returns:
        label value -> offset, negative towards index 0, about -1 to 1.
    """
    others = tuple(i for i in range(image.ndim) if i != axis)
    cumulated = np.cumsum((image > image.mean()).sum(axis=others))
    if cumulated[-1] == 0:
        return {}
    low, high = np.searchsorted(cumulated, (0.01 * cumulated[-1], 0.99 * cumulated[-1]))
    middle, half = (low + high) / 2, max((high - low) / 2, 0.5)
    position = np.arange(image.shape[axis])
    profiles = {value: (labels == value).sum(axis=others) for value in values}
    return {value: float((p @ position / p.sum() - middle) / half) for value, p in profiles.items() if p.any()}


def is_one_sided(offsets: Sequence[float]) -> bool:
    """Whether a class lies on the same side of the body in nearly every case (at least four cases are needed)."""
    if len(offsets) < MIN_CASES:
        return False
    array = np.asarray(offsets)
    same_side = max(np.mean(array > 0), np.mean(array < 0))
    return bool(same_side >= MIN_SAME_SIDE and abs(array.mean()) >= max(MIN_OFFSET, array.std()))


def decide_mirroring(
    labels: Mapping[str, int],
    offsets: Mapping[int, Sequence[float]],
    volumes: Mapping[int, float],
    spatial_dims: int,
) -> Mirroring:
    """Axes to mirror and labels to swap.

    Volumes are brought to one orientation before they are used, and no patient is built upside down or back to front,
    so of the three axes of a volume only left-right comes into question (mirroring all three, as nnU-Net does, took
    three Dice points from a 90-second training on MSD hippocampus). Images have no such orientation: both axes do.

    Args:
        labels: name -> value, background included.
        offsets: label value -> ``side_offsets`` of the cases that have it.
        volumes: label value -> median number of voxels.
        spatial_dims: 2 or 3.
    """
    axis = left_right_axis(spatial_dims)
    every = (axis,) if spatial_dims == 3 else (0, 1)
    without = tuple(i for i in every if i != axis)
    foreground = {name: value for name, value in labels.items() if value != 0}
    pairs, alone = lateral_pairs(foreground)
    names = {value: name for name, value in foreground.items()}
    if alone:
        return Mirroring(without, {}, f"axis {axis} is off: '{alone[0]}' names a side and its counterpart is no label")
    for left, right in pairs:
        if not _is_mirror_pair(left, right, offsets, volumes):
            reason = f"axis {axis} is off: '{names[left]}' and '{names[right]}' differ in size or place"
            return Mirroring(without, {}, reason)
    paired = {value for pair in pairs for value in pair}
    single = [names[v] for v in foreground.values() if v not in paired and is_one_sided(offsets.get(v, ()))]
    if single:
        return Mirroring(without, {}, f"axis {axis} is off: {', '.join(single)} lie(s) on one side of the body")
    if pairs:
        swapped = ", ".join(f"'{names[left]}' with '{names[right]}'" for left, right in pairs)
        return Mirroring(every, {str(axis): [list(pair) for pair in pairs]}, f"mirroring axis {axis} swaps {swapped}")
    note = "" if spatial_dims == 3 else "; a 2D image has no anatomical axes"
    return Mirroring(every, {}, f"no label names a side and none lies on one side of the image in all cases{note}")


def _is_mirror_pair(
    left: int, right: int, offsets: Mapping[int, Sequence[float]], volumes: Mapping[int, float]
) -> bool:
    """Left and right kidney mirror each other; the heart's left and right ventricle do not, whatever their names."""
    small, large = sorted((volumes.get(left, 0.0), volumes.get(right, 0.0)))
    if small > 0 and large > MAX_PAIR_VOLUME_RATIO * small:
        return False
    if min(len(offsets.get(left, ())), len(offsets.get(right, ()))) < MIN_CASES:
        return True
    return bool(abs(np.mean(offsets[left]) + np.mean(offsets[right])) / 2 <= MAX_PAIR_IMBALANCE)
