"""Statistics of the table of cases: what one number per case says about a method, a test set and a subgroup."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medseg.errors import BadDataset, InputRefused, UnreadableFile, UsageError, nearest, some
from medseg.evaluation.intervals import CONFIDENCE, bootstrap_interval, mean_of_units
from medseg.text import from_cell

if TYPE_CHECKING:
    import pandas as pd

ALPHA, POWER = 0.05, 0.8
LEAST_DIFFERENCE = 1e-12  # below it two scores are the same
FEWEST = 6  # independent cases: all signs of fewer differences give no p below 5 %, however large they are
ABOUT_CASES = ("case", "class", "outcome")  # columns of a table of cases that are no metric
NOT_KNOWN = {"", "na", "n/a", "nan", "none", "null", "unknown", "?", "-"}  # of a patient


def describe(
    values: Sequence[float | None], *, clusters: Sequence[Any] | None = None, confidence: float = CONFIDENCE
) -> dict[str, float | int | None]:
    """Number, mean with its interval, SD, median, quartiles and smallest difference of the values that are defined.

    Args:
        values: one per case; None is undefined.
        clusters: the patient of each case, if patients have several.
        confidence: of the interval.

    Returns:
        ``n``, ``units`` (independent ones: clusters, else cases), ``mean``, ``low``, ``high``, ``sd``, ``median``,
        ``q1``, ``q3``, ``smallest_difference``; None where there are too few values, or, for the last, where they are
        all the same.
    """
    defined = np.array([value for value in values if value is not None], float)
    if not len(defined):
        missing = dict.fromkeys(("mean", "low", "high", "sd", "median", "q1", "q3", "smallest_difference"))
        return {"n": 0, "units": 0, **missing}
    q1, median, q3 = (float(value) for value in np.percentile(defined, [25, 50, 75]))
    sd = float(defined.std(ddof=1)) if len(defined) > 1 else None
    interval = bootstrap_interval(values, clusters=clusters, confidence=confidence)
    units = mean_of_units(values, clusters)
    return {
        "n": len(defined),
        "units": len(units),
        "mean": float(defined.mean()),
        "low": interval.low if interval else None,
        "high": interval.high if interval else None,
        "sd": sd,
        "median": median,
        "q1": q1,
        "q3": q3,
        "smallest_difference": resolvable_difference(units),
    }


def resolvable_difference(units: np.ndarray) -> float | None:
    """`smallest_difference` from the spread of independent values (n,); None if they are too few, or all the same."""
    if len(units) < FEWEST or np.ptp(units) < LEAST_DIFFERENCE:
        return None
    return smallest_difference(float(units.std(ddof=1)), len(units))


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
        over runs) and ``standard_error_cases`` (sd_cases / sqrt(n)): if sd_runs is near it, one run says little. Of
        the cases that have a value in every run; None where there are too few.
    """
    tables = [table(frame, metric) for frame in runs.values()]
    found: dict[str, dict[str, float | None]] = {}
    for name in tables[0].columns:
        values = np.array([frame[name].reindex(tables[0].index).to_numpy(float) for frame in tables])
        values = values[:, np.isfinite(values).all(axis=0)]
        runs_, cases = values.shape
        spread = float(values.mean(axis=0).std(ddof=1)) if cases > 1 else None
        found[str(name)] = {
            "mean": float(values.mean()) if cases else None,
            "sd_runs": float(values.mean(axis=1).std(ddof=1)) if cases and runs_ > 1 else None,
            "sd_cases": spread,
            "standard_error_cases": None if spread is None else spread / np.sqrt(cases),
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
    groups = column_of_cases(frame["case"], metadata, column).replace("", "unknown")
    return {str(value): frame[(groups == value).to_numpy()] for value in sorted(set(groups), key=str)}


def clusters_of(cases: Sequence[str], metadata: pd.DataFrame, column: str) -> tuple[list[str], tuple[str, ...]]:
    """What each case belongs to, and the cases of which that is not known: each of these is a cluster of its own.

    One cluster of all of them would make intervals of cases that have nothing in common.

    Raises:
        UsageError, BadDataset: as `column_of_cases`.
    """
    values = column_of_cases(cases, metadata, column)
    alone = tuple(str(case) for case, value in values.items() if value.strip().lower() in NOT_KNOWN)
    unknown = set(alone)
    return [f"\0{case}" if case in unknown else value for case, value in values.items()], alone


def column_of_cases(cases: Sequence[str] | pd.Series, metadata: pd.DataFrame, column: str) -> pd.Series:
    """Value of a column of the metadata for each case, as text, "" where there is none.

    Raises:
        UsageError: there is no such column.
        BadDataset: none of the cases is in the metadata, or one is there more than once.
    """
    import pandas as pd

    if column not in metadata.columns:
        raise UsageError(f"the metadata has no column '{column}': {nearest(column, list(metadata.columns))}")
    values = metadata.astype({"case": str}).set_index("case")[column]
    if not set(cases) & set(values.index):
        problem = f"none of its cases is one of the evaluated (it has {some(list(values.index), 3)})"
        raise BadDataset(problem, fix="its column 'case' must hold case ids, as in cases.csv")
    if twice := sorted(set(values.index[values.index.duplicated()]) & set(cases)):
        raise BadDataset(f"the metadata names cases more than once: {some(twice)}", fix="give each case one row")
    found = values.reindex(pd.Index(cases))
    return found.astype(object).where(found.notna(), "").astype(str)


def read_table(path: str | Path, needed: Sequence[str] = ("case",)) -> pd.DataFrame:
    """A CSV file in which every cell is text, as it stands there: ``NA`` is a name, 007 has its zeros.

    Raises:
        UnreadableFile: missing or no CSV.
        BadDataset: a needed column is missing.
    """
    import pandas as pd

    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False)
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise UnreadableFile(f"is not a CSV table ({error})", path=path, fix="check the path") from error
    for column in needed:
        if column not in frame.columns:
            raise BadDataset(f"the table has no column '{column}' (has {', '.join(frame.columns)})", path=path)
    return frame.map(from_cell)


def table(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Cases by classes, the metric (or the outcome) in the cells; NaN is undefined.

    Raises:
        UsageError: the metric was not measured.
        InputRefused: a case and class in two rows, or a cell that is no number.
    """
    if metric not in frame.columns:
        known = [name for name in frame.columns if name not in ABOUT_CASES]
        raise UsageError(f"metric '{metric}' was not measured: {nearest(metric, known)}")
    if (twice := frame.duplicated(["case", "class"])).any():
        case, name = frame.loc[twice, ["case", "class"]].iloc[0]
        raise InputRefused(
            f"the table of cases has two rows of class '{name}'", case=str(case), fix="leave one of them"
        )
    values = frame[metric] if metric in ABOUT_CASES else _numbers(frame, metric)
    wide = frame.assign(value=values).pivot(index="case", columns="class", values="value")
    return wide[list(dict.fromkeys(frame["class"]))]


def _numbers(frame: pd.DataFrame, metric: str) -> pd.Series:
    import pandas as pd

    filled = frame[metric].map(lambda cell: None if cell == "" else cell)
    numbers = pd.to_numeric(filled, errors="coerce").astype(float)
    wrong = (numbers.isna() & filled.notna()) | np.isinf(numbers)
    if wrong.any():
        problem = f"'{metric}' is '{frame.loc[wrong, metric].iloc[0]}' (expected a number, or nothing)"
        raise InputRefused(problem, case=str(frame.loc[wrong, "case"].iloc[0]), fix="evaluate again")
    return numbers
