"""Worst, median and best case as pictures: reference and prediction on three planes through the largest error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from medseg.evaluation.aggregate import mean_of
from medseg.evaluation.figures import COLOURS, to_png
from medseg.evaluation.views import Shown, View
from medseg.text import for_figure

if TYPE_CHECKING:
    from medseg.evaluation.report import Report

PLANES = {"axial": 2, "coronal": 1, "sagittal": 0}  # the axis of RAS+ that a plane cuts
MOST_NAMES = 9  # in a legend
MOST_LETTERS = 48  # of a case in a title
GOLDEN_STEP = 0.618034  # of the colour circle


def draw_overlays(report: Report, shown: Sequence[Shown]) -> bytes:
    """One row for each case, as `draw_overlay`, in one picture.

    Returns:
        PNG.
    """
    return _draw(report, shown, titled=True)


def draw_overlay(report: Report, shown: Shown) -> bytes:
    """Three planes (2D: the image) through the voxel that lies deepest within a region where the label maps differ.

    The reference is drawn as filled colour, the prediction as a line of the same colour.

    Returns:
        PNG.
    """
    return _draw(report, [shown], titled=False)


def _draw(report: Report, shown: Sequence[Shown], *, titled: bool) -> bytes:
    from matplotlib.figure import Figure

    flat = len(shown[0].view.spacing) == 2
    columns, width, legend_columns = (1, 5.0, 2) if flat else (3, 11.1, 4)
    handles = _legend(report, [one.view for one in shown])
    heights = [4.0] * len(shown) + [0.25 * -(-len(handles) // legend_columns) + 0.1]
    figure = Figure(figsize=(width, sum(heights)), layout="constrained", facecolor="white")
    *rows, bottom = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    for row, one in zip(rows, shown, strict=True):
        if titled:
            between = "\n" if flat else "   "
            title = f"{one.title}: {for_figure(one.result.files.id, MOST_LETTERS)}{between}{scores_line(report, one)}"
            row.suptitle(title, fontsize=11, x=0.01, ha="left")
        _draw_case(row.subplots(1, columns, squeeze=False)[0], report, one.view)
    bottom.legend(handles=handles, loc="center", ncols=min(legend_columns, len(handles)), frameon=False, fontsize=10)
    return to_png(figure, dpi=110)


def _draw_case(axes: Any, report: Report, view: View) -> None:
    centre, window = view.centre(), view.window()
    planes = PLANES if len(view.spacing) == 3 else {"image": None}
    for panel, (plane, axis) in zip(axes, planes.items(), strict=True):
        _draw_plane(panel, report, view, window, centre, axis)
        panel.set_title(plane, fontsize=9, color="#6b7280")


def _draw_plane(
    panel: Any, report: Report, view: View, window: tuple[slice, ...], centre: tuple[int, ...], axis: int | None
) -> None:
    index = tuple(centre[a] if a == axis else part for a, part in enumerate(window))
    across, down = [size for a, size in enumerate(view.spacing) if a != axis] if axis is not None else (1.0, 1.0)
    # (x, y) of RAS+ becomes (row, column); a 2D image is (row, column) already
    turn = (lambda plane: plane[index].T) if axis is not None else (lambda plane: plane[index])
    reference, prediction = turn(view.reference), turn(view.prediction)
    back = np.zeros(reference.shape) if view.image is None else turn(view.image)
    low, high = np.percentile(back, [1, 99])
    panel.set_facecolor("black")
    shown = ((back - low) / ((high - low) or 1.0)).clip(0, 1)  # in grey, or (H, W, 3) in colour
    panel.imshow(shown, cmap="gray", vmin=0, vmax=1, aspect=down / across, interpolation="nearest")
    panel.autoscale(False)  # a line beside the picture does not make room for itself
    for colour, values in zip(_colours(report), report.settings.classes.values(), strict=True):
        inside, outline = np.isin(reference, values), np.isin(prediction, values)
        if inside.any():
            panel.contourf(inside, levels=[0.5, 1.5], colors=[colour], alpha=0.4)
        if outline.any():
            # Within a rim of background, unclipped and above the frame: what reaches the border has its line there.
            places = (np.arange(-1, size + 1) for size in outline.shape[::-1])
            line = panel.contour(*places, np.pad(outline, 1), levels=[0.5], colors=[colour], linewidths=1.8, zorder=3)
            line.set_clip_on(False)
    panel.set_xticks([])
    panel.set_yticks([])
    if axis is not None:
        _orient(panel, axis)


def _orient(panel: Any, axis: int) -> None:
    """Radiological convention: the patient's right at the left of the picture, head up, front up or right."""
    panel.invert_yaxis()
    left, right = ("P", "A") if axis == 0 else ("R", "L")
    if axis != 0:
        panel.invert_xaxis()
    box = {"facecolor": "black", "alpha": 0.6, "linewidth": 0, "pad": 1.5}
    for place, letter, side in ((0.02, left, "left"), (0.98, right, "right")):
        panel.text(place, 0.5, letter, transform=panel.transAxes, color="white", fontsize=9, ha=side, bbox=box)


def scores_line(report: Report, shown: Shown) -> str:
    """ "Dice 0.91, HD95 2.1 mm": means over classes of the headline scores."""
    parts = []
    for metric in report.headline:
        mean = mean_of(scores[metric] for scores in shown.result.scores.values())
        key = report.settings.metrics[metric].key
        parts.append(f"{key} " + ("–" if mean is None else f"{mean:.3g} {report.unit(metric)}".strip()))
    return ", ".join(parts)


def _legend(report: Report, views: Sequence[View]) -> list[Any]:
    """Handles: the classes that are there, and how reference and prediction are drawn."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    present = {
        int(value) for view in views for labels in (view.reference, view.prediction) for value in np.unique(labels)
    }
    classes = zip(_colours(report), report.settings.classes.items(), strict=True)
    there = [(colour, name) for colour, (name, values) in classes if present.intersection(values)]
    handles: list[Any] = [Patch(facecolor=colour, label=for_figure(name)) for colour, name in there[:MOST_NAMES]]
    if len(there) > MOST_NAMES:
        handles += [Patch(facecolor="none", label=f"and {len(there) - MOST_NAMES} more")]
    handles += [Patch(facecolor="#9ca3af", alpha=0.5, label="filled: reference")]
    return [*handles, Line2D([], [], color="#374151", linewidth=1.8, label="line: prediction")]


def _colours(report: Report) -> list[Any]:
    """Few classes: colours that colour-blind readers tell apart; many: hues in steps that keep neighbours apart.

    The first one is orange, which stands out from grey but not from skin or stained tissue: pictures begin with blue.
    """
    from matplotlib import colormaps

    count = len(report.settings.classes)
    if count <= len(COLOURS):
        order = (*COLOURS[1:], COLOURS[0]) if report.of_pictures else COLOURS
        return list(order[:count])
    return [colormaps["hsv"](i * GOLDEN_STEP % 1) for i in range(count)]
