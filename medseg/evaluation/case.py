"""Evaluate one case from its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from medseg.errors import BadDataset, BadGeometry, BadLabels, MedsegError, UsageError
from medseg.evaluation.arrays import Scores, score_class
from medseg.evaluation.boundary import Surface
from medseg.evaluation.calibration import CalibrationMetric
from medseg.evaluation.channels import Groups, assumed_channels, recorded_channels, shares_by_class
from medseg.evaluation.folders import PROBABILITIES, CaseFiles
from medseg.evaluation.metrics import Metric
from medseg.evaluation.pair import ClassPair, LabelPair, check_channels
from medseg.io import Geometry, Volume, read_labels, read_volume

Resample = Literal["nearest"]
Outcome = Literal["scored", "missed", "false_positive", "empty", "missing"]


@dataclass(frozen=True)
class Settings:
    """What is measured and how; plain enough to be handed to a worker process.

    Attributes:
        classes: name -> label values.
        metrics: name -> metric.
        tolerances: class name -> mm.
        surface: definition of the boundary.
        ignore_label: reference value whose voxels are not counted.
        known: values that a label map may hold.
        resample: bring a prediction on another grid onto the reference's; None refuses it.
        relabel: label value of a prediction -> the value that it is taken for.
        relabel_references: likewise of a reference.
        pixel_size: mm of a pixel of pictures, whose files do not say it; None: 1.
    """

    classes: Mapping[str, tuple[int, ...]]
    metrics: Mapping[str, Metric]
    tolerances: Mapping[str, float]
    surface: Surface
    ignore_label: int | None
    known: frozenset[int]
    resample: Resample | None = None
    relabel: Mapping[int, int] = field(default_factory=dict)
    relabel_references: Mapping[int, int] = field(default_factory=dict)
    pixel_size: float | None = None

    def spacing(self, geometry: Geometry) -> tuple[float, ...]:
        """mm along each axis of a reference's grid.

        Raises:
            UsageError: the grid is not a picture's, and has a spacing of its own, which `pixel_size` contradicts.
        """
        if self.pixel_size is None:
            return geometry.spacing
        if len(geometry.shape) != 2:
            problem = "pixel_size is for pictures; this is a volume with a spacing of its own"
            raise UsageError(problem, fix="leave pixel_size out")
        return tuple(self.pixel_size for _ in geometry.shape)


@dataclass(frozen=True)
class CaseResult:
    """The scores of one case, by class and metric; None is undefined (the class is in neither label map)."""

    files: CaseFiles
    scores: Mapping[str, Scores]

    @property
    def missing(self) -> bool:
        """True if there was no prediction; every score is then the worst."""
        return self.files.prediction is None

    def outcome(self, name: str) -> Outcome:
        """What happened to a class in this case."""
        if self.missing:
            return "missing"
        scores = self.scores[name]
        if scores["n_ref"]:
            return "scored" if scores["n_pred"] else "missed"
        return "false_positive" if scores["n_pred"] else "empty"


def evaluate_case(files: CaseFiles, settings: Settings) -> CaseResult:
    """Read a case and score every class.

    Raises:
        BadGeometry: the two grids differ, and ``settings.resample`` does not allow it.
        BadLabels: values that are no integers or not known.
        UnreadableFile: a file is damaged.
    """
    reference = relabelled(
        read_labels(files.reference, case=files.id, coding=files.coding), settings.relabel_references
    )
    prediction = _prediction(files, reference, settings)
    pair = LabelPair(
        prediction,
        reference.array[0],
        spacing=settings.spacing(reference.geometry),
        ignore_label=settings.ignore_label,
        probabilities=_probabilities(files, reference, settings),
    )
    _refuse_unknown(pair, files, settings)
    scores = {}
    for name, values in settings.classes.items():
        one = pair.of(values, tolerance=settings.tolerances[name], surface=settings.surface)
        scores[name] = (score_missing if files.prediction is None else score_class)(one, settings.metrics)
    return CaseResult(files, scores)


def score_missing(pair: ClassPair, metrics: Mapping[str, Metric]) -> Scores:
    """Scores of a class without prediction: counts as if nothing was found, everything else at its worst.

    That holds for a class that the reference lacks too, so a tool gains nothing by failing on healthy cases.
    """
    return {name: metric(pair) if metric.worst is None else metric.penalty(pair) for name, metric in metrics.items()}


def resample_nearest(labels: Volume, onto: Geometry, outside: float = 0) -> np.ndarray:
    """Label values (*S), or a probability, at the voxel centres of another grid; ``outside`` beyond the image."""
    from scipy import ndimage

    dims = len(onto.shape)
    matrix = np.linalg.inv(labels.affine) @ onto.affine
    return ndimage.affine_transform(
        labels.array[0],
        matrix[:dims, :dims],
        offset=matrix[:dims, 3],
        output_shape=onto.shape,
        order=0,
        mode="grid-constant",
        cval=outside,
    )


def relabelled(labels: Volume, values: Mapping[int, int]) -> Volume:
    """Label map with values exchanged, all at once: {1: 2, 2: 1} swaps two."""
    if not values:
        return labels
    array = labels.array.astype(np.int64)
    for old, new in values.items():
        array[labels.array == old] = new
    return replace(labels, array=array)


def _probabilities(files: CaseFiles, reference: Volume, settings: Settings) -> dict[tuple[int, ...], np.ndarray] | None:
    """Probabilities of every class on the reference's grid, if a metric needs them and there is a prediction."""
    wanted = any(isinstance(metric, CalibrationMetric) for metric in settings.metrics.values())
    if not wanted or files.prediction is None:
        return None
    if files.probabilities is None:
        problem = f"has no probabilities (expected {files.id}{PROBABILITIES}.nii.gz beside its prediction)"
        fix = "predict with probabilities=true, or leave ece and brier out of metrics="
        raise BadDataset(problem, case=files.id, path=files.prediction, fix=fix)
    volume = read_volume(files.probabilities, case=files.id)
    groups = recorded_channels(files.probabilities)
    _refuse_channels_first(volume, reference, files)
    try:
        if groups is None:
            values = sorted(settings.known - {settings.ignore_label})
            groups = assumed_channels(len(volume.array), settings.classes, values)
        check_channels(volume.array, groups)
    except MedsegError as error:
        error.path = files.probabilities
        raise
    channels = _on_grid(volume, groups, files, reference, settings)
    groups = tuple(tuple(settings.relabel.get(value, value) for value in group) for group in groups)
    return shares_by_class(channels, groups, settings.classes)


def _on_grid(volume: Volume, groups: Groups, files: CaseFiles, reference: Volume, settings: Settings) -> np.ndarray:
    """Channels (K, *S) on the reference's grid, under the rule that its label map is brought there."""
    if reference.ndim == 2:  # pictures have no place; NIfTI puts an axis between theirs and the channels
        channels = volume.array[..., 0] if volume.ndim == 3 and volume.spatial_shape[-1] == 1 else volume.array
        if channels.shape[1:] == reference.spatial_shape:
            return channels
    difference = reference.geometry.difference(volume.geometry)
    if difference is None:
        return volume.array
    if settings.resample == "nearest" and volume.ndim == reference.ndim:
        outside = [float(group == (0,)) for group in groups]  # of the image is background
        pairs = zip(volume.array, outside, strict=True)
        return np.stack(
            [resample_nearest(replace(volume, array=one[None]), reference.geometry, fill) for one, fill in pairs]
        )
    raise _other_grid("probabilities", difference, files.id, files.probabilities)


def _refuse_channels_first(volume: Volume, reference: Volume, files: CaseFiles) -> None:
    """NIfTI has channels in its last axis; other tools put them first, and the first axis of space is read as them."""
    stored = (*volume.spatial_shape, len(volume.array))
    if stored[1:] == reference.spatial_shape and volume.spatial_shape != reference.spatial_shape:
        problem = f"the probabilities have shape {stored}, with their channels first"
        fix = "save the channels as the last axis of the file"
        raise BadGeometry(problem, case=files.id, path=files.probabilities, fix=fix)


def _prediction(files: CaseFiles, reference: Volume, settings: Settings) -> np.ndarray:
    if files.prediction is None:
        return np.zeros_like(reference.array[0])
    prediction = relabelled(read_labels(files.prediction, case=files.id), settings.relabel)
    difference = reference.geometry.difference(prediction.geometry)
    if difference is None:
        return prediction.array[0]
    if settings.resample == "nearest" and prediction.ndim == reference.ndim:
        return resample_nearest(prediction, reference.geometry)
    raise _other_grid("prediction", difference, files.id, files.prediction)


def _other_grid(what: str, difference: str, case: str, path: Path | None) -> BadGeometry:
    problem = f"the reference and the {what} are on different grids: {difference}"
    return BadGeometry(
        problem, case=case, path=path, fix="predict in the grid of the reference, or set resample=nearest"
    )


def _refuse_unknown(pair: LabelPair, files: CaseFiles, settings: Settings) -> None:
    for path, found in ((files.reference, pair.reference_values), (files.prediction, pair.prediction_values)):
        unknown = sorted(found - settings.known)
        if unknown:
            shown = ", ".join(map(str, unknown[:8])) + (" ..." if len(unknown) > 8 else "")
            known = ", ".join(map(str, sorted(settings.known)))
            raise BadLabels(
                f"has unknown label values {shown} (known: {known})",
                case=files.id,
                path=path,
                fix="relabel the file, name all values with labels=, or, of references that number objects or have "
                "shades of white, set instances=true or mask_threshold=128",
            )
