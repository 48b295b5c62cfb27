"""Check one case: every file readable, finite and on one grid, labels known; and the facts that need its voxels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from medseg.data.case_files import describe_missing
from medseg.data.check_landmarks import inspect_landmarks
from medseg.data.color import COLOR_FIX, in_color
from medseg.data.dataset import Case, SegmentationDataset
from medseg.data.duplicates import thumbnail
from medseg.data.findings import Finding, Repair
from medseg.data.fingerprint import Measure, Measured
from medseg.data.label_codes import harmless_threshold, threshold_fix
from medseg.data.landmark_files import LandmarkLayout
from medseg.data.read_case import check_dimensions
from medseg.errors import BadLabels, BadVoxels, MedsegError
from medseg.io import Geometry, Volume, read_labels, read_volume, to_canonical
from medseg.io.volume import corner_distance

SAME_GRID_VOXELS = 1e-3  # headers hold float32: less is the same grid
LARGEST_SHIFT_VOXELS = 1.0  # a header may be repaired up to here: more may be a real movement
MAX_CENTERS = 64  # of labels whose side is looked at
SMALLEST_PICTURE = 16  # pixels
LARGEST_ROUNDING = 0.05  # 0.97 was a 1; 0.6 comes from interpolation and could be anything


@dataclass
class CaseReport:
    """Findings of a case, and what the checks between cases need.

    Attributes:
        spacing: mm, canonical axis order; None if no image could be read.
        voxels: label value -> number of voxels; None if there is no usable label map.
        centers: label value -> mean position from left to right, in voxels of the canonical (RAS+) grid.
        minimum: lowest intensity of each channel.
        content: digest of the voxels in canonical order, the same for equal scans in any orientation.
        small: `thumbnail` of the image.
        landmarks: number of points in its landmark file; None if there is none that can be used.
        measured: what training takes from the case; None if it has no label map or training refuses it.
    """

    findings: list[Finding] = field(default_factory=list)
    spacing: tuple[float, ...] | None = None
    voxels: dict[int, int] | None = None
    centers: dict[int, float] = field(default_factory=dict)
    minimum: tuple[float, ...] = ()
    content: str | None = None
    small: np.ndarray | None = None
    landmarks: int | None = None
    measured: Measured | None = None


@dataclass(frozen=True)
class CaseInspector:
    """Checks cases of a dataset; picklable, so that worker processes can have it.

    Attributes:
        measure: what training demands of a case and takes from it.
        layout: what the points of landmark files belong to.
    """

    measure: Measure
    layout: LandmarkLayout | None = None

    @classmethod
    def of(cls, dataset: SegmentationDataset) -> CaseInspector:
        """The inspector for a dataset's cases."""
        return cls(Measure.of(dataset), dataset.landmarks)

    def __call__(self, case: Case) -> CaseReport:
        """Read all files of a case and report on them; faults become findings."""
        report = CaseReport()
        found = [_read_image(case, path, report) for path in case.images]
        volumes = [in_color(volume, self.measure.color) for volume in found if volume is not None]
        if len(volumes) == len(case.images):
            self._check_image(case, volumes, report)
        labels = None if case.label is None else self._check_labels(case, case.label, volumes, report)
        if case.landmarks is not None and volumes:
            grid = volumes[0].geometry
            report.landmarks, faults = inspect_landmarks(case.landmarks, case.id, grid, self.layout)
            report.findings += faults
        if labels is not None and volumes and not any(finding.severity == "error" for finding in report.findings):
            self._measure(case, volumes, labels, report)
        return report

    def _measure(self, case: Case, volumes: Sequence[Volume], labels: Volume, report: CaseReport) -> None:
        """What training does with the case: nothing that it refuses may pass."""
        image = Volume(np.concatenate([volume.array for volume in volumes]), volumes[0].geometry)
        try:
            report.measured = self.measure(case, image, labels)
        except MedsegError as error:
            report.findings.append(_finding(error, case, Path(error.path or case.images[0])))

    def _check_image(self, case: Case, volumes: Sequence[Volume], report: CaseReport) -> None:
        try:
            check_dimensions(case, volumes[0], self.measure.spatial_dims)
        except MedsegError as error:
            report.findings.append(_finding(error, case, case.images[0]))
            return
        channels = sum(len(volume.array) for volume in volumes)
        expected = self.measure.channels
        if channels != expected:
            problem = f"has {channels} channels (expected {expected}, as channel_names says)"
            pictures = volumes[0].ndim == 2 and {channels, expected} == {1, 3}
            fix = COLOR_FIX if pictures else "correct dataset.json or the files"
            report.findings.append(Finding("error", problem, case.id, case.images[0], fix))
        for path, volume in zip(case.images[1:], volumes[1:], strict=True):
            _check_grid(case, path, volumes[0].geometry, volume.geometry, report)
        report.minimum = tuple(float(channel.min()) for volume in volumes for channel in volume.array)
        if all(float(volume.array.max()) == float(volume.array.min()) for volume in volumes):
            report.findings.append(Finding("warning", "all voxels have the same value", case.id, case.images[0]))
        report.spacing = volumes[0].geometry.canonical().spacing
        if volumes[0].ndim == 2 and min(volumes[0].spatial_shape) < SMALLEST_PICTURE:
            size = "x".join(map(str, volumes[0].spatial_shape))
            problem = f"has {size} pixels; a network that halves four times needs {SMALLEST_PICTURE} along each side"
            report.findings.append(
                Finding("warning", problem, case.id, case.images[0], "it will be padded: is it whole?")
            )
        if channels == expected and len({volume.spatial_shape for volume in volumes}) == 1:
            image = np.concatenate([volume.canonical().array for volume in volumes])
            report.content = hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()
            report.small = thumbnail(image)

    def _check_labels(self, case: Case, path: Path, volumes: Sequence[Volume], report: CaseReport) -> Volume | None:
        labels, known = _read_labels(case, path, report), self.measure.known
        if labels is None:
            return None
        if volumes:
            _check_grid(case, path, volumes[0].geometry, labels.geometry, report)
        values, counts = np.unique(labels.array, return_counts=True)
        report.voxels = dict(zip(values.tolist(), counts.tolist(), strict=True))
        unknown = {value: count for value, count in report.voxels.items() if value not in known}
        if unknown:
            found = ", ".join(f"{value} ({count} voxels)" for value, count in list(unknown.items())[:8])
            problem = f"label values {found} are not in the dataset (expected {sorted(known)})"
            harmless = harmless_threshold([report.voxels]) if 255 in known and max(unknown) < 255 else None
            choice = f"set {threshold_fix(harmless)}, or " if harmless else ""
            fix = f"{choice}correct the file or dataset.json"
            report.findings.append(Finding("error", problem, case.id, path, fix))
        if not set(report.voxels) - {0}:
            report.findings.append(Finding("warning", "no foreground: every voxel is background", case.id, path))
        report.centers = _centers(to_canonical(labels.array, labels.geometry)[0], set(report.voxels) - {0})
        return labels


def near_integers(path: Path, case: str) -> Volume | None:
    """A label map whose values are at most `LARGEST_ROUNDING` from integers, rounded; else None."""
    stored = read_volume(path, case=case)
    rounded = np.rint(stored.array)
    is_near = len(rounded) == 1 and float(np.abs(stored.array - rounded).max()) <= LARGEST_ROUNDING
    return Volume(rounded.astype(np.int32), stored.geometry) if is_near else None


def _read_image(case: Case, path: Path, report: CaseReport) -> Volume | None:
    if not path.is_file():
        report.findings.append(Finding("error", describe_missing(path), case.id, path, "add or rename it"))
        return None
    try:
        return read_volume(path, case=case.id)
    except BadVoxels as error:
        volume = _or_none(lambda: read_volume(path, nan="zero", case=case.id))
        report.findings.append(_finding(error, case, path, repair="zero" if volume else None))
        return volume
    except MedsegError as error:
        report.findings.append(_finding(error, case, path))
        return None


def _read_labels(case: Case, path: Path, report: CaseReport) -> Volume | None:
    if not path.is_file():
        report.findings.append(Finding("error", describe_missing(path), case.id, path, "add or rename it"))
        return None
    try:
        return read_labels(path, case=case.id, coding=case.coding)
    except BadLabels as error:
        volume = _or_none(lambda: near_integers(path, case.id))
        report.findings.append(_finding(error, case, path, repair="round" if volume else None))
        return volume
    except MedsegError as error:
        report.findings.append(_finding(error, case, path))
        return None


def _or_none(read: Callable[[], Volume | None]) -> Volume | None:
    try:
        return read()
    except MedsegError:
        return None


def _finding(error: MedsegError, case: Case, path: Path, repair: Repair | None = None) -> Finding:
    fix = "medseg check fix=true repairs a copy" if repair else error.fix or ""
    return Finding("error", error.problem, case.id, path, fix, repair)


def _check_grid(case: Case, path: Path, image: Geometry, other: Geometry, report: CaseReport) -> None:
    """Same shape and same place: up to half a voxel is noted, more is refused, as training does."""
    difference = image.difference(other, tolerance_voxels=SAME_GRID_VOXELS)
    if not difference:
        return
    refused = image.difference(other) is not None
    repair: Repair | None = "grid" if _is_shift(image, other) else None
    problem = f"is on another grid than {case.images[0].name}: {difference}"
    again = "export it again, or resample it to the image"
    fix = "medseg check fix=true gives a copy the image's header" if repair else again
    report.findings.append(Finding("error" if refused else "note", problem, case.id, path, fix, repair))


def _is_shift(image: Geometry, other: Geometry) -> bool:
    """Equal shape, spacing and directions, and origins at most a voxel apart: two conventions for one grid."""
    if image.shape != other.shape:
        return False
    turned = np.linalg.solve(image.affine[:3, :3], other.affine[:3, :3]) - np.eye(3)
    if np.abs(turned).max() > SAME_GRID_VOXELS:
        return False
    return corner_distance(image.affine, other.affine, image.shape) <= LARGEST_SHIFT_VOXELS


def _centers(labels: np.ndarray, values: Collection[int]) -> dict[int, float]:
    """Mean index of each label along the first axis, left to right in RAS+; labels (*S)."""
    columns = np.arange(labels.shape[0])
    profiles = {
        value: (labels == value).sum(axis=tuple(range(1, labels.ndim))) for value in sorted(values)[:MAX_CENTERS]
    }
    return {value: float((columns * profile).sum() / profile.sum()) for value, profile in profiles.items()}
