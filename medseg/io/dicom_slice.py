"""One DICOM file as pydicom parses it: what its header must say before a voxel of it is believed.

Only the few elements that decide on voxels and places are read, from their raw bytes and strictly: a number that is no
number, a value of another length or a picture in colour is refused, with the file, the element and its value.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medseg.errors import BadGeometry, BadVoxels, UnreadableFile

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.dataelem import DataElement, RawDataElement

GREY = ("MONOCHROME1", "MONOCHROME2")  # how to display the same numbers: neither changes them
NOT_NATIVE = 0xFFFFFFFF  # length of pixel data that are compressed
EXPORT_AGAIN = "copy or export the slices again"
CONVERT = "convert it to NIfTI, e.g. with dcm2niix"
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_PERPENDICULAR = 5e-3  # of unit vectors: what six decimals and worse round away
_NUMBER_FORMATS = {(bits, sign) for bits in (8, 16, 32) for sign in (0, 1)}


@dataclass(frozen=True)
class PixelFormat:
    """How the stored values of a slice are written, and what they mean.

    Attributes:
        bits: allocated for each value: 8, 16 or 32.
        stored: of them, from the lowest, that hold the value.
        signed: two's complement.
        rescale: slope and intercept, value = slope * stored value + intercept; None where the file has neither.
    """

    bits: int
    stored: int
    signed: bool
    rescale: tuple[float, float] | None

    @property
    def dtype(self) -> np.dtype:
        """Of the stored values, in the byte order of this machine."""
        return np.dtype(f"{'i' if self.signed else 'u'}{self.bits // 8}")


@dataclass(frozen=True)
class Slice:
    """One image of a series: its place in the patient (LPS mm) and how its pixels are written."""

    path: Path
    kind: str  # SOP class
    series: str
    size: tuple[int, int]  # columns, rows
    spacing: tuple[float, float]  # mm between columns, between rows
    directions: np.ndarray  # (2, 3): unit vectors along a row, along a column
    position: np.ndarray  # (3,) of the first pixel
    thickness: float | None  # mm from this slice to the next, as far as it says
    pixels: PixelFormat


def parse(path: Path) -> Dataset:
    """A file's elements, most of them as raw bytes still.

    Raises:
        UnreadableFile: damaged so that no parser goes through it.
        OSError: it cannot be read.
    """
    import pydicom

    try:
        return pydicom.dcmread(path, force=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # what a parser raises in the middle of broken bytes is of any kind
        problem = f"is truncated or damaged: {(str(error).splitlines() or [''])[0][:120]}"
        raise UnreadableFile(problem, path=path, fix=EXPORT_AGAIN) from None


def sop_class(dataset: Dataset) -> str:
    """What kind of object it is, from the dataset or, where that was cut off, from the meta information."""
    return text(dataset, "SOPClassUID") or text(dataset.file_meta, "MediaStorageSOPClassUID")


def describe(dataset: Dataset, path: Path) -> Slice:
    """What the header says of an image.

    Raises:
        BadVoxels: colour, several frames, or numbers of a kind that is not read.
        BadGeometry: no usable place, size or direction.
    """
    _check_single_grey(dataset, path)
    pixels = _pixel_format(dataset, path)
    columns, rows = _short(dataset, "Columns", path), _short(dataset, "Rows", path)
    if not rows or not columns:
        raise BadVoxels(f"has {columns}x{rows} pixels", path=path, fix=EXPORT_AGAIN)
    between_rows, between_columns = _sizes(dataset, path)
    return Slice(
        path=path,
        kind=sop_class(dataset),
        series=text(dataset, "SeriesInstanceUID"),
        size=(columns, rows),
        spacing=(between_columns, between_rows),
        directions=_directions(dataset, path),
        position=_numbers(dataset, "ImagePositionPatient", 3, path),
        thickness=_thickness(dataset, path),
        pixels=pixels,
    )


def element(dataset: Dataset, keyword: str) -> DataElement | RawDataElement | None:
    """An element as it stands in the file; pydicom never converts it, which damaged bytes break in many ways."""
    return dataset.get_item(keyword, keep_deferred=True) if keyword in dataset else None


def text(dataset: Dataset, keyword: str) -> str:
    """An element's characters as they stand in the file, without padding; empty where it is missing."""
    raw = element(dataset, keyword)
    value = None if raw is None else raw.value
    if isinstance(value, bytes):
        return value.decode("latin-1").strip(" \0")
    return "" if value is None else "\\".join(map(str, value)) if isinstance(value, list) else str(value).strip()


def _check_single_grey(dataset: Dataset, path: Path) -> None:
    photometric, samples = text(dataset, "PhotometricInterpretation"), _short(dataset, "SamplesPerPixel", path)
    if samples != 1 or photometric not in GREY:
        problem = f"is in colour: {photometric or 'PhotometricInterpretation is missing'} (expected grey slices)"
        raise BadVoxels(problem, path=path, fix="export the pictures as .png")
    frames = text(dataset, "NumberOfFrames") or "1"
    if frames != "1" or "SharedFunctionalGroupsSequence" in dataset:
        problem = f"is a multi-frame file of {frames[:20]} frames (expected one slice per file)"
        raise BadVoxels(problem, path=path, fix=CONVERT)
    if "MOSAIC" in text(dataset, "ImageType").split("\\"):
        raise BadVoxels("is a mosaic of slices (expected one slice per file)", path=path, fix=CONVERT)


def _pixel_format(dataset: Dataset, path: Path) -> PixelFormat:
    bits, sign = _short(dataset, "BitsAllocated", path), _short(dataset, "PixelRepresentation", path)
    stored = _short(dataset, "BitsStored", path)
    high = _short(dataset, "HighBit", path) if "HighBit" in dataset else stored - 1
    if (bits, sign) not in _NUMBER_FORMATS or not 1 <= stored <= bits or high != stored - 1:
        found = f"BitsAllocated {bits}, BitsStored {stored}, HighBit {high}, PixelRepresentation {sign}"
        raise BadVoxels(f"{found} (expected 8, 16 or 32 bits, the lowest of them stored)", path=path, fix=CONVERT)
    return PixelFormat(bits, stored, bool(sign), _rescale(dataset, path))


def _rescale(dataset: Dataset, path: Path) -> tuple[float, float] | None:
    """Slope and intercept, which the standard has only together."""
    if "ModalityLUTSequence" in dataset:
        raise BadVoxels("has a Modality LUT (expected RescaleSlope and RescaleIntercept)", path=path, fix=CONVERT)
    if not text(dataset, "RescaleSlope") and not text(dataset, "RescaleIntercept"):
        return None
    slope, intercept = (
        float(_numbers(dataset, keyword, 1, path, BadVoxels)[0]) for keyword in ("RescaleSlope", "RescaleIntercept")
    )
    if slope == 0:
        raise BadVoxels("RescaleSlope is 0 (all voxels would be the same)", path=path, fix=EXPORT_AGAIN)
    return slope, intercept


def _sizes(dataset: Dataset, path: Path) -> np.ndarray:
    sizes = _numbers(dataset, "PixelSpacing", 2, path)
    if (sizes <= 0).any():
        problem = f"PixelSpacing is '{text(dataset, 'PixelSpacing')}' (expected numbers above 0)"
        raise BadGeometry(problem, path=path, fix=EXPORT_AGAIN)
    return sizes


def _directions(dataset: Dataset, path: Path) -> np.ndarray:
    found = _numbers(dataset, "ImageOrientationPatient", 6, path).reshape(2, 3)
    if np.abs(found @ found.T - np.eye(2)).max() > _PERPENDICULAR:
        value = text(dataset, "ImageOrientationPatient")
        problem = f"ImageOrientationPatient is '{value}' (expected two perpendicular unit vectors)"
        raise BadGeometry(problem, path=path, fix=EXPORT_AGAIN)
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True))


def _thickness(dataset: Dataset, path: Path) -> float | None:
    """Of SpacingBetweenSlices and SliceThickness the first that is there and not 0, which stands for unknown."""
    for keyword in ("SpacingBetweenSlices", "SliceThickness"):
        if text(dataset, keyword) and (value := float(_numbers(dataset, keyword, 1, path)[0])):
            return value
    return None


def _numbers(
    dataset: Dataset, keyword: str, count: int, path: Path, kind: type[BadGeometry | BadVoxels] = BadGeometry
) -> np.ndarray:
    """(count,) finite numbers of an element of decimal strings."""
    words = [word.strip(" \0") for word in text(dataset, keyword).split("\\")]
    numbers = np.array([float(word) if _NUMBER.fullmatch(word) else np.nan for word in words])
    if len(numbers) != count or not np.isfinite(numbers).all():
        problem = f"{keyword} is '{text(dataset, keyword)[:100]}' (expected {count} numbers)"
        raise kind(problem, path=path, fix="export the slices again, or convert them to NIfTI")
    return numbers


def _short(dataset: Dataset, keyword: str, path: Path) -> int:
    """A whole number of 16 bits."""
    raw = element(dataset, keyword)
    value = None if raw is None else raw.value
    if isinstance(value, bytes) and len(value) == 2:
        return int.from_bytes(value, "little" if dataset.original_encoding[1] else "big")
    if isinstance(value, int):
        return value
    found = "missing" if not value else f"of {len(value)} bytes"
    raise BadVoxels(f"{keyword} is {found} (expected one number of 16 bits)", path=path, fix=EXPORT_AGAIN)
