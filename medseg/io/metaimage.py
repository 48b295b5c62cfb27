"""MetaImage headers (.mha, .mhd), parsed strictly.

ITK takes ``5.2x`` for 5.2, the first of repeated keys, any path as the voxels' place and any size as that of the
compressed voxels, and makes a negative spacing positive, all without a word. Format:
https://itk.org/Wiki/ITK/MetaIO/Documentation. The grammar here:

    header  = line* ;                        the last line is ElementDataFile, what follows it are voxels if it is LOCAL
    line    = key " = " value newline ;      no key twice, none that is nearly a known one; unknown keys are notes
    NDims = 2 | 3 ; DimSize = NDims whole numbers > 0 ; ElementType = MET_ and a real type
    ElementSpacing, else ElementSize = NDims numbers > 0 (mm) ; none: 1 mm
    Offset | Position | Origin = NDims numbers (mm, LPS) ; none: 0
    TransformMatrix | Rotation | Orientation = NDims x NDims numbers, axis after axis ; none: the axes of the patient
    CompressedData, BinaryData, ...ByteOrderMSB = True | False ; CompressedDataSize = what the file holds
    HeaderSize = bytes before the voxels of another file ; -1: the voxels are its end
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from difflib import get_close_matches
from math import isfinite, prod
from pathlib import Path
from typing import Literal

import numpy as np

from medseg.errors import BadGeometry, BadVoxels, UnreadableFile, UnsafeArtefact
from medseg.io.raw_volume import HEADER_LIMIT, RawVolume, number, whole

logger = logging.getLogger(__name__)

_TYPES = {"CHAR": "i1", "UCHAR": "u1", "SHORT": "i2", "USHORT": "u2", "INT": "i4", "UINT": "u4", "LONG": "i4"}
_TYPES |= {"ULONG": "u4", "LONG_LONG": "i8", "ULONG_LONG": "u8", "FLOAT": "f4", "DOUBLE": "f8"}
_ORDER = ("BinaryDataByteOrderMSB", "ElementByteOrderMSB")
_ORIGIN = ("Offset", "Position", "Origin")
_AXES = ("TransformMatrix", "Rotation", "Orientation")
_SPACING = ("ElementSpacing", "ElementSize")
_SCALING = {"ElementToIntensityFunctionSlope": 1.0, "ElementToIntensityFunctionOffset": 0.0}
_KNOWN = (
    *("ObjectType", "NDims", "DimSize", "ElementType", "ElementNumberOfChannels", "ElementDataFile", "HeaderSize"),
    *("BinaryData", "CompressedData", "CompressedDataSize", *_ORDER, *_ORIGIN, *_AXES, *_SPACING, *_SCALING),
)
_OTHERS = ("ObjectSubType", "ElementMin", "ElementMax", "ElementNBits", "CompressionLevel", "ElementSizeValid")
_UNIT = 1e-3  # how far the length of a direction may be from 1
_FIX = "re-export the file"


def parse_metaimage(path: Path) -> RawVolume:
    """Parse and check a header.

    Raises:
        UnreadableFile: not a MetaImage, or a line of its header that is outside of the grammar.
        BadGeometry: spacing or axes that are no grid.
        BadVoxels: an element type that is not a real number, or a number of dimensions that is not an image's.
        UnsafeArtefact: the voxels would come from another folder.
    """
    fields, start = _read_fields(path)
    dims = _whole(fields, "NDims", None)
    if dims not in (2, 3):
        raise BadVoxels(f"has {dims} dimensions (expected 2 or 3)", fix="split it into volumes")
    if fields.get("ObjectType", "Image") != "Image":
        raise UnreadableFile(f"ObjectType is '{fields['ObjectType']}' (expected Image)", fix=_FIX)
    if not _flag(fields, "BinaryData", True):
        raise UnreadableFile("BinaryData is False: its voxels are text", fix="convert it to binary")
    _check_scaling(fields)
    channels, dtype = _whole(fields, "ElementNumberOfChannels", 1), _dtype(fields)
    sizes = (channels, *_sizes(fields, dims))
    if min(sizes) < 1:
        problem = f"DimSize is '{fields['DimSize']}' with {channels} channel(s) (every size must be at least 1)"
        raise UnreadableFile(problem, fix=_FIX)
    data, start = _data_file(path, fields, start, prod(sizes) * dtype.itemsize)
    return RawVolume(
        data,
        start,
        _packing(fields, data, start),
        dtype,
        sizes,
        0,
        _spacing(fields, dims),
        _numbers(fields, _ORIGIN, dims, [0.0] * dims),
        _direction(fields, dims),
    )


def _read_fields(path: Path) -> tuple[dict[str, str], int]:
    """The header's ``key = value`` lines and the byte after them."""
    with path.open("rb") as file:
        head = file.read(HEADER_LIMIT)
    fields: dict[str, str] = {}
    position = 0
    while "ElementDataFile" not in fields:
        end = head.find(b"\n", position)
        key, separator, value = head[position : max(end, position)].decode("latin-1").partition("=")
        if end < 0 or not separator:
            raise UnreadableFile("is not a MetaImage file: no 'ElementDataFile =' line ends its header")
        key, position = key.strip(), end + 1
        _check_key(key, fields)
        fields[key] = value.strip()
    return fields, position


def _check_key(key: str, before: Mapping[str, str]) -> None:
    if key in before:
        raise UnreadableFile(f"its header has {key} twice", fix="remove the wrong one")
    likely = get_close_matches(key, _KNOWN, n=1, cutoff=0.8) or [name for name in _KNOWN if name.lower() == key.lower()]
    if likely and key not in (*_KNOWN, *_OTHERS):
        raise UnreadableFile(f"its header has the unknown key '{key[:60]}': did you mean {likely[0]}?", fix=_FIX)


def _whole(fields: Mapping[str, str], key: str, default: int | None) -> int:
    if key not in fields and default is not None:
        return default
    try:
        return whole(fields.get(key, ""))
    except ValueError as error:
        raise UnreadableFile(f"{key} is {error} (expected a whole number)", fix=_FIX) from None


def _numbers(fields: Mapping[str, str], keys: tuple[str, ...], count: int, default: list[float]) -> list[float]:
    """So many numbers under one of several names of one thing."""
    given = [key for key in keys if key in fields]
    if not given:
        return default
    if len({tuple(fields[key].split()) for key in given}) > 1:
        raise BadGeometry(f"{' and '.join(given)} are one thing and differ", fix="remove the wrong one")
    try:
        values = [number(text) for text in fields[given[0]].split()]
    except ValueError as error:
        raise UnreadableFile(f"{given[0]} has no number where one belongs: {error}", fix=_FIX) from None
    if not all(map(isfinite, values)):
        raise BadGeometry(f"{given[0]} is {fields[given[0]][:80]} (must be finite)", fix=_FIX)
    if len(values) != count:
        raise UnreadableFile(f"{given[0]} has {len(values)} numbers (expected {count})", fix=_FIX)
    return values


def _flag(fields: Mapping[str, str], key: str, default: bool) -> bool:
    value = fields.get(key, str(default)).lower()
    if value not in ("true", "false"):
        raise UnreadableFile(f"{key} is '{fields[key]}' (expected True or False)", fix=_FIX)
    return value == "true"


def _sizes(fields: Mapping[str, str], dims: int) -> list[int]:
    try:
        sizes = [whole(text) for text in fields.get("DimSize", "").split()]
    except ValueError as error:
        raise UnreadableFile(f"DimSize has no number where one belongs: {error}", fix=_FIX) from None
    if len(sizes) != dims:
        raise UnreadableFile(
            f"DimSize is '{fields.get('DimSize', '')}' (expected {dims} sizes, as NDims says)", fix=_FIX
        )
    return sizes


def _dtype(fields: Mapping[str, str]) -> np.dtype:
    kind = fields.get("ElementType", "").removeprefix("MET_").removesuffix("_ARRAY")
    if kind not in _TYPES:
        raise BadVoxels(f"ElementType is '{fields.get('ElementType')}' (expected real numbers)")
    orders = {_flag(fields, key, False) for key in _ORDER if key in fields}
    if len(orders) > 1:
        raise UnreadableFile(f"{' and '.join(_ORDER)} are one thing and differ", fix="remove the wrong one")
    return np.dtype((">" if True in orders else "<") + _TYPES[kind])


def _check_scaling(fields: Mapping[str, str]) -> None:
    for key, identity in _SCALING.items():
        if _numbers(fields, (key,), 1, [identity]) != [identity]:
            raise BadVoxels(f"{key} is {fields[key]}, which ITK does not apply", fix="export the scaled voxels")


def _direction(fields: Mapping[str, str], dims: int) -> list[float]:
    """Row by row; the header has it column by column, which are the axes."""
    axes = np.reshape(_numbers(fields, _AXES, dims * dims, np.eye(dims).ravel().tolist()), (dims, dims))
    lengths = np.linalg.norm(axes, axis=1)
    if np.abs(lengths - 1).max() > _UNIT:
        raise BadGeometry(f"the directions of its axes have the lengths {lengths.tolist()} (must be 1)", fix=_FIX)
    return axes.T.ravel().tolist()


def _spacing(fields: Mapping[str, str], dims: int) -> list[float]:
    if not any(key in fields for key in _SPACING):
        logger.warning("a MetaImage without ElementSpacing: voxels are taken to be 1 mm wide")
    for key in _SPACING:
        for axis, value in enumerate(_numbers(fields, (key,), dims, [1.0] * dims)):
            if value <= 0:
                raise BadGeometry(f"{key}[{axis}] is {value:g} (must be > 0 mm)", fix=_FIX)
    return _numbers(fields, (_SPACING[0] if _SPACING[0] in fields else _SPACING[1],), dims, [1.0] * dims)


def _data_file(path: Path, fields: Mapping[str, str], start: int, expected: int) -> tuple[Path, int]:
    name, skip = fields["ElementDataFile"], _whole(fields, "HeaderSize", 0)
    if name.upper() == "LOCAL":
        if skip not in (0, -1, start):
            raise UnreadableFile(f"HeaderSize is {skip}, but its header takes {start} bytes", fix="remove HeaderSize")
        return path, start
    if not name or Path(name).name != name or "\\" in name or "%" in name or name.upper().startswith("LIST"):
        raise UnsafeArtefact(
            f"its voxels are in '{name}' (expected one file in the same folder)", fix="convert it to .mha"
        )
    data = path.with_name(name)
    if not data.is_file():
        raise UnreadableFile(f"its voxel file '{name}' is missing", fix="copy it beside the header")
    if skip == -1:
        skip = os.path.getsize(data) - expected
    if skip < 0:
        raise UnreadableFile(f"HeaderSize is {skip} with {os.path.getsize(data)} bytes in '{name}'", fix=_FIX)
    return data, skip


def _packing(fields: Mapping[str, str], data: Path, start: int) -> Literal["raw", "deflate"]:
    stored = os.path.getsize(data) - start
    if not _flag(fields, "CompressedData", False):
        return "raw"
    if _whole(fields, "HeaderSize", 0) == -1 and data.name == fields["ElementDataFile"]:
        raise UnreadableFile("HeaderSize is -1 with compressed voxels, whose length it cannot tell", fix=_FIX)
    if (size := _whole(fields, "CompressedDataSize", stored)) != stored:
        raise UnreadableFile(f"CompressedDataSize is {size}, but {stored} bytes are stored", fix="copy the file again")
    return "deflate"
