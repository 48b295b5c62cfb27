"""Two folders in, a report out: from Python, and as ``medseg evaluate``."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from medseg.data.label_codes import chosen_threshold
from medseg.data.outputs import check_outputs, keep_account
from medseg.errors import BadLabels, PartialFailure, UsageError
from medseg.evaluation.arrays import Labels
from medseg.evaluation.evaluator import Evaluator
from medseg.evaluation.folders import CaseFiles, FolderPair
from medseg.evaluation.inputs import clusters_in, find_pairs, groups_of, metadata_of
from medseg.evaluation.intervals import CONFIDENCE
from medseg.evaluation.landmark_report import LANDMARK_FILES, report_landmarks
from medseg.evaluation.report import REPORT_FILES, Report
from medseg.io import read_labels
from medseg.termination import Terminated, interrupted

EVALUATION_FILES = (*REPORT_FILES, *LANDMARK_FILES)
logger = logging.getLogger(__name__)

SETTINGS = (
    *("labels", "tolerance", "metrics", "surface", "workers", "on_error", "resample", "pixel_size"),
    *("relabel", "relabel_references", "empty", "metadata", "cluster", "stratify", "confidence"),
    *("instances", "mask_threshold"),
)


def evaluate_folders(
    predictions: str | Path,
    references: str | Path | None,
    output: str | Path | None = None,
    *,
    labels: Labels | None = None,
    metadata: str | Path | None = None,
    cluster: str | None = None,
    stratify: str | None = None,
    confidence: float = CONFIDENCE,
    instances: bool = False,
    mask_threshold: float | None = None,
    **settings: Any,
) -> Report:
    """Evaluate predictions, of any tool, against references or a dataset.

    Args:
        predictions: folder of label maps, named like the references; one file; or a CSV table of pairs, see
            `medseg.evaluation.inputs.pair_table`, then ``references`` is None.
        references: folder of label maps, or a dataset folder (labelsTs or labelsTr, by the names of the predictions);
            or one file.
        output: folder for the report; None writes nothing.
        labels: as for `Evaluator`; None takes them from the dataset.json in or above ``references``, and where there
            is none, the values found in the references.
        metadata: CSV table with a column ``case``; None: the table of pairs, if that is what was given.
        cluster: its column of what cases belong to, e.g. the patient; intervals are over these.
        stratify: its column of groups, e.g. the site, which are scored apart too.
        confidence: of the intervals, between 0 and 1.
        instances: the references number objects; every value above 0 is label 1.
        mask_threshold: every value of the references from here on is label 1, e.g. 128 for masks saved as JPEG.
        settings: the other arguments of `Evaluator`.

    Raises:
        InputRefused: nothing to compare, grids that differ, label values that are not known, unreadable files.
        UsageError: a setting that is not known.
    """
    threshold = chosen_threshold(instances, mask_threshold)
    if output is not None:
        output = check_report_folder(output, predictions, references, metadata)
    report = _evaluate(predictions, references, labels, metadata, cluster, stratify, confidence, threshold, settings)
    if output is not None:
        keep_account(Path(output), EVALUATION_FILES)
        report.save(output)
    for line in report.remarks():
        logger.warning(line)
    return report


def evaluate_command(cfg: Mapping[str, Any]) -> int:
    """Evaluate predictions, print the table and write the report.

    Args:
        cfg: arguments of `evaluate_folders`; those that are None keep its defaults. ``output`` defaults to
            ``evaluation`` within, or beside, the predictions.

    Returns:
        0; or 6 if cases were skipped or have no prediction (all of them are listed in the report).

    Raises:
        MedsegError: as `evaluate_folders`.
    """
    predictions = Path(cfg["predictions"])
    if cfg.get("references") is None and predictions.suffix.lower() != ".csv":
        raise UsageError("references is not set", fix="give references=FOLDER, or predictions=PAIRS.csv")
    output = Path(cfg.get("output") or (predictions if predictions.is_dir() else predictions.parent) / "evaluation")
    output = check_report_folder(output, predictions, cfg.get("references"), cfg.get("metadata"))
    settings = {key: cfg[key] for key in SETTINGS if cfg.get(key) is not None}
    grouping = {key: settings.pop(key, None) for key in ("labels", "metadata", "cluster", "stratify")}
    confidence = settings.pop("confidence", CONFIDENCE)
    threshold = chosen_threshold(settings.pop("instances", False), settings.pop("mask_threshold", None))
    choices = {"confidence": confidence, "threshold": threshold, "settings": settings}
    try:
        report = _evaluate(predictions, cfg.get("references"), **grouping, **choices)
    except (Terminated, KeyboardInterrupt) as stop:
        problem = "stopped before all cases were measured"
        raise interrupted(stop, problem, fix="run it again", written=f"No report was written to {output}.") from None
    keep_account(output, EVALUATION_FILES)
    report.save(output)
    report.print()
    report_landmarks(report, output)
    print(f"Report: {output / 'report.html'}")
    return PartialFailure.exit_code if report.skipped or report.missing else 0


def check_report_folder(output: str | Path, *read: str | Path | None) -> Path:
    """The folder of a report. It may be that of the predictions, beside which a report has its own names.

    Args:
        output: as given.
        read: predictions first, then what else is read.

    Raises:
        UsageError, ResourceError: as `medseg.data.outputs.check_outputs`.
    """
    predictions, *others = read
    single = None if predictions is None or Path(predictions).is_dir() else predictions
    return check_outputs(output, EVALUATION_FILES, [single, *others], beside=predictions)


def _evaluate(
    predictions: str | Path,
    references: str | Path | None,
    labels: Labels | None,
    metadata: str | Path | None,
    cluster: str | None,
    stratify: str | None,
    confidence: float,
    threshold: float | None,
    settings: Mapping[str, Any],
) -> Report:
    if not 0 < confidence < 1:
        raise UsageError(f"confidence is {confidence} (must be between 0 and 1)")
    pair = find_pairs(predictions, references, threshold)
    rows = metadata_of(pair, predictions if references is None else None, metadata)
    if rows is None and (cluster or stratify):
        raise UsageError("cluster and stratify are columns of a table", fix="give metadata=FILE.csv")
    (clusters, alone), strata = clusters_in(pair.cases, rows, cluster), groups_of(pair.cases, rows, stratify)
    report = _make_evaluator(pair, labels, settings).evaluate(pair.cases, extra=pair.extra)
    return replace(report, clusters=clusters, unclustered=alone, strata=strata, confidence=confidence)


def _make_evaluator(pair: FolderPair, labels: Labels | None, settings: Mapping[str, Any]) -> Evaluator:
    table = pair.table
    if table is None:
        return Evaluator(labels or _labels_found(pair.cases), **settings)
    facts = {"ignore_label": table.ignore_label, "known": frozenset(table.labels.values())}
    return Evaluator(labels or table.regions or table.labels, **{**facts, **settings})


def _labels_found(cases: Sequence[CaseFiles]) -> list[int]:
    found = {
        int(v) for case in cases for v in np.unique(read_labels(case.reference, case=case.id, coding=case.coding).array)
    } - {0}
    if not found:
        folder = cases[0].reference.parent
        raise BadLabels("all references are empty", path=folder, fix="name the classes with labels=")
    return sorted(found)
