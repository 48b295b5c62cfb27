"""Pictures (.png, .jpg, .tif, .bmp) through Pillow: (C, rows, columns), spacing 1; stored orientation is kept.

Pillow shortens colours of 16 bits to 8; they are read through SimpleITK.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medseg.errors import BadLabels, MedsegError, UnreadableFile, UsageError
from medseg.io.atomic import atomic_path
from medseg.io.endings import file_ending
from medseg.io.memory import require_memory
from medseg.io.volume import Geometry

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger(__name__)

ORIENTATION = 274  # the EXIF tag
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF", ".bmp": "BMP"}
_GREY = ("1", "L", "I;16", "I;16B", "I;16L", "I", "F")
_DEEP = ("RGB;16", "RGBA;16", "RGBX;16", "LA;16")  # beginnings of Pillow's raw modes with two bytes a number
_FLOAT_ENDINGS = (".tif", ".tiff")


def read_geometry(path: Path) -> Geometry:
    """The size, from the header alone.

    Raises:
        UnreadableFile: not a picture of a known format.
    """
    with _damage_told(), _open(path) as picture:
        return _geometry(picture)


def read(path: Path, *, labels: bool = False) -> tuple[np.ndarray, Geometry]:
    """Pixels as stored: (1, H, W) of a grey picture, (3, H, W) of a colour one; transparency is dropped.

    Args:
        path: the picture.
        labels: a palette's indices are the labels, and colours must be grey.

    Raises:
        UnreadableFile: not a picture, truncated or damaged, or several pages.
        BadLabels: a label picture in colour.
    """
    with _damage_told():
        _verify(path)
        with _open(path) as picture:
            geometry = _geometry(picture)
            require_memory(16 * geometry.shape[0] * geometry.shape[1])
            deep = _is_deep(picture)  # told by the header, which loading the pixels forgets
            if not labels:
                _tell_dropped(picture, path)
            pixels = _deep_pixels(path) if deep else np.asarray(_readable(picture, labels))
    array = np.moveaxis(np.atleast_3d(pixels), 2, 0)
    return (_one_channel(array) if labels else array), geometry


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


@contextlib.contextmanager
def _damage_told() -> Iterator[None]:
    """Turn what Pillow says of a damaged file, which can be an error of any kind, into ours."""
    try:
        yield
    except (MedsegError, FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except Exception as error:
        raise UnreadableFile(f"is damaged: {error}", fix="copy or export the file again") from None


def _open(path: Path) -> Image:
    from PIL import Image, UnidentifiedImageError

    try:
        picture = Image.open(path, formats=sorted(set(_FORMATS.values())))
    except UnidentifiedImageError:
        raise UnreadableFile("is not a PNG, JPEG, TIFF or BMP picture", fix="export the file again") from None
    except Image.DecompressionBombError as error:
        raise UnreadableFile(f"is too large: {error}", fix="cut it into tiles") from None
    pages = getattr(picture, "n_frames", 1)
    if pages != 1:
        picture.close()
        raise UnreadableFile(f"has {pages} pages (expected 1)", fix="write each page to a file of its own")
    return picture


def _verify(path: Path) -> None:
    with _open(path) as picture:
        picture.verify()  # the checksums of a PNG, which reading its pixels does not compare


def _geometry(picture: Image) -> Geometry:
    return Geometry((picture.height, picture.width), np.eye(4), {"format": "image"})


def _is_deep(picture: Image) -> bool:
    """Whether Pillow would drop the lower byte of each number."""
    modes = [
        tile.args if isinstance(tile.args, str) else tile.args[0] for tile in getattr(picture, "tile", ()) if tile.args
    ]
    return any(str(mode).upper().startswith(_DEEP) for mode in modes)


def _deep_pixels(path: Path) -> np.ndarray:
    import SimpleITK as sitk

    pixels = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))  # (H, W, C)
    return pixels[..., : 3 if pixels.shape[-1] > 2 else 1]  # without transparency


def _readable(picture: Image, labels: bool) -> Image:
    """The picture in a mode whose numbers are those of the file, grey or RGB."""
    if picture.mode in _GREY or (labels and picture.mode == "P" and not _is_grey_palette(picture)):
        return picture
    return picture.convert("L" if picture.mode in ("LA", "La") else "RGB")


def _is_grey_palette(picture: Image) -> bool:
    """Whether the palette, up to what is used of it, is of greys that do not rise with the index.

    Then the grey is what is meant: Pillow writes the palette of a black and white mask with white first.
    """
    last = max((index for _, index in picture.getcolors(256) or ()), default=0)
    entries = np.reshape(picture.getpalette("RGB") or [], (-1, 3))[: int(last) + 1]  # type: ignore[arg-type]
    return bool((entries == entries[:, :1]).all() and (np.diff(entries[:, 0].astype(int)) < 0).any())


def _tell_dropped(picture: Image, path: Path) -> None:
    """Say what a viewer shows otherwise: colours under transparent pixels, and pictures turned by EXIF."""
    alpha = picture.getchannel("A") if "A" in picture.getbands() else None
    low, high = alpha.getextrema() if alpha else (255, 255)
    if low != high:
        logger.warning("%s: its transparency is dropped, and is not the same everywhere (%s to %s)", path, low, high)
    if (turned := picture.getexif().get(ORIENTATION, 1)) != 1:  # a mask drawn on the turned picture would not fit
        logger.warning("%s: EXIF orientation %s is not applied: pixels are used as they are stored", path, turned)


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
