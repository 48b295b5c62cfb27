"""Statistics of the table of cases: what one number per case says about a method, a test set and a subgroup."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medseg.errors import BadDataset, UnreadableFile, UsageError, nearest
from medseg.evaluation.intervals import CONFIDENCE, bootstrap_interval

if TYPE_CHECKING:
    import pandas as pd

ALPHA, POWER = 0.05, 0.8


def describe(
    values: Sequence[float | None], *, clusters: Sequence[Any] | None = None, confidence: float = CONFIDENCE
) -> dict[str, float | int | None]:
    """Number, mean with its interval, SD, median, quartiles and smallest difference of the values that are defined.

    Args:
        values: one per case; None is undefined.
        clusters: the patient of each case, if patients have several.
        confidence: of the interval.

    Returns:
        ``n``, ``mean``, ``low``, ``high``, ``sd``, ``median``, ``q1``, ``q3``, ``smallest_difference``; None where
        there are too few values.
    """
    defined = np.array([value for value in values if value is not None], float)
    if not len(defined):
        return {"n": 0, **dict.fromkeys(("mean", "low", "high", "sd", "median", "q1", "q3", "smallest_difference"))}
    q1, median, q3 = (float(value) for value in np.percentile(defined, [25, 50, 75]))
    sd = float(defined.std(ddof=1)) if len(defined) > 1 else None
    interval = bootstrap_interval(values, clusters=clusters, confidence=confidence)
    return {
        "n": len(defined),
        "mean": float(defined.mean()),
        "low": interval.low if interval else None,
        "high": interval.high if interval else None,
        "sd": sd,
        "median": median,
        "q1": q1,
        "q3": q3,
        "smallest_difference": None if sd is None else smallest_difference(sd, len(defined)),
    }


def smallest_difference(sd: float, n: int, *, alpha: float = ALPHA, power: float = POWER) -> float | None:
    """The smallest mean difference between two methods that n cases can show: (t(1 - alpha/2) + t(power)) sd / sqrt(n).

    Args:
        sd: standard deviation of the paired differences. Where only one method is known, take the SD of its scores:
            that is right if the scores of the other correlate with them by 0.5, and too large if by more.
        n: cases, above 1; None is returned otherwise.
        alpha: two-sided level of the test.
        power: probability of seeing a difference of this size.
    """
    from scipy.stats import t

    return float((t.ppf(1 - alpha / 2, n - 1) + t.ppf(power, n - 1)) * sd / np.sqrt(n)) if n > 1 else None


def seed_variance(runs: Mapping[str, pd.DataFrame], metric: str) -> dict[str, dict[str, float | None]]:
    """How much the mean of a method changes from run to run, beside how much cases differ.

    Args:
        runs: name of the run (e.g. of its seed) -> table of cases, all on the same cases.
        metric: column.

    Returns:
        By class: ``mean`` of the runs' means, ``sd_runs`` of the runs' means, ``sd_cases`` (SD over cases of the mean
        over runs) and ``standard_error_cases`` (sd_cases / sqrt(n)): if sd_runs is near it, one run says little.
    """
    tables = [table(frame, metric) for frame in runs.values()]
    found: dict[str, dict[str, float | None]] = {}
    for name in tables[0].columns:
        values = np.array([frame[name].reindex(tables[0].index).to_numpy(float) for frame in tables])
        cases = values.mean(axis=0)
        cases = cases[np.isfinite(cases)]
        spread = float(cases.std(ddof=1)) if len(cases) > 1 else None
        found[str(name)] = {
            "mean": float(np.nanmean(values)),
            "sd_runs": float(np.nanmean(values, axis=1).std(ddof=1)) if len(tables) > 1 else None,
            "sd_cases": spread,
            "standard_error_cases": None if spread is None else spread / np.sqrt(len(cases)),
        }
    return found


def stratify(frame: pd.DataFrame, metadata: pd.DataFrame, column: str) -> dict[str, pd.DataFrame]:
    """The table of cases, divided by a column of a table about them.

    Args:
        frame: with a column ``case``.
        metadata: with a column ``case`` and others.
        column: of ``metadata``; cases without a value become the group "unknown".

    Raises:
        UsageError: there is no such column.
        BadDataset: none of the cases is in the metadata.
    """
    groups = column_of_cases(frame["case"], metadata, column)
    return {str(value): frame[groups == value] for value in sorted(set(groups), key=str)}


def column_of_cases(cases: pd.Series, metadata: pd.DataFrame, column: str) -> np.ndarray:
    """Value of a column of the metadata for each case, "unknown" where there is none. Raises as `stratify`."""
    if column not in metadata.columns:
        raise UsageError(f"the metadata has no column '{column}': {nearest(column, list(metadata.columns))}")
    values = metadata.astype({"case": str}).set_index("case")[column]
    if not set(cases) & set(values.index):
        problem = f"none of its cases is one of the evaluated (it has {', '.join(map(str, values.index[:3]))} ...)"
        raise BadDataset(problem, fix="its column 'case' must hold case ids, as in cases.csv")
    values = values[~values.index.duplicated()]
    return values.reindex(cases).astype(object).where(lambda s: s.notna(), "unknown").to_numpy()


def read_table(path: str | Path, needed: Sequence[str] = ("case",)) -> pd.DataFrame:
    """A CSV file, case ids as text.

    Raises:
        UnreadableFile: missing or no CSV.
        BadDataset: a needed column is missing.
    """
    import pandas as pd

    try:
        frame = pd.read_csv(path, dtype={"case": str, "class": str})
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise UnreadableFile(f"is not a CSV table ({error})", path=path, fix="check the path") from error
    for column in needed:
        if column not in frame.columns:
            raise BadDataset(f"the table has no column '{column}' (has {', '.join(frame.columns)})", path=path)
    return frame


def table(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Cases by classes, the metric in the cells; NaN is undefined. Raises UsageError for an unknown metric."""
    if metric not in frame.columns:
        known = [name for name in frame.columns if name not in ("case", "class", "outcome")]
        raise UsageError(f"metric '{metric}' was not measured: {nearest(metric, known)}")
    return frame.pivot(index="case", columns="class", values=metric)[list(dict.fromkeys(frame["class"]))]
