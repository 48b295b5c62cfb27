"""The distribution of every headline score, by class."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from medseg.evaluation.report import Report

BLUE, RED, GREY = "#2a6f97", "#c1121f", "#6b7280"
VOLUME = "reference_volume_ml"
MARKERS = "osD"
MOST_CLASSES = 24  # more boxes cannot be told apart; the table has them all


def draw_distributions(report: Report) -> bytes:
    """A box with all points for every class, one panel for each headline score; penalised cases are red crosses.

    Returns:
        PNG.
    """
    from matplotlib.figure import Figure

    names = list(report.settings.classes)[:MOST_CLASSES]
    width = max(3.2, 0.55 * len(names) + 1.2)
    figure = Figure(figsize=(width * len(report.headline), 3.6), layout="constrained")
    for axes, metric in zip(figure.subplots(1, len(report.headline), squeeze=False)[0], report.headline, strict=True):
        _draw_metric(axes, report, metric, names)
    return to_png(figure)


def draw_error_against_volume(report: Report) -> bytes | None:
    """The first headline score of every case against the reference's volume, which shows whether small ones fail.

    Returns:
        PNG; None if volumes were not measured.
    """
    from matplotlib.figure import Figure

    if VOLUME not in report.settings.metrics:
        return None
    metric = report.headline[0]
    figure = Figure(figsize=(7.4, 3.8), layout="constrained")
    axes = figure.subplots()
    for position, name in enumerate(list(report.settings.classes)[:MOST_CLASSES]):
        points = [(r.scores[name][VOLUME], r.scores[name][metric]) for r in report.results]
        shown = [(x, y) for x, y in points if x and y is not None]
        if shown:
            marker = MARKERS[position // 10 % len(MARKERS)]
            x, y = np.array(shown).T
            axes.scatter(x, y, s=20, marker=marker, color=f"C{position % 10}", alpha=0.7, label=name)
    chosen = report.settings.metrics[metric]
    volumes = [v for r in report.results for scores in r.scores.values() if (v := scores[VOLUME])]
    if volumes and max(volumes) > 10 * min(volumes):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("volume of the reference (ml)")
    axes.set_ylabel(f"{chosen.key} ({chosen.unit})" if chosen.unit else chosen.key)
    axes.grid(color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.collections:
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return to_png(figure)


def to_png(figure: Figure, dpi: int = 130) -> bytes:
    """The figure as PNG, with nothing in it that changes from run to run."""
    buffer = io.BytesIO()
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
    chosen = report.settings.metrics[metric]
    axes.set_title(f"{chosen.key} ({chosen.unit})" if chosen.unit else chosen.key, fontsize=11)
    slant = {"rotation": 35, "ha": "right"} if len(names) > 4 or max(map(len, names)) > 12 else {}
    axes.set_xticks(range(1, len(names) + 1), names, fontsize=9, **slant)
    axes.set_xlim(0.4, len(names) + 0.6)
    axes.set_ylim(*((-0.03, 1.03) if chosen.best == 1 else (0, None)))
    axes.grid(axis="y", color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
