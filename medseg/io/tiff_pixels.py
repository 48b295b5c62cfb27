"""TIFF: from strips or tiles to samples exactly as stored.

Streams of LZW, PackBits, CCITT and the like are unpacked by libtiff, through Pillow, as bytes without meaning: a plain
file of one strip whose pixels are the bytes. Predictors: TIFF 6.0, section 14; Adobe, TIFF Technical Note 3.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np

from medseg.errors import UnreadableFile
from medseg.io import tiff
from medseg.io.picture import ORIENTATION, REWRITE, Picture, decoded, varying
from medseg.io.tiff import TiffFacts, parse_tiff

_BROKEN = "copy or export the file again"
_BLOCK = 1 << 20  # samples of few bits unpacked at once


def read_tiff(data: bytes) -> Picture:
    """Samples as stored.

    Raises:
        UnreadableFile: see `parse_tiff`; truncated or damaged pixels; a palette of more than 8 bits.
    """
    facts = parse_tiff(data)
    samples = _jpeg(data, facts) if facts.compression == tiff.JPEG else _assembled(data, facts)
    notes = _notes(facts, samples)
    palette = None if facts.palette is None else _eight_bits(facts.palette)
    return Picture(samples[..., : facts.color_samples], palette, facts.orientation, notes)


def _notes(facts: TiffFacts, samples: np.ndarray) -> tuple[str, ...]:
    notes: tuple[str, ...] = ("white is zero: its numbers are used as they are stored",) if facts.white_is_zero else ()
    if facts.extra is None:
        return notes
    spare = samples[..., facts.color_samples]
    if facts.extra == 0:
        return (*notes, "a fourth sample of unknown meaning is dropped")
    if facts.extra == 1 and varying(spare):
        notes += ("its colours may be multiplied by its transparency, and are used as they are stored",)
    return notes + varying(spare)


def _eight_bits(palette: np.ndarray) -> np.ndarray:
    """The palette's 16 bits as 8, where nothing is lost."""
    high, low = palette >> 8, palette & 255
    if not ((low == high).all() or (low == 0).all()):
        raise UnreadableFile("its palette has colours of more than 8 bits", fix=REWRITE)
    return high.astype(np.uint8)


def _assembled(data: bytes, facts: TiffFacts) -> np.ndarray:
    """(H, W, S) from strips or tiles."""
    rows, columns = facts.segment_shape
    down, across = -(-facts.height // rows), -(-facts.width // columns)
    dtype = np.dtype(f"{facts.kind}{-(-facts.bits // 8)}")
    out = np.empty((facts.height, facts.width, facts.samples), dtype)
    per_segment = 1 if facts.planar else facts.samples
    for number, (offset, size) in enumerate(facts.segments):
        plane, place = divmod(number, down * across)
        top, left = place // across * rows, place % across * columns
        height = rows if facts.tiled else min(rows, facts.height - top)
        pixels = _segment(data[offset : offset + size], facts, (height, columns, per_segment))
        target = out[top : top + rows, left : left + columns, plane if facts.planar else slice(None)]
        target[...] = pixels.reshape(height, columns, per_segment)[: target.shape[0], : target.shape[1]].reshape(
            target.shape
        )
    return out


def _segment(stream: bytes, facts: TiffFacts, shape: tuple[int, int, int]) -> np.ndarray:
    """Samples (rows, columns, S) of one strip or tile."""
    height, columns, samples = shape
    row = -(-columns * samples * facts.bits // 8)
    expected = height * row
    if facts.compression in tiff.CCITT:
        return _ccitt(stream, facts, (columns, height))
    raw = _bytes(stream, facts, row, height)
    if len(raw) != expected and not (len(raw) == facts.segment_shape[0] * row and not facts.tiled):
        raise UnreadableFile(f"a strip or tile has {len(raw)} bytes (expected {expected})", fix=_BROKEN)
    lines = np.frombuffer(raw[:expected], np.uint8).reshape(height, row)
    if facts.bits % 8:
        return _few_bits(lines, facts.bits, columns * samples).reshape(shape)
    return _predicted(lines, facts, shape)


def _bytes(stream: bytes, facts: TiffFacts, row: int, rows: int) -> bytes:
    if facts.compression == tiff.NONE:
        return stream
    if facts.compression in tiff.DEFLATE:
        unpacker, most = zlib.decompressobj(), facts.segment_shape[0] * row + 1  # some writers fill up the last strip
        try:
            raw = unpacker.decompress(stream, most)
            rest = b"" if unpacker.eof else unpacker.decompress(unpacker.unconsumed_tail, most)
        except zlib.error as error:
            raise UnreadableFile(f"its pixels do not unpack: {error}", fix=_BROKEN) from None
        if not unpacker.eof or rest:
            raise UnreadableFile("its deflated pixels are truncated or too many", fix=_BROKEN)
        return raw
    pixels = decoded(_one_strip(stream, facts.compression, (row, rows), 8), "TIFF", ("L",), (row, rows))
    return pixels.tobytes()


def _ccitt(stream: bytes, facts: TiffFacts, size: tuple[int, int]) -> np.ndarray:
    options = {tag: facts.tags[tag][0] for tag in (tiff.T4_OPTIONS, tiff.T6_OPTIONS)}
    file = _one_strip(stream, facts.compression, size, 1, options)
    return decoded(file, "TIFF", ("1",), size).astype(np.uint8)[..., None]


def _one_strip(
    stream: bytes, compression: int, size: tuple[int, int], bits: int, options: dict[int, int] | None = None
) -> bytes:
    """A grey TIFF of one strip, black is zero, little endian."""
    tags = {tiff.WIDTH: size[0], tiff.HEIGHT: size[1], tiff.BITS: bits, tiff.COMPRESSION: compression}
    tags |= {tiff.PHOTOMETRIC: 1, 273: 8, tiff.SAMPLES: 1, tiff.ROWS: size[1], 279: len(stream), **(options or {})}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    padded = stream + b"\0" * (len(stream) % 2)
    return struct.pack("<2sHI", b"II", 42, 8 + len(padded)) + padded + struct.pack("<H", len(tags)) + entries + bytes(4)


def _few_bits(lines: np.ndarray, bits: int, count: int) -> np.ndarray:
    """(rows, count) numbers of 1 to 15 bits, packed from the highest bit on; each row starts at a whole byte."""
    out = np.empty((len(lines), count), np.uint8 if bits < 8 else np.uint16)
    weights = (1 << np.arange(bits)[::-1]).astype(np.uint16)
    step = max(1, _BLOCK // count)
    for top in range(0, len(lines), step):
        flags = np.unpackbits(lines[top : top + step], axis=1)[:, : count * bits]
        out[top : top + step] = flags.reshape(len(flags), count, bits) @ weights
    return out


def _predicted(lines: np.ndarray, facts: TiffFacts, shape: tuple[int, int, int]) -> np.ndarray:
    """Bytes (rows, bytes) as numbers, differences added up."""
    size = facts.bits // 8
    if facts.predictor == 3:  # bytes of equal weight side by side, the highest first
        height, columns, samples = shape
        summed = np.cumsum(lines.reshape(height, -1, samples), axis=1, dtype=np.uint8)
        apart = summed.reshape(height, size, columns * samples)
        return np.ascontiguousarray(apart.transpose(0, 2, 1)).view(f">f{size}").reshape(shape)
    whole = np.ascontiguousarray(lines).view(f"{facts.order}u{size}").reshape(shape)
    if facts.predictor == 2:
        whole = np.cumsum(whole, axis=1, dtype=f"u{size}")
    return whole.astype(f"u{size}", copy=False).view(f"{facts.kind}{size}")


def _jpeg(data: bytes, facts: TiffFacts) -> np.ndarray:
    """Decoded by libtiff as a whole, from a copy whose orientation is 1: Pillow would turn it."""
    copy = bytearray(data)
    if ORIENTATION in facts.values_at:
        struct.pack_into(facts.order + "H", copy, facts.values_at[ORIENTATION], 1)
    mode = "L" if facts.color_samples == 1 else "RGB"
    return np.atleast_3d(decoded(bytes(copy), "TIFF", (mode,), (facts.width, facts.height)))
