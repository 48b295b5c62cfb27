"""PNG: every chunk checked, samples of 1 to 16 bits exactly as stored (W3C, Portable Network Graphics, third edition).

Pillow stretches grey of 2 and 4 bits to 255 and shortens colours of 16; ITK shifts by sBIT; neither misses rows that
are not there. So the chunks are read here, and Pillow and OpenCV get a plain file of the same samples to unpack: no
gamma, significant bits and the like, and grey of few bits named as indices, which nobody stretches.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from medseg.errors import UnreadableFile
from medseg.io.picture import REWRITE, Picture, decoded, exif_orientation, varying

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB, _INDEXED, _GREY_ALPHA, _RGBA = 0, 2, 3, 4, 6
_SAMPLES = {_GREY: 1, _RGB: 3, _INDEXED: 1, _GREY_ALPHA: 2, _RGBA: 4}
_DEPTHS = {_GREY: (1, 2, 4, 8, 16), _INDEXED: (1, 2, 4, 8)}
_MODES = {(_GREY, 8): "L", (_GREY, 16): "I;16", (_RGB, 8): "RGB", (_GREY_ALPHA, 8): "LA", (_RGBA, 8): "RGBA"}
# Start and step of columns and rows of the seven passes of an interlaced picture.
_PASSES = ((0, 8, 0, 8), (4, 8, 0, 8), (0, 4, 4, 8), (2, 4, 0, 4), (0, 2, 2, 4), (1, 2, 0, 2), (0, 1, 1, 2))
_DEFLATE_BEST_RATIO = 1032
_BROKEN = "copy or export the file again"


@dataclass(frozen=True)
class PngHeader:
    """IHDR: sizes in pixels, bits per sample, colour type, and whether it is interlaced."""

    width: int
    height: int
    depth: int
    color: int
    interlaced: int

    @property
    def stored_bytes(self) -> int:
        """Bytes of all rows, each with the number of its filter."""
        whole = ((0, 1, 0, 1),)
        total = 0
        for left, across, top, down in _PASSES if self.interlaced else whole:
            columns, rows = -(-(self.width - left) // across), -(-(self.height - top) // down)
            if columns > 0 and rows > 0:
                total += rows * (1 + -(-columns * self.depth * _SAMPLES[self.color] // 8))
        return total


def png_header(data: bytes) -> PngHeader:
    """Parse the first chunk; `UnreadableFile` where it is no PNG's."""
    kind, body = next(_chunks(data[:64]), (b"", b""))
    if kind != b"IHDR" or len(body) != 13:
        raise UnreadableFile("does not begin with a PNG header", fix=_BROKEN)
    width, height, depth, color, method, filters, interlaced = struct.unpack(">IIBBBBB", body)
    if not (0 < width < 1 << 31 and 0 < height < 1 << 31) or (method, filters) != (0, 0) or interlaced > 1:
        raise UnreadableFile(f"its header cannot be: {width} x {height} pixels", fix=_BROKEN)
    if color not in _SAMPLES or depth not in _DEPTHS.get(color, (8, 16)):
        raise UnreadableFile(f"there are no PNG of colour type {color} with {depth} bits", fix=_BROKEN)
    return PngHeader(width, height, depth, color, interlaced)


def read_png(data: bytes) -> Picture:
    """Samples as stored, uint8 or uint16.

    Raises:
        UnreadableFile: truncated, damaged (a checksum of any chunk), of too few rows, or animated.
    """
    header = png_header(data)
    chunks = list(_chunks(data))
    kinds = [kind for kind, _ in chunks]
    _check_order(kinds)
    first = dict(reversed(chunks))
    stream = b"".join(body for kind, body in chunks if kind == b"IDAT")
    _check_rows(stream, header.stored_bytes)
    samples = _unpack(header, stream)
    notes = varying(samples[..., -1]) if header.color in (_GREY_ALPHA, _RGBA) else ()
    if b"tRNS" in first:
        notes = ("its transparency is dropped",)
    orientation = exif_orientation(first[b"eXIf"]) if b"eXIf" in first else 1
    return Picture(
        samples[..., : 3 if header.color in (_RGB, _RGBA) else 1],
        _palette(first.get(b"PLTE", b""), samples) if header.color == _INDEXED else None,
        orientation,
        notes,
    )


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(kind, body) up to the end chunk, each with its checksum compared; what follows is no picture's."""
    position, kind = len(SIGNATURE), b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, position) if position + 8 <= len(data) else (0, b"")
        end = position + 8 + length
        if not kind or end + 4 > len(data):
            raise UnreadableFile("is truncated: its end chunk is missing", fix=_BROKEN)
        if zlib.crc32(data[position + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise UnreadableFile(f"is damaged: the checksum of its chunk {kind!r} is wrong", fix=_BROKEN)
        yield kind, data[position + 8 : end]
        position = end + 4


def _check_order(kinds: list[bytes]) -> None:
    if b"acTL" in kinds:
        raise UnreadableFile("is animated (expected one picture)", fix="write each picture to a file of its own")
    critical = [kind for kind in kinds if kind[:1].isupper()]
    rows = critical.count(b"IDAT")
    if critical not in ([b"IHDR", *palette, *[b"IDAT"] * rows, b"IEND"] for palette in ([], [b"PLTE"])):
        raise UnreadableFile("its chunks are not those of a PNG, or not in order", fix=_BROKEN)


def _check_rows(stream: bytes, expected: int) -> None:
    """Unpack to compare length and checksum, in pieces."""
    found, unpacker, block = 0, zlib.decompressobj(), stream
    if expected > len(stream) * _DEFLATE_BEST_RATIO:
        raise UnreadableFile(f"promises {expected} bytes of pixels in {len(stream)} of the file", fix=_BROKEN)
    try:
        while found <= expected and not unpacker.eof:
            piece = len(unpacker.decompress(block, 1 << 22))
            block, found = unpacker.unconsumed_tail, found + piece
            if not (piece or block or unpacker.eof):
                raise UnreadableFile("is truncated: its pixels end early", fix=_BROKEN)
    except zlib.error as error:
        raise UnreadableFile(f"is damaged: its pixels do not unpack: {error}", fix=_BROKEN) from None
    if found != expected:
        raise UnreadableFile(f"has {found} bytes of pixels (its header promises {expected})", fix=_BROKEN)


def _unpack(header: PngHeader, stream: bytes) -> np.ndarray:
    """(H, W, S) with transparency, of a file that is known to be whole."""
    size = (header.width, header.height)
    if header.color == _INDEXED or header.depth < 8:
        plain, mode = replace(header, color=_INDEXED), "P"
    elif (header.color, header.depth) == (_GREY_ALPHA, 16):  # two bytes twice, as four of one
        plain, mode = replace(header, color=_RGBA, depth=8), "RGBA"
    elif header.color in (_RGB, _RGBA) and header.depth == 16:
        return _deep(header, stream)
    else:
        plain, mode = header, _MODES[header.color, header.depth]
    pixels = decoded(_plain_file(plain, stream), "PNG", (mode,), size)
    if (header.color, header.depth) == (_GREY_ALPHA, 16):
        return np.ascontiguousarray(pixels).view(">u2").astype(np.uint16)
    return np.atleast_3d(pixels)


def _deep(header: PngHeader, stream: bytes) -> np.ndarray:
    import cv2

    pixels = cv2.imdecode(np.frombuffer(_plain_file(header, stream), np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.shape != (header.height, header.width, _SAMPLES[header.color]):
        raise UnreadableFile("cannot be decoded as colours of 16 bits", fix=REWRITE)
    return pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]  # from blue, green, red


def _plain_file(header: PngHeader, stream: bytes) -> bytes:
    facts = (header.width, header.height, header.depth, header.color, 0, 0, header.interlaced)
    palette = [(b"PLTE", bytes(3 * 2**header.depth))] if header.color == _INDEXED else []
    parts = [(b"IHDR", struct.pack(">IIBBBBB", *facts)), *palette, (b"IDAT", stream), (b"IEND", b"")]
    return SIGNATURE + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    )


def _palette(body: bytes, indices: np.ndarray) -> np.ndarray:
    if len(body) % 3 or not 1 <= len(body) // 3 <= 256 or indices.max() >= len(body) // 3:
        problem = f"has indices up to {indices.max()} for {len(body) // 3} colours of its palette"
        raise UnreadableFile(problem, fix=REWRITE)
    return np.frombuffer(body, np.uint8).reshape(-1, 3)
