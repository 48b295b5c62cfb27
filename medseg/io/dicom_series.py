"""A folder of DICOM slices as one grid: every file in it is read, or named with the reason why it is no slice.

One series of single-frame grey slices is read. What would not give the image that was taken is refused in one line:
files that are empty or damaged, several series, slices of different size or direction, two at one place, gaps, colour,
and multi-frame files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medseg.errors import BadGeometry, BadVoxels, UnreadableFile, some
from medseg.io.dicom_mark import DIRECTORY, bears_mark, is_other_file
from medseg.io.dicom_pixels import check_pixels, slice_values
from medseg.io.dicom_slice import EXPORT_AGAIN, Slice, describe, parse, sop_class, text
from medseg.io.volume import check_affine

if TYPE_CHECKING:
    from pydicom import Dataset

UNEVEN = 0.2  # of the distance of slices: rounded positions stay below, a missing slice moves one by a third and more
SAME_PLACE_MM = 1e-3
PARALLEL = 1e-3
STANDARD = "1.2.840.10008."  # root of the identifiers that the standard defines, all of which pydicom knows
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Series:
    """Slices in the order of their places.

    Attributes:
        slices: of one grid.
        affine: (4, 4), voxel (column, row, slice) to RAS+ mm.
        left_out: name of every other file of the folder -> why it is no slice.
    """

    slices: tuple[Slice, ...]
    affine: np.ndarray
    left_out: dict[str, str]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Columns, rows, slices."""
        return (*self.slices[0].size, len(self.slices))

    def values(self) -> Iterator[np.ndarray]:
        """The values of one slice after the other, (rows, columns) float32; errors of `slice_values`."""
        for one in self.slices:
            dataset = parse(one.path)
            check_pixels(dataset, one)
            yield slice_values(dataset, one)


def read_series(folder: Path) -> Series:
    """The grid, from the headers of all slices, whose pixel data have the length that these promise.

    Raises:
        UnreadableFile, BadGeometry, BadVoxels: see the module.
    """
    slices, others, left_out = [], [], {}
    for path in sorted(folder.iterdir()):
        reason = _no_dicom(path)
        if reason is not None:
            left_out[path.name] = reason
            continue
        dataset = parse(path)
        if _is_image(dataset):
            slices.append(describe(dataset, path))
            check_pixels(dataset, slices[-1])
        else:
            others.append((path, sop_class(dataset), text(dataset, "SeriesInstanceUID")))
    left_out |= _others(others, slices)
    if not slices:
        named = f" ({some([f'{name}: {reason}' for name, reason in left_out.items()])})" if left_out else ""
        problem = f"holds no DICOM image{named}"
        raise UnreadableFile(problem, path=folder, fix="give the folder that holds the slices")
    _check_alike(slices)
    normal = np.cross(*slices[0].directions)
    ordered = sorted(slices, key=lambda one: float(one.position @ normal))
    return Series(tuple(ordered), _affine(ordered), left_out)


def _no_dicom(path: Path) -> str | None:
    """Why an entry of the folder is certainly no slice; None for DICOM, and refused where it may have been a slice."""
    if path.name.startswith("."):
        return "is hidden"
    if path.is_dir():
        return "is a folder"
    if path.name.upper() == DIRECTORY:
        return "lists files"
    if not path.is_file():
        raise UnreadableFile("is a broken link or no regular file", path=path, fix="copy the slice, or remove the link")
    if bears_mark(path):
        return None
    if is_other_file(path.name):
        return "is no DICOM file"
    problem = "is no DICOM file" if path.stat().st_size else "is empty"
    fix = "copy the slice again, or take the file out of the folder"
    raise UnreadableFile(f"{problem}: a slice that is damaged?", path=path, fix=fix)


def _is_image(dataset: Dataset) -> bool:
    return "PixelData" in dataset or "Rows" in dataset


def _others(others: Sequence[tuple[Path, str, str]], slices: Sequence[Slice]) -> dict[str, str]:
    """Objects without pixels, such as reports and contours, are named; what may be a damaged slice is refused."""
    from pydicom.uid import UID

    left_out = {}
    kinds, known_series = {one.kind for one in slices}, {one.series for one in slices}
    for path, kind, series in others:
        uid = UID(kind)
        if not kind or kind in kinds or "Image Storage" in uid.name:
            raise UnreadableFile("is truncated or damaged", path=path, fix=EXPORT_AGAIN)
        private = uid.is_valid and not kind.startswith(STANDARD) and series and series not in known_series
        if uid.type != "SOP Class" and not private:  # an identifier that was cut off or changed
            shown = "".join(character if character.isprintable() else "?" for character in kind[:64])
            fix = f"{EXPORT_AGAIN}, or take the file out of the folder"
            raise UnreadableFile(f"holds no pixels (SOP class {shown})", path=path, fix=fix)
        left_out[path.name] = f"holds no pixels ({uid.name})"
    return left_out


def _check_alike(slices: Sequence[Slice]) -> None:
    first, folder = slices[0], slices[0].path.parent
    series = Counter(one.series for one in slices)
    if len(series) > 1:
        counts = " and ".join(map(str, series.values()))
        problem = f"holds {len(series)} series, of {counts} slices (expected one)"
        raise BadGeometry(problem, path=folder, fix="put each series into a folder of its own")
    for one in slices:
        if one.size != first.size or not np.allclose(one.spacing, first.spacing, rtol=1e-3):
            found, expected = ("{}x{} pixels of {:.4g}x{:.4g} mm".format(*s.size, *s.spacing) for s in (one, first))
            raise BadGeometry(f"has {found}, {first.path.name} {expected}", path=one.path, fix="separate them")
        if np.abs(one.directions - first.directions).max() > PARALLEL:
            problem = f"is not parallel to {first.path.name} (a localiser?)"
            raise BadGeometry(problem, path=one.path, fix="take it out of the folder")
        if one.pixels.dtype != first.pixels.dtype:
            problem = f"has {one.pixels.dtype} pixels, {first.path.name} {first.pixels.dtype}"
            raise BadVoxels(problem, path=one.path, fix=EXPORT_AGAIN)
        if (one.pixels.rescale is None) != (first.pixels.rescale is None):
            problem = f"RescaleSlope and RescaleIntercept are missing in one of this and {first.path.name}"
            raise BadVoxels(problem, path=one.path, fix=EXPORT_AGAIN)


def _affine(slices: Sequence[Slice]) -> np.ndarray:
    """The grid; slices may be shifted evenly within their planes, as a tilted gantry does."""
    first = slices[0]
    affine = np.eye(4)
    affine[:3, 0] = first.directions[0] * first.spacing[0]
    affine[:3, 1] = first.directions[1] * first.spacing[1]
    affine[:3, 2] = _step(slices)
    affine[:3, 3] = first.position
    affine = np.asarray(_LPS_TO_RAS @ affine)
    check_affine(affine)
    return affine


def _step(slices: Sequence[Slice]) -> np.ndarray:
    """From one slice to the next in mm, the same for all; in LPS."""
    normal = np.cross(*slices[0].directions)
    if len(slices) == 1:
        return normal * _thickness(slices[0])
    positions = np.array([one.position for one in slices])
    gaps = np.diff(positions @ normal)
    where = int(np.argmin(gaps))
    if gaps[where] < SAME_PLACE_MM:
        problem = f"lies at the same place as {slices[where].path.name} ({int((gaps < SAME_PLACE_MM).sum())} pairs)"
        raise BadGeometry(problem, path=slices[where + 1].path, fix="give one phase, echo or time per folder")
    step = (positions[-1] - positions[0]) / (len(slices) - 1)
    off = np.linalg.norm(positions - positions[0] - np.arange(len(slices))[:, None] * step, axis=1)
    if off.max() > UNEVEN * np.linalg.norm(step):
        where = int(np.argmax(np.abs(gaps - np.median(gaps))))
        between = f"between {slices[where].path.name} and {slices[where + 1].path.name}"
        problem = f"slices are not evenly spaced: {gaps[where]:.4g} mm {between}, {np.median(gaps):.4g} mm elsewhere"
        raise BadGeometry(problem, path=slices[0].path.parent, fix="add the missing slices or separate the series")
    return np.asarray(step)


def _thickness(one: Slice) -> float:
    """Of a single slice, which no other one measures."""
    if one.thickness is None or one.thickness < 0:
        found = "unknown" if one.thickness is None else f"{one.thickness:g} mm"
        problem = (
            f"the thickness of the only slice is {found} (expected SpacingBetweenSlices or SliceThickness above 0)"
        )
        raise BadGeometry(problem, path=one.path, fix="export the series again, or convert it to NIfTI")
    return one.thickness
