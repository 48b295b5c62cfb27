"""Folds of training and validation cases: nnU-Net's rule, the dataset's own file, or by patient or site."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pydantic import TypeAdapter
from typing_extensions import TypedDict  # pydantic takes typing's own from Python 3.12 on

from medseg.data.dataset import Case, SegmentationDataset
from medseg.data.metadata import PATIENT_COLUMNS, TABLES, find_tables
from medseg.data.own_split import read_ids
from medseg.errors import BadDataset, UsageError, meant, nearest, some
from medseg.io import read_json, write_json
from medseg.io.names import same_name
from medseg.io.schema import validated

Split = dict[str, list[str]]
GROUPED = "set data.group_by= to that column, or correct the lists or splits_final.json"
FORM = 'a list of {"train": [...], "val": [...]} with ids as text'


class Fold(TypedDict):
    """One fold of a splits_final.json; other keys mean nothing here."""

    train: list[str]
    val: list[str]


logger = logging.getLogger(__name__)


def nnunet_splits(
    ids: Sequence[str], folds: int = 5, seed: int = 12345, *, path: str | Path | None = None
) -> list[Split]:
    """nnU-Net's folds: ``KFold(folds, shuffle=True, random_state=seed)`` over the sorted ids.

    Raises:
        BadDataset: fewer cases than folds.
    """
    from sklearn.model_selection import KFold

    names = sorted(ids)
    if folds < 2:
        raise UsageError(f"folds is {folds} (expected 2 or more; data.folds=1 trains on every case)")
    if len(names) < folds:
        fix = f"set data.folds={len(names)}" if len(names) > 1 else "add cases, or set data.folds=1 to train on all"
        raise BadDataset(f"{len(names)} cannot be divided into {folds} folds ({some(names)})", path=path, fix=fix)
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
    own: bool = True,
) -> list[Split]:
    """The folds of a dataset.

    Args:
        dataset: its training cases are split.
        folds: number of folds; 1 trains on every case and validates on none.
        seed: of the shuffle.
        file: a ``splits_final.json``, or a text file with the ids of the validation cases; without one and without
            `group_by`, the dataset's own is used if it is there: splits_final.json, or what `SegmentationDataset.split`
            holds.
        group_by: a column of the dataset's ``metadata.csv``, ``participants.tsv`` or list; a group is never divided.
        leave_out: with `group_by`, one fold per group, which validates on that group alone.
        own: False makes folds of our own, whatever the dataset says.

    Raises:
        BadDataset: too few cases or groups, ids that the dataset lacks, or a case, group or patient (a column
            ``patient`` or ``subject`` of the table) on both sides.
        UsageError: no such column, or `leave_out` without `group_by`.
    """
    if leave_out and not group_by:
        raise UsageError("leave_out=true needs a group", fix="set data.group_by=, e.g. to site")
    ids = [case.id for case in dataset.training]
    patients = patient_groups((*dataset.training, *dataset.test))
    check_leakage(
        [{"train": ids, "val": [case.id for case in dataset.test]}], patients, what="the test set", path=dataset.root
    )
    groups = read_groups(dataset, group_by) if group_by else {}
    if group_by and not leave_out:  # which is for sites, that a test set may share
        everyone = {**groups, **grouped_by(dataset.test, group_by)}
        check_leakage(
            [{"train": ids, "val": [case.id for case in dataset.test]}],
            everyone,
            what="the test set",
            path=dataset.root,
        )
    stored = dataset.root / "splits_final.json"
    if file or (own and stored.exists() and not group_by and not dataset.list_file):
        logger.info("folds are those of %s", file or stored)
        splits = read_splits(Path(file or stored), ids)
    elif own and dataset.split and not group_by:
        splits = [{part: list(names) for part, names in dataset.split.items()}]
    elif group_by and (folds != 1 or leave_out):
        splits = grouped_splits(groups, folds, seed, leave_out)
    else:
        splits = (
            [{"train": sorted(ids), "val": []}] if folds == 1 else nnunet_splits(ids, folds, seed, path=dataset.root)
        )
    source = file or (stored if stored.exists() else dataset.root)
    check_leakage(splits, groups, path=source)
    check_leakage(splits, patients, path=source)
    return splits


def read_splits(path: Path, ids: Sequence[str] | None) -> list[Split]:
    """Read nnU-Net's ``splits_final.json``, or a text file of the ids that validate while the others train.

    With None for `ids`, a text file's other ids are not known and its training part is empty.

    Raises:
        BadDataset: another form, or ids that the dataset lacks.
    """
    if path.suffix.lower() == ".txt":
        val = read_ids(path, ids)
        return [{"train": sorted(set(ids or ()) - set(val)), "val": val}]
    splits = [_composed(fold) for fold in validated(TypeAdapter(list[Fold]), read_json(path), path, expected=FORM)]
    empty = [number for number, split in enumerate(splits) if not split["train"]]
    if empty or not splits:
        problem = f"folds {empty} have no training cases" if empty else "there is no fold"
        raise BadDataset(problem, path=path, fix="name cases that train in each fold, or remove it")
    for number, split in enumerate(splits):
        for part, names in split.items():
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise BadDataset(
                    f"fold {number} has '{twice}' twice under '{part}'", path=path, fix="remove one of them"
                )
    named = {case for split in splits for names in split.values() for case in names}
    unknown = sorted(named - set(ids)) if ids is not None else []
    if unknown and ids is not None:
        problem = f"{some(unknown)} are not in the dataset; {meant(unknown[0], ids)}"
        raise BadDataset(problem, path=path, fix="correct or remove it")
    return splits


def _composed(fold: Fold) -> Split:
    return {"train": [same_name(case) for case in fold["train"]], "val": [same_name(case) for case in fold["val"]]}


def write_splits(path: str | Path, splits: Sequence[Mapping[str, Sequence[str]]]) -> None:
    """Write ``splits_final.json``, atomically."""
    write_json(path, [{"train": list(split["train"]), "val": list(split["val"])} for split in splits])


def limit_training(split: Mapping[str, list[str]], limit: float | None, seed: int) -> Split:
    """A random part of a fold's training cases; its validation cases stay. A smaller part lies within a larger one.

    Args:
        split: the fold.
        limit: a share above 0 and below 1 (at least one case is kept), or a whole number of cases; None keeps all.
        seed: of the choice.

    Raises:
        UsageError: a limit that is neither.
    """
    names = sorted(split["train"])
    whole = isinstance(limit, int) and not isinstance(limit, bool)
    if limit is None:
        return {**split}
    if not (1 <= limit <= len(names) if whole else isinstance(limit, float) and 0 < limit < 1):
        raise UsageError(f"data.limit_train is {limit!r} (expected a share as 0.1, or 1 to {len(names)} cases)")
    count = int(limit) if whole else max(1, round(limit * len(names)))
    random.Random(seed).shuffle(names)
    return {**split, "train": sorted(names[:count])}


def check_leakage(
    splits: Sequence[Mapping[str, Sequence[str]]],
    groups: Mapping[str, str],
    *,
    what: str = "",
    path: str | Path | None = None,
) -> None:
    """Stop when a case, or a group (patient, site), is on both sides of a fold.

    Args:
        splits: the folds.
        groups: case -> group; cases that it lacks are groups of their own.
        what: the second side, if it is no fold.
        path: what the sides come from.

    Raises:
        BadDataset: naming the fold and what is on both sides.
    """

    def group(case: str) -> tuple[bool, str]:
        return case in groups, groups.get(case, case)

    for number, split in enumerate(splits):
        trained = {group(case) for case in split["train"]}
        both = [case for case in split["val"] if group(case) in trained]
        if both:
            twins = [case for case in split["train"] if group(case) == group(both[0])]
            shared = f"of group '{groups[both[0]]}', as {some(twins)} in its training" if both[0] in groups else ""
            sides = f"training and {what} share" if what else f"fold {number} trains and validates on the same:"
            problem = f"{sides} {some(both)} {shared}"
            apart = "keep it on one side" if both[0] in groups else "take it out of one of them"
            raise BadDataset(problem, path=path, fix=apart if what or both[0] not in groups else GROUPED)


def read_groups(dataset: SegmentationDataset, column: str) -> dict[str, str]:
    """Training case -> its value in a column of the dataset's table (``metadata.csv`` or ``participants.tsv``).

    Raises:
        BadDataset: no table, or cases without a value.
        UsageError: no such column.
    """
    path = dataset.list_file or next(iter(find_tables(dataset.root)), None)
    if path is None:
        raise BadDataset(f"group_by={column} needs a table of the cases", path=dataset.root, fix=f"add {TABLES[0]}")
    columns = {name for case in dataset.training for name in case.metadata}
    if column.lower() not in map(str.lower, columns):
        raise UsageError(f"the table has no column '{column}': {nearest(column, columns)}", path=path)
    found = grouped_by(dataset.training, column)
    missing = [case.id for case in dataset.training if case.id not in found]
    if missing:
        raise BadDataset(f"{some(missing)} have no '{column}'", path=path, fix="fill in the column")
    return found


def grouped_by(cases: Iterable[Case], column: str) -> dict[str, str]:
    """Case -> value in a column of its table row, capitals or not, where it has one."""
    named = (
        (case.id, value) for case in cases for name, value in case.metadata.items() if name.lower() == column.lower()
    )
    return {case: value for case, value in named if value}


def patient_groups(cases: Sequence[Case]) -> dict[str, str]:
    """Case -> patient, for the cases whose table row names one; the first of `PATIENT_COLUMNS` that is filled."""
    columns = reversed(PATIENT_COLUMNS)
    return {case.id: case.metadata[column] for column in columns for case in cases if case.metadata.get(column)}


def grouped_splits(groups: Mapping[str, str], folds: int, seed: int, leave_out: bool) -> list[Split]:
    """Folds of whole groups (case -> group): nnU-Net's rule over the groups' names, or one fold per group."""
    names = sorted(set(groups.values()))
    if len(names) < 2:
        raise BadDataset(f"the only group is '{names[0]}' (expected two or more)", fix="choose another data.group_by")
    held_out = [[name] for name in names] if leave_out else [s["val"] for s in nnunet_splits(names, folds, seed)]
    return [
        {
            "train": sorted(case for case, group in groups.items() if group not in out),
            "val": sorted(case for case, group in groups.items() if group in out),
        }
        for out in held_out
    ]
