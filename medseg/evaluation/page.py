"""The report as one self-contained page."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from medseg.errors import some
from medseg.evaluation import causes
from medseg.evaluation.aggregate import foreground_mean, mean_of
from medseg.evaluation.case import CaseResult
from medseg.evaluation.overlap import COUNTS
from medseg.evaluation.statistics import FEWEST
from medseg.evaluation.summary import BOUNDARIES, RULES, chosen_rules, definitions
from medseg.evaluation.tables import format_number
from medseg.text import visible

if TYPE_CHECKING:
    from medseg.evaluation.report import Report
    from medseg.evaluation.views import Shown

MOST_ROWS = 1000  # of the table of cases; cases.csv has them all
MOST_GROUPS = 12  # with a table of their own; summary.json has them all
MOST_NAMES = 12  # of classes with one cause


def to_html(report: Report, shown: Sequence[Shown]) -> str:
    """One page with everything in it; it needs no network.

    Args:
        report: what was found.
        shown: the cases to draw.
    """
    from jinja2 import Environment, PackageLoader

    from medseg import __version__
    from medseg.evaluation.figures import MOST_POINTS, draw_distributions, draw_error_against_volume, plotted_classes
    from medseg.evaluation.overlay import draw_overlay, scores_line

    environment = Environment(loader=PackageLoader("medseg", "evaluation"), autoescape=True, trim_blocks=True)
    environment.finalize = _seen
    environment.filters["number"] = format_number
    volumes = draw_error_against_volume(report)
    return environment.get_template("report.html").render(
        report=report,
        version=__version__,
        metrics=report.settings.metrics,
        hidden=tuple(COUNTS),
        foreground={name: foreground_mean(report.aggregates, name) for name in {*report.scores, *report.headline}},
        definitions=definitions(report),
        boundary=BOUNDARIES[report.settings.surface],
        rules=RULES,
        chosen_rules=chosen_rules(report),
        distributions=as_text(draw_distributions(report)),
        volumes=None if volumes is None else as_text(volumes),
        plotted=plotted_classes(report),
        groups=list(report.aggregates_by_stratum.items())[:MOST_GROUPS],
        shown=[(one, scores_line(report, one), as_text(draw_overlay(report, one))) for one in shown],
        second_method=second_method(report),
        by_cause=by_cause,
        most_names=MOST_NAMES,
        most_points=MOST_POINTS,
        cause_rules=causes.RULES,
        rows=worst_first(report)[: max(1, MOST_ROWS // len(report.settings.classes))],
    )


def second_method(report: Report) -> str:
    """What these cases can tell of a second method by the first headline score, as far as they can tell anything."""
    first = report.headline[0]
    if first not in report.scores:
        return ""
    found = {name: entry["metrics"][first] for name, entry in report.aggregates.items() if entry["metrics"][first]["n"]}
    # A share cannot differ by more than 1; where it would have to, there are too few cases as well.
    scale = 1.0 if report.settings.metrics[first].worst == 0 else float("inf")
    sizes = {name: one["smallest_difference"] for name, one in found.items() if one["smallest_difference"] is not None}
    resolved = [size for size in sizes.values() if size < scale]
    few = [name for name, one in found.items() if one["units"] < FEWEST or sizes.get(name, 0) >= scale]
    lines = []
    if resolved:
        least, most = (format_number(end(resolved), 2) for end in (min, max))
        size = least if least == most else f"{least} to {most}"
        score = " ".join(filter(None, (report.settings.metrics[first].key, report.unit(first))))
        by_class = "" if least == most else ", by class,"
        lines.append(
            f"With these cases, a second method would have to differ by about {size} {score}{by_class} to be told "
            "apart (two-sided 5 %, power 80 %, scores correlated by 0.5)."
        )
    if few:
        of = "" if len(few) == len(report.settings.classes) else f" of {some(few)}"
        lines.append(f"Too few cases{of} to tell a second method apart; intervals of so few are too narrow.")
    return " ".join(lines)


def worst_first(report: Report) -> list[CaseResult]:
    """The cases, those with the worst mean over classes of the first headline score first."""
    metric = report.headline[0]
    sign = 1 if report.settings.metrics[metric].best == 1 else -1

    def badness(result: CaseResult) -> float:
        mean = mean_of(scores[metric] for scores in result.scores.values())
        return float("inf") if mean is None else sign * mean

    return sorted(report.results, key=badness)


def by_cause(found: Mapping[str, str]) -> dict[str, list[str]]:
    """Cause -> classes, in the order of the rules."""
    order = list(causes.RULES)
    named = sorted(set(found.values()), key=lambda cause: order.index(cause.partition(" (")[0]))
    return {cause: [name for name, its in found.items() if its == cause] for cause in named}


def _seen(value: Any) -> Any:
    """What the template prints; no control characters and no marks of direction."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def as_text(png: bytes) -> str:
    """A PNG for the ``src`` of an image within a page."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
