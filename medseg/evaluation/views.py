"""Which cases to show in pictures, and where to cut them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medseg.data.laterality import side_and_stem
from medseg.errors import MedsegError
from medseg.evaluation.aggregate import mean_of
from medseg.evaluation.case import CaseResult, Settings, relabelled, resample_nearest
from medseg.evaluation.causes import likely_causes
from medseg.io import Geometry, read_labels, read_volume, to_canonical

if TYPE_CHECKING:
    from medseg.evaluation.report import Report

MARGIN_MM = 12.0


def choose_cases(report: Report) -> dict[str, CaseResult]:
    """Worst, median and best of the cases that have a prediction (of all, if none has), by title."""
    metric = report.headline[0]
    towards_worse = report.settings.metrics[metric].best == 0

    def value(result: CaseResult) -> float:
        mean = mean_of(scores[metric] for scores in result.scores.values())
        return float("inf") if mean is None else -mean if towards_worse else mean

    pool = [result for result in report.results if not result.missing] or report.results
    ranked = sorted([result for result in pool if np.isfinite(value(result))] or pool, key=value)
    if len(ranked) == 1:
        return {"Only case": ranked[0]}
    middle = {"Median": ranked[(len(ranked) - 1) // 2]} if len(ranked) > 2 else {}
    return {"Worst": ranked[0], **middle, "Best": ranked[-1]}


@dataclass(frozen=True)
class View:
    """A case in RAS+ order: arrays (*S), the image of a picture in colour (*S, 3); spacing in mm."""

    image: np.ndarray | None
    reference: np.ndarray
    prediction: np.ndarray
    spacing: tuple[float, ...]

    def centre(self) -> tuple[int, ...]:
        """The voxel deepest within what the label maps say differently, else within what they say together."""
        import edt

        for mask in (self.reference != self.prediction, self.reference > 0):
            if mask.any():
                depth = edt.edt(np.ascontiguousarray(mask), anisotropy=self.spacing, black_border=True)
                return tuple(int(i) for i in np.unravel_index(int(depth.argmax()), mask.shape))
        return tuple(size // 2 for size in self.reference.shape)

    def window(self) -> tuple[slice, ...]:
        """The box that holds all labels, and a margin."""
        labelled = (self.reference > 0) | (self.prediction > 0)
        if not labelled.any():
            return tuple(slice(None) for _ in self.spacing)
        parts = []
        for axis, size in enumerate(self.spacing):
            found = np.flatnonzero(labelled.any(axis=tuple(a for a in range(labelled.ndim) if a != axis)))
            margin = round(MARGIN_MM / size) + 1
            parts.append(slice(max(0, int(found[0]) - margin), int(found[-1]) + margin + 1))
        return tuple(parts)


@dataclass(frozen=True)
class Shown:
    """A case that the report shows.

    Attributes:
        title: why it was chosen, "Worst".
        causes: class -> likely cause of its error.
    """

    title: str
    result: CaseResult
    view: View
    causes: dict[str, str]


def choose_views(report: Report) -> list[Shown]:
    """The cases of `choose_cases`, read."""
    classes, shown = report.settings.classes, []
    for title, result in choose_cases(report).items():
        view = read_view(result, report.settings)
        shown.append(
            Shown(title, result, view, likely_causes(view.prediction, view.reference, classes, sides_of(classes)))
        )
    return shown


def sides_of(names: Iterable[str]) -> dict[str, str]:
    """Class -> class on the other side of the body, by their names."""
    parts = {name: side_and_stem(name) for name in names}
    return {
        name: other
        for name, (side, stem) in parts.items()
        for other, (opposite, same) in parts.items()
        if side is not None and opposite is not None and side != opposite and stem == same
    }


def read_view(result: CaseResult, settings: Settings) -> View:
    """Read what a picture of a case needs; an image that cannot be used is left out, as are ignored voxels."""
    reference = relabelled(read_labels(result.files.reference, coding=result.files.coding), settings.relabel_references)
    geometry = reference.geometry
    prediction = np.zeros_like(reference.array)
    if result.files.prediction is not None:
        volume = relabelled(read_labels(result.files.prediction), settings.relabel)
        same = geometry.difference(volume.geometry) is None
        prediction = volume.array if same else resample_nearest(volume, geometry)[None]
    image = _background(result, geometry)
    counted = reference.array != settings.ignore_label  # all of them, if it is None
    return View(
        None if image is None else _channels_last(to_canonical(image, geometry)),
        to_canonical(np.where(counted, reference.array, 0), geometry)[0],
        to_canonical(np.where(counted, prediction, 0), geometry)[0],
        geometry.canonical().spacing,
    )


def _background(result: CaseResult, geometry: Geometry) -> np.ndarray | None:
    if result.files.image is None:
        return None
    try:
        image = read_volume(result.files.image, nan="zero")
    except MedsegError:
        return None
    in_colour = len(image.array) == 3 and len(geometry.shape) == 2
    return image.array[: 3 if in_colour else 1] if geometry.difference(image.geometry) is None else None


def _channels_last(image: np.ndarray) -> np.ndarray:
    """(1, *S) -> (*S), (3, *S) -> (*S, 3)."""
    return image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)
