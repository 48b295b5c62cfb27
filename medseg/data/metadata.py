"""The table beside a dataset that says which patient, site or scanner a case is from."""

from __future__ import annotations

import csv
from pathlib import Path

from medseg.errors import BadDataset, UnreadableFile

TABLES = ("metadata.csv", "participants.tsv")
CASE_COLUMNS = ("case", "case_id", "id", "participant_id")


def find_table(root: Path) -> Path | None:
    """``metadata.csv`` or BIDS' ``participants.tsv`` in the dataset's folder."""
    return next((root / name for name in TABLES if (root / name).is_file()), None)


def read_metadata(root: Path) -> dict[str, dict[str, str]]:
    """Case -> column -> value; empty without a table.

    Raises:
        BadDataset: the table has no column that names the case, or a case twice.
        UnreadableFile: it is not UTF-8 text.
    """
    path = find_table(root)
    if path is None:
        return {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UnreadableFile(f"is not a table: {error}", path=path, fix="save it as UTF-8 CSV") from None
    key = next((name for name in CASE_COLUMNS if rows and name in rows[0]), None)
    if key is None:
        raise BadDataset(f"no column names the case (known: {', '.join(CASE_COLUMNS)})", path=path)
    cases = {row[key]: {name: value or "" for name, value in row.items() if name} for row in rows}
    if len(cases) < len(rows):
        raise BadDataset(f"{len(rows)} rows name only {len(cases)} cases", path=path, fix="give each case one row")
    return cases
