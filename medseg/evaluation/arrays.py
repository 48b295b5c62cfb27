"""Evaluate two arrays: the core of the evaluator, and a function for notebooks and callbacks."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from math import isfinite
from typing import Any, TypeVar

import numpy as np

from medseg.errors import InputRefused, UsageError, nearest
from medseg.evaluation.boundary import SURFACES, Surface
from medseg.evaluation.metrics import METRICS, PARAMETERS, Metric, empty_rule
from medseg.evaluation.pair import ClassPair, LabelPair, check_channels

Key = TypeVar("Key", bound=Hashable)
Labels = Sequence[int] | Mapping[Any, "int | Sequence[int]"]
Tolerance = float | Mapping[Any, float]
Scores = dict[str, float | None]
Probabilities = Mapping[Any, np.ndarray] | np.ndarray
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
    empty: Mapping[str, Any] | None = None,
    probabilities: Probabilities | None = None,
) -> dict[Any, Scores]:
    """Compare two label maps class by class.

    Args:
        prediction: (*S) integers or bool, 2D or 3D.
        reference: (*S) likewise.
        spacing: mm along each axis.
        labels: label values; or name -> value, or name -> several values for a region. In a mapping the background
            (0) is left out. Other values count as background.
        metrics: names from `METRICS`; also ``hausdorff_distance_NN`` for any percentile, and instance metrics with
            another IoU than 50 %, as ``lesion_f1_10``.
        tolerance: mm for "nsd"; one number, or one for each key of ``labels``.
        surface: "surfel" (area-weighted, as surface-distance) or "voxel" (as MONAI).
        ignore_label: reference value whose voxels are not counted.
        empty: what empty masks score, see `medseg.evaluation.metrics.empty_rule`, e.g. ``{"both_empty": "best"}``.
        probabilities: for calibration: key of ``labels`` -> (*S), or (K, *S) with the background first and then the
            label values in ascending order; 0 to 1.

    Returns:
        ``{label: {metric: value}}`` with the keys of ``labels``. A class in neither map has None; a class in only one
        has the metric's worst value (0; for distances the image's diagonal in mm), unless ``empty`` says otherwise.

    Raises:
        BadGeometry: shapes or spacing that do not fit.
        BadLabels: values that are not integers >= 0, or probabilities outside of 0 to 1.
        UsageError: an unknown metric, surface, tolerance or rule.
    """
    classes = as_classes(labels)
    built, tolerances = build_metrics(metrics, empty), as_tolerances(tolerance, classes)
    shares = None if probabilities is None else as_shares(probabilities, classes)
    pair = LabelPair(
        np.asarray(prediction), np.asarray(reference), spacing=spacing, ignore_label=ignore_label, probabilities=shares
    )
    return {
        key: score_class(pair.of(values, tolerance=tolerances[key], surface=checked_surface(surface)), built)
        for key, values in classes.items()
    }


def score_class(pair: ClassPair, metrics: Mapping[str, Metric]) -> Scores:
    """All metrics of one class, sharing one set of boundary distances.

    Raises:
        InputRefused: a metric gives NaN or infinity, which no report could tell from a number that is undefined.
    """
    return {name: _finite(name, metric.score(pair)) for name, metric in metrics.items()}


def _finite(name: str, value: float | None) -> float | None:
    if value is not None and not isfinite(value):
        raise InputRefused(f"metric '{name}' is {value} (must be a number)", fix=f"leave '{name}' out of metrics=")
    return value


def build_metrics(names: Sequence[str], empty: Mapping[str, Any] | None = None) -> dict[str, Metric]:
    """The metrics of these names, with their rules for empty masks.

    A number at the end of a name is the metric's parameter, a percentage: ``hausdorff_distance_99``.

    Raises:
        UsageError: an unknown name (with the nearest known one), parameter or rule.
    """
    built = {name: _build(name) for name in names}
    for key in empty or {}:
        if isinstance((empty or {})[key], Mapping) and key not in built:
            raise UsageError(f"empty names the metric '{key}': {nearest(key, built)}")
    for name, metric in built.items():
        metric.empty = empty_rule(empty, name)
    return built


def _build(name: str) -> Metric:
    base, _, number = name.rpartition("_")
    if name not in METRICS.names() and base in PARAMETERS and re.fullmatch(r"\d+(\.\d+)?", number):
        return PARAMETERS[base](float(number))
    return METRICS.build(name)


def as_shares(
    probabilities: Probabilities, classes: Mapping[Any, tuple[int, ...]]
) -> dict[tuple[int, ...], np.ndarray]:
    """Probabilities (*S) by the label values of their class; those of a region are summed.

    Args:
        probabilities: key of a class -> (*S), or (K, *S): of 0 and the classes' label values, ascending.
        classes: key -> label values.

    Raises:
        UsageError: a class without probabilities, or another number of channels.
        BadLabels: channels that are no probabilities of labels that exclude each other.
    """
    if isinstance(probabilities, Mapping):
        for key in classes:
            if key not in probabilities:
                raise UsageError(f"probabilities has none for class '{key}'")
        return {group: np.asarray(probabilities[key]) for key, group in classes.items()}
    order = [0, *sorted({value for group in classes.values() for value in group})]
    if len(probabilities) != len(order):
        raise UsageError(f"probabilities has {len(probabilities)} channels (expected {len(order)}, of labels {order})")
    check_channels(np.asarray(probabilities), tuple((value,) for value in order))
    return {group: sum(probabilities[order.index(value)] for value in group) for group in classes.values()}


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
