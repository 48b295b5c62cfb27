"""The aggregate table as Markdown and as LaTeX, for a paper: mean with interval, median, found and penalised."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from medseg.evaluation.summary import chosen_rules
from medseg.text import for_latex, for_markdown

if TYPE_CHECKING:
    from medseg.evaluation.report import Report


def to_markdown(report: Report) -> str:
    """A table with one row for each class, and a line that says what the numbers are."""
    rows = _rows(report, for_markdown)
    lines = [" | ".join(row) for row in (rows[0], ["---"] * len(rows[0]), *rows[1:])]
    return "\n".join([*(f"| {line} |" for line in lines), "", _caption(report), ""])


def to_latex(report: Report) -> str:
    """The same table for LaTeX with the package booktabs."""
    rows = _rows(report, for_latex)
    lines = [" & ".join(row) + r" \\" for row in rows]
    body = [r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
    columns = "l" + "r" * (len(rows[0]) - 1)
    caption = "% " + _caption(report)
    return "\n".join([caption, rf"\begin{{tabular}}{{{columns}}}", *body, r"\end{tabular}", ""])


def format_number(value: float | None, digits: int = 4) -> str:
    """``digits`` significant figures, without exponent; "–" for None."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return str(value)
    whole = len(str(int(abs(value)))) if abs(value) >= 1 else 0
    return f"{value:.{max(0, digits - whole)}f}"


def format_interval(summary: dict[str, Any], digits: int = 3) -> str:
    """ "0.912 (0.902 to 0.921)", or the mean alone."""
    mean = format_number(summary["mean"], digits)
    if summary["low"] is None:
        return mean
    return f"{mean} ({format_number(summary['low'], digits)} to {format_number(summary['high'], digits)})"


def _rows(report: Report, escape: Callable[[str], str]) -> list[list[str]]:
    rows = [["Class", *map(report.heading, report.headline), "Found", "Penalised", "Empty"]]
    for name, entry in report.aggregates.items():
        summaries = [entry["metrics"][metric] for metric in report.headline]
        scores = [f"{format_interval(one)} / {format_number(one['median'], 3)}" for one in summaries]
        found = f"{entry['n_detected']}/{entry['n_reference']}"
        rows.append([name, *scores, found, str(entry["n_penalised"]), str(entry["n_empty"])])
    return [[escape(cell) for cell in row] for row in rows]


def _caption(report: Report) -> str:
    units = "cases" if report.clusters is None else f"{len(set(report.clusters.values()))} clusters of cases"
    percent = f"{100 * report.confidence:g} %"
    chosen = [f"empty masks of {keys}: {rule}" for keys, rule in chosen_rules(report).items()]
    empty = "; ".join(chosen or ["missed and invented structures at the worst value"])
    return (
        f"{len(report.results)} cases. Mean ({percent} BCa bootstrap interval over {units}) / median; {empty}. "
        f"Boundaries: {report.settings.surface}. Evaluated with medseg."
    )
