"""Read and write any known format: one door in, one door out, chosen by the file's ending."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Literal

import numpy as np

from medseg.errors import BadGeometry, BadLabels, BadVoxels, MedsegError, UnreadableFile, UsageError
from medseg.io import dicom, image2d, itk, nifti
from medseg.io.endings import IMAGE_ENDINGS, NIFTI_ENDINGS, file_ending, label_ending
from medseg.io.label_coding import LabelCoding
from medseg.io.volume import Geometry, Volume

logger = logging.getLogger(__name__)

NanPolicy = Literal["refuse", "zero"]
LABEL_TOLERANCE = 1e-3  # scl_slope and float files miss an integer by rounding, never by more


def read_volume(path: str | Path, *, nan: NanPolicy = "refuse", case: str | None = None) -> Volume:
    """Read an image as float32 (C, *S) with its geometry; scl_slope is applied, 4D NIfTI and colours give channels.

    Args:
        path: a file with one of `KNOWN_ENDINGS`, or a folder of DICOM slices.
        nan: "refuse" NaN and infinite voxels, or make them "zero" and say so in the log.
        case: identifier to name in errors.

    Raises:
        InputRefused: `UnreadableFile`, `BadGeometry` or `BadVoxels`, with the file, the field and its value.
    """
    with _naming(path, case):
        stored, geometry = _reader(path).read(Path(path))
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is found as infinite below
            array = np.ascontiguousarray(stored, dtype=np.float32)
        if stored.dtype.kind == "f":
            array = finite_voxels(array, nan, path)
        return Volume(array, geometry)


def read_channels(paths: Sequence[str | Path], *, nan: NanPolicy = "refuse", case: str | None = None) -> Volume:
    """Read the files of one case, each one or more channels, as one (C, *S); the first file's geometry is kept.

    Raises:
        InputRefused: as `read_volume`; `BadGeometry` where two files are over half a voxel apart.
    """
    volumes = [read_volume(path, nan=nan, case=case) for path in paths]
    if len(volumes) == 1:
        return volumes[0]
    first = volumes[0].geometry
    for path, volume in zip(paths, volumes, strict=True):
        difference = first.difference(volume.geometry)
        if difference:
            problem = f"is on another grid than {Path(paths[0]).name}: {difference}"
            raise BadGeometry(problem, case=case, path=path, fix="resample the channels to one grid")
    return Volume(np.concatenate([volume.array for volume in volumes]), first)


def read_labels(path: str | Path, *, case: str | None = None, coding: LabelCoding | None = None) -> Volume:
    """Read a label map as integers (1, *S): uint8 if it fits, else int16 or int32.

    Args:
        path: a file with one of `KNOWN_ENDINGS`.
        case: identifier to name in errors.
        coding: how its pixels become label values; None: they are label values.

    Raises:
        BadLabels: a value further than 0.001 from an integer, several channels, or a colour that is not in the map.
        InputRefused: as `read_volume`.
    """
    with _naming(path, case):
        reader, in_color = _reader(path), coding is not None and bool(coding.colors)
        as_labels = reader is image2d and not in_color
        stored, geometry = image2d.read(Path(path), labels=True) if as_labels else reader.read(Path(path))
        stored = stored if coding is None else coding.decode(stored)
        if len(stored) != 1:
            raise BadLabels(f"has {len(stored)} channels (a label map has 1)", fix="write one number per voxel")
        return Volume(np.ascontiguousarray(_integers(stored)), geometry)


def read_geometry(path: str | Path, *, case: str | None = None) -> Geometry:
    """Read the grid from the header; no voxel is read.

    Raises:
        InputRefused: as `read_volume`, as far as the header and the file's length tell.
    """
    with _naming(path, case):
        return _reader(path).read_geometry(Path(path))


def write_labels(path: str | Path, labels: np.ndarray, geometry: Geometry) -> None:
    """Write integers (*S) in exactly the grid, affine and header codes of ``geometry``; atomic.

    Raises:
        BadLabels: not integers.
        BadGeometry: the shape is not that of ``geometry``.
        UsageError: a lossy format (.jpg).
        ResourceError: it cannot be written; the old file is intact.
    """
    path, labels = Path(path), np.asarray(labels)
    with _naming(path, None):
        ending = file_ending(path)
        if label_ending(ending) != ending:
            raise UsageError(f"{ending} would change the labels", fix=f"write {label_ending(ending)}")
        _format(path).write(path, _integers(Volume(labels[None], geometry).array), geometry)


def write_volume(path: str | Path, volume: Volume) -> None:
    """Write an image or probabilities (C, *S); atomic. Integers up to 32 bits stay, all else becomes float32.

    Raises:
        UsageError: the format cannot hold these numbers or channels.
        ResourceError: it cannot be written; the old file is intact.
    """
    array = volume.array
    if not (array.dtype.kind in "iu" and array.dtype.itemsize <= 4):
        array = array.astype(np.float32, copy=False)
    with _naming(path, None):
        _format(path).write(Path(path), array, volume.geometry)


def _reader(path: str | Path) -> ModuleType:
    return dicom if Path(path).is_dir() else _format(path)


def _format(path: str | Path) -> ModuleType:
    ending = file_ending(path)
    if ending in NIFTI_ENDINGS:
        return nifti
    return image2d if ending in IMAGE_ENDINGS else itk


@contextlib.contextmanager
def _naming(path: str | Path, case: str | None) -> Iterator[None]:
    """Put the file and the case into errors of the formats, which know neither."""
    try:
        yield
    except MedsegError as error:
        error.case, error.path = error.case or case, error.path or path
        error.args = (str(error),)
        raise
    except OSError as error:
        problem = f"cannot be read: {error.strerror or error}"
        raise UnreadableFile(problem, case=case, path=path, fix="check the path and its permissions") from None


def finite_voxels(array: np.ndarray, nan: NanPolicy, name: str | Path) -> np.ndarray:
    """The array itself where all is finite; else refused, or a copy in which what is not finite is 0.

    Args:
        array: floating point.
        nan: "refuse" or "zero".
        name: for the log.

    Raises:
        BadVoxels: NaN or infinite voxels are to be refused.
    """
    finite = np.isfinite(array)
    bad = int(finite.size - np.count_nonzero(finite))
    if not bad:
        return array
    if nan == "refuse":
        fix = "repair the file (medseg check fix=true does it in a copy of a dataset), or give medseg predict nan=zero"
        raise BadVoxels(f"{bad} of {finite.size} voxels are NaN or infinite", fix=fix)
    logger.warning("%s: %d NaN or infinite voxels were set to 0", name, bad)
    return np.where(finite, array, array.dtype.type(0))


def _integers(stored: np.ndarray) -> np.ndarray:
    """Labels in the smallest of uint8, int16 and int32."""
    values = _rounded(stored) if stored.dtype.kind == "f" else stored
    if values.dtype.kind not in "biu":
        raise BadLabels(f"labels are {values.dtype} (expected integers)")
    low, high = int(values.min()), int(values.max())
    for dtype in (np.uint8, np.int16, np.int32):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return values.astype(dtype, copy=False)
    raise BadLabels(f"labels run from {low} to {high} (at most 32 bits)", fix="number them from 0")


def _rounded(stored: np.ndarray) -> np.ndarray:
    if not np.isfinite(stored).all():
        raise BadLabels("holds NaN or infinite labels (expected integers)", fix="write whole numbers")
    rounded = np.rint(stored)
    wrong = stored[np.abs(stored - rounded) > LABEL_TOLERANCE]
    if wrong.size:
        shown = ", ".join(f"{value:.6g}" for value in np.unique(wrong)[:5])
        problem = f"{wrong.size} of {stored.size} labels are not integers, e.g. {shown}"
        raise BadLabels(problem, fix="write whole numbers; resample labels with nearest neighbour")
    if np.abs(rounded).max() > np.iinfo(np.int32).max:
        raise BadLabels(f"labels reach {np.abs(rounded).max():g} (at most 32 bits)", fix="number them from 0")
    return rounded.astype(np.int32)
