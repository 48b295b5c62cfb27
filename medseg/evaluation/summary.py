"""summary.json with nnU-Net's keys, and a table with one row for each case and class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from medseg import text
from medseg.evaluation.aggregate import foreground_mean
from medseg.evaluation.measured import NEIGHBOURS
from medseg.evaluation.metrics import Metric
from medseg.evaluation.overlap import COUNTS

if TYPE_CHECKING:
    from medseg.evaluation.report import Report

BOUNDARIES = {
    "surfel": "Area-weighted cells of 2x2x2 (2D: 2x2) voxels that hold both classes, sized by marching cubes, as in "
    "google-deepmind/surface-distance.",
    "voxel": "Foreground voxels with a background neighbour across a face, each counting once, as in MONAI.",
}
RULES = {
    "empty": "Class in neither label map: undefined (null), counted in n_empty, in no mean, unless a rule was chosen.",
    "penalised": "Class missed or invented, or no prediction at all: the metric's worst value (0; for distances the "
    "image's diagonal in mm), counted in n_penalised, in the mean, unless a rule was chosen.",
    "detected": "mean_detected is over cases where reference and prediction both have the class; detection_rate is "
    "their share of the cases whose reference has it.",
}


def to_summary(report: Report) -> dict[str, Any]:
    """The content of summary.json.

    ``metric_per_case``, ``mean`` and ``foreground_mean`` are as in nnU-Net, with more metrics in them; the rest says
    how the numbers were made. Undefined values are null.
    """
    metrics = report.settings.metrics
    keys = {name: metric.key for name, metric in metrics.items()}
    values = {name: class_key(group) for name, group in report.settings.classes.items()}
    return {
        "metric_per_case": [
            {
                "reference_file": str(result.files.reference),
                "prediction_file": str(result.files.prediction) if result.files.prediction else None,
                "metrics": {
                    values[name]: {keys[metric]: value for metric, value in scores.items()}
                    for name, scores in result.scores.items()
                },
            }
            for result in report.results
        ],
        "mean": {
            values[name]: {keys[metric]: entry["mean"] for metric, entry in summary["metrics"].items()}
            for name, summary in report.aggregates.items()
        },
        "foreground_mean": {key: foreground_mean(report.aggregates, name) for name, key in keys.items()},
        "pooled": {
            values[name]: {keys[key]: value for key, value in entry.items()} for name, entry in report.pooled.items()
        },
        "aggregates": {values[name]: _with_keys(entry, keys) for name, entry in report.aggregates.items()},
        "strata": {
            group: {values[name]: _with_keys(entry, keys) for name, entry in aggregates.items()}
            for group, aggregates in report.aggregates_by_stratum.items()
        },
        **how_measured(report),
        **_about_cases(report),
    }


def to_csv(report: Report) -> str:
    """One row for each case and class; an undefined value is an empty cell."""
    metrics = list(report.settings.metrics)
    rows = [
        [result.files.id, name, result.outcome(name), *(scores[metric] for metric in metrics)]
        for result in report.results
        for name, scores in result.scores.items()
    ]
    return text.to_csv(["case", "class", "outcome", *metrics], rows)


def class_key(values: tuple[int, ...]) -> str:
    """nnU-Net's key of a class: "1"; of a region: "(1, 2, 3)"."""
    return str(values[0] if len(values) == 1 else values)


def definitions(report: Report) -> dict[str, str]:
    """What every number means, counts left out."""
    return {metric.key: metric.definition for name, metric in report.settings.metrics.items() if name not in COUNTS}


def chosen_rules(report: Report) -> dict[str, str]:
    """Metrics whose rule for empty masks was chosen for this evaluation -> the rule, in words; mostly none."""
    rules: dict[str, list[str]] = {}
    for key, metric in _scores(report).items():
        if metric.empty != type(metric).empty:
            words = ", ".join(
                f"{situation.replace('_', ' ')}: {verdict}" for situation, verdict in metric.empty.items()
            )
            rules.setdefault(words, []).append(key)
    return {", ".join(keys): words for words, keys in rules.items()}


def _with_keys(entry: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, Any]:
    return {**entry, "metrics": {keys[metric]: value for metric, value in entry["metrics"].items()}}


def _scores(report: Report) -> dict[str, Metric]:
    return {metric.key: metric for metric in report.settings.metrics.values() if metric.worst is not None}


def how_measured(report: Report) -> dict[str, Any]:
    """What every score depends on; `medseg.evaluation.measured.settings_of` reads it again."""
    values = {name: class_key(group) for name, group in report.settings.classes.items()}
    return {
        "labels": {values[name]: name for name in values},
        "ignore_label": report.settings.ignore_label,
        "surface": report.settings.surface,
        "tolerance_mm": {values[name]: report.settings.tolerances[name] for name in values},
        "resample": report.settings.resample,
        "pixel_size_mm": report.settings.pixel_size,
        "connectivity": NEIGHBOURS,
        "empty": {key: dict(metric.empty) for key, metric in _scores(report).items()},
        "metric_versions": {key: metric.version for key, metric in _scores(report).items()},
        "definitions": {**definitions(report), "boundary": BOUNDARIES[report.settings.surface], **RULES},
    }


def _about_cases(report: Report) -> dict[str, Any]:
    from medseg import __version__

    return {
        "intervals": {
            "method": "BCa bootstrap",
            "confidence": report.confidence,
            "clusters": None if report.clusters is None else len(set(report.clusters.values())),
            "without_cluster": list(report.unclustered),
        },
        "missing": report.missing,
        "skipped": [{"case": case.id, "problem": case.problem} for case in report.skipped],
        "extra_predictions": [str(path) for path in report.extra],
        "medseg": __version__,
    }
