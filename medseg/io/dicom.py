"""A folder of DICOM slices as one volume: SimpleITK decodes, and the headers of the slices say where they lie.

One series of single-frame grey slices is read. What would not give the image that was taken is refused in one line:
several series, slices of different size or direction, two at one place, gaps, colour, and multi-frame files.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medseg.errors import BadGeometry, BadVoxels, UnreadableFile
from medseg.io.endings import KNOWN_ENDINGS
from medseg.io.memory import require_memory
from medseg.io.volume import Geometry, check_affine

if TYPE_CHECKING:
    import SimpleITK

logger = logging.getLogger(__name__)

UNEVEN = 0.2  # of the distance of slices: rounded positions stay below, a missing slice moves one by a third and more
SAME_PLACE_MM = 1e-3
PARALLEL = 1e-3
_BYTES_PER_VALUE = 12  # ITK's image, numpy's copy, and the channel that is handed on, in single precision
_SOP_CLASS = re.compile(rb"\x02\x00\x02\x00UI..([0-9.]+)", re.DOTALL)
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class _Slice:
    path: Path
    kind: str  # SOP class
    series: str
    size: tuple[int, ...]  # columns, rows
    spacing: tuple[float, ...]  # mm between columns, between rows
    thickness: float
    directions: np.ndarray  # (2, 3): along a row, along a column
    position: np.ndarray  # of the first pixel, LPS mm


def is_dicom(path: Path) -> bool:
    """Whether a file bears the mark of DICOM; a DICOMDIR, which holds no image, does not count."""
    if path.name.startswith(".") or path.name.upper() == "DICOMDIR" or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def holds_dicom(folder: Path) -> bool:
    """Whether DICOM files lie directly in a folder; one that cannot be opened counts, so that reading names it."""
    return folder.is_dir() and any(map(_may_be_slice, sorted(folder.iterdir())))


def _may_be_slice(path: Path) -> bool:
    try:
        return is_dicom(path)
    except OSError:
        return not path.name.lower().endswith(KNOWN_ENDINGS)


def read_geometry(folder: Path) -> Geometry:
    """The grid, from the headers of all slices.

    Raises:
        UnreadableFile, BadGeometry, BadVoxels: see the module.
    """
    return _geometry(_series(folder))


def read(folder: Path) -> tuple[np.ndarray, Geometry]:
    """Voxels (1, columns, rows, slices) float32, every slice's own slope and intercept applied, and their grid.

    Raises:
        UnreadableFile, BadGeometry, BadVoxels: see the module.
        InputRefused: more voxels than the memory holds.
    """
    import SimpleITK

    geometry = _geometry(_series(folder))
    require_memory(_BYTES_PER_VALUE * int(np.prod(geometry.shape)))
    reader = SimpleITK.ImageSeriesReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileNames(geometry.source["files"])
    # Else the first slice decides the type, and slopes of the others, as in PET, are cut to whole numbers.
    reader.SetOutputPixelType(SimpleITK.sitkFloat32)
    try:
        voxels = SimpleITK.GetArrayFromImage(reader.Execute())  # (slices, rows, columns)
    except RuntimeError as error:
        raise UnreadableFile(f"a slice is damaged: {_last_line(error)}", fix="export the series again") from None
    return voxels.T[None], geometry


def _series(folder: Path) -> list[_Slice]:
    """The slices of a folder in the order of their places, known to be of one grid."""
    import SimpleITK

    files = sorted(filter(is_dicom, folder.iterdir()))
    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    slices, others = [], []
    for file in files:
        reader.SetFileName(str(file))
        try:
            reader.ReadImageInformation()
        except RuntimeError:
            others.append(file)
            continue
        slices.append(_slice(file, reader))
    _check_others(others, {one.kind for one in slices})
    if not slices:
        raise UnreadableFile("holds no DICOM image", path=folder, fix="give the folder that holds the slices")
    _check_alike(slices)
    normal = np.cross(*slices[0].directions)
    return sorted(slices, key=lambda one: float(one.position @ normal))


def _slice(path: Path, reader: SimpleITK.ImageFileReader) -> _Slice:
    def text(tag: str) -> str:
        return str(reader.GetMetaData(tag)).strip() if reader.HasMetaDataKey(tag) else ""

    def numbers(tag: str, name: str, count: int) -> np.ndarray:
        try:
            found = np.array(text(tag).split("\\"), dtype=float)
        except ValueError:
            found = np.empty(0)
        if len(found) != count or not np.isfinite(found).all():
            fix = "export the slices again, or convert them to NIfTI"
            raise BadGeometry(f"{name} is '{text(tag)}' (expected {count} numbers)", path=path, fix=fix)
        return found

    if reader.GetNumberOfComponents() > 1:
        problem = f"is in colour: {text('0028|0004') or reader.GetNumberOfComponents()} (expected grey slices)"
        raise BadVoxels(problem, path=path, fix="export the pictures as .png")
    if int(np.prod(reader.GetSize()[2:])) > 1:
        problem = f"is a multi-frame file of {reader.GetSize()[2]} frames (expected one slice per file)"
        raise BadVoxels(problem, path=path, fix="convert it to NIfTI, e.g. with dcm2niix")
    rows, columns = numbers("0028|0030", "PixelSpacing", 2)
    directions = numbers("0020|0037", "ImageOrientationPatient", 6).reshape(2, 3)
    thickness = text("0018|0088") or text("0018|0050")
    return _Slice(
        path=path,
        kind=text("0008|0016"),
        series=text("0020|000e"),
        size=tuple(reader.GetSize()[:2]),
        spacing=(columns, rows),
        thickness=float(thickness) if re.fullmatch(r"[\d.]+", thickness) else 1.0,
        directions=directions / np.linalg.norm(directions, axis=1, keepdims=True).clip(1e-9),
        position=numbers("0020|0032", "ImagePositionPatient", 3),
    )


def _check_others(others: Sequence[Path], kinds: set[str]) -> None:
    """Files that are no images, such as reports and contours, are left out; a damaged slice must not be."""
    for path in others:
        with path.open("rb") as file:
            match = _SOP_CLASS.search(file.read(1024))
        if match is None or not kinds or match[1].decode() in kinds:
            raise UnreadableFile("is truncated or damaged", path=path, fix="copy or export the slices again")
    if others:
        logger.info("%s: %d DICOM files are no images and were left out", others[0].parent, len(others))


def _check_alike(slices: Sequence[_Slice]) -> None:
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


def _geometry(slices: Sequence[_Slice]) -> Geometry:
    """The grid; slices may be shifted evenly within their planes, as a tilted gantry does."""
    first = slices[0]
    affine = np.eye(4)
    affine[:3, 0] = first.directions[0] * first.spacing[0]
    affine[:3, 1] = first.directions[1] * first.spacing[1]
    affine[:3, 2] = _step(slices)
    affine[:3, 3] = first.position
    affine = _LPS_TO_RAS @ affine
    check_affine(affine)
    files = [str(one.path) for one in slices]
    return Geometry((*first.size, len(slices)), affine, {"format": "dicom", "files": files})


def _step(slices: Sequence[_Slice]) -> np.ndarray:
    """From one slice to the next in mm, the same for all; in LPS."""
    normal = np.cross(*slices[0].directions)
    if len(slices) == 1:
        return normal * slices[0].thickness
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


def _last_line(error: RuntimeError) -> str:
    return str(error).strip().splitlines()[-1][:200]
