"""A repaired copy of a dataset: what a check can set right is written anew, all else is copied, the original stays."""

from __future__ import annotations

import csv
import itertools
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from medseg.data.case_files import stem
from medseg.data.case_list import read_list
from medseg.data.dataset import Case, SegmentationDataset
from medseg.data.findings import Finding, Repair
from medseg.data.inspect_case import near_integers
from medseg.data.landmark_files import FOLDERS, LAYOUT
from medseg.data.landmark_files import TABLE as LANDMARK_TABLE
from medseg.data.metadata import find_tables, read_rows
from medseg.data.outputs import identities, identity, plain_path
from medseg.data.splits import read_splits
from medseg.errors import MedsegError, ResourceError, UsageError
from medseg.io import Volume, read_geometry, read_json, read_labels, read_volume, write_json, write_labels, write_volume


def repair_dataset(dataset: SegmentationDataset, findings: Sequence[Finding], folder: str | Path) -> list[str]:
    """Write the dataset anew with the same relative paths, without cases that have errors beyond repair.

    Args:
        dataset: as `check_dataset` got it.
        findings: of that check.
        folder: must not exist, or be empty; it appears when it is complete.

    Returns:
        Ids of the cases left out.

    Raises:
        UsageError: the folder has content, or is the dataset's own.
        ResourceError: it cannot be written; nothing is left behind.
    """
    folder = plain_path(folder)
    check_output(dataset, folder)
    broken = {f.case for f in findings if f.case and f.severity == "error" and f.repair is None}
    scratch = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        for case in (*dataset.training, *dataset.test):
            if case.id not in broken:
                _copy_case(case, dataset.root, scratch, [f for f in findings if f.case == case.id])
        _copy_description(dataset, scratch, broken)
        if folder.exists():
            folder.rmdir()
        os.replace(scratch, folder)
    except OSError as error:
        problem = f"cannot be written: {error.strerror or error}"
        raise ResourceError(problem, path=folder, fix="free space, or choose another output=") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return sorted(broken)


def check_output(dataset: SegmentationDataset, folder: Path) -> None:
    """Refuse a folder with content or inside the dataset, however it is spelled. Raises UsageError."""
    resolved = plain_path(folder).resolve()
    if identity(dataset.root) in identities((resolved, *resolved.parents)):
        raise UsageError("lies in the dataset, which is never changed", path=folder, fix="choose another output=")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError("exists and is not empty", path=folder, fix="choose another output=, or remove it")


def _copy_case(case: Case, root: Path, target: Path, findings: Iterable[Finding]) -> None:
    repairs: dict[Path, set[Repair]] = {}
    for finding in findings:
        if finding.file and finding.repair:
            repairs.setdefault(finding.file, set()).add(finding.repair)
    own = case.landmarks if case.landmarks and case.landmarks.name != LANDMARK_TABLE else None
    painted = case.label and not case.label.is_relative_to(root)  # from the landmarks, which are copied
    for path in filter(None, (*case.images, None if painted else case.label, own)):
        copy = target / path.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path not in repairs:
            shutil.copyfile(path, copy)
        elif path == case.label:
            _write_label(case, path, copy, repairs[path])
        else:
            _write_image(case, path, copy, repairs[path])


def _write_image(case: Case, path: Path, copy: Path, repairs: set[Repair]) -> None:
    volume = read_volume(path, nan="zero", case=case.id)
    geometry = read_geometry(case.images[0]) if "grid" in repairs else volume.geometry
    write_volume(copy, Volume(volume.array, geometry))


def _write_label(case: Case, path: Path, copy: Path, repairs: set[Repair]) -> None:
    labels = (near_integers(path, case.id) if "round" in repairs else None) or read_labels(path, case=case.id)
    geometry = read_geometry(case.images[0]) if "grid" in repairs else labels.geometry
    write_labels(copy, labels.array[0], geometry)


def _copy_description(dataset: SegmentationDataset, target: Path, broken: set[str]) -> None:
    """What says something of several cases, without the cases left out: dataset.json, tables, folds, landmarks.json."""
    target.mkdir(parents=True, exist_ok=True)
    splits = dataset.root / "splits_final.json"
    for table in find_tables(dataset.root):
        shutil.copyfile(table, target / table.name)
    if (dataset.root / "dataset.json").is_file():
        write_json(target / "dataset.json", _without(read_json(dataset.root / "dataset.json"), dataset, broken))
    for layout in (dataset.root / name / LAYOUT for name in ("", *FOLDERS)):
        if layout.is_file():
            (target / layout.relative_to(dataset.root)).parent.mkdir(exist_ok=True)
            shutil.copyfile(layout, target / layout.relative_to(dataset.root))
    if (dataset.root / LANDMARK_TABLE).is_file():
        table = dataset.root / LANDMARK_TABLE
        _copy_rows(table, target / table.name, [row["case"] not in broken for row in read_rows(table)])
    if dataset.list_file:
        kept = [case.id not in broken for case in read_list(dataset.list_file).cases]
        _copy_rows(dataset.list_file, target / dataset.list_file.name, kept)
    if splits.is_file():
        try:
            folds = read_splits(splits, None)
        except MedsegError:  # found already; which cases were meant is not known
            shutil.copyfile(splits, target / splits.name)
        else:
            rest = [{part: [case for case in fold[part] if case not in broken] for part in fold} for fold in folds]
            write_json(target / splits.name, rest)


def _copy_rows(table: Path, copy: Path, kept: Sequence[bool]) -> None:
    rows = read_rows(table)
    with copy.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if table.suffix.lower() == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(itertools.compress(rows, kept))


def _without(description: dict[str, Any], dataset: SegmentationDataset, broken: set[str]) -> dict[str, Any]:
    changed = {**description, "numTraining": sum(case.id not in broken for case in dataset.training)}
    for key in ("training", "test"):
        if isinstance(description.get(key), list):
            changed[key] = [entry for entry in description[key] if _listed_id(entry) not in broken]
    if isinstance(description.get("dataset"), dict):
        changed["dataset"] = {case: entry for case, entry in description["dataset"].items() if case not in broken}
    return changed


def _listed_id(entry: Any) -> str:
    """Id of a case in a Decathlon list, as `open_dataset` gives it."""
    image: Any = (entry.get("image") or entry["images"]) if isinstance(entry, dict) else entry
    return stem(Path(image[0] if isinstance(image, list) else image))
