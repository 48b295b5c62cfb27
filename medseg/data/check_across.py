"""Checks between the cases of a dataset: folds, duplicates, orphans, spacings, classes, sides, intensities."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from medseg.data.case_files import describe_missing, group_images, image_files
from medseg.data.check_landmarks import check_landmark_files
from medseg.data.dataset import SegmentationDataset
from medseg.data.description import describe, read_description
from medseg.data.duplicates import Pair, alike_pairs, exact_pairs, leaks
from medseg.data.findings import Finding, Severity
from medseg.data.fingerprint import pool_facts
from medseg.data.inspect_case import CaseReport
from medseg.data.laterality import lateral_pairs
from medseg.data.plan import check_stages, make_plan
from medseg.data.splits import Split, make_splits, patient_groups
from medseg.errors import MedsegError
from medseg.io import file_ending

Reports = Mapping[str, CaseReport]

SPACING_OUTLIER = 2.5  # times more or less than the median of its axis
FOLDS = 5  # where nothing else is asked for
CT_AIR = -900.0  # HU; only CT goes there
MAX_PAIRS = 50  # listed; a film has thousands of like frames


def check_across(
    dataset: SegmentationDataset, reports: Reports, split: Mapping[str, Any], slices: str | int | None = None
) -> list[Finding]:
    """All findings that concern more than one case.

    Args:
        dataset: opened with ``strict=False``.
        reports: case id -> what was found in it.
        split: arguments of `make_splits`.
        slices: how volumes are cut into slices, as for `make_plan`.
    """
    splits, faults = _folds(dataset, split)
    return [
        *faults,
        *_plan(dataset, reports, slices),
        *_orphans(dataset),
        *_counts(dataset),
        *_patients_in_test(dataset),
        *_duplicates(dataset, reports, splits),
        *_absent_classes(dataset, reports),
        *_spacings(reports),
        *_sides(dataset, reports),
        *_intensities(dataset, reports),
        *_landmarks(dataset, reports),
    ]


def _folds(dataset: SegmentationDataset, split: Mapping[str, Any]) -> tuple[list[Split], list[Finding]]:
    own = split.get("file") or split.get("group_by") or (dataset.root / "splits_final.json").exists() or dataset.split
    if "folds" not in split and not own and 0 < len(dataset.training) < FOLDS:
        count = len(dataset.training)
        fix = f"{f'set data.folds={count}, or ' if count > 1 else 'set '}data.folds=1 to train on all"
        return [], [Finding("note", f"{count} training cases are too few for {FOLDS} folds", fix=fix)]
    try:
        return make_splits(dataset, **split), []
    except MedsegError as error:
        file = Path(error.path) if error.path else None
        return [], [Finding("error", error.problem, file=file, fix=error.fix or "")]


def _plan(dataset: SegmentationDataset, reports: Reports, slices: str | int | None) -> Iterator[Finding]:
    """What no single case shows and training refuses all the same: no foreground at all, images too small, ..."""
    measured = {case.id: reports[case.id].measured for case in dataset.training}
    usable = {case: found for case, found in measured.items() if found is not None}
    if not usable or len(usable) < len(measured):  # errors that are told already
        return
    try:
        check_stages(make_plan(pool_facts(dataset, usable), slices=slices))
    except MedsegError as error:
        yield Finding("error", error.problem, file=Path(error.path) if error.path else None, fix=error.fix or "")


def _orphans(dataset: SegmentationDataset) -> Iterator[Finding]:
    """Files in the folders of images and labels that belong to no case; hidden files are none."""
    cases = (*dataset.training, *dataset.test)
    used = {path for case in cases for path in (*case.images, case.label)}
    label_folders = sorted({case.label.parent for case in cases if case.label})
    if dataset.list_file:  # what a table leaves out is left out on purpose
        label_folders = []
    for folder in label_folders:
        for file in image_files(folder):
            if file not in used and not any(file.parent == case.images[0].parent for case in cases):
                yield Finding("warning", "label without an image: it is left out", file=file, fix="add its image")
    for case in dataset.unlabelled:
        if dataset.skips_unlabelled:
            yield Finding("note", "image without a mask: it is skipped", case)
        else:
            problem, fix = "image without a mask: training refuses it", "add its mask, or set data.unlabelled=skip"
            yield Finding("error", problem, case, fix=fix)
    if dataset.unlabelled or dataset.list_file:
        return
    taken = {path for path in used if path is not None}
    for folder in sorted({path.parent for case in dataset.training for path in case.images} - set(label_folders)):
        orphans = [file for file in image_files(folder) if file not in used]
        for case, files in group_images(orphans, ()).items():
            expected = dataset.training[0].label
            wanted = expected.with_name(f"{case}{file_ending(expected)}") if expected else None
            hint = "" if wanted is None or wanted.exists() else f" (label {describe_missing(wanted, taken)})"
            problem = f"image without a label: it is left out{hint}"
            yield Finding("warning", problem, case, next(iter(files.values())), "add its label, or move it to imagesTs")


def _counts(dataset: SegmentationDataset) -> Iterator[Finding]:
    if not dataset.training:
        yield Finding("error", "no training image has a label file", fix="name images and labels alike")
    file = dataset.root / "dataset.json"
    stated = describe(read_description(dataset.root), dataset.root).num_training
    if stated is not None and stated != len(dataset.training):
        problem = f"numTraining is {stated}, but there are {len(dataset.training)} training cases"
        yield Finding("warning", problem, file=file, fix="correct it, or look for the missing cases")
    for case in sorted({case.id for case in dataset.training} & {case.id for case in dataset.test}):
        yield Finding("error", "is a training case and a test case", case, fix="remove or rename one of them")


def _patients_in_test(dataset: SegmentationDataset) -> Iterator[Finding]:
    trained = {patient: case for case, patient in patient_groups(dataset.training).items()}
    for case, patient in patient_groups(dataset.test).items():
        if patient in trained:
            problem = f"patient {patient} of this test case is also that of training case {trained[patient]}"
            yield Finding("error", problem, case, fix="move one of them")


def _duplicates(dataset: SegmentationDataset, reports: Reports, splits: Sequence[Split]) -> Iterator[Finding]:
    exact = exact_pairs({case: report.content for case, report in reports.items() if report.content})
    small = {case: report.small for case, report in reports.items() if report.small is not None}
    same = {pair[:2] for pair in exact}
    alike = [pair for pair in alike_pairs(small, dataset.spatial_dims) if tuple(sorted(pair[:2])) not in same]
    test = {case.id for case in dataset.test}
    found = [_duplicate(dataset, pair, leaks(pair, test, splits)) for pair in (*exact, *alike)]
    yield from found[:MAX_PAIRS]
    if len(found) > MAX_PAIRS:
        problem = f"{len(found) - MAX_PAIRS} more pairs of cases are alike"
        yield Finding("warning", problem, fix="group the cases by data.group_by=")


def _duplicate(dataset: SegmentationDataset, pair: Pair, leak: str | None) -> Finding:
    first, second, correlation = pair
    severities: tuple[Severity, Severity] = ("error", "warning") if correlation == 1 else ("warning", "note")
    what = "has exactly the voxels of" if correlation == 1 else f"looks like (correlation {correlation:.3f})"
    fix = "remove one, or name the patient in metadata.csv and set data.group_by=patient"
    where = f": {leak}" if leak else ""
    return Finding(severities[0 if leak else 1], f"{what} {second}{where}", first, dataset.case(first).images[0], fix)


def _absent_classes(dataset: SegmentationDataset, reports: Reports) -> Iterator[Finding]:
    label_maps = [report.voxels for report in reports.values() if report.voxels is not None]
    seen = set(chain.from_iterable(label_maps))
    for name, value in dataset.labels.items():
        if label_maps and value not in seen and value != 0:
            problem = f"label '{name}' ({value}) occurs in no case, so it cannot be learnt"
            yield Finding(
                "warning", problem, file=dataset.root / "dataset.json", fix="remove it, or correct the labels"
            )


def _spacings(reports: Reports) -> Iterator[Finding]:
    spacings = {case: report.spacing for case, report in reports.items() if report.spacing}
    if len(spacings) < 3:
        return
    median = np.median(list(spacings.values()), axis=0)
    for case, spacing in spacings.items():
        ratio = np.array(spacing) / median
        if max(ratio.max(), 1 / ratio.min()) > SPACING_OUTLIER:
            problem = f"spacing is {_mm(spacing)} mm, that of the median case {_mm(median)} mm"
            yield Finding("warning", problem, case, fix="check the units and the export")


def _sides(dataset: SegmentationDataset, reports: Reports) -> Iterator[Finding]:
    """Pairs of labels called left and right that lie the other way round."""
    names = {value: name for name, value in dataset.labels.items()}
    for left, right in lateral_pairs(dataset.labels)[0] if dataset.spatial_dims == 3 else ():
        both = {case: report.centers for case, report in reports.items() if {left, right} <= report.centers.keys()}
        swapped = [case for case, centers in both.items() if centers[left] > centers[right]]
        if len(swapped) > 2 and len(swapped) == len(both):
            problem = f"in all {len(both)} cases '{names[left]}' lies to the right of '{names[right]}'"
            yield Finding("warning", problem, fix="the names or the orientation in the files are swapped: correct them")
        else:
            problem = (
                f"'{names[left]}' lies to the right of '{names[right]}', unlike in {len(both) - len(swapped)} cases"
            )
            fix = "the labels or the orientation of this file may be swapped: look at it"
            yield from (Finding("warning", problem, case, fix=fix) for case in swapped)


def _intensities(dataset: SegmentationDataset, reports: Reports) -> Iterator[Finding]:
    """Only a channel called CT is normalised as CT; tell where the name and the intensities disagree."""
    channels = len(dataset.channel_names)
    minima = [report.minimum for report in reports.values() if len(report.minimum) == channels]
    if not minima:
        return
    for name, lowest in zip(dataset.channel_names, np.median(minima, axis=0), strict=True):
        is_ct = name.upper() == "CT"
        if lowest <= CT_AIR and not is_ct:
            problem = f"channel '{name}' goes down to {lowest:g}, as CT does, but is not called CT"
            yield Finding(
                "note", problem, fix='if it is CT, call it "CT" in dataset.json to have it normalised as such'
            )
        elif lowest >= 0 and is_ct:
            problem = f"channel 'CT' never goes below {lowest:g} (Hounsfield units do)"
            yield Finding("warning", problem, fix="export Hounsfield units, or give the channel another name")


def _landmarks(dataset: SegmentationDataset, reports: Reports) -> Iterator[Finding]:
    cases = {case.id: case.landmarks for case in (*dataset.training, *dataset.test)}
    counts = {case: report.landmarks for case, report in reports.items()}
    training = [case.id for case in dataset.training]
    listed = dataset.list_file is not None
    yield from check_landmark_files(dataset.root, cases, counts, dataset.landmarks, training=training, listed=listed)


def _mm(spacing: Sequence[float] | np.ndarray) -> str:
    return " x ".join(f"{value:.3g}" for value in spacing)
