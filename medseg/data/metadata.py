"""The table beside a dataset that says which patient, site or scanner a case is from."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

from medseg.data.case import Case
from medseg.data.case_files import bare
from medseg.errors import BadDataset, some

TABLES = ("metadata.csv", "participants.tsv")
CASE_COLUMNS = ("case", "case_id", "id", "participant_id")
PATIENT_COLUMNS = ("patient", "patient_id", "subject", "subject_id")
LABEL_COLUMNS = ("label", "mask", "segmentation")
SPLIT_COLUMN = "split"
IMAGE_COLUMN = re.compile(r"image(_\d{4})?")
KNOWN_COLUMNS = {*CASE_COLUMNS, *PATIENT_COLUMNS, *LABEL_COLUMNS, SPLIT_COLUMN}


def find_tables(root: Path) -> list[Path]:
    """``metadata.csv`` and BIDS' ``participants.tsv`` in the dataset's folder, as far as they are there."""
    return [root / name for name in TABLES if (root / name).is_file()]


def with_metadata(root: Path, *parts: Sequence[Case]) -> list[list[Case]]:
    """Parts of a dataset, each case with its row of the table, if there is one.

    Raises:
        BadDataset: as `read_metadata`; or the table names none of the cases.
    """
    rows, ids = read_metadata(root), sorted(case.id for part in parts for case in part)
    if rows and ids and not rows.keys() & set(ids):  # else its patients would be forgotten without a word
        fix = "name the cases as their images, or rename the table"
        raise BadDataset(f"it names none of the cases ({some(ids, 3)})", path=find_tables(root)[0], fix=fix)
    return [[replace(case, metadata=rows.get(case.id, {})) for case in part] for part in parts]


def read_metadata(root: Path) -> dict[str, dict[str, str]]:
    """Case -> column -> value; empty without a table. A case is named with or without folder and ending.

    Where there are two tables, the first has the say.

    Raises:
        BadDataset: a table has no column that names the case, names a case twice, or is not UTF-8 text.
    """
    found: dict[str, dict[str, str]] = {}
    for path in reversed(find_tables(root)):
        rows = read_rows(path)
        key = case_column(list(rows[0]) if rows else ())
        if key is None:
            problem = f"no column names the case (known: {', '.join(CASE_COLUMNS)})"
            raise BadDataset(problem, path=path, fix=f"call one of its columns '{CASE_COLUMNS[0]}'")
        own = {bare(row[key]): row for row in rows}
        if len(own) < len(rows):
            raise BadDataset(f"{len(rows)} rows name only {len(own)} cases", path=path, fix="give each case one row")
        found |= {case: {**found.get(case, {}), **row} for case, row in own.items()}
    return found


def case_column(columns: Sequence[str]) -> str | None:
    """The first of `CASE_COLUMNS` that is there."""
    return next((name for name in CASE_COLUMNS if name in columns), None)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a table, cells stripped; separated as `read_cells` says.

    Columns that medseg knows may be written with capitals.

    Raises:
        BadDataset: as `read_cells`; a column twice, or a row with more cells than columns.
    """
    names, *rows = read_cells(path) or [[]]
    columns = [_column(name) for name in names]
    twice = next((name for name in columns if name and columns.count(name) > 1), None)
    if twice:
        raise BadDataset(f"has the column '{twice}' twice", path=path, fix="remove or rename one of them")
    for number, row in enumerate(rows, start=2):
        if any(cell.strip() for cell in row[len(columns) :]):
            problem = f"row {number} has {len(row)} cells (expected {len(columns)})"
            raise BadDataset(problem, path=path, fix="put text that holds the separator into quotation marks")
    return [
        {name: cell.strip() for name, cell in zip_longest(columns, row[: len(columns)], fillvalue="")} for row in rows
    ]


def read_cells(path: Path) -> list[list[str]]:
    """The rows of a table that are not empty: separated by tabs in .tsv, else by commas, or by semicolons where the
    first line has no comma.

    Raises:
        BadDataset: it cannot be read, or is not UTF-8 text.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            head = file.readline()
            file.seek(0)
            comma = ";" if ";" in head and "," not in head else ","
            return [row for row in csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else comma) if row]
    except OSError as error:
        problem = f"cannot be read: {error.strerror or error}"
        raise BadDataset(problem, path=path, fix="check the path and its permissions") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadDataset(f"is not a table in UTF-8: {error}", path=path, fix="export it as CSV (UTF-8)") from None


def _column(name: str) -> str:
    name = name.strip()
    small = name.lower()
    return small if small in KNOWN_COLUMNS or IMAGE_COLUMN.fullmatch(small) else name
