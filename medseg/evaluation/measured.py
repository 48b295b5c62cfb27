"""How an evaluation was measured, as its summary.json says, and whether two were measured alike."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from medseg.errors import BadDataset, InputRefused
from medseg.evaluation.components import CONNECTIVITY
from medseg.evaluation.statistics import table

if TYPE_CHECKING:
    import pandas as pd

MEASURED = "measured"  # key of the settings in `DataFrame.attrs`, which pandas keeps with a table of cases
NEEDED = ("labels", "surface", "tolerance_mm", "ignore_label", "empty")
VOXELS = "n_ref"  # column of the voxels that a class has in the reference
NEIGHBOURS = {f"{dims}D": neighbours for dims, neighbours in CONNECTIVITY.items()}


class Measured(dict[str, Any]):
    """Settings by name; never changed, so a copy is itself: pandas copies ``attrs`` with every column that is taken."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Measured:
        return self


def settings_of(summary: Mapping[str, Any]) -> Measured:
    """Every setting that a score depends on, by a name that a user knows; flat, so that two can be compared.

    Args:
        summary: content of summary.json, also of earlier versions.

    Raises:
        BadDataset: it is none of medseg's.
    """
    try:
        names = dict(summary["labels"])
        versions = summary.get("metric_versions", {})
        settings = {
            **{key: summary[key] for key in ("surface", "ignore_label")},
            "resample": summary.get("resample"),
            "pixel_size": summary.get("pixel_size_mm"),
            "connectivity": summary.get("connectivity", NEIGHBOURS),
            **{f"label of class '{name}'": key for key, name in names.items()},
            **{f"tolerance of class '{names[key]}'": float(mm) for key, mm in summary["tolerance_mm"].items()},
            **{f"rule for empty masks of {keys}": dict(rule) for keys, rule in summary["empty"].items()},
            **{f"version of {metric}": versions.get(metric, 1) for metric in summary["empty"]},
        }
        return Measured(settings)
    except (AttributeError, KeyError, TypeError, ValueError):
        problem = f"is no summary that medseg evaluate wrote (needed: {', '.join(NEEDED)})"
        raise BadDataset(problem, fix="evaluate again") from None


def check_measured_alike(methods: Mapping[str, pd.DataFrame]) -> tuple[str, ...]:
    """Refuse methods that were not measured alike, or not against the same references.

    Args:
        methods: name -> table of cases, with its settings in ``attrs`` where they are known.

    Returns:
        Methods of which nothing says how they were measured.

    Raises:
        InputRefused: the first difference, with both values.
    """
    known = {name: frame.attrs[MEASURED] for name, frame in methods.items() if MEASURED in frame.attrs}
    for (a, first), (b, second) in combinations(known.items(), 2):
        for setting in first.keys() & second.keys():
            if first[setting] != second[setting]:
                problem = f"{setting} is {_shown(first[setting])} in {a} and {_shown(second[setting])} in {b}"
                fix = "evaluate all methods with the same settings"
                raise InputRefused(f"the methods were not measured alike: {problem}", fix=fix)
    _check_references(methods)
    return tuple(name for name in methods if name not in known)


def _check_references(methods: Mapping[str, pd.DataFrame]) -> None:
    """The same case has the same class in the same number of voxels, whoever predicted it."""
    sizes = {name: table(frame, VOXELS) for name, frame in methods.items() if VOXELS in frame.columns}
    for (a, first), (b, second) in combinations(sizes.items(), 2):
        cases, classes = first.index.intersection(second.index), first.columns.intersection(second.columns)
        one, other = (wide.loc[cases, classes].to_numpy() for wide in (first, second))
        for i, j in np.argwhere((one != other) & np.isfinite(one) & np.isfinite(other))[:1]:
            found = f"{one[i, j]:g} voxels in the reference of {a} and {other[i, j]:g} in that of {b}"
            fix = "evaluate all methods against the same references"
            raise InputRefused(f"class '{classes[j]}' has {found}", case=str(cases[i]), fix=fix)


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {entry}" for key, entry in value.items()) + "}"
    return "null" if value is None else str(value)
