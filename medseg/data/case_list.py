"""A list of cases as a table (CSV or TSV): a row each, with the paths of image and mask, the side, the patient, ..."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from medseg.data.case import Case
from medseg.data.case_files import inside, stem
from medseg.data.layouts import SIDE_NAMES, Layout, Side
from medseg.data.metadata import CASE_COLUMNS, IMAGE_COLUMN, LABEL_COLUMNS, SPLIT_COLUMN, read_rows
from medseg.errors import BadDataset, nearest
from medseg.io import KNOWN_ENDINGS
from medseg.io.names import plain_name, same_name

LIST_ENDINGS = (".csv", ".tsv")


def read_list(path: Path) -> Layout:
    """The cases of a table with the columns ``image`` (or ``image_0000``, ...) and ``mask`` or ``label``.

    Paths are relative to the table and stay within its folder. A column ``case`` or ``id`` names the cases (default:
    the image's name), ``split`` says train, val or test, and all columns are metadata, e.g. patient and site.

    Raises:
        BadDataset: a missing column, an empty cell, an unknown side, a path that leaves the folder, a case that comes
            twice, or no table in UTF-8.
    """
    rows = read_rows(path)
    columns = list(rows[0]) if rows else []
    images = sorted(name for name in columns if IMAGE_COLUMN.fullmatch(name))
    label = _label_column(rows, [name for name in LABEL_COLUMNS if name in columns])
    if not images or label is None:
        problem = f"its columns are {', '.join(columns) or 'none'} (expected image and mask, or image and label)"
        raise BadDataset(problem, path=path, fix="name the columns in the first line")
    cases = [_case(row, images, label, path, line) for line, row in enumerate(rows, start=2)]
    ids = [case.id for case in cases]
    if len(set(ids)) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise BadDataset(f"two rows are called '{twice}'", path=path, fix="name them apart in a column 'case'")
    sides = {case.id: side_of(case.metadata[SPLIT_COLUMN], case.id, path) for case in cases if _has_side(case)}
    return Layout(tuple(cases), sides)


def _label_column(rows: Sequence[Mapping[str, str]], columns: Sequence[str]) -> str | None:
    """The column of paths: where there are several, ``label`` can be a diagnosis."""
    paths = [name for name in columns if any(row[name].lower().endswith(KNOWN_ENDINGS) for row in rows)]
    return next(iter([*paths, *columns]), None)


def side_of(text: str, case: str, path: Path) -> Side:
    """``"Validation"`` -> ``"val"``. Raises BadDataset for a word that is no side."""
    for side, names in SIDE_NAMES.items():
        if text.lower() in names:
            return side
    raise BadDataset(f"split is '{text}': {nearest(text, SIDE_NAMES)}", case=case, path=path)


def _has_side(case: Case) -> bool:
    return bool(case.metadata.get(SPLIT_COLUMN))


def _case(row: Mapping[str, str], images: list[str], label: str, path: Path, line: int) -> Case:
    if not all(row[name] for name in images):
        raise BadDataset(f"line {line} names no image", path=path, fix="fill the cell, or remove the line")
    files = tuple(inside(path.parent, row[name], path) for name in images)
    mask = inside(path.parent, row[label], path) if row[label] else None
    name = next((row[column] for column in CASE_COLUMNS if row.get(column)), None) or stem(files[0])
    return Case(plain_name(same_name(name), f"line {line}: case", path=path), files, mask, dict(row))
