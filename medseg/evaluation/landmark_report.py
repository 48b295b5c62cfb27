"""Landmarks beside the label maps of an evaluation: scored by structure, as ``landmarks.csv`` and one table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medseg.data.landmark_files import LAYOUT, LandmarkFiles, find_landmarks, read_landmarks, read_layout
from medseg.errors import BadLabels
from medseg.evaluation.aggregate import mean_of
from medseg.evaluation.landmarks import LandmarkScores, evaluate_landmarks
from medseg.evaluation.report import Report
from medseg.io import read_geometry, write_json, write_text
from medseg.tables import print_table
from medseg.text import for_terminal, to_csv

SHOWN = {
    "mse": "MSE (px²)",
    "mean_radial_error_px": "radial error (px)",
    "mean_radial_error": "(mm)",
    "success_rate_2mm": "within 2 mm",
}
LANDMARK_FILES = ("landmarks.csv", "landmark_scores.json")
IN_PIXELS = ("mse", "mean_radial_error_px")


def report_landmarks(report: Report, output: str | Path) -> dict[str, LandmarkScores] | None:
    """Score predicted landmarks, write ``landmarks.csv`` and ``landmark_scores.json`` and print the means.

    A case of which no landmarks were predicted, though others have some, misses every one of its reference.

    Args:
        report: of label maps; the predicted landmarks of a case lie beside its own, as ``CASE.npy``, those of its
            reference where the case says, or in the dataset of its reference, see `medseg.data.landmark_files`.
        output: folder for both files.

    Returns:
        Means over the cases by structure, "all" first; None if the predictions have no landmarks or the dataset none.

    Raises:
        BadLabels: a prediction with another number of landmarks.
    """
    cases = [result.files for result in report.results]
    beside = {case.id: case.prediction.with_name(f"{case.id}.npy") for case in cases if case.prediction}
    files = {case: file for case, file in beside.items() if file.is_file()}
    named = {case.id: case.landmarks for case in cases if case.landmarks}
    known = _references(next(iter(named.values()), cases[0].reference)) if files else LandmarkFiles()
    references = {**known.files, **named}
    if not files.keys() & references.keys():
        return None
    described = next(iter(files.values())).with_name(LAYOUT)
    layout = known.layout or (read_layout(described) if described.is_file() else None)
    structures = {name: list(own) for name, own in layout.members.items()} if layout else None
    scores = {}
    for case in (case for case in cases if case.id in references):
        reference, file = read_landmarks(references[case.id], case.id), files.get(case.id)
        prediction = np.full_like(reference, np.nan) if file is None else read_landmarks(file, case.id)
        if prediction.shape != reference.shape:
            problem = f"has {len(prediction)} landmarks (its reference {len(reference)})"
            raise BadLabels(problem, case=case.id, path=file)
        rows_first = report.settings.spacing(read_geometry(case.reference, case=case.id))
        scores[case.id] = evaluate_landmarks(prediction, reference, spacing=rows_first[::-1], structures=structures)
    means = _means(list(scores.values()))
    table, summary = (Path(output) / name for name in LANDMARK_FILES)
    write_text(table, _table(scores))
    write_json(summary, {"cases": len(scores), "mean": means})
    _print(means, len(scores), [key for key in SHOWN if key in IN_PIXELS or not report.in_pixels])
    return means


def _references(file: Path) -> LandmarkFiles:
    """Landmark files of the dataset that a reference, mask or points, belongs to: DATA/masks/train/a.png is deepest."""
    folders = (file.parent.parent, file.parent, file.parent.parent.parent)
    return next((found for found in map(find_landmarks, folders) if found.files), LandmarkFiles())


def _means(scores: Sequence[dict[str, LandmarkScores]]) -> dict[str, LandmarkScores]:
    first = scores[0]
    return {name: {key: mean_of(one[name][key] for one in scores) for key in first[name]} for name in first}


def _table(scores: dict[str, dict[str, LandmarkScores]]) -> str:
    columns = list(next(iter(next(iter(scores.values())).values())))
    rows = [
        [case, name, *(found[column] for column in columns)]
        for case, by_structure in scores.items()
        for name, found in by_structure.items()
    ]
    return to_csv(["case", "structure", *columns], rows)


def _print(means: dict[str, LandmarkScores], cases: int, shown: Sequence[str]) -> None:
    from rich.table import Column, Table

    numbers = (Column(SHOWN[key], justify="right") for key in shown)
    table = Table("landmarks", *numbers, title=f"{cases} cases")
    for name, found in means.items():
        values = [found[key] for key in shown]
        table.add_row(for_terminal(name), *("–" if value is None else f"{np.round(value, 3):g}" for value in values))
    print_table(table)
