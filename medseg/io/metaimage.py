"""Check a MetaImage file (.mha, .mhd) before ITK reads it.

ITK reads files whose deflate checksum is wrong, follows any path in the header, and makes a negative spacing
positive, all without a word. Format: https://itk.org/Wiki/ITK/MetaIO/Documentation.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np

from medseg.errors import BadGeometry, BadVoxels, UnreadableFile, UnsafeArtefact

_HEADER_LIMIT = 1 << 20  # bytes
_BYTES = {"CHAR": 1, "UCHAR": 1, "SHORT": 2, "USHORT": 2, "INT": 4, "UINT": 4, "LONG": 4, "ULONG": 4}
_BYTES |= {"LONG_LONG": 8, "ULONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8}


def check_metaimage(path: Path, *, unpack: bool) -> None:
    """Check the header and the length of the voxels.

    Args:
        path: a .mha or .mhd file.
        unpack: also unpack compressed voxels, to compare their length and checksum.

    Raises:
        UnreadableFile: not a MetaImage, truncated, too long or damaged.
        BadGeometry: spacing that is not finite and positive.
        BadVoxels: an element type that is not a real number.
        UnsafeArtefact: the voxels would come from another folder.
    """
    fields, start = _read_fields(path)
    try:
        _check_spacing(fields)
        data, start = _data_file(path, fields, start)
        expected, stored = _expected_bytes(fields), os.path.getsize(data) - start
    except ValueError as error:
        raise UnreadableFile(f"its header has no number where one belongs: {error}", fix="re-export the file") from None
    compressed = fields.get("CompressedData", "False").lower() == "true"
    if not compressed and stored != expected:
        raise _wrong_length(stored, expected)
    if compressed and unpack:
        _check_deflate(data, start, expected)


def _read_fields(path: Path) -> tuple[dict[str, str], int]:
    """The header's ``key = value`` lines and the byte after them."""
    with path.open("rb") as file:
        head = file.read(_HEADER_LIMIT)
    fields: dict[str, str] = {}
    position = 0
    while "ElementDataFile" not in fields:
        end = head.find(b"\n", position)
        key, separator, value = head[position:end].decode("latin-1").partition("=")
        if end < 0 or not separator:
            raise UnreadableFile("is not a MetaImage file: no 'ElementDataFile =' line ends its header")
        fields[key.strip()], position = value.strip(), end + 1
    return fields, position


def _check_spacing(fields: dict[str, str]) -> None:
    for key in ("ElementSpacing", "ElementSize"):
        for axis, text in enumerate(fields.get(key, "").split()):
            value = float(text)
            if not (np.isfinite(value) and value > 0):
                raise BadGeometry(f"{key}[{axis}] is {text} (must be finite and > 0 mm)", fix="re-export the file")


def _data_file(path: Path, fields: dict[str, str], start: int) -> tuple[Path, int]:
    name = fields["ElementDataFile"]
    if name.upper() == "LOCAL":
        return path, start
    if Path(name).name != name or "\\" in name or "%" in name or name.upper().startswith("LIST"):
        raise UnsafeArtefact(
            f"its voxels are in '{name}' (expected one file in the same folder)", fix="convert it to .mha"
        )
    data = path.with_name(name)
    if not data.is_file():
        raise UnreadableFile(f"its voxel file '{name}' is missing", fix="copy it beside the header")
    return data, max(int(fields.get("HeaderSize", "0")), 0)


def _expected_bytes(fields: dict[str, str]) -> int:
    kind = fields.get("ElementType", "").removeprefix("MET_").removesuffix("_ARRAY")
    if kind not in _BYTES:
        raise BadVoxels(f"ElementType is '{fields.get('ElementType')}' (expected real numbers)")
    total = _BYTES[kind] * int(fields.get("ElementNumberOfChannels", "1"))
    for size in fields.get("DimSize", "0").split():
        total *= int(size)
    if total < 1:
        raise UnreadableFile(f"DimSize is '{fields.get('DimSize')}' (every size must be at least 1)")
    return total


def _check_deflate(data: Path, start: int, expected: int) -> None:
    stream = zlib.decompressobj()
    found = 0
    with data.open("rb") as file:
        file.seek(start)
        try:
            while found <= expected and not stream.eof and (block := stream.unconsumed_tail or file.read(1 << 20)):
                found += len(stream.decompress(block, 1 << 24))
        except zlib.error as error:
            raise UnreadableFile(f"its compressed voxels are damaged: {error}", fix="copy the file again") from None
    if not stream.eof and found <= expected:
        raise UnreadableFile("its compressed voxels are truncated", fix="copy or export the file again")
    if found != expected:
        raise _wrong_length(found, expected)


def _wrong_length(found: int, expected: int) -> UnreadableFile:
    problem = f"has {found} bytes of voxels (its header promises {expected})"
    return UnreadableFile(problem, fix="copy or export the file again")
