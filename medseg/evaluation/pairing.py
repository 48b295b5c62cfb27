"""The cases on which methods are compared: all that they share, also those that a method is right to leave empty."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from medseg.errors import InputRefused, UsageError
from medseg.evaluation.statistics import table

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Paired:
    """One metric of all methods on the same cases and classes.

    Attributes:
        values: method -> cases by classes. A class that a method is right to leave empty has the best value, for else
            the inventions of another would be compared with nothing; NaN is undefined by a rule that was chosen.
        outcomes: method -> cases by classes, as `CaseResult.outcome` says.
        absent: classes that are in no case of any method, which say nothing.
    """

    values: dict[str, pd.DataFrame]
    outcomes: dict[str, pd.DataFrame]
    absent: tuple[str, ...]

    @property
    def cases(self) -> list[str]:
        """Those that all methods have, sorted."""
        return list(next(iter(self.values.values())).index)

    @property
    def classes(self) -> list[str]:
        """Those that all methods have, and that are in some case."""
        return list(next(iter(self.values.values())).columns)


def pair_methods(methods: Mapping[str, pd.DataFrame], metric: str) -> Paired:
    """Bring a metric of several methods together.

    A table of another tool need not have outcomes; then nothing tells a right empty from an undefined value, and cases
    without a value are left out.

    Raises:
        UsageError: fewer than two methods, a metric that was not measured, or a table that is none of cases.
        InputRefused: no shared case or class; a case and class in two rows; no class that is in any case.
    """
    if len(methods) < 2:
        raise UsageError(f"there is nothing to compare: {len(methods)} method(s)", fix="give at least two")
    for name, frame in methods.items():
        if lacking := [column for column in ("case", "class") if column not in frame.columns]:
            fix = "give a table that medseg evaluate wrote, cases.csv"
            raise UsageError(f"the table of cases of {name} has no column '{lacking[0]}'", fix=fix)
    methods = {name: frame if "outcome" in frame else frame.assign(outcome="scored") for name, frame in methods.items()}
    tables = {name: table(frame, metric) for name, frame in methods.items()}
    outcomes = {name: table(frame, "outcome") for name, frame in methods.items()}
    cases = sorted(set.intersection(*(set(values.index) for values in tables.values())))
    if not cases:
        raise InputRefused(f"the methods {', '.join(methods)} share no case", fix="evaluate them on the same cases")
    first, *others = (list(values.columns) for values in tables.values())
    classes = [name for name in first if all(name in columns for columns in others)]
    if not classes:
        raise InputRefused(f"the methods {', '.join(methods)} share no class", fix="evaluate them with the same labels")
    present = [name for name in classes if any(values.loc[cases, name].notna().any() for values in tables.values())]
    if not present:
        problem = f"no case of any method has a value of '{metric}': its classes are nowhere, or undefined by a rule"
        raise InputRefused(problem, fix="evaluate cases that have the classes")
    best = _best(metric)
    values, found = {}, {}
    for name, own in tables.items():
        found[name] = outcomes[name].loc[cases, present]
        own = own.loc[cases, present]
        values[name] = own if best is None else own.mask(own.isna() & (found[name] == "empty"), best)
    return Paired(values, found, tuple(name for name in classes if name not in present))


def _best(metric: str) -> float | None:
    """None for a quantity, and for a column that is none of our metrics."""
    from medseg.evaluation.arrays import build_metrics

    try:
        return build_metrics([metric])[metric].best
    except UsageError:
        return None
