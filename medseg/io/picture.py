"""What the readers of PNG, TIFF, JPEG and BMP hand over: samples as the file stores them, and how Pillow is asked."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from medseg.errors import MedsegError, UnreadableFile

ORIENTATION = 274  # the tag of TIFF and EXIF
REWRITE = "save it as an ordinary grey or RGB picture (.png or .tif of 8 or 16 bits)"


@dataclass(frozen=True)
class Picture:
    """A picture as stored.

    Attributes:
        samples: (H, W, 1) of grey or of a palette's indices, or (H, W, 3) of red, green and blue; no transparency.
        palette: (n, 3) uint8, the colours of the indices.
        orientation: how a viewer turns it, 1 to 8; 1: not at all.
        notes: what was left out, for the log.
    """

    samples: np.ndarray
    palette: np.ndarray | None = None
    orientation: int = 1
    notes: tuple[str, ...] = ()


@contextlib.contextmanager
def damage_told() -> Iterator[None]:
    """Turn what a decoder says of a damaged file, which can be an error of any kind, into ours."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of damage that is refused here, or of no meaning for pixels
            yield
    except (MedsegError, MemoryError, FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except Exception as error:
        raise UnreadableFile(f"is damaged: {error}", fix="copy or export the file again") from None


def decoded(data: bytes, kind: str, modes: tuple[str, ...], size: tuple[int, int]) -> np.ndarray:
    """Pillow's pixels, (H, W) or (H, W, S), where it decodes into one of the modes and the size that the header tells.

    Raises:
        UnreadableFile: another mode or size, too many pixels, or damaged.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=[kind]) as picture:
            if (pages := getattr(picture, "n_frames", 1)) != 1:
                raise UnreadableFile(f"has {pages} pages (expected 1)", fix="write each page to its own file")
            if picture.mode not in modes or picture.size != size:
                problem = f"decodes as {picture.mode} of {picture.size} (expected {' or '.join(modes)} of {size})"
                raise UnreadableFile(problem, fix=REWRITE)
            return np.array(picture)
    except Image.DecompressionBombError as error:
        raise UnreadableFile(f"is too large: {error}", fix="cut it into tiles") from None


def exif_orientation(exif: bytes) -> int:
    """The orientation that an EXIF block tells; 1 where it tells none or is damaged."""
    from PIL import Image

    block = Image.Exif()
    with contextlib.suppress(Exception):  # a note for people: pixels are used as they are stored whatever it says
        block.load(exif)
        return int(block.get(ORIENTATION, 1))
    return 1


def varying(alpha: np.ndarray) -> tuple[str, ...]:
    """A note on a transparency that is dropped although it is not the same everywhere."""
    low, high = alpha.min(), alpha.max()
    return () if low == high else (f"its transparency is dropped, and is not the same everywhere ({low} to {high})",)
