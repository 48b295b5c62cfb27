"""JPEG and BMP through Pillow, where their headers say that it decodes them as they are stored.

JPEG: ITU-T T.81, annex B; colours are converted from YCbCr by libjpeg. BMP: uncompressed, of 1, 4, 8, 24 or 32 bits.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from medseg.errors import UnreadableFile
from medseg.io.picture import REWRITE, Picture, decoded, exif_orientation, varying

_BROKEN = "copy or export the file again"
_FRAMES = {0xC0: "baseline", 0xC1: "extended", 0xC2: "progressive"}
_OTHER_FRAMES = (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
_SCAN, _END, _RESTARTS, _FILL = 0xDA, 0xD9, range(0xD0, 0xD8), 0xFF
_LEAST_BITS = 1  # of a block of 64 pixels


@dataclass(frozen=True)
class JpegFacts:
    """Of the frame: sizes in pixels and components; and the EXIF block, empty where there is none."""

    width: int
    height: int
    components: int
    exif: bytes


def parse_jpeg(data: bytes, *, whole: bool) -> JpegFacts:
    """Walk the markers up to the frame, or to the end of the picture.

    Raises:
        UnreadableFile: truncated, out of order, or a kind that is not decoded exactly (12 bits, lossless, CMYK).
    """
    position, frame, exif, scans = 2, None, b"", 0
    while frame is None or whole:
        if data[position : position + 1] != b"\xff":
            raise UnreadableFile("is damaged: no marker where one belongs", fix=_BROKEN)
        marker = data[position + 1] if position + 1 < len(data) else _END
        if marker == _FILL:
            position += 1
            continue
        if marker == _END:
            if not scans:
                raise UnreadableFile("is truncated: it ends before its pixels", fix=_BROKEN)
            break
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        body = data[position + 4 : position + 2 + length]
        if length < 2 or len(body) != length - 2:
            raise UnreadableFile(f"is truncated in its segment {marker:#x}", fix=_BROKEN)
        position += 2 + length
        if marker in (*_FRAMES, *_OTHER_FRAMES):
            frame = _frame(marker, body, frame, exif)
        elif marker == 0xE1 and body.startswith(b"Exif\0\0"):
            exif = exif or body
        elif marker == _SCAN:
            if frame is None:
                raise UnreadableFile("is damaged: its pixels come before its frame", fix=_BROKEN)
            position, scans = _after_scan(data, position), scans + 1
    assert frame is not None
    return JpegFacts(frame.width, frame.height, frame.components, exif)


def _frame(marker: int, body: bytes, before: JpegFacts | None, exif: bytes) -> JpegFacts:
    if marker not in _FRAMES or before is not None or len(body) < 6:
        raise UnreadableFile(f"is a JPEG of the kind {marker:#x} (expected baseline or progressive, once)", fix=REWRITE)
    precision, height, width, components = struct.unpack(">BHHB", body[:6])
    if precision != 8 or components not in (1, 3):
        problem = f"has {components} components of {precision} bits (expected grey or RGB of 8)"
        raise UnreadableFile(problem, fix=REWRITE)
    if not (height and width) or len(body) != 6 + 3 * components:
        raise UnreadableFile(f"its header cannot be: {width} x {height} pixels", fix=_BROKEN)
    return JpegFacts(width, height, components, exif)


def _after_scan(data: bytes, position: int) -> int:
    """The marker after entropy-coded data; restart markers count from 0 to 7 and over again."""
    expected = 0
    while (position := data.find(b"\xff", position)) >= 0 and position + 1 < len(data):
        marker = data[position + 1]
        if marker in _RESTARTS:
            if marker - _RESTARTS[0] != expected:
                raise UnreadableFile("is damaged: a part between two restart markers is missing", fix=_BROKEN)
            expected = (expected + 1) % 8
        elif marker not in (0, _FILL):
            return position
        position += 1 if marker == _FILL else 2
    raise UnreadableFile("is truncated: its end marker is missing", fix=_BROKEN)


def read_jpeg(data: bytes) -> Picture:
    """Grey or RGB as libjpeg decodes it."""
    facts = parse_jpeg(data, whole=True)
    if facts.width * facts.height * _LEAST_BITS > 64 * 8 * len(data):
        raise UnreadableFile(f"promises {facts.width} x {facts.height} pixels in {len(data)} bytes", fix=_BROKEN)
    mode = "L" if facts.components == 1 else "RGB"
    pixels = decoded(data, "JPEG", (mode,), (facts.width, facts.height))
    return Picture(np.atleast_3d(pixels), orientation=exif_orientation(facts.exif) if facts.exif else 1)


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
