"""Pictures (.png, .jpg, .tif, .bmp): (C, rows, columns), spacing 1; the numbers and the orientation that are stored.

Each format is parsed strictly by its own module, which gives the samples exactly as stored or refuses: `medseg.io.png`,
`tiff`, `jpeg`, `bmp`. Images and label maps are read alike, but for palettes: of an image they give the
colours, of a label map the indices are the labels.
"""

from __future__ import annotations

import logging
import mmap
from pathlib import Path
from typing import cast

import numpy as np

from medseg.errors import BadLabels, UnreadableFile, UsageError
from medseg.io.atomic import atomic_path
from medseg.io.bmp import bmp_size, read_bmp
from medseg.io.endings import file_ending
from medseg.io.jpeg import jpeg_facts, read_jpeg
from medseg.io.memory import require_memory
from medseg.io.picture import Picture, damage_told
from medseg.io.png import SIGNATURE, png_header, read_png
from medseg.io.tiff import parse_tiff
from medseg.io.tiff_pixels import read_tiff
from medseg.io.volume import Geometry

logger = logging.getLogger(__name__)

_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF", ".bmp": "BMP"}
_STARTS = {SIGNATURE: "PNG", b"\xff\xd8": "JPEG", b"BM": "BMP", b"II*\0": "TIFF", b"MM\0*": "TIFF"}
_STARTS |= {b"II+\0": "TIFF", b"MM\0+": "TIFF"}  # BigTIFF
_READERS = {"PNG": read_png, "JPEG": read_jpeg, "TIFF": read_tiff, "BMP": read_bmp}
_FLOAT_ENDINGS = (".tif", ".tiff")
_BYTES_PER_PIXEL = 16  # decoded and in single precision, of three colours


def read_geometry(path: Path) -> Geometry:
    """The size, from the header alone.

    Raises:
        UnreadableFile: not a picture of a known format.
    """
    with damage_told():
        data = _mapped(path)
        return _geometry(*_size(data, _format(data)))


def read(path: Path, *, labels: bool = False) -> tuple[np.ndarray, Geometry]:
    """Pixels as stored: (1, H, W) of a grey picture, (3, H, W) of a colour one; transparency is dropped.

    Args:
        path: the picture.
        labels: a palette's indices are the labels, and colours must be grey.

    Raises:
        UnreadableFile: not a picture, truncated or damaged, several pages, or of a kind that is not read exactly.
        BadLabels: a label picture in colour.
        InputRefused: more than the memory holds.
    """
    with damage_told():
        data = _mapped(path)
        kind = _format(data)
        height, width = _size(data, kind)
        require_memory(_BYTES_PER_PIXEL * height * width)
        picture = _READERS[kind](bytes(data))
    _tell(picture, path)
    if labels:
        return _one_channel(np.moveaxis(_label_samples(picture), 2, 0)), _geometry(height, width)
    samples = picture.samples if picture.palette is None else picture.palette[picture.samples[..., 0]]
    return np.moveaxis(samples, 2, 0), _geometry(height, width)


def write(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write (1, H, W) or (3, H, W); whole numbers in 8 or 16 bits, others as 32-bit floats in .tif.

    Raises:
        UsageError: the format cannot hold these numbers exactly.
        ResourceError: it cannot be written; the old file is intact.
    """
    from PIL import Image

    ending = file_ending(path)
    pixels = np.ascontiguousarray(_storable(array.reshape(len(array), *geometry.shape[:2]), ending))
    picture = Image.fromarray(pixels)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        picture.save(file, format=_FORMATS[ending])


def _mapped(path: Path) -> bytes:
    """The file's bytes, read where they are looked at: of a large picture, its size takes but the header."""
    with path.open("rb") as file:
        try:
            return cast(bytes, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except ValueError:  # an empty file
            return b""


def _format(data: bytes) -> str:
    for start, kind in _STARTS.items():
        if data[: len(start)] == start:
            return kind
    raise UnreadableFile("is not a PNG, JPEG, TIFF or BMP picture", fix="export the file again")


def _size(data: bytes, kind: str) -> tuple[int, int]:
    """Rows and columns."""
    if kind == "PNG":
        header = png_header(data[:64])
        return header.height, header.width
    if kind == "BMP":
        return bmp_size(data)
    facts = parse_tiff(data) if kind == "TIFF" else jpeg_facts(data, whole=False)
    return facts.height, facts.width


def _geometry(height: int, width: int) -> Geometry:
    return Geometry((height, width), np.eye(4), {"format": "image"})


def _tell(picture: Picture, path: Path) -> None:
    """Say what a viewer shows otherwise: colours under transparent pixels, and pictures turned or inverted."""
    for note in picture.notes:
        logger.warning("%s: %s", path, note)
    if picture.orientation != 1:  # a mask drawn on the turned picture would not fit
        logger.warning(
            "%s: EXIF orientation %s is not applied: pixels are used as they are stored",
            path,
            picture.orientation,
        )


def _label_samples(picture: Picture) -> np.ndarray:
    """A palette's indices; its greys where they, up to what is used of them, do not rise with the index.

    Then the grey is what is meant: Pillow writes the palette of a black and white mask with white first.
    """
    if picture.palette is None:
        return picture.samples
    used = picture.palette[: int(picture.samples.max()) + 1]
    grey = bool((used == used[:, :1]).all() and (np.diff(used[:, 0].astype(int)) < 0).any())
    return picture.palette[picture.samples[..., 0]] if grey else picture.samples


def _one_channel(array: np.ndarray) -> np.ndarray:
    if not (array == array[:1]).all():
        fix = "write label numbers in grey, or state in dataset.json what each colour is"
        raise BadLabels("is a colour picture (expected one number per pixel)", fix=fix)
    return array[:1]


def _storable(array: np.ndarray, ending: str) -> np.ndarray:
    """(C, H, W) as an array that Pillow writes exactly: (H, W) or (H, W, 3)."""
    if len(array) not in (1, 3):
        raise UsageError(f"{ending} holds 1 or 3 channels, not {len(array)}", fix="write .nii.gz or .npy")
    low, high = float(array.min()), float(array.max())
    whole = array.dtype.kind in "bui" or bool((array == np.rint(array)).all())
    if whole and low >= 0 and high < 256:
        eight = array.astype(np.uint8)
        return eight[0] if len(array) == 1 else np.moveaxis(eight, 0, 2)
    if len(array) == 1 and whole and low >= 0 and high < 65536 and ending in (".png", *_FLOAT_ENDINGS):
        return array[0].astype(np.uint16)
    if len(array) == 1 and ending in _FLOAT_ENDINGS:
        return array[0].astype(np.int32 if whole else np.float32)
    raise UsageError(f"{ending} cannot hold values from {low:g} to {high:g} exactly", fix="write .tif or .nii.gz")
