"""Which post-processing a model gets, decided class by class on cases that it was not trained on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import floor, log10
from typing import Any

import numpy as np

from medseg.evaluation.components import label_components
from medseg.evaluation.overlap import dice
from medseg.inference.postprocess import class_box, postprocess

CaseMaps = tuple[np.ndarray, np.ndarray, Sequence[float]]
LEAST_GAIN = 0.001  # of the mean Dice, for an operation to be kept
MOST_WORSE = 0.1  # share of cases that may lose
SIZES = (0.05, 0.1, 0.25, 0.5)  # of the smallest reference structure: candidates for the minimum size


@dataclass(frozen=True)
class Choice:
    """What was chosen, and what it does on the cases that it was chosen on.

    Attributes:
        operations: for `medseg.inference.postprocess.postprocess`, in order; each with its ``gain`` in mean Dice.
        dice: class -> mean Dice ``before`` and ``after`` all operations, over the cases where prediction or reference
            has the class; and ``foreground_mean``, the mean over classes.
    """

    operations: list[dict[str, Any]]
    dice: dict[str, dict[str, float]]


def choose_postprocessing(cases: Iterable[CaseMaps], labels: Mapping[str, int]) -> Choice:
    """Choose operations greedily: for every class the one that helps most, then the one that helps most on top, ...

    Candidates are the largest component, minimum sizes (a twentieth to a half of the smallest reference structure,
    rounded down to one digit) and filled holes. One is kept if it raises the mean Dice of its class by 0.001 at least
    and lowers it in at most a tenth of the cases: a rule that hurts many must not hide behind one case. In the end all
    are applied together to the whole maps; a class that lost there, as operations of another class changed its
    surroundings, loses its operations. So neither the mean of a class nor the foreground mean falls.

    Args:
        cases: prediction (*S), reference (*S), spacing in mm; gone through several times, one case in memory.
        labels: class name -> value; 0 is left out.
    """
    classes = {name: value for name, value in labels.items() if value}
    cropped: dict[int, list[CaseMaps]] = {value: [] for value in classes.values()}
    for case in cases:  # only the boxes of the classes stay in memory
        for value, crops in cropped.items():
            crops += _crop(*case, value)
    operations = [chosen for value, crops in cropped.items() for chosen in _greedy(crops, value)]
    while True:
        found = _measure(cases, operations, classes)
        worse = {classes[name] for name, mean in found.items() if name in classes and mean["after"] < mean["before"]}
        kept = [operation for operation in operations if operation["label"] not in worse]
        if len(kept) == len(operations):
            return Choice(operations, found)
        operations = kept


def _greedy(crops: list[CaseMaps], value: int) -> list[dict[str, Any]]:
    chosen: list[dict[str, Any]] = []
    candidates = _candidates(crops, value)
    while True:
        tried = [(_applied(crops, candidate), candidate) for candidate in candidates]
        gains = [_gain(crops, after, value) for after, _ in tried]
        if not gains or max(gains) < LEAST_GAIN:
            return chosen
        best = gains.index(max(gains))
        crops, candidate = tried[best]
        chosen.append({**candidate, "gain": round(gains[best], 4)})
        candidates = [other for other in candidates if other is not candidate]


def _gain(before: Sequence[CaseMaps], after: Sequence[CaseMaps], value: int) -> float:
    """Rise of the mean Dice; 0 where too many cases lose."""
    gains = np.array([dice(p == value, r) for p, r, _ in after]) - [dice(p == value, r) for p, r, _ in before]
    return float(gains.mean()) if gains.size and (gains < 0).mean() <= MOST_WORSE else 0.0


def _applied(crops: Sequence[CaseMaps], operation: Mapping[str, Any]) -> list[CaseMaps]:
    return [
        (postprocess(prediction, [operation], spacing), reference, spacing) for prediction, reference, spacing in crops
    ]


def _candidates(crops: Sequence[CaseMaps], value: int) -> list[dict[str, Any]]:
    """Operations that could change anything."""
    if not crops:
        return []
    sizes = [int(reference.sum()) * float(np.prod(spacing)) / 1000 for _, reference, spacing in crops]
    pieces = max(int(label_components(prediction == value).max()) for prediction, *_ in crops)
    candidates: list[dict[str, Any]] = []
    if pieces > 1:
        candidates.append({"operation": "largest_component", "label": value})
        smallest = min((size for size in sizes if size), default=0.0)
        grid = sorted({_one_digit(share * smallest) for share in SIZES if smallest})
        candidates += [{"operation": "minimum_size", "label": value, "ml": size} for size in grid]
    return [*candidates, {"operation": "fill_holes", "label": value}]


def _one_digit(size: float) -> float:
    """Rounded down, so that the folds of a model are likely to agree."""
    digits = -floor(log10(size))
    return round(floor(round(size * 10**digits, 9)) / 10**digits, 12)


def _crop(prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float], value: int) -> list[CaseMaps]:
    """The box that holds one class of both maps, its reference as bool; nothing if neither has the class."""
    box = class_box((prediction == value) | (reference == value))
    return [] if box is None else [(prediction[box].copy(), reference[box] == value, spacing)]


def _measure(
    cases: Iterable[CaseMaps], operations: Sequence[Mapping[str, Any]], classes: Mapping[str, int]
) -> dict[str, dict[str, float]]:
    scores: dict[str, list[tuple[float, float]]] = {name: [] for name in classes}
    for prediction, reference, spacing in cases:
        after = postprocess(prediction, operations, spacing)
        for name, value in classes.items():
            true, before = reference == value, prediction == value
            if true.any() or before.any():
                scores[name].append((dice(before, true), dice(after == value, true)))
    means = {name: np.mean(pairs, axis=0) for name, pairs in scores.items() if pairs}
    if means:
        means["foreground_mean"] = np.mean(list(means.values()), axis=0)
    return {name: {"before": float(mean[0]), "after": float(mean[1])} for name, mean in means.items()}
