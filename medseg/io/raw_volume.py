"""Voxels behind a header of text: what the header promises, and the bytes read against it.

MetaImage and NRRD share this: each header is parsed by its own strict grammar into a `RawVolume`, and everything after
that is exact or refused. Nothing is allocated for a promise that the file cannot hold.
"""

from __future__ import annotations

import bz2
import os
import re
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from medseg.errors import UnreadableFile
from medseg.io.memory import require_memory

HEADER_LIMIT = 1 << 20  # bytes
Packing = Literal["raw", "deflate", "bzip2", "text"]
# Voxel bytes that a byte of the file can hold: deflate's best, 45 bytes of bzip2 for 45 MB of zeros, "0" for a double.
_BEST_RATIO: dict[Packing, int] = {"deflate": 1032, "bzip2": 1 << 20, "text": 8}
_CHUNK = 1 << 20
_ZLIB_OR_GZIP = zlib.MAX_WBITS | 32  # as MetaIO reads; both end in a checksum, which is compared
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(nan|inf|infinity)", re.IGNORECASE)
_WHOLE = re.compile(r"[+-]?\d{1,18}")
_BROKEN = "copy or export the file again"


@dataclass(frozen=True)
class RawVolume:
    """What a header says.

    Attributes:
        data: the file that holds the voxels.
        start: their first byte in it.
        packing: how they are stored.
        dtype: of one number, with its byte order.
        sizes: per stored axis, the fastest first.
        channels: which of these axes is no axis of space; None: a voxel is one number.
        spacing, origin: mm per axis of space.
        direction: (d, d) row by row, as ITK keeps it: column a is the direction of axis a, in LPS.
    """

    data: Path
    start: int
    packing: Packing
    dtype: np.dtype
    sizes: tuple[int, ...]
    channels: int | None
    spacing: list[float]
    origin: list[float]
    direction: list[float]

    @property
    def shape(self) -> tuple[int, ...]:
        """Size of the axes of space."""
        return tuple(size for axis, size in enumerate(self.sizes) if axis != self.channels)

    @property
    def voxel_bytes(self) -> int:
        """Size of the voxels, unpacked."""
        return prod(self.sizes) * self.dtype.itemsize


def number(text: str) -> float:
    """A number of a header, which may be NaN or infinite; ValueError: ``5.2x``, ``1_000`` and the like."""
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"'{text[:40]}'")
    return float(text)


def whole(text: str) -> int:
    """A whole number of a header of at most 18 digits; ValueError: ``1e30``, ``2.0`` and the like."""
    if not _WHOLE.fullmatch(text):
        raise ValueError(f"'{text[:40]}'")
    return int(text)


def check_length(volume: RawVolume) -> None:
    """Compare the promise with the size of the file; nothing is read.

    Raises:
        UnreadableFile: the file holds more or less than its header promises, or cannot hold as much.
    """
    stored, expected = os.path.getsize(volume.data) - volume.start, volume.voxel_bytes
    if volume.packing == "raw":
        if stored != expected:
            raise _wrong_length(max(stored, 0), expected)
    elif expected > max(stored, 0) * _BEST_RATIO[volume.packing]:
        problem = f"its header promises {expected} bytes of voxels, more than {stored} bytes of {volume.packing} hold"
        raise UnreadableFile(problem, fix=_BROKEN)


def read_voxels(volume: RawVolume) -> np.ndarray:
    """Voxels (C, *S) as stored.

    Raises:
        UnreadableFile: truncated, too long, or damaged in a way that a checksum shows.
        InputRefused: more than the memory holds.
    """
    check_length(volume)
    require_memory(volume.voxel_bytes + 4 * prod(volume.sizes))  # and a copy in single precision
    with volume.data.open("rb") as file:
        file.seek(volume.start)
        if volume.packing == "text":
            stored = _from_text(file.read(), volume)
        else:
            buffer = _collect(_chunks(file, volume.packing), volume.voxel_bytes)
            stored = np.frombuffer(buffer, dtype=volume.dtype)
    voxels = stored.reshape(volume.sizes, order="F")
    return voxels[None] if volume.channels is None else np.moveaxis(voxels, volume.channels, 0)


def _chunks(file: BinaryIO, packing: Packing) -> Iterator[bytes]:
    if packing == "raw":
        yield from _blocks(file)
        return
    try:
        yield from _inflated(file) if packing == "deflate" else _unzipped(file)
    except (zlib.error, OSError) as error:
        raise UnreadableFile(f"its compressed voxels are damaged: {error}", fix=_BROKEN) from None


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    while block := file.read(_CHUNK):
        yield block


def _inflated(file: BinaryIO) -> Iterator[bytes]:
    stream = zlib.decompressobj(_ZLIB_OR_GZIP)
    while not stream.eof:
        waiting = stream.unconsumed_tail or file.read(_CHUNK)
        yield (block := stream.decompress(waiting, _CHUNK))
        _check_goes_on(waiting or block)
    _check_ends(stream.unused_data or file.read(1))


def _unzipped(file: BinaryIO) -> Iterator[bytes]:
    stream = bz2.BZ2Decompressor()
    while not stream.eof:
        waiting = file.read(_CHUNK) if stream.needs_input else b""
        yield (block := stream.decompress(waiting, _CHUNK))
        _check_goes_on(waiting or block)
    _check_ends(stream.unused_data or file.read(1))


def _check_goes_on(found: bytes) -> None:
    if not found:
        raise UnreadableFile("its compressed voxels are truncated", fix=_BROKEN)


def _check_ends(found: bytes) -> None:
    if found:
        raise UnreadableFile("bytes follow its compressed voxels (expected the end of the file)", fix=_BROKEN)


def _collect(chunks: Iterator[bytes], expected: int) -> bytearray:
    """Exactly so many bytes; memory grows with what the file truly holds, not with what it promises."""
    buffer = bytearray()
    for chunk in chunks:
        buffer += chunk
        if len(buffer) > expected:
            raise _wrong_length(len(buffer), expected)
    if len(buffer) != expected:
        raise _wrong_length(len(buffer), expected)
    return buffer


def _from_text(text: bytes, volume: RawVolume) -> np.ndarray:
    letters = np.frombuffer(text, np.uint8) > ord(" ")
    words = int(letters[:1].sum() + (letters[1:] > letters[:-1]).sum())
    if words != prod(volume.sizes):
        raise UnreadableFile(f"has {words} voxels (its header promises {prod(volume.sizes)})", fix=_BROKEN)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # how numpy says that something is no number
        try:
            values = np.fromstring(text, np.float64 if volume.dtype.kind == "f" else np.int64, sep=" ")
            stored = values.astype(volume.dtype)
        except (DeprecationWarning, RuntimeWarning, ValueError, OverflowError) as error:
            raise UnreadableFile(f"a voxel is no number of its type: {error}", fix=_BROKEN) from None
    if len(values) != words or (volume.dtype.kind != "f" and (values != stored).any()):
        raise UnreadableFile(f"a voxel is no number of the type {volume.dtype}", fix=_BROKEN)
    return stored


def _wrong_length(found: int, expected: int) -> UnreadableFile:
    return UnreadableFile(f"has {found} bytes of voxels (its header promises {expected})", fix=_BROKEN)
