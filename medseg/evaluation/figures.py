"""The distribution of every headline score, by class."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from medseg.text import for_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from medseg.evaluation.report import Report

BLUE, RED, GREY = "#2a6f97", "#c1121f", "#6b7280"
# Okabe and Ito (2008), which colour-blind readers can tell apart; the first ones show well on black and on white.
COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#d55e00", "#0072b2", "#f0e442")
VOLUME = "reference_volume_ml"
MARKERS = "osD^vPX"
MOST_CLASSES = 24  # more boxes cannot be told apart; the table has them all
MOST_POINTS = 5000


def plotted_classes(report: Report) -> list[str]:
    """The classes that have a box in the plots: all, or the `MOST_CLASSES` with the worst first headline score."""
    names, metric = list(report.settings.classes), report.headline[0]
    if len(names) <= MOST_CLASSES:
        return names
    sign = 1 if report.settings.metrics[metric].best == 1 else -1

    def goodness(name: str) -> float:
        mean = report.aggregates[name]["metrics"][metric]["mean"]
        return float("inf") if mean is None else sign * mean

    return sorted(names, key=goodness)[:MOST_CLASSES]


def draw_distributions(report: Report) -> bytes:
    """A box with all points for every class, one panel for each headline score; penalised cases are red crosses.

    Returns:
        PNG.
    """
    from matplotlib.figure import Figure

    names, count = plotted_classes(report), len(report.headline)
    columns = min(count, 4 if len(names) <= 4 else 2 if len(names) <= 10 else 1)
    rows = -(-count // columns)
    width = max(3.2, 0.55 * len(names) + 1.2)
    figure = Figure(figsize=(width * columns, 3.6 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axes, metric in zip(panels, report.headline, strict=False):
        _draw_metric(axes, report, metric, names)
    for axes in panels[count:]:
        axes.set_visible(False)
    return to_png(figure)


def draw_error_against_volume(report: Report) -> bytes | None:
    """The first headline score of every case against the reference's volume, which shows whether small ones fail.

    Returns:
        PNG; None if volumes were not measured.
    """
    from matplotlib.figure import Figure

    if VOLUME not in report.settings.metrics:
        return None
    figure = Figure(figsize=(7.4, 3.8), layout="constrained")
    axes, metric = figure.subplots(), report.headline[0]
    volumes = _draw_volumes(axes, report, metric)
    if volumes.size and volumes.max() > 10 * volumes.min():
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(f"{'area' if report.of_pictures else 'volume'} of the reference ({report.unit(VOLUME)})")
    axes.set_ylabel(report.heading(metric))
    axes.grid(color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return to_png(figure)


def to_png(figure: Figure, dpi: int = 130) -> bytes:
    """The figure as PNG, with nothing in it that changes from run to run."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # names in scripts that the font lacks
        figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def _draw_metric(axes: Any, report: Report, metric: str, names: list[str]) -> None:
    jitter = np.random.default_rng(0)
    for position, name in enumerate(names, 1):
        pairs = [(r.scores[name][metric], r.outcome(name) == "scored") for r in report.results]
        values = np.array([value for value, _ in pairs if value is not None], dtype=float)
        if not values.size:
            continue
        scored = np.array([fine for value, fine in pairs if value is not None])
        place = position + jitter.uniform(-0.14, 0.14, values.size)
        colours = {"color": GREY, "linewidth": 1}
        axes.boxplot(
            values,
            positions=[position],
            widths=0.55,
            showfliers=False,
            boxprops=colours,
            whiskerprops=colours,
            capprops=colours,
            medianprops={"color": BLUE, "linewidth": 2},
        )
        axes.scatter(place[scored], values[scored], s=14, color=BLUE, alpha=0.6, linewidths=0, zorder=3)
        axes.scatter(place[~scored], values[~scored], s=28, color=RED, marker="x", zorder=4)
    axes.set_title(report.heading(metric), fontsize=11)
    slant = {"rotation": 35, "ha": "right"} if len(names) > 4 or max(map(len, names)) > 12 else {}
    axes.set_xticks(range(1, len(names) + 1), list(map(for_figure, names)), fontsize=9, **slant)
    axes.set_xlim(0.4, len(names) + 0.6)
    axes.set_ylim(*((-0.03, 1.03) if report.settings.metrics[metric].best == 1 else (0, None)))
    axes.grid(axis="y", color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_volumes(axes: Any, report: Report, metric: str) -> np.ndarray:
    """One colour and marker for each class where they can be told apart, one colour for all otherwise; the volumes."""
    points = {
        name: [
            (x, y)
            for r in report.results
            if (x := r.scores[name][VOLUME]) and (y := r.scores[name][metric]) is not None
        ]
        for name in report.settings.classes
    }
    points = {name: found for name, found in points.items() if found}
    step = sum(map(len, points.values())) // MOST_POINTS + 1
    few = len(points) <= len(COLOURS)
    for position, (name, found) in enumerate(points.items()):
        look = {"marker": MARKERS[position], "label": for_figure(name)} if few else {}
        x, y = np.array(found[::step]).T
        axes.scatter(
            x, y, s=20 if few else 8, color=COLOURS[position] if few else BLUE, alpha=0.7 if few else 0.3, **look
        )
    return np.array([x for found in points.values() for x, _ in found])
