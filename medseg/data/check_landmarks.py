"""What `medseg check` says of landmark files: within a case, and between the cases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medseg.data.case import Case
from medseg.data.findings import Finding
from medseg.data.landmark_files import LandmarkLayout, faults, find_landmarks, read_landmarks
from medseg.errors import MedsegError
from medseg.io import Geometry, read_labels

if TYPE_CHECKING:
    from medseg.targets.contours import Structure

APART = "structures that share a label must not touch; give each its own, or make one structure of both"


def inspect_landmarks(
    path: Path, case: str, image: Geometry, layout: LandmarkLayout | None
) -> tuple[int | None, list[Finding]]:
    """Number of landmarks of a case (None if they cannot be read), and what is wrong with them."""
    try:
        points = read_landmarks(path, case)
    except MedsegError as error:
        return None, [Finding("error", error.problem, case, path, error.fix or "")]
    fix = "correct the file, or leave the case out"
    found = faults(points, image.shape, None, layout)
    return len(points), [Finding("error", problem, case, path, fix) for problem in found]


def check_landmark_files(
    root: Path,
    cases: Mapping[str, Path | None],
    counts: Mapping[str, int | None],
    layout: LandmarkLayout | None,
    *,
    training: Collection[str],
    listed: bool,
) -> Iterator[Finding]:
    """Landmarks without image, training images without landmarks, and numbers of points that differ.

    Args:
        root: of the dataset.
        cases: id -> landmark file, of all cases.
        counts: id -> number of landmarks, as `inspect_landmarks` found it.
        layout: of landmarks.json; it has been compared with already.
        training: ids of the cases that are trained on; test cases need no landmarks.
        listed: the cases come from a table; what it leaves out is left out on purpose.
    """
    files = find_landmarks(root).files
    for orphan in sorted(files.keys() - cases.keys()) if not listed else ():
        yield Finding("error", "landmarks without an image", orphan, files[orphan], "add its image, or remove them")
    if not any(cases.values()):
        return
    for case in sorted(name for name in training if cases[name] is None):
        yield Finding("error", "image without landmarks, though other cases have them", case, fix="add its landmarks")
    found = Counter(count for count in counts.values() if count is not None)
    if layout is None and len(found) > 1:
        usual = found.most_common(1)[0][0]
        for case, count in sorted(counts.items()):
            if count not in (None, usual):
                problem = f"has {count} landmarks, most cases have {usual}"
                yield Finding("error", problem, case, cases[case], "every case needs the same ones")


def check_outlines(cases: Iterable[Case], structures: Sequence[Structure]) -> Iterator[Finding]:
    """Structures that cannot be learnt from the masks of training cases: a warning each; an error if from none."""
    from medseg.targets.contours import lost_structures

    never = [structure.name for structure in structures]
    for case in cases:
        try:
            labels = read_labels(case.label, case=case.id, coding=case.coding).array[0] if case.label else None
        except MedsegError:  # told already
            continue
        if labels is None or labels.ndim != 2:
            continue
        lost = lost_structures([labels], structures)
        never = [name for name in never if name in lost]
        if lost:
            problem = f"the mask has no piece of its own for {', '.join(lost)} (not learnt from this case)"
            yield Finding("warning", problem, case.id, case.label, APART)
    if never:
        yield Finding("error", f"no training mask has a piece of its own for {', '.join(never)}", fix=APART)


def check_points(
    counts: Mapping[str, int | None], layout: LandmarkLayout | None, expected: int, *, chosen: bool
) -> Iterator[Finding]:
    """Training cases that have not the points of a target.

    Args:
        counts: training case -> number of landmarks, None without.
        layout: of landmarks.json; what contradicts it has been found already.
        expected: points that the target learns from; 0: none.
        chosen: the user wants this target, else it is what landmarks.json describes.
    """
    known = {case: count for case, count in counts.items() if count is not None}
    if expected and not known:
        problem = f"no training case has landmarks that can be read ({expected} expected)"
        fix = "add landmarks/CASE.npy, or set target.from_masks=true"
        yield Finding("error" if chosen else "warning", problem, fix=fix)
    if layout is None or sum(layout.structures.values()) != expected:
        for case in sorted(case for case, count in known.items() if expected and count != expected):
            problem = f"has {known[case]} landmarks (target.structures has {expected})"
            yield Finding("error", problem, case, fix="correct target.structures or the file")
