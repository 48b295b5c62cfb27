"""Folds of training and validation cases: nnU-Net's rule, the dataset's own file, or by patient or site."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from medseg.data.dataset import SegmentationDataset
from medseg.errors import BadDataset, UsageError, nearest
from medseg.io import read_json, write_json

Split = dict[str, list[str]]
TABLES = ("metadata.csv", "participants.tsv")
CASE_COLUMNS = ("case", "case_id", "id", "participant_id")


def nnunet_splits(ids: Sequence[str], folds: int = 5, seed: int = 12345) -> list[Split]:
    """nnU-Net's folds: ``KFold(folds, shuffle=True, random_state=seed)`` over the sorted ids.

    Raises:
        BadDataset: fewer cases than folds.
    """
    from sklearn.model_selection import KFold

    names = sorted(ids)
    if len(names) < folds:
        raise BadDataset(f"{len(names)} training cases cannot make {folds} folds", fix=f"set data.folds={len(names)}")
    folded = KFold(folds, shuffle=True, random_state=seed).split(names)
    return [{"train": [names[i] for i in train], "val": [names[i] for i in val]} for train, val in folded]


def make_splits(
    dataset: SegmentationDataset,
    *,
    folds: int = 5,
    seed: int = 12345,
    file: str | Path | None = None,
    group_by: str | None = None,
    leave_out: bool = False,
) -> list[Split]:
    """The folds of a dataset.

    Args:
        dataset: its training cases are split.
        folds: number of folds; 1 trains on every case and validates on none.
        seed: of the shuffle.
        file: a ``splits_final.json``; without one, that of the dataset's folder is used if it is there.
        group_by: a column of the dataset's ``metadata.csv`` or ``participants.tsv``; a group is never divided.
        leave_out: with `group_by`, one fold per group, which validates on that group alone.

    Raises:
        BadDataset: too few cases or groups, ids that the dataset lacks, or a case or group on both sides.
    """
    ids = [case.id for case in dataset.training]
    groups = read_groups(dataset, group_by) if group_by else {}
    own = dataset.root / "splits_final.json"
    if file or (own.exists() and not group_by):
        splits = read_splits(Path(file or own), ids)
    elif group_by:
        splits = _grouped_splits(groups, folds, seed, leave_out)
    else:
        splits = [{"train": sorted(ids), "val": []}] if folds == 1 else nnunet_splits(ids, folds, seed)
    check_leakage(splits, groups)
    return splits


def read_splits(path: Path, ids: Sequence[str]) -> list[Split]:
    """Read nnU-Net's ``splits_final.json``. Raises BadDataset for another form or for ids that the dataset lacks."""
    splits = read_json(path)
    if not isinstance(splits, list) or not all(isinstance(s, dict) and {"train", "val"} <= s.keys() for s in splits):
        raise BadDataset('expected a list of {"train": [...], "val": [...]}', path=path)
    unknown = sorted({case for split in splits for part in ("train", "val") for case in split[part]} - set(ids))
    if unknown:
        raise BadDataset(f"cases {unknown[:5]} are not in the dataset ({len(unknown)} in all)", path=path)
    return [{"train": list(split["train"]), "val": list(split["val"])} for split in splits]


def write_splits(path: str | Path, splits: Sequence[Mapping[str, Sequence[str]]]) -> None:
    """Write ``splits_final.json``, atomically."""
    write_json(path, [{"train": list(split["train"]), "val": list(split["val"])} for split in splits])


def check_leakage(splits: Sequence[Mapping[str, Sequence[str]]], groups: Mapping[str, str]) -> None:
    """Stop when a case, or a group (patient, site), is on both sides of a fold.

    Args:
        splits: the folds.
        groups: case id -> group; cases that it lacks are groups of their own.

    Raises:
        BadDataset: naming the fold and what is on both sides.
    """
    for number, split in enumerate(splits):
        train, val = ({groups.get(case, case) for case in split[part]} for part in ("train", "val"))
        both = sorted(train & val)
        if both:
            problem = f"fold {number} has {both[:5]} in training and validation ({len(both)} in all)"
            raise BadDataset(problem, fix="split by that group with data.group_by=, or repair splits_final.json")


def read_groups(dataset: SegmentationDataset, column: str) -> dict[str, str]:
    """Case id -> its value in a column of the dataset's table.

    Raises:
        BadDataset: no table, or cases that it lacks.
        UsageError: no such column.
    """
    path = next((dataset.root / name for name in TABLES if (dataset.root / name).exists()), None)
    if path is None:
        raise BadDataset(f"group_by={column} needs a table of the cases", path=dataset.root, fix=f"add {TABLES[0]}")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))
    columns = list(rows[0]) if rows else []
    key = next((name for name in CASE_COLUMNS if name in columns), None)
    if key is None or column not in columns:
        raise UsageError(f"the table has no column '{column}': {nearest(column, columns)}", path=path)
    groups = {row[key]: row[column] for row in rows}
    missing = sorted(case.id for case in dataset.training if not groups.get(case.id))
    if missing:
        raise BadDataset(f"cases {missing[:5]} have no '{column}' ({len(missing)} in all)", path=path)
    return {case.id: groups[case.id] for case in dataset.training}


def _grouped_splits(groups: Mapping[str, str], folds: int, seed: int, leave_out: bool) -> list[Split]:
    names = sorted(set(groups.values()))
    if leave_out:
        held_out = [[name] for name in names]
    else:
        held_out = [split["val"] for split in nnunet_splits(names, folds, seed)]
    if len(held_out) < 2:
        raise BadDataset(f"the only group is {names} (needs at least two)")
    return [
        {
            "train": sorted(case for case, group in groups.items() if group not in out),
            "val": sorted(case for case, group in groups.items() if group in out),
        }
        for out in held_out
    ]
