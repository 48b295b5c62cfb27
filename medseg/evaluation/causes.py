"""Why a case is bad: one likely cause for each class, by rules that can be read here and stand in the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import permutations, product

import numpy as np

from medseg.evaluation.components import label_components
from medseg.evaluation.pair import ClassPair, LabelPair

GOOD = 0.9  # Dice from which nothing needs an explanation
GAIN = 0.2  # of Dice, that an explanation must bring
TOO_MUCH, TOO_LITTLE = 1.3, 1 / 1.3  # predicted / reference volume
LARGEST_SHARE = 0.8  # of the prediction, that its largest piece has at least
SAMPLE = 200_000  # voxels that judge 47 mirrorings and axis orders; enough for a gain of 0.2
AXES = {2: ("top-bottom", "left-right"), 3: ("left-right", "back-front", "feet-head")}

RULES = {
    "good": f"Dice of at least {GOOD:g}",
    "geometry": f"all classes together, mirrored or with axes in another order, have a Dice larger by {GAIN:g}",
    "side swapped": f"with left and right exchanged, the two classes have a Dice larger by {GAIN:g}",
    "missed": "nothing was predicted",
    "invented": "there is nothing in the reference",
    "shifted": f"moved so that the centres of mass coincide, it has a Dice larger by {GAIN:g}",
    "split": f"more pieces than the reference, the largest below {LARGEST_SHARE:.0%} of the prediction",
    "over-segmented": f"more than {TOO_MUCH:g} times the reference's volume",
    "under-segmented": f"less than 1/{TOO_MUCH:g} of the reference's volume",
    "boundary": "none of the others: the place is right, the edge is not",
}


def likely_causes(
    prediction: np.ndarray,
    reference: np.ndarray,
    classes: Mapping[str, tuple[int, ...]],
    sides: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The likely cause of the error in every class that occurs: the first rule of `RULES` that fits.

    Args:
        prediction: (*S) label values; volumes in RAS+ order, images as rows and columns.
        reference: (*S) likewise.
        classes: name -> label values.
        sides: name of a class -> name of the class on the other side of the body.
    """
    pair = LabelPair(prediction, reference, spacing=(1.0,) * prediction.ndim)
    ones = {name: pair.of(values, tolerance=0, surface="voxel") for name, values in classes.items()}
    ones = {name: one for name, one in ones.items() if one.n_pred or one.n_ref}
    geometry = _other_geometry(pair.prediction > 0, pair.reference > 0)
    return {name: _cause(name, ones, geometry, sides or {}) for name in ones}


def _cause(name: str, ones: Mapping[str, ClassPair], geometry: str | None, sides: Mapping[str, str]) -> str:
    one = ones[name]
    score = _dice(one.tp, one.n_pred, one.n_ref)
    if score >= GOOD:
        return "good"
    if geometry is not None:
        return f"geometry ({geometry})"
    if _swapped(one, ones.get(sides.get(name, ""))):
        return "side swapped"
    if not one.n_pred:
        return "missed"
    if not one.n_ref:
        return "invented"
    if _dice(_overlap_moved(*one.masks), one.n_pred, one.n_ref) >= score + GAIN:
        return "shifted"
    return _of_size(one)


def _of_size(one: ClassPair) -> str:
    pieces = [np.bincount(label_components(mask).ravel())[1:] for mask in one.masks]
    if len(pieces[0]) > len(pieces[1]) and pieces[0].max() < LARGEST_SHARE * one.n_pred:
        return "split"
    ratio = one.n_pred / one.n_ref
    return "over-segmented" if ratio > TOO_MUCH else "under-segmented" if ratio < TOO_LITTLE else "boundary"


def _swapped(one: ClassPair, other: ClassPair | None) -> bool:
    if other is None:
        return False
    straight = [_dice(c.tp, c.n_pred, c.n_ref) for c in (one, other)]
    crossed = [_dice(_shared(a, b), a.n_pred, b.n_ref) for a, b in ((one, other), (other, one))]
    return sum(crossed) >= sum(straight) + 2 * GAIN


def _shared(predicted: ClassPair, true: ClassPair) -> int:
    """Voxels predicted as one class that are another, from the contingency table."""
    pair = predicted.pair
    columns, rows = np.isin(pair.values, predicted.values), np.isin(pair.values, true.values)
    return int(pair.table[np.ix_(rows, columns)].sum())


def _other_geometry(prediction: np.ndarray, reference: np.ndarray) -> str | None:
    """Which mirroring and order of axes explains the whole prediction, in words."""
    total = np.count_nonzero(prediction) + np.count_nonzero(reference)
    places = np.flatnonzero(prediction)
    step = len(places) // SAMPLE + 1
    voxels = np.unravel_index(places[::step], prediction.shape)
    scores = {}
    for order, flips in _geometries(prediction.shape):
        moved = tuple(
            prediction.shape[axis] - 1 - voxels[axis] if flipped else voxels[axis]
            for axis, flipped in zip(order, flips, strict=True)
        )
        scores[order, flips] = 2 * step * int(np.count_nonzero(reference[moved])) / max(int(total), 1)
    (order, flips), score = max(scores.items(), key=lambda item: item[1])
    if score < next(iter(scores.values())) + GAIN:
        return None
    if order != tuple(range(prediction.ndim)):
        return "axes in another order"
    names = zip(AXES[prediction.ndim], flips, strict=True)
    return "mirrored " + " and ".join(name for name, flipped in names if flipped)


def _geometries(shape: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], tuple[bool, ...]]]:
    """Orders of axes that keep the shape, and which axes to mirror: the identity first, then what changes least."""
    for order in permutations(range(len(shape))):
        if tuple(shape[axis] for axis in order) == shape:
            for flips in product((False, True), repeat=len(shape)):
                yield order, flips


def _overlap_moved(prediction: np.ndarray, reference: np.ndarray) -> int:
    """Voxels shared once the prediction is moved, by whole voxels, so that the centres of mass coincide."""
    steps = [round(b - a) for a, b in zip(_centre(prediction), _centre(reference), strict=True)]
    source = tuple(slice(max(0, -s), n - max(0, s)) for s, n in zip(steps, prediction.shape, strict=True))
    goal = tuple(slice(max(0, s), n - max(0, -s)) for s, n in zip(steps, prediction.shape, strict=True))
    return int(np.count_nonzero(prediction[source] & reference[goal]))


def _centre(mask: np.ndarray) -> list[float]:
    """Centre of mass in voxels, from sums along the axes: the coordinates of all voxels would take 24 bytes each."""
    axes = range(mask.ndim)
    profiles = [mask.sum(axis=tuple(a for a in axes if a != axis)) for axis in axes]
    return [float(profile @ np.arange(len(profile)) / profile.sum()) for profile in profiles]


def _dice(shared: int, n_pred: int, n_ref: int) -> float:
    return 2 * shared / (n_pred + n_ref) if n_pred + n_ref else 0.0  # two empty masks explain nothing
