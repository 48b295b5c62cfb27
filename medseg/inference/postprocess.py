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

Operation = Mapping[str, Any]


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
    steps = [(check_operation(operation), operation) for operation in operations]
    labels = labels.copy() if steps else labels
    for step, operation in steps:
        box = class_box(labels == operation["label"])
        if box is not None:
            step(labels[box], operation, float(np.prod(spacing)) / 1000)
    return labels


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


def check_operation(operation: Operation) -> Callable[[np.ndarray, Operation, float], None]:
    """What carries an operation out. Raises UsageError for an unknown one, or one that lacks its label or size."""
    name = str(operation.get("operation"))
    if name not in OPERATIONS:
        raise UsageError(f"unknown post-processing '{name}': {nearest(name, OPERATIONS)}")
    for key in NEEDED.get(name, ("label",)):
        if not isinstance(operation.get(key), int | float):
            raise UsageError(f"post-processing '{name}' has no number '{key}'")
    return OPERATIONS[name]


def common_operations(members: Sequence[Sequence[Operation]]) -> list[Operation]:
    """The operations that all members of an ensemble have, in the order of the first; of minimum sizes the smallest."""
    common: list[Operation] = []
    for operation in members[0]:
        alike = [_like(operation, other) for other in members]
        if all(alike):
            sizes = {"ml": min(found["ml"] for found in alike if found)} if "ml" in operation else {}
            common.append({**{key: operation[key] for key in ("operation", "label")}, **sizes})
    return common


def _like(operation: Operation, others: Sequence[Operation]) -> Operation | None:
    keys = [operation.get(key) for key in ("operation", "label")]
    return next((other for other in others if [other.get(key) for key in ("operation", "label")] == keys), None)


def class_box(mask: np.ndarray) -> tuple[slice, ...] | None:
    """The box that holds a mask (*S) bool; None if it is empty."""
    from scipy import ndimage

    return next(iter(ndimage.find_objects(mask.view(np.uint8))), None)
