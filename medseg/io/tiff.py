"""TIFF: the directory of tags, parsed strictly into what the pixels' layout is (TIFF 6.0, Adobe 1992; BigTIFF).

Pillow turns pictures by their orientation, inverts white-is-zero of 8 bits but not of 16, divides by transparency, and
takes int8 and uint32 for other types; it is asked for byte streams only (`medseg.io.tiff_pixels`). The grammar here:

    file      = "II" | "MM", 42 | 43, offset of one directory ; a second directory is a second page: refused
    grey      = PhotometricInterpretation 0 | 1, one sample [and a transparency] ; 0 is told, never inverted
    RGB       = 2, three samples [and a transparency, or a fourth] ; palette = 3, one sample and a ColorMap
    sample    = 1 to 16 bits unsigned; 8, 16, 32, 64 bits signed, unsigned or floating (not 8): all of one kind
    strips or tiles, chunky or planar, each inside of the file and apart from the others
    Compression = none, LZW, deflate, PackBits, LZMA, Zstandard, CCITT (1 bit), JPEG (8 bits)
    Predictor = 1 | 2 (whole bytes) | 3 (floating), with LZW, deflate, LZMA or Zstandard
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from medseg.errors import UnreadableFile
from medseg.io.picture import ORIENTATION, REWRITE
from medseg.io.tiff_tags import read_directory

_BROKEN = "copy or export the file again"
REPACK = "save it uncompressed, or with LZW or deflate"
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER = 256, 257, 258, 259, 262, 266
SAMPLES, ROWS, PLANAR, PREDICTOR, COLOR_MAP, EXTRA, FORMAT = 277, 278, 284, 317, 320, 338, 339
_STRIPS, _TILES, _TILE_WIDTH, _TILE_HEIGHT, _DEPTH = (273, 279), (324, 325), 322, 323, 32997
T4_OPTIONS, T6_OPTIONS = 292, 293
_DEFAULTS = {BITS: [1], COMPRESSION: [1], FILL_ORDER: [1], ORIENTATION: [1], SAMPLES: [1], PLANAR: [1], PREDICTOR: [1]}
_DEFAULTS |= {EXTRA: [], FORMAT: [1], ROWS: [2**32 - 1], _DEPTH: [1], T4_OPTIONS: [0], T6_OPTIONS: [0]}
_READ = (WIDTH, HEIGHT, PHOTOMETRIC, COLOR_MAP, *_STRIPS, *_TILES, _TILE_WIDTH, _TILE_HEIGHT, *_DEFAULTS)
_KINDS = {1: "u", 2: "i", 3: "f"}
_DTYPES = ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8")
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _INDEXED, _YCBCR = 0, 1, 2, 3, 6
NONE, LZW, JPEG, PACKBITS, LZMA, ZSTD = 1, 5, 7, 32773, 34925, 50000
DEFLATE = (8, 32946)
CCITT = (2, 3, 4)
# Bytes of pixels that a byte can hold: chains of 4096 in LZW, runs of 128 in PackBits; of CCITT a row takes a bit.
_BEST_RATIO = {NONE: 1, LZW: 4096, PACKBITS: 64, **dict.fromkeys(DEFLATE, 1032), **dict.fromkeys(CCITT, 1 << 14)}
_BEST_RATIO |= {JPEG: 1 << 10, LZMA: 1 << 14, ZSTD: 1 << 14}
_MOST_CCITT_COLUMNS = 1 << 16


@dataclass(frozen=True)
class TiffFacts:
    """What one directory says, checked.

    Attributes:
        order: "<" or ">".
        height, width, samples: of the picture; samples count a transparency.
        color_samples: samples without transparency, 1 or 3.
        bits, kind: of a sample; kind "u", "i" or "f".
        segments: (offset, bytes) per strip or tile, planes one after another.
        segment_shape: rows and columns of a strip or tile.
        planar: each sample is stored apart.
        extra: 0 unknown, 1 transparency that colours are multiplied by, 2 transparency; None: no such sample.
        palette: (n, 3) uint16, or None.
        tags: values of the tags that were read.
        values_at: tag -> byte of its value, for a copy of the file with another one.
    """

    order: str
    height: int
    width: int
    samples: int
    color_samples: int
    bits: int
    kind: str
    compression: int
    predictor: int
    segments: tuple[tuple[int, int], ...]
    segment_shape: tuple[int, int]
    tiled: bool
    planar: bool
    extra: int | None
    white_is_zero: bool
    palette: np.ndarray | None
    orientation: int
    tags: Mapping[int, list[int]]
    values_at: Mapping[int, int]

    @property
    def pixel_bytes(self) -> int:
        """Size of the pixels as stored, unpacked."""
        return self.height * -(-self.width * self.samples * self.bits // 8)


def parse_tiff(data: bytes) -> TiffFacts:
    """Parse the one directory of a file; no pixel is looked at.

    Raises:
        UnreadableFile: damaged, several pages, or of a kind that is outside of the grammar.
    """
    directory = read_directory(data, _READ)
    tags = {**_DEFAULTS, **directory.tags}
    width, height = _one(tags, WIDTH), _one(tags, HEIGHT)
    if width < 1 or height < 1 or _one(tags, _DEPTH) != 1 or _one(tags, PLANAR) not in (1, 2):
        raise UnreadableFile(f"its header cannot be: {width} x {height} pixels", fix=_BROKEN)
    samples, bits, kind = _samples(tags)
    color_samples, extra, palette = _colors(tags, samples, bits, kind)
    _check_stack(directory.description, height * width * samples)
    compression, predictor = _packing(tags, bits, kind, samples, color_samples)
    planar = _one(tags, PLANAR) == 2 and samples > 1
    tiled, segments, segment_shape = _segments(tags, len(data), (height, width), samples if planar else 1)
    facts = TiffFacts(
        order=directory.order,
        height=height,
        width=width,
        samples=samples,
        color_samples=color_samples,
        bits=bits,
        kind=kind,
        compression=compression,
        predictor=predictor,
        segments=segments,
        segment_shape=segment_shape,
        tiled=tiled,
        planar=planar,
        extra=extra,
        white_is_zero=_one(tags, PHOTOMETRIC) == _WHITE_IS_ZERO,
        palette=palette,
        orientation=_one(tags, ORIENTATION),
        tags=tags,
        values_at=directory.values_at,
    )
    _check_promise(facts)
    return facts


def _one(tags: Mapping[int, list[int]], tag: int) -> int:
    values = tags.get(tag, [])
    if len(values) != 1:
        raise UnreadableFile(f"its tag {tag} has {len(values)} values (expected 1)", fix=_BROKEN)
    return values[0]


def _samples(tags: Mapping[int, list[int]]) -> tuple[int, int, str]:
    """Samples of a pixel, their bits and kind."""
    samples = _one(tags, SAMPLES)
    for tag in (BITS, FORMAT):  # some writers give one value for all samples
        if len(tags[tag]) not in (1, samples) or len(set(tags[tag])) != 1:
            raise UnreadableFile(f"its samples differ: tag {tag} is {tags[tag][:8]}", fix=REWRITE)
    bits, kind = tags[BITS][0], _KINDS.get(tags[FORMAT][0], "")
    if not (f"{kind}{bits // 8}" in _DTYPES and bits % 8 == 0) and not (kind == "u" and 1 <= bits <= 16):
        raise UnreadableFile(f"has samples of {bits} bits of the format {tags[FORMAT][0]}", fix=REWRITE)
    return samples, bits, kind


def _colors(
    tags: Mapping[int, list[int]], samples: int, bits: int, kind: str
) -> tuple[int, int | None, np.ndarray | None]:
    """Samples that are colours, the meaning of one more, and the palette."""
    photometric, compression = _one(tags, PHOTOMETRIC), _one(tags, COMPRESSION)
    color = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _INDEXED: 1, _YCBCR: 3}.get(photometric, 0)
    if not color or (photometric == _YCBCR and compression != JPEG):
        problem = f"has colours of the kind {photometric} (PhotometricInterpretation; expected grey, RGB or a palette)"
        raise UnreadableFile(problem, fix=REWRITE)
    spare, extra = samples - color, tags[EXTRA]
    if spare not in (0, 1) or len(extra) > spare or any(value > 2 for value in extra):
        raise UnreadableFile(f"has {samples} samples per pixel (expected 1 or 3)", fix="write one file per channel")
    meaning = (extra or [0])[0] if spare else None
    if meaning == 0 and color == 1:
        raise UnreadableFile("has 2 samples per pixel (expected 1 or 3)", fix="write one file per channel")
    return color, meaning, _palette(tags, bits, kind) if photometric == _INDEXED else None


def _palette(tags: Mapping[int, list[int]], bits: int, kind: str) -> np.ndarray:
    stored = tags.get(COLOR_MAP, [])
    if kind != "u" or len(stored) != 3 * 2**bits:
        raise UnreadableFile(f"has {len(stored)} numbers in its palette of {bits} bits", fix=REWRITE)
    return np.array(stored, np.uint16).reshape(3, -1).T


def _check_stack(text: str, samples: int) -> None:
    """ImageJ and tifffile can keep a stack behind the directory of its first picture."""
    if text.startswith("ImageJ="):
        counts = dict(line.partition("=")[::2] for line in text.splitlines())
        several = counts.get("images", "1").strip() != "1"
    else:
        several = _shaped(text) not in (None, samples)
    if several:
        raise UnreadableFile("is a stack of pictures (expected 1)", fix="write each page to a file of its own")


def _shaped(text: str) -> int | None:
    try:
        shape = json.loads(text)["shape"] if text.startswith('{"shape":') else None
        return None if shape is None else int(np.prod(shape, dtype=object))
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _packing(tags: Mapping[int, list[int]], bits: int, kind: str, samples: int, color_samples: int) -> tuple[int, int]:
    compression, predictor = _one(tags, COMPRESSION), _one(tags, PREDICTOR)
    if compression not in _BEST_RATIO or _one(tags, FILL_ORDER) != 1:
        known = "none, LZW, deflate, PackBits, LZMA, Zstandard, CCITT, JPEG; FillOrder 1"
        raise UnreadableFile(f"is compressed as {compression} (expected {known})", fix=REPACK)
    whole_bytes = bits % 8 == 0
    fits = {1: True, 2: whole_bytes, 3: kind == "f"}.get(predictor, False)
    if not fits or (predictor != 1 and compression not in (LZW, LZMA, ZSTD, *DEFLATE)):
        raise UnreadableFile(f"has the predictor {predictor} for {bits} bits ({compression})", fix=REPACK)
    if compression in CCITT and (bits, samples, kind) != (1, 1, "u"):
        raise UnreadableFile(f"is compressed for 1 bit, but has {bits}", fix=_BROKEN)
    if compression == JPEG and ((bits, kind) != (8, "u") or samples != color_samples or _one(tags, PLANAR) != 1):
        raise UnreadableFile("is a JPEG in TIFF of another kind than grey or RGB of 8 bits", fix=REWRITE)
    if compression == JPEG and _one(tags, PHOTOMETRIC) not in (_BLACK_IS_ZERO, _RGB, _YCBCR):
        raise UnreadableFile("is a JPEG in TIFF with a palette or white as zero", fix=REWRITE)
    return compression, predictor


def _segments(
    tags: Mapping[int, list[int]], file_size: int, shape: tuple[int, int], planes: int
) -> tuple[bool, tuple[tuple[int, int], ...], tuple[int, int]]:
    """Whether they are tiles, where each is and how large, and its rows and columns."""
    height, width = shape
    tiled = _TILES[0] in tags
    if tiled == (_STRIPS[0] in tags):
        raise UnreadableFile("has strips and tiles, or neither", fix=_BROKEN)
    across = (_one(tags, _TILE_HEIGHT), _one(tags, _TILE_WIDTH)) if tiled else (min(_one(tags, ROWS), height), width)
    if min(across) < 1 or max(across) > max(height, width) + (1 << 16):
        raise UnreadableFile(f"has tiles or strips of {across[0]} x {across[1]} pixels", fix=_BROKEN)
    expected = planes * -(-height // across[0]) * -(-width // across[1])
    offsets, counts = (tags.get(tag, []) for tag in (_TILES if tiled else _STRIPS))
    if len(offsets) != expected or len(counts) != expected:
        problem = f"has {len(offsets)} offsets and {len(counts)} sizes of tiles or strips (expected {expected})"
        raise UnreadableFile(problem, fix=_BROKEN)
    ordered = np.array(sorted(zip(offsets, counts, strict=True)), dtype=object)
    ends = ordered.sum(axis=1)
    if min(counts) < 1 or ends[-1] > file_size or (ends[:-1] > ordered[1:, 0]).any() or ordered[0, 0] < 8:
        raise UnreadableFile("is truncated or damaged: its pixels are outside of the file or overlap", fix=_BROKEN)
    return tiled, tuple(zip(offsets, counts, strict=True)), across


def _check_promise(facts: TiffFacts) -> None:
    stored = sum(size for _, size in facts.segments)
    if facts.pixel_bytes > stored * _BEST_RATIO[facts.compression]:
        raise UnreadableFile(f"promises {facts.pixel_bytes} bytes of pixels in {stored} of the file", fix=_BROKEN)
    if facts.compression in CCITT and facts.width > _MOST_CCITT_COLUMNS:
        raise UnreadableFile(f"has rows of {facts.width} pixels in CCITT (at most {_MOST_CCITT_COLUMNS})", fix=REWRITE)
