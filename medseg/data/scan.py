"""Find out what a folder without dataset.json holds: channels from one image, classes from all label maps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from medseg.data.label_codes import harmless_threshold, threshold_fix
from medseg.data.parallel import choose_workers, map_cases
from medseg.errors import BadDataset, BadLabels, MedsegError
from medseg.io import read_channels, read_labels
from medseg.io.label_coding import label_fault

if TYPE_CHECKING:
    from medseg.data.case import Case

MAX_CLASSES = 256  # a label map with more is one of instances
NEAR_255 = 240  # as JPEG of high quality leaves: no class is called so beside 255
MAX_WITH_255 = 8  # values beside 255: more are the shades of a mask that was smoothed or saved as JPEG


def scan_channels(case: Case) -> tuple[str, ...]:
    """Names of a case's channels: R, G, B for a colour picture, else numbers. The images are read."""
    volume = read_channels(case.images, nan="zero", case=case.id)
    count = len(volume.array)
    return ("R", "G", "B") if (volume.ndim, count) == (2, 3) else tuple(f"channel_{n}" for n in range(count))


def scan_labels(cases: Sequence[Case], *, workers: int | str | None = None, strict: bool = True) -> dict[str, int]:
    """Name -> value of every label that occurs, called after its number. A bar shows the progress.

    A label map that cannot be read is left out here; it is reported when the case is used.

    Args:
        cases: labelled ones.
        workers: processes; None chooses.
        strict: refuse values that mean no classes; else, for ``medseg check``, 0 and 255 are taken, and all others
            are then found unknown.

    Raises:
        BadDataset: no label map can be read, all are empty, or they hold so many values that they number instances.
        BadLabels: values between 0 and 255 that come from smoothing or JPEG; 1 in some masks and 255 in others.
    """
    per_case: dict[str, Counter[int]] = {}
    refused: MedsegError | None = None
    outcomes = map_cases(_label_values, cases, workers=choose_workers(workers, cases), title="find the classes")
    for case, values in outcomes:
        if isinstance(values, MedsegError):
            refused = refused or values
        else:
            per_case[case.id] = values
    if refused is not None and not per_case:
        problem = f"no label map can be used: {refused.problem}"
        raise BadDataset(problem, case=cases[0].id, path=cases[0].label, fix=refused.fix)
    found = set(chain.from_iterable(per_case.values()))
    if len(found) > MAX_CLASSES:
        problem = f"the label maps hold {len(found)} values (at most {MAX_CLASSES}): they seem to number instances"
        fix = "write one number per class; if objects are numbered, set data.instances=true to take them as one class"
        raise BadDataset(problem, path=cases[0].label, fix=fix)
    lossy = any(case.label is not None and case.label.suffix.lower() in (".jpg", ".jpeg") for case in cases)
    if shades := _shades(per_case, found, lossy=lossy):
        if strict:
            least, stated = harmless_threshold(list(per_case.values())), "state them in dataset.json"
            fix = f"set {threshold_fix(least)}: values from {least} on are foreground; or {stated}" if least else stated
            raise BadLabels(shades, path=cases[0].label.parent if cases[0].label else None, fix=fix)
        found = {0, 255}
    if fault := label_fault({0, *found}, None) if found - {0} else None:
        fix = "write one whole number above 0 per class, or name the values that count in dataset.json"
        raise BadDataset(f"the label maps hold {sorted(found)[:8]}: {fault}", path=cases[0].label, fix=fix)
    foreground = sorted(found - {0})
    if not foreground:
        problem = f"the label maps of all {len(cases)} cases are empty: there is nothing to learn"
        raise BadDataset(problem, path=cases[0].label, fix="check that the label files were exported with their values")
    names = ["foreground"] if len(foreground) == 1 else [f"label_{value}" for value in foreground]
    return {"background": 0, **dict(zip(names, foreground, strict=True))}


def _label_values(case: Case) -> Counter[int]:
    assert case.label is not None  # only labelled cases are scanned
    array = read_labels(case.label, case=case.id, coding=case.coding).array
    if array.dtype != np.uint8:
        values, counts = np.unique(array, return_counts=True)
        return Counter(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    found = np.bincount(array.ravel(), minlength=256)
    return Counter({int(value): int(found[value]) for value in np.flatnonzero(found)})


def _shades(per_case: Mapping[str, Counter[int]], found: set[int], *, lossy: bool) -> str | None:
    """Values that mean no classes: many beside 255, one close to it, any in JPEG; 1 in some masks, 255 in others."""
    others = found - {0, 255}
    near = any(NEAR_255 <= value < 255 for value in others)
    smoothed = len(others) > MAX_WITH_255 or near or (lossy and bool(others))
    white = 255 in found or (lossy and max(found, default=0) >= NEAR_255)
    if not white or not (smoothed or _mixed(per_case, found)):
        return None
    total = sum(per_case.values(), Counter[int]())
    often = sorted(others, key=lambda value: -total[value])
    shown = ", ".join(f"{value} ({total[value]} pixels)" for value in sorted(often[:MAX_WITH_255]))
    more = f" and {len(others) - MAX_WITH_255} more" if len(others) > MAX_WITH_255 else ""
    first = min(case for case, values in per_case.items() if set(values) & others)
    return f"beside 0 and 255 the masks hold {shown}{more}, first in {first}"


def _mixed(per_case: Mapping[str, Counter[int]], found: set[int]) -> bool:
    return found <= {0, 1, 255} and 1 in found and not any({1, 255} <= set(values) for values in per_case.values())
