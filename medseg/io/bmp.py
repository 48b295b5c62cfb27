"""BMP through Pillow, where its header says that it is decoded as stored: uncompressed, of 1, 4, 8, 24 or 32 bits."""

from __future__ import annotations

import struct

import numpy as np

from medseg.errors import UnreadableFile
from medseg.io.picture import REWRITE, Picture, decoded, varying

_BROKEN = "copy or export the file again"


def bmp_size(data: bytes) -> tuple[int, int]:
    """(rows, columns) of a BMP that Pillow decodes as stored.

    Raises:
        UnreadableFile: compressed, of 16 bits, truncated, or of an unknown header.
    """
    if len(data) < 54 or (header := int.from_bytes(data[14:18], "little")) not in (40, 52, 56, 108, 124):
        raise UnreadableFile("is truncated, or a BMP of an unknown kind", fix=REWRITE)
    start = int.from_bytes(data[10:14], "little")
    width, height, planes, bits, packing = struct.unpack_from("<iiHHI", data, 18)
    if planes != 1 or bits not in (1, 4, 8, 24, 32) or packing != (3 if bits == 32 and packing else 0):
        raise UnreadableFile(f"is a BMP of {bits} bits, packed as {packing} (expected neither)", fix=REWRITE)
    rows, expected = abs(height), (width * bits + 31) // 32 * 4 * abs(height)
    if width < 1 or rows < 1 or start < 14 + header or start + expected > len(data):
        problem = f"has {len(data)} bytes (its header promises {start + expected} for {width} x {rows} pixels)"
        raise UnreadableFile(problem, fix=_BROKEN)
    return rows, width


def read_bmp(data: bytes) -> Picture:
    """Grey, RGB, or indices with their palette."""
    rows, columns = bmp_size(data)
    pixels = decoded(data, "BMP", ("1", "L", "P", "RGB", "RGBA"), (columns, rows))
    if pixels.ndim == 3:
        return Picture(pixels[..., :3], notes=varying(pixels[..., 3]) if pixels.shape[2] == 4 else ())
    palette = _bmp_palette(data)
    if pixels.max() >= len(palette):
        raise UnreadableFile(f"has indices up to {pixels.max()} for {len(palette)} colours", fix=REWRITE)
    steps = np.arange(len(palette)) * (255 if len(palette) == 2 else 1)  # black and white, or every grey its own index
    return Picture(pixels[..., None], None if (palette == steps[:, None]).all() else palette)


def _bmp_palette(data: bytes) -> np.ndarray:
    start = 14 + int.from_bytes(data[14:18], "little")
    bits, count = int.from_bytes(data[28:30], "little"), int.from_bytes(data[46:50], "little")
    stored = np.frombuffer(data[start : start + 4 * min(count or 2**bits, 256)], np.uint8)
    return stored[: len(stored) // 4 * 4].reshape(-1, 4)[:, 2::-1]  # from blue, green, red, 0
