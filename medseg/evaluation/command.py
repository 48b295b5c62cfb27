"""Two folders in, a report out: from Python, and as ``medseg evaluate``."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medseg.errors import BadLabels, PartialFailure, UsageError
from medseg.evaluation.arrays import Labels
from medseg.evaluation.evaluator import Evaluator
from medseg.evaluation.folders import CaseFiles, FolderPair, pair_folders
from medseg.evaluation.report import Report
from medseg.io import read_labels

logger = logging.getLogger(__name__)

SETTINGS = ("labels", "tolerance", "metrics", "surface", "workers", "on_error", "resample")


def evaluate_folders(
    predictions: str | Path,
    references: str | Path,
    output: str | Path | None = None,
    *,
    labels: Labels | None = None,
    **settings: Any,
) -> Report:
    """Evaluate a folder of predictions, of any tool, against a folder of references or a dataset.

    Args:
        predictions: folder of label maps, named like the references.
        references: folder of label maps, or a dataset folder (labelsTs or labelsTr, by the names of the predictions).
        output: folder for the report; None writes nothing.
        labels: as for `Evaluator`; None takes them from the dataset.json in or above ``references``, and where there
            is none, the values found in the references.
        settings: the other arguments of `Evaluator`.

    Raises:
        InputRefused: nothing to compare, grids that differ, label values that are not known, unreadable files.
        UsageError: a setting that is not known.
    """
    report = _evaluate(predictions, references, output, labels, settings)
    for line in report.remarks():
        logger.warning(line)
    return report


def evaluate_command(cfg: Mapping[str, Any]) -> int:
    """Evaluate two folders, print the table and write the report.

    Args:
        cfg: ``predictions`` and ``references`` are folders; ``output`` defaults to ``evaluation`` within the
            predictions. ``labels``, ``tolerance``, ``metrics``, ``surface``, ``workers``, ``on_error`` and
            ``resample`` are settings of `Evaluator`; those that are None keep its defaults.

    Returns:
        0; or 6 if cases were skipped or have no prediction (all of them are listed in the report).

    Raises:
        MedsegError: as `evaluate_folders`.
    """
    for key in ("predictions", "references"):
        if not cfg.get(key):
            raise UsageError(f"{key} is not set", fix=f"give {key}=FOLDER")
    output = Path(cfg.get("output") or Path(cfg["predictions"]) / "evaluation")
    settings = {key: cfg[key] for key in SETTINGS if cfg.get(key) is not None}
    report = _evaluate(cfg["predictions"], cfg["references"], output, settings.pop("labels", None), settings)
    report.print()
    print(f"Report: {output / 'report.html'}")
    return PartialFailure.exit_code if report.skipped or report.missing else 0


def _evaluate(
    predictions: str | Path,
    references: str | Path,
    output: str | Path | None,
    labels: Labels | None,
    settings: Mapping[str, Any],
) -> Report:
    pair = pair_folders(predictions, references)
    report = _make_evaluator(pair, labels, settings).evaluate(pair.cases, extra=pair.extra)
    if output is not None:
        report.save(output)
    return report


def _make_evaluator(pair: FolderPair, labels: Labels | None, settings: Mapping[str, Any]) -> Evaluator:
    table = pair.table
    if table is None:
        return Evaluator(labels or _labels_found(pair.cases), **settings)
    facts = {"ignore_label": table.ignore_label, "known": frozenset(table.labels.values())}
    return Evaluator(labels or table.regions or table.labels, **{**facts, **settings})


def _labels_found(cases: Sequence[CaseFiles]) -> list[int]:
    found = {int(v) for case in cases for v in np.unique(read_labels(case.reference, case=case.id).array)} - {0}
    if not found:
        folder = cases[0].reference.parent
        raise BadLabels("all references are empty", path=folder, fix="name the classes with labels=")
    return sorted(found)
