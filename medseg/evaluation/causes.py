"""Why a case is bad: one likely cause for each class, by rules that can be read here and stand in the report."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import numpy as np

from medseg.evaluation.components import label_components

GOOD = 0.9  # Dice from which nothing needs an explanation
GAIN = 0.2  # of Dice, that an explanation must bring
TOO_MUCH, TOO_LITTLE = 1.3, 1 / 1.3  # predicted / reference volume
LARGEST_SHARE = 0.8  # of the prediction, that its largest piece has at least

RULES = {
    "good": f"Dice of at least {GOOD:g}",
    "missed": "nothing was predicted",
    "invented": "there is nothing in the reference",
    "geometry": f"the whole prediction, mirrored along an axis, has a Dice larger by {GAIN:g}",
    "side swapped": f"with left and right exchanged, the two classes have a Dice larger by {GAIN:g}",
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
        prediction: (*S) label values.
        reference: (*S) label values.
        classes: name -> label values.
        sides: name of a class -> name of the class on the other side of the body.
    """
    masks = {name: (np.isin(prediction, values), np.isin(reference, values)) for name, values in classes.items()}
    masks = {name: pair for name, pair in masks.items() if pair[0].any() or pair[1].any()}
    flip = _better_flip(prediction > 0, reference > 0)
    return {name: _cause(name, masks, flip, sides or {}) for name in masks}


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Dice of two masks, 1 if both are empty."""
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else 1.0


def _cause(
    name: str, masks: Mapping[str, tuple[np.ndarray, np.ndarray]], flip: str | None, sides: Mapping[str, str]
) -> str:
    prediction, reference = masks[name]
    score = dice(prediction, reference)
    if score >= GOOD:
        return "good"
    if flip is not None:
        return f"geometry ({flip})"
    if _swapped(name, masks, sides):
        return "side swapped"
    if not prediction.any():
        return "missed"
    if not reference.any():
        return "invented"
    if dice(_moved_onto(prediction, reference), reference) >= score + GAIN:
        return "shifted"
    return _of_size(prediction, reference)


def _of_size(prediction: np.ndarray, reference: np.ndarray) -> str:
    pieces = [np.bincount(label_components(mask).ravel())[1:] for mask in (prediction, reference)]
    if len(pieces[0]) > len(pieces[1]) and pieces[0].max() < LARGEST_SHARE * pieces[0].sum():
        return "split"
    ratio = prediction.sum() / reference.sum()
    return "over-segmented" if ratio > TOO_MUCH else "under-segmented" if ratio < TOO_LITTLE else "boundary"


def _better_flip(prediction: np.ndarray, reference: np.ndarray) -> str | None:
    """Axes whose mirroring explains the whole prediction, in words."""
    score, axes = dice(prediction, reference), range(prediction.ndim)
    flips = [flip for n in range(1, prediction.ndim + 1) for flip in combinations(axes, n)]
    scores = [dice(np.flip(prediction, flip), reference) for flip in flips]
    best = int(np.argmax(scores))
    if scores[best] < score + GAIN:
        return None
    return "mirrored along axis " + " and ".join(str(axis) for axis in flips[best])


def _swapped(name: str, masks: Mapping[str, tuple[np.ndarray, np.ndarray]], sides: Mapping[str, str]) -> bool:
    other = sides.get(name)
    if other is None or name not in masks or other not in masks:
        return False
    (ours, truth), (theirs, other_truth) = masks[name], masks[other]
    straight = dice(ours, truth) + dice(theirs, other_truth)
    return dice(ours, other_truth) + dice(theirs, truth) >= straight + 2 * GAIN


def _moved_onto(prediction: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The prediction, moved by whole voxels so that its centre of mass is the reference's."""
    steps = [round(float(b.mean() - a.mean())) for a, b in zip(prediction.nonzero(), reference.nonzero(), strict=True)]
    moved = np.zeros_like(prediction)
    source = tuple(slice(max(0, -s), n - max(0, s)) for s, n in zip(steps, prediction.shape, strict=True))
    goal = tuple(slice(max(0, s), n - max(0, -s)) for s, n in zip(steps, prediction.shape, strict=True))
    moved[goal] = prediction[source]
    return moved
