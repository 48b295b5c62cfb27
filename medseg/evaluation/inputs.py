"""What can be evaluated: two folders, two files, or a table of pairs; and a table about the cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg.data.case_list import LIST_ENDINGS
from medseg.errors import BadDataset
from medseg.evaluation.folders import CaseFiles, FolderPair, pair_folders
from medseg.evaluation.statistics import clusters_of, column_of_cases, read_table
from medseg.io import LabelCoding, file_ending

if TYPE_CHECKING:
    import pandas as pd

OPTIONAL = ("image", "probabilities")


def find_pairs(predictions: str | Path, references: str | Path | None, threshold: float | None = None) -> FolderPair:
    """Cases from whatever the two arguments are.

    Args:
        predictions: folder or file of label maps; or a CSV table of pairs, then ``references`` is None.
        references: folder or file of label maps, or a dataset folder or list.
        threshold: of the references' values, see `medseg.data.label_codes.chosen_threshold`.

    Raises:
        UsageError: as `pair_folders`.
        BadDataset: as `pair_folders` and `pair_table`; a file beside a folder.
    """
    predictions = Path(predictions)
    if references is None:
        return pair_table(predictions, threshold)
    references = Path(references)
    if predictions.is_file() and references.is_file():
        name = references.name[: -len(file_ending(references))]
        return FolderPair(
            (CaseFiles(name, references, predictions, coding=LabelCoding(threshold=threshold)),), (), None
        )
    if predictions.is_dir() and references.suffix.lower() in LIST_ENDINGS:
        return pair_folders(predictions, references, threshold)
    if predictions.is_file() or references.is_file():
        single = predictions if predictions.is_file() else references
        raise BadDataset("is a file and its counterpart is none", path=single, fix="give two files or two folders")
    return pair_folders(predictions, references, threshold)


def pair_table(path: str | Path, threshold: float | None = None) -> FolderPair:
    """Cases from a CSV table with the columns ``prediction`` and ``reference``: paths, relative to the table.

    Args:
        path: the table; ``case``, ``image`` and ``probabilities`` are optional columns, and any other may serve as
            metadata. An empty prediction is a missing one. Case ids default to the names of the references.
        threshold: of the references' values.

    Raises:
        BadDataset: a needed column is missing, the table is empty, or references or images are not there: all of them
            are listed.
        UnreadableFile: it is no CSV table.
    """
    frame = read_table(path, needed=("prediction", "reference"))
    root = Path(path).parent
    cases = tuple(_row(row, root, LabelCoding(threshold=threshold)) for row in frame.to_dict("records"))
    if not cases:
        raise BadDataset("the table has no rows", path=path)
    ids = [case.id for case in cases]
    if twice := sorted({id for id in ids if ids.count(id) > 1}):
        raise BadDataset(f"cases occur twice: {', '.join(twice)}", path=path, fix="give each a name in a column 'case'")
    named = [file for case in cases for file in (case.reference, case.image, case.probabilities) if file is not None]
    if absent := [str(file) for file in named if not file.is_file()]:
        raise BadDataset(f"{len(absent)} file(s) are not there: {', '.join(absent)}", path=path, fix="check the paths")
    return FolderPair(tuple(_without_absent_prediction(case) for case in cases), (), None)


def metadata_of(pair: FolderPair, table: str | Path | None, metadata: str | Path | None) -> pd.DataFrame | None:
    """The table about the cases: the one given, else the table of pairs itself, else None.

    Raises:
        BadDataset: the one given has no column ``case``.
        UnreadableFile: it is no CSV table.
    """
    if metadata is not None:
        return read_table(metadata)
    if table is None:
        return None
    return read_table(table, needed=()).assign(case=[case.id for case in pair.cases])


def groups_of(cases: Sequence[CaseFiles], metadata: pd.DataFrame | None, column: str | None) -> dict[str, str] | None:
    """Case id -> value of a column of the metadata, "unknown" where there is none; None without a column."""
    if column is None or metadata is None:
        return None
    values = column_of_cases([case.id for case in cases], metadata, column)
    return {str(id): value or "unknown" for id, value in values.items()}


def clusters_in(
    cases: Sequence[CaseFiles], metadata: pd.DataFrame | None, column: str | None
) -> tuple[dict[str, str] | None, tuple[str, ...]]:
    """Case id -> what it belongs to, None without a column; and the cases that are clusters of their own."""
    if column is None or metadata is None:
        return None, ()
    ids = [case.id for case in cases]
    clusters, alone = clusters_of(ids, metadata, column)
    return dict(zip(ids, clusters, strict=True)), alone


def _row(row: dict[Any, str], root: Path, coding: LabelCoding) -> CaseFiles:
    given = {key: root / row[key] for key in ("prediction", *OPTIONAL) if row.get(key)}
    reference = root / row["reference"]
    return CaseFiles(
        id=row.get("case") or reference.name[: -len(file_ending(reference))],
        reference=reference,
        prediction=given.get("prediction"),
        image=given.get("image"),
        probabilities=given.get("probabilities"),
        coding=coding,
    )


def _without_absent_prediction(case: CaseFiles) -> CaseFiles:
    return case if case.prediction is None or case.prediction.is_file() else replace(case, prediction=None)
