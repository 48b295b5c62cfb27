"""JPEG: its markers walked from end to end, its pixels as libjpeg decodes them (ITU-T T.81, annexes B and G).

libjpeg makes up what is missing without a word. A JPEG has no checksum, so damage within its pixels that decodes is not
seen; that it ends early is.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from medseg.errors import UnreadableFile
from medseg.io.picture import REWRITE, Picture, decoded, exif_orientation

_BROKEN = "copy or export the file again"
_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive
_OTHER_FRAMES = (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)  # lossless, hierarchical, arithmetic
_SCAN, _END, _RESTARTS, _FILL, _APP1 = 0xDA, 0xD9, range(0xD0, 0xD8), 0xFF, 0xE1
_PIXELS_PER_BYTE = 64 * 8  # a block of 64 takes a bit or more
_FILLER = bytes.fromhex("5aa53cc396697e81") * 16


@dataclass(frozen=True)
class JpegFacts:
    """Sizes in pixels, numbers of the components, the EXIF block (empty: none), and the byte where the pixels end."""

    width: int
    height: int
    components: bytes
    exif: bytes = b""
    end: int = 0


def jpeg_facts(data: bytes, *, whole: bool) -> JpegFacts:
    """Walk the markers up to the frame, or to the end of the picture.

    Raises:
        UnreadableFile: truncated, out of order, or a kind that is not decoded exactly (12 bits, lossless, CMYK).
    """
    frame, exif = None, b""
    lacking: set[tuple[int, int]] = set()  # (component, coefficient) whose last bit was not there yet
    for marker, body, end in _segments(data):
        if marker in (*_FRAMES, *_OTHER_FRAMES):
            frame = _frame(marker, body, frame)
            lacking = {(component, place) for component in frame.components for place in range(64)}
            if not whole:
                return frame
        elif marker == _APP1 and body.startswith(b"Exif\0\0"):
            exif = exif or body
        elif marker == _SCAN:
            lacking -= _last_bits(body, frame)
        elif marker == _END and frame and not lacking:
            return replace(frame, exif=exif, end=end)
    raise UnreadableFile("is truncated: it ends before its pixels", fix=_BROKEN)


def read_jpeg(data: bytes) -> Picture:
    """Grey or RGB as libjpeg decodes it.

    Raises:
        UnreadableFile: see `jpeg_facts`; pixels that end early.
    """
    facts = jpeg_facts(data, whole=True)
    if facts.width * facts.height > _PIXELS_PER_BYTE * len(data):
        raise UnreadableFile(f"promises {facts.width} x {facts.height} pixels in {len(data)} bytes", fix=_BROKEN)
    modes, size = ("L" if len(facts.components) == 1 else "RGB",), (facts.width, facts.height)
    pixels = decoded(data, "JPEG", modes, size)
    # What libjpeg makes up where pixels end early depends on the bytes that follow them, what is there does not.
    if (pixels != decoded(data[: facts.end] + _FILLER + data[facts.end :], "JPEG", modes, size)).any():
        raise UnreadableFile("is truncated: its pixels end early", fix=_BROKEN)
    return Picture(np.atleast_3d(pixels), orientation=exif_orientation(facts.exif) if facts.exif else 1)


def _segments(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """(marker, its segment, its first byte) up to the end marker; what follows is no picture's."""
    position, marker = 2, 0
    while marker != _END:
        while data[position : position + 2] == b"\xff\xff":
            position += 1
        if data[position : position + 1] != b"\xff" or position + 1 >= len(data):
            raise UnreadableFile("is truncated or damaged: no marker where one belongs", fix=_BROKEN)
        marker = data[position + 1]
        length = 0 if marker == _END else int.from_bytes(data[position + 2 : position + 4], "big")
        body = data[position + 4 : position + 2 + length]
        if marker != _END and (length < 2 or len(body) != length - 2):
            raise UnreadableFile(f"is truncated in its segment {marker:#x}", fix=_BROKEN)
        yield marker, body, position
        position += 2 + length
        if marker == _SCAN:
            position = _after_scan(data, position)


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


def _frame(marker: int, body: bytes, before: JpegFacts | None) -> JpegFacts:
    if marker not in _FRAMES or before is not None or len(body) < 6:
        raise UnreadableFile(f"is a JPEG of the kind {marker:#x} (expected baseline or progressive, once)", fix=REWRITE)
    precision, height, width, components = struct.unpack(">BHHB", body[:6])
    if precision != 8 or components not in (1, 3):
        problem = f"has {components} components of {precision} bits (expected grey or RGB of 8)"
        raise UnreadableFile(problem, fix=REWRITE)
    if not (height and width) or len(body) != 6 + 3 * components:
        raise UnreadableFile(f"its header cannot be: {width} x {height} pixels", fix=_BROKEN)
    return JpegFacts(width, height, body[6::3])


def _last_bits(body: bytes, frame: JpegFacts | None) -> set[tuple[int, int]]:
    """What a scan completes: a progressive one may bring some coefficients of some components, down to some bit."""
    if frame is None or not body or len(body) != 4 + 2 * body[0]:
        raise UnreadableFile("is damaged: a scan without a frame, or of a wrong length", fix=_BROKEN)
    first, last, bits = body[-3:]
    if bits & 15:
        return set()
    return {(component, place) for component in body[1:-3:2] for place in range(first, min(last, 63) + 1)}
