"""Post-processing of label maps: plain operations, chosen on validation data and stored with the model.

An operation is plain data, so that a model folder can hold it: ``{"operation": "largest_component", "label": 2}``,
``{"operation": "minimum_size", "label": 2, "ml": 0.5}`` or ``{"operation": "fill_holes", "label": 2}``; and, on demand
only, ``{"operation": "opening", "label": 2, "size": 6}``, a binary opening by a square (3D: a cube) of so many pixels.
What is removed becomes background; a hole is filled only where there is background, never another class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from medseg.errors import UsageError, nearest
from medseg.evaluation.components import label_components
from medseg.evaluation.overlap import dice

Operation = Mapping[str, Any]
Crop = tuple[np.ndarray, np.ndarray, Sequence[float]]
LEAST_GAIN = 0.001  # of the mean Dice, for an operation to be kept
MOST_WORSE = 0.1  # share of cases that may lose
SIZES = (0.1, 0.5)  # of the smallest reference structure: candidates for the minimum size


def postprocess(labels: np.ndarray, operations: Iterable[Operation], spacing: Sequence[float]) -> np.ndarray:
    """Apply operations one after the other.

    Args:
        labels: (*S) label values, 2D or 3D; left as it is.
        operations: see the module.
        spacing: mm along each axis; a 2D pixel counts as 1 mm thick.

    Returns:
        (*S) of the same type; the very same array without operations.

    Raises:
        UsageError: an unknown operation, or one that lacks its label or size.
    """
    steps = [(_step(operation), operation) for operation in operations]
    labels = labels.copy() if steps else labels
    for step, operation in steps:
        box = _box(labels == operation["label"])
        if box is not None:
            step(labels[box], operation, float(np.prod(spacing)) / 1000)
    return labels


def choose_postprocessing(
    cases: Iterable[tuple[np.ndarray, np.ndarray, Sequence[float]]], labels: Mapping[str, int]
) -> list[dict[str, Any]]:
    """The operations that raise the mean Dice of a class over cases by 0.001 at least, and lower it in few of them.

    For every class the candidates are tried in turn, each on top of those that were kept: the largest component, two
    minimum sizes (a tenth and a half of the smallest reference structure), filled holes. One that lowers the Dice of
    more than a tenth of the cases is not kept, whatever its mean: a rule that hurts many must not hide behind one case.

    Args:
        cases: prediction (*S), reference (*S), spacing in mm; of cases that were not trained on.
        labels: class name -> value; 0 is left out.

    Returns:
        Operations for `postprocess`, in order.
    """
    chosen: list[dict[str, Any]] = []
    cropped: dict[int, list[Crop]] = {value: [] for value in labels.values() if value}
    for case in cases:  # one at a time: only the boxes of the classes stay in memory
        for value, crops in cropped.items():
            crops += _crop(*case, value)
    for value, crops in cropped.items():
        for candidate in _candidates(crops, value):
            before = [dice(prediction == value, reference) for prediction, reference, _ in crops]
            tried = [
                (postprocess(prediction, [candidate], spacing), reference, spacing)
                for prediction, reference, spacing in crops
            ]
            gains = np.array([dice(p == value, r) for p, r, _ in tried]) - before
            if gains.size and gains.mean() >= LEAST_GAIN and (gains < 0).mean() <= MOST_WORSE:
                chosen.append({**candidate, "gain": round(float(gains.mean()), 4)})
                crops = tried
    return chosen


def _largest_component(labels: np.ndarray, operation: Operation, voxel_ml: float) -> None:
    parts = label_components(labels == operation["label"])
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    labels[(parts > 0) & (parts != sizes.argmax())] = 0


def _minimum_size(labels: np.ndarray, operation: Operation, voxel_ml: float) -> None:
    parts = label_components(labels == operation["label"])
    small = np.bincount(parts.ravel()) * voxel_ml < operation["ml"]
    small[0] = False
    labels[small[parts]] = 0


def _fill_holes(labels: np.ndarray, operation: Operation, voxel_ml: float) -> None:
    from scipy import ndimage

    filled = ndimage.binary_fill_holes(labels == operation["label"])
    labels[filled & (labels == 0)] = operation["label"]


def _opening(labels: np.ndarray, operation: Operation, voxel_ml: float) -> None:
    from scipy import ndimage

    mask, size = labels == operation["label"], int(operation["size"])
    # The box may end at the structure: a border of background is what lies around it.
    opened = ndimage.binary_opening(np.pad(mask, size), np.ones((size,) * mask.ndim))
    labels[mask & ~opened[(slice(size, -size),) * mask.ndim]] = 0


NEEDED = {"minimum_size": ("label", "ml"), "opening": ("label", "size")}
OPERATIONS: dict[str, Callable[[np.ndarray, Operation, float], None]] = {
    "largest_component": _largest_component,
    "minimum_size": _minimum_size,
    "fill_holes": _fill_holes,
    "opening": _opening,
}


def _step(operation: Operation) -> Callable[[np.ndarray, Operation, float], None]:
    name = str(operation.get("operation"))
    if name not in OPERATIONS:
        raise UsageError(f"unknown post-processing '{name}': {nearest(name, OPERATIONS)}")
    for key in NEEDED.get(name, ("label",)):
        if not isinstance(operation.get(key), int | float):
            raise UsageError(f"post-processing '{name}' has no number '{key}'")
    return OPERATIONS[name]


def common_operations(members: Sequence[Sequence[Operation]]) -> list[Operation]:
    """The operations that all members of an ensemble have, in the order of the first."""
    plain = [[{k: v for k, v in operation.items() if k != "gain"} for operation in member] for member in members]
    return [operation for operation in plain[0] if all(operation in other for other in plain)]


def _candidates(crops: Sequence[Crop], value: int) -> list[dict[str, Any]]:
    """Operations that could change anything."""
    sizes = [
        int(reference.sum()) * float(np.prod(spacing)) / 1000 for _, reference, spacing in crops if reference.any()
    ]
    pieces = max((int(label_components(prediction == value).max()) for prediction, *_ in crops), default=0)
    candidates: list[dict[str, Any]] = []
    if pieces > 1:
        candidates.append({"operation": "largest_component", "label": value})
        smallest = min(sizes, default=0.0)
        candidates += [
            {"operation": "minimum_size", "label": value, "ml": share * smallest} for share in SIZES if smallest
        ]
    return [*candidates, {"operation": "fill_holes", "label": value}]


def _crop(prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float], value: int) -> list[Crop]:
    """The box that holds one class of both maps, its reference as bool; nothing if neither has the class."""
    box = _box((prediction == value) | (reference == value))
    return [] if box is None else [(prediction[box].copy(), reference[box] == value, spacing)]


def _box(mask: np.ndarray) -> tuple[slice, ...] | None:
    from scipy import ndimage

    return next(iter(ndimage.find_objects(mask.view(np.uint8))), None)
