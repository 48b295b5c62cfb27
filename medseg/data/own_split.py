"""The split that a dataset brings along: val.txt beside the images, a column ``split``, or folders train, val, test."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from medseg.data.case import Case
from medseg.data.case_files import bare
from medseg.data.case_list import side_of
from medseg.data.layouts import SIDE_NAMES, Layout, Side
from medseg.data.metadata import SPLIT_COLUMN, TABLES, find_tables, read_metadata, with_metadata
from medseg.errors import BadDataset, UsageError, meant, some
from medseg.io.names import same_name
from medseg.io.sidecar import read_text

SPLIT_FIX = "correct or remove the list"


def with_table(layout: Layout, root: Path) -> Layout:
    """The layout with the metadata of the folder's table, and the sides that its lists and that table name.

    Raises:
        BadDataset, UnreadableFile: as `listed_sides` and `with_metadata`.
    """
    (cases,) = with_metadata(root, layout.cases)
    return replace(layout, cases=tuple(cases), sides={**layout.sides, **listed_sides(root, cases)})


def with_tables_beside(layout: Layout, listed: Path) -> Layout:
    """The layout of a list, whose cases have what the folder's tables say of them and the list does not.

    Raises:
        BadDataset: as `read_metadata`.
    """
    if listed.name in TABLES:
        return layout
    rows = read_metadata(listed.parent)
    cases = [replace(case, metadata={**rows.get(case.id, {}), **case.metadata}) for case in layout.cases]
    return replace(layout, cases=tuple(cases))


def listed_sides(root: Path, cases: Sequence[Case]) -> dict[str, Side]:
    """Case -> side, as ``train.txt``, ``val.txt`` and ``test.txt``, or a column ``split`` of the folder's table, say.

    Where a ``train.txt`` is, cases of no list are on no side and left out; else they train.

    Raises:
        BadDataset: ids that are not there, or on two sides; a word in the column that is no side.
    """
    table = next(iter(find_tables(root)), None)
    column = {c.id: c.metadata[SPLIT_COLUMN] for c in cases if c.metadata.get(SPLIT_COLUMN)} if table else {}
    sides: dict[str, Side] = {case: side_of(word, case, table or root) for case, word in column.items()}
    for side, names in SIDE_NAMES.items():
        for file in (root / f"{name}.txt" for name in names):
            if file.is_file():
                for case in read_ids(file, [case.id for case in cases]):
                    if sides.get(case, side) != side:
                        raise BadDataset(f"is also in the {sides[case]} list", case=case, path=file, fix=SPLIT_FIX)
                    sides[case] = side
    return sides


def read_ids(file: Path, known: Iterable[str] | None) -> list[str]:
    """The case ids of a text file, one a line, with or without folder and ending; with None, any ids are taken.

    Raises:
        BadDataset: an id that is not known; the nearest is told.
        UnreadableFile: not UTF-8 text.
    """
    lines = [same_name(line.strip()) for line in read_text(file).splitlines()]
    there = set(known or ())
    named = (line for line in lines if line and not line.startswith("#"))
    ids = list(dict.fromkeys(line if line in there else bare(line) for line in named))
    unknown = [] if known is None else [case for case in ids if case not in there]
    if unknown:
        raise BadDataset(
            f"{some(unknown)} are not in the dataset; {meant(unknown[0], there)}", path=file, fix=SPLIT_FIX
        )
    return ids


def divide(
    cases: Sequence[Case], sides: Mapping[str, Side]
) -> tuple[list[Case], list[Case], dict[str, list[str]] | None]:
    """Training cases, test cases, and the split of the former if the dataset says which of them validate."""
    test = [case for case in cases if sides.get(case.id) == "test"]
    training = [case for case in cases if sides.get(case.id) != "test" and case.label is not None]
    val = sorted(case.id for case in training if sides.get(case.id) == "val")
    stated = "train" in sides.values()
    if not val:
        return [case for case in training if not stated or case.id in sides], test, None
    train = sorted(c.id for c in training if sides.get(c.id) == "train" or (not stated and sides.get(c.id) is None))
    return training, test, {"train": train, "val": val}


def matching(cases: Iterable[Case], pattern: str) -> list[Case]:
    """Cases whose id matches a shell pattern, e.g. ``"MCUCXR*"``. Raises UsageError if none does."""
    cases = list(cases)
    found = [case for case in cases if fnmatchcase(case.id, pattern)]
    if not found:
        like = f" (they are named like {cases[0].id})" if cases else ""
        raise UsageError(f"no case matches '{pattern}'{like}", fix="give a pattern as 'site_b_*'")
    return found
