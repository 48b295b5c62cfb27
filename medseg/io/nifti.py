"""NIfTI files: every byte accounted for on the way in, the same grid and header codes on the way out."""

from __future__ import annotations

import contextlib
import gzip
import logging
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from nibabel import Nifti1Header

from medseg.errors import UnreadableFile
from medseg.io.atomic import atomic_path
from medseg.io.memory import require_memory
from medseg.io.nifti_grid import header_like, mm_per_unit
from medseg.io.nifti_header import NiftiFacts, header_bytes, parse_header
from medseg.io.volume import Geometry

logger = logging.getLogger(__name__)

_GZIP_MAGIC = b"\x1f\x8b"
_DEFLATE_BEST_RATIO = 1032  # no deflate stream expands further
_CHUNK = 1 << 20
_GZIP_LEVEL = 1  # as nibabel: noise does not pack better, and label maps are small anyway


def read_geometry(path: Path) -> Geometry:
    """The grid, from the header alone; the length of an uncompressed file is checked too.

    Raises:
        UnreadableFile, BadVoxels, BadGeometry: see `parse_header`.
    """
    with _open(path) as (stream, compressed):
        facts = _read_header(path, stream, compressed)
    _tell_unit(path, facts.geometry)
    return facts.geometry


def read(path: Path) -> tuple[np.ndarray, Geometry]:
    """Voxels (C, i, j, k) as stored, or scaled to floats where the header says so, and their grid.

    Raises:
        UnreadableFile: not NIfTI, truncated, too long, or damaged in a way that gzip's checksum shows.
        BadVoxels, BadGeometry: see `parse_header`.
        InputRefused: the header promises more than the memory holds.
    """
    with _open(path) as (stream, compressed):
        facts = _read_header(path, stream, compressed)
        require_memory(facts.offset + facts.voxel_bytes + 4 * facts.voxel_bytes // facts.dtype.itemsize)
        voxels = _read_voxels(stream, facts)
    _tell_unit(path, facts.geometry)
    stored = np.frombuffer(voxels, dtype=facts.dtype).reshape(facts.shape, order="F")
    array = np.moveaxis(stored, 3, 0) if stored.ndim == 4 else stored[None]
    return _scaled(array, facts), facts.geometry


def write(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write (C, *S) unscaled in exactly ``geometry``; more than one channel makes a 4D file.

    Raises:
        ResourceError: it cannot be written; the old file is intact.
    """
    header = header_like(geometry)
    shape = (*geometry.shape, 1)[:3]
    if len(array) == 1:
        flat = geometry.source.get("dimensions") == 2 and shape[2] == 1
        voxels = array.reshape(shape[:2] if flat else shape)
    else:
        voxels = np.moveaxis(array.reshape(len(array), *shape), 0, 3)
    little = array.dtype.newbyteorder("<")
    _describe_voxels(header, voxels.shape, little)
    # The array's transpose in C order is NIfTI's order: the first axis runs fastest.
    body = np.ascontiguousarray(voxels.T, dtype=little)
    with atomic_path(path) as temporary, _create(temporary) as file:
        file.write(header.binaryblock + bytes(4))
        file.write(body.reshape(-1).view(np.uint8).data)


def _describe_voxels(header: Nifti1Header, shape: tuple[int, ...], dtype: np.dtype) -> None:
    pixdim = np.array(header["pixdim"])  # set_data_shape and the like must not touch it
    header.set_data_shape(shape)
    header.set_data_dtype(dtype)
    header.set_slope_inter(1.0, 0.0)
    header["pixdim"] = pixdim
    header["magic"] = header.single_magic
    header["vox_offset"] = header.single_vox_offset


@contextlib.contextmanager
def _open(path: Path) -> Iterator[tuple[BinaryIO, bool]]:
    """The file's bytes, unpacked if they are gzip whatever the name says; and whether they are."""
    with path.open("rb") as file:
        compressed = file.read(2) == _GZIP_MAGIC
        file.seek(0)
        try:
            with gzip.GzipFile(fileobj=file) if compressed else contextlib.nullcontext(file) as stream:
                yield cast(BinaryIO, stream), compressed
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            problem = f"its gzip stream is truncated or damaged: {error}"
            raise UnreadableFile(problem, fix="copy or download the file again") from None


@contextlib.contextmanager
def _create(path: Path) -> Iterator[BinaryIO]:
    with path.open("wb") as file:
        if path.suffix != ".gz":
            yield file
            return
        # No name and no time in the stream: equal voxels make equal files.
        with gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=_GZIP_LEVEL, mtime=0) as stream:
            yield cast(BinaryIO, stream)


def _check_length(path: Path, facts: NiftiFacts, compressed: bool) -> None:
    """Compare what the header promises with the file's size before anything is allocated."""
    size, expected = os.path.getsize(path), facts.offset + facts.voxel_bytes
    if compressed and expected > size * _DEFLATE_BEST_RATIO:
        problem = f"its header promises {expected} bytes, more than {size} bytes of gzip can hold"
        raise UnreadableFile(problem, fix="copy or export the file again")
    if not compressed and expected != size:
        raise _wrong_length(size, expected)


def _read_header(path: Path, stream: BinaryIO, compressed: bool) -> NiftiFacts:
    """Leaves the stream at the first byte that can be a voxel's."""
    start = stream.read(4)
    facts = parse_header(start + stream.read(header_bytes(start) - len(start)))
    _check_length(path, facts, compressed)
    return facts


def _read_voxels(stream: BinaryIO, facts: NiftiFacts) -> bytearray:
    before = stream.tell()
    before += len(stream.read(facts.offset - before))  # header extensions: other programs' notes
    voxels = bytearray()  # grows with what the file holds, not with what it promises
    while block := stream.read(min(_CHUNK, facts.voxel_bytes - len(voxels))):
        voxels += block
    excess = len(stream.read(1))  # reading past the end is what makes gzip compare its checksum
    if excess or len(voxels) != facts.voxel_bytes:
        raise _wrong_length(before + len(voxels) + excess, facts.offset + facts.voxel_bytes)
    return voxels


def _tell_unit(path: Path, geometry: Geometry) -> None:
    factor = mm_per_unit(geometry.source["fields"]["xyzt_units"])
    if factor != 1.0:
        logger.info("%s: lengths are in %s, converted to mm", path, "metres" if factor > 1 else "microns")


def _wrong_length(found: int, expected: int) -> UnreadableFile:
    what = f"is truncated: it has {found} bytes" if found < expected else f"is too long: it has {found} or more bytes"
    return UnreadableFile(f"{what} (its header promises {expected})", fix="copy or export the file again")


def _scaled(array: np.ndarray, facts: NiftiFacts) -> np.ndarray:
    if facts.slope is None:
        return array
    # Sixteen bits and a slope fit in single precision; larger numbers may cancel against the intercept.
    scaled = array.astype(np.float32 if facts.dtype.itemsize <= 2 else np.float64)
    np.multiply(scaled, facts.slope, out=scaled)
    return np.add(scaled, facts.intercept, out=scaled)
