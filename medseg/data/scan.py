"""Find out what a folder without dataset.json holds: channels from one image, classes from all label maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from medseg.data.parallel import choose_workers, map_cases
from medseg.errors import BadDataset, MedsegError
from medseg.io import read_channels, read_labels

if TYPE_CHECKING:
    from medseg.data.dataset import Case

MAX_CLASSES = 256  # a label map with more is one of instances


def scan_channels(case: Case) -> tuple[str, ...]:
    """Names of a case's channels: R, G, B for a colour picture, else numbers. The images are read."""
    volume = read_channels(case.images, nan="zero", case=case.id)
    count = len(volume.array)
    return ("R", "G", "B") if (volume.ndim, count) == (2, 3) else tuple(f"channel_{n}" for n in range(count))


def scan_labels(cases: Sequence[Case], *, workers: int | str | None = None) -> dict[str, int]:
    """Name -> value of every label that occurs, called after its number. A bar shows the progress.

    A label map that cannot be read is left out here; it is reported when the case is used.

    Raises:
        BadDataset: no label map can be read, or they hold so many values that they number instances.
    """
    found: set[int] = set()
    outcomes = map_cases(_label_values, cases, workers=choose_workers(workers, cases), title="find the classes")
    for _, values in outcomes:
        if not isinstance(values, MedsegError):
            found |= values
    if not found:
        raise BadDataset("no label map can be read", case=cases[0].id, path=cases[0].label)
    if len(found) > MAX_CLASSES:
        problem = f"the label maps hold {len(found)} values (at most {MAX_CLASSES}): they seem to number instances"
        raise BadDataset(problem, path=cases[0].label, fix="write one number per class")
    foreground = sorted(found - {0})
    names = ["foreground"] if len(foreground) == 1 else [f"label_{value}" for value in foreground]
    return {"background": 0, **dict(zip(names, foreground, strict=True))}


def _label_values(case: Case) -> set[int]:
    assert case.label is not None  # only labelled cases are scanned
    return {int(value) for value in np.unique(read_labels(case.label, case=case.id).array)}
