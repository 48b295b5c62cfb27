"""Evaluate two arrays: the core of the evaluator, and a function for notebooks and callbacks."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from math import isfinite
from typing import Any, TypeVar

import numpy as np

from medseg.errors import UsageError, nearest
from medseg.evaluation.boundary import SURFACES, Surface
from medseg.evaluation.metrics import METRICS, Metric
from medseg.evaluation.pair import ClassPair, LabelPair

Key = TypeVar("Key", bound=Hashable)
Labels = Sequence[int] | Mapping[Any, "int | Sequence[int]"]
Tolerance = float | Mapping[Any, float]
Scores = dict[str, float | None]
DEFAULT_METRICS = ("dice", "iou", "hausdorff_distance_95", "nsd")


def evaluate_arrays(
    prediction: np.ndarray,
    reference: np.ndarray,
    *,
    spacing: Sequence[float],
    labels: Labels,
    metrics: Sequence[str] = DEFAULT_METRICS,
    tolerance: Tolerance = 1.0,
    surface: Surface = "surfel",
    ignore_label: int | None = None,
) -> dict[Any, Scores]:
    """Compare two label maps class by class.

    Args:
        prediction: (*S) integers or bool, 2D or 3D.
        reference: (*S) likewise.
        spacing: mm along each axis.
        labels: label values; or name -> value, or name -> several values for a region. In a mapping the background
            (0) is left out. Other values count as background.
        metrics: names from `METRICS`.
        tolerance: mm for "nsd"; one number, or one for each key of ``labels``.
        surface: "surfel" (area-weighted, as surface-distance) or "voxel" (as MONAI).
        ignore_label: reference value whose voxels are not counted.

    Returns:
        ``{label: {metric: value}}`` with the keys of ``labels``. A class in neither map has None; a class in only one
        has the metric's worst value (0; for distances the image's diagonal in mm).

    Raises:
        BadGeometry: shapes or spacing that do not fit.
        BadLabels: values that are not integers >= 0.
        UsageError: an unknown metric, surface or tolerance.
    """
    classes = as_classes(labels)
    built, tolerances = build_metrics(metrics), as_tolerances(tolerance, classes)
    pair = LabelPair(np.asarray(prediction), np.asarray(reference), spacing=spacing, ignore_label=ignore_label)
    return {
        key: score_class(pair.of(values, tolerance=tolerances[key], surface=checked_surface(surface)), built)
        for key, values in classes.items()
    }


def score_class(pair: ClassPair, metrics: Mapping[str, Metric]) -> Scores:
    """All metrics of one class, sharing one set of boundary distances."""
    return {name: metric.score(pair) for name, metric in metrics.items()}


def build_metrics(names: Sequence[str]) -> dict[str, Metric]:
    """The metrics of these names. Raises UsageError with the nearest known name."""
    return {name: METRICS.build(name) for name in names}


def as_classes(labels: Labels) -> dict[Any, tuple[int, ...]]:
    """Labels in any accepted form as key -> label values; the background of a mapping is left out.

    Raises:
        UsageError: there is no class, or a value is no integer >= 0.
    """
    pairs = labels.items() if isinstance(labels, Mapping) else ((value, value) for value in labels)
    classes = {key: _values(key, value) for key, value in pairs}
    if isinstance(labels, Mapping):
        classes = {key: values for key, values in classes.items() if values != (0,)}
    if not classes:
        raise UsageError("there is no class to evaluate", fix="name classes with labels=[1,2] or {name: value}")
    return classes


def as_tolerances(tolerance: Tolerance, classes: Mapping[Key, object]) -> dict[Key, float]:
    """One tolerance in mm for every class. Raises UsageError for a missing, negative or infinite one."""
    given: Mapping[Any, float] = tolerance if isinstance(tolerance, Mapping) else dict.fromkeys(classes, tolerance)
    for key in classes:
        if key not in given:
            raise UsageError(f"tolerance has none for class '{key}' (has {', '.join(map(str, given))})")
        if not isfinite(given[key]) or given[key] < 0:
            raise UsageError(f"tolerance is {given[key]} for class '{key}' (must be >= 0 mm)")
    return {key: float(given[key]) for key in classes}


def checked_surface(surface: str) -> Surface:
    """The surface definition of that name. Raises UsageError with the nearest known name."""
    for known in SURFACES:
        if surface == known:
            return known
    raise UsageError(f"unknown surface '{surface}': {nearest(str(surface), SURFACES)}")


def _values(key: object, value: int | Sequence[int]) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    try:
        integers = tuple(int(v) for v in values)
    except (TypeError, ValueError):
        integers = ()
    if not integers or min(integers) < 0 or any(a != b for a, b in zip(integers, values, strict=True)):
        raise UsageError(f"label '{key}' has the value {value!r} (must be an integer >= 0, or several)")
    return integers
