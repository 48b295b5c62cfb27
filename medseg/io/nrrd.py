"""NRRD headers (.nrrd), parsed strictly.

ITK follows any path in the header, reads raw voxels without comparing their length, never reaches gzip's checksum, and
drops what it does not know. Format: https://teem.sourceforge.net/nrrd/format.html. The grammar here:

    header  = "NRRD000" ("1".."5") newline, line*, empty line ;      voxels follow: a detached header is refused
    line    = "#" comment | key ":=" note | field ": " value ;       no field twice, no unknown field
    dimension = 2 | 3 | 4 ; sizes = as many whole numbers > 0 ; type = a real number ; endian where it matters
    encoding = raw | gzip | bzip2 | text ; line skip, byte skip = whole numbers, with raw voxels only
    space = right-anterior-superior | left-anterior-superior | left-posterior-superior (or RAS, LAS, LPS), which needs
    space directions = a vector per axis of space and "none" for channels ; space origin = a vector ; units: mm
    spacings (without space directions) = a number > 0 per axis of space ; none: 1 mm
    kinds = domain | space for axes of space ; at most one axis of channels (list, vector, RGB-color ...)
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from math import isfinite
from pathlib import Path
from typing import TypeVar

import numpy as np

from medseg.errors import BadGeometry, BadVoxels, UnreadableFile, UnsafeArtefact
from medseg.io.raw_volume import HEADER_LIMIT, Packing, RawVolume, number, whole

logger = logging.getLogger(__name__)

_TYPES = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "signed long long int"), "i8"),
    **dict.fromkeys(("int64", "int64_t"), "i8"),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), "u8"),
    "float": "f4",
    "double": "f8",
}
_PACKINGS: dict[str, Packing] = {"raw": "raw", "gzip": "deflate", "gz": "deflate", "bzip2": "bzip2", "bz2": "bzip2"}
_PACKINGS |= {"txt": "text", "text": "text", "ascii": "text"}
_TO_LPS = {"ras": (-1, -1, 1), "las": (1, -1, 1), "lps": (1, 1, 1)}
_TO_LPS |= {"right-anterior-superior": (-1, -1, 1), "left-anterior-superior": (1, -1, 1)}
_TO_LPS |= {"left-posterior-superior": (1, 1, 1)}
_SPATIAL_KINDS = ("domain", "space")
_CHANNEL_KINDS: tuple[str, ...] = (
    "list",
    "vector",
    "point",
    "normal",
    "covariant-vector",
    "scalar",
    "rgb-color",
    "rgba-color",
)
_CHANNEL_KINDS += ("2-vector", "3-vector", "4-vector", "3-color", "4-color", "none", "stub", "???")
_NOTES: tuple[str, ...] = (
    "content",
    "number",
    "min",
    "max",
    "oldmin",
    "oldmax",
    "sampleunits",
    "thicknesses",
    "axismins",
    "axismaxs",
)
_NOTES += ("centers", "labels", "measurementframe")
_READ: tuple[str, ...] = (
    "dimension",
    "type",
    "encoding",
    "endian",
    "sizes",
    "lineskip",
    "byteskip",
    "kinds",
    "units",
    "datafile",
)
_READ += ("space", "spacedimension", "spacedirections", "spaceorigin", "spaceunits", "spacings")
_SYNONYMS = {"centerings": "centers"}
_FIX = "re-export the file"
T = TypeVar("T")


def parse_nrrd(path: Path) -> RawVolume:
    """Parse and check a header.

    Raises:
        UnreadableFile: not an NRRD file, or a line of its header that is outside of the grammar.
        UnsafeArtefact: the voxels would come from another file.
        BadGeometry: directions, spacings or units that are no grid in mm.
        BadVoxels: no real numbers, or a number of dimensions that is not an image's.
    """
    fields, head, start = _read_fields(path)
    if "datafile" in fields:
        problem = f"its voxels are in another file, '{fields['datafile'][:200]}'"
        raise UnsafeArtefact(problem, fix="convert it to one .nrrd file with its voxels inside")
    dims = _whole(fields, "dimension")
    sizes = tuple(_words(fields, "sizes", dims, whole))
    if min(sizes) < 1:
        raise UnreadableFile(f"sizes are '{fields['sizes']}' (every size must be at least 1)", fix=_FIX)
    channels = _channel_axis(fields, dims)
    spacing, origin, direction = _grid(fields, dims, channels)
    packing = _PACKINGS.get(fields.get("encoding", "").lower())
    if packing is None:
        known = ", ".join(_PACKINGS)
        raise UnreadableFile(
            f"encoding is '{fields.get('encoding')}' (expected {known})", fix="write it as gzip or raw"
        )
    start = _skipped(fields, packing, head, start)
    return RawVolume(path, start, packing, _dtype(fields, packing), sizes, channels, spacing, origin, direction)


def _read_fields(path: Path) -> tuple[dict[str, str], bytes, int]:
    """The ``field: value`` lines, in lower case without spaces; the file's beginning; the byte after the header."""
    with path.open("rb") as file:
        head = file.read(HEADER_LIMIT)
    if not re.match(rb"NRRD000[1-5]\r?\n", head):
        raise UnreadableFile("is not an NRRD file (its first line is not 'NRRD000' and 1 to 5)")
    end = re.search(rb"\r?\n\r?\n", head)
    fields: dict[str, str] = {}
    for line in head[: end.start() if end else None].decode("latin-1").replace("\r\n", "\n").split("\n")[1:]:
        name, separator, value = line.partition(":")
        if line.startswith("#") or value.startswith("="):
            continue
        field = name.lower().replace(" ", "")
        field = _SYNONYMS.get(field, field)
        if not separator or field not in (*_READ, *_NOTES):
            raise UnreadableFile(f"its header has the unknown line '{line[:60]}'", fix=_FIX)
        if field in fields:
            raise UnreadableFile(f"its header has '{name}' twice", fix="remove the wrong one")
        fields[field] = value.strip()
    if end is None and "datafile" not in fields:
        raise UnreadableFile("is not a whole NRRD file: no empty line ends its header")
    return fields, head, end.end() if end else len(head)


def _whole(fields: Mapping[str, str], field: str, default: str = "") -> int:
    try:
        return whole(fields.get(field, default))
    except ValueError as error:
        raise UnreadableFile(f"{field} is {error} (expected a whole number)", fix=_FIX) from None


def _words(fields: Mapping[str, str], field: str, count: int, read: Callable[[str], T]) -> list[T]:
    words = fields.get(field, "").split()
    try:
        values = [read(word) for word in words]
    except ValueError as error:
        raise UnreadableFile(f"{field} has no number where one belongs: {error}", fix=_FIX) from None
    if len(values) != count:
        raise UnreadableFile(f"{field} has {len(values)} values (expected {count}, as dimension says)", fix=_FIX)
    return values


def _dtype(fields: Mapping[str, str], packing: Packing) -> np.dtype:
    kind = _TYPES.get(" ".join(fields.get("type", "").lower().split()))
    if kind is None:
        raise BadVoxels(f"type is '{fields.get('type')}' (expected real numbers)")
    endian = fields.get("endian", "").lower()
    if endian not in ("little", "big") and (endian or (packing != "text" and kind[1] != "1")):
        raise UnreadableFile(f"endian is '{endian}' (expected little or big)", fix=_FIX)
    return np.dtype((">" if endian == "big" else "<") + kind)


def _channel_axis(fields: Mapping[str, str], dims: int) -> int | None:
    """The axis that is not one of space, by its kind and by its direction, which must agree."""
    kinds = [kind.lower() for kind in _words(fields, "kinds", dims, str)] if "kinds" in fields else ["domain"] * dims
    for kind in kinds:
        if kind not in (*_SPATIAL_KINDS, *_CHANNEL_KINDS):
            raise BadVoxels(f"an axis is of the kind '{kind}' (expected domain, space, or a kind of channels)")
    by_kind = [axis for axis, kind in enumerate(kinds) if kind not in _SPATIAL_KINDS]
    flat = [axis for axis, vector in enumerate(_vectors(fields, dims)) if vector is None]
    others = flat if "spacedirections" in fields else by_kind
    if not set(by_kind) <= set(others) or ("kinds" in fields and others != by_kind):
        raise BadGeometry("kinds and space directions disagree about the axis of channels", fix=_FIX)
    if len(others) > 1 or dims - len(others) not in (2, 3):
        raise BadVoxels(f"has {dims} dimensions, {len(others)} of them channels (expected 2 or 3 of space, 0 or 1)")
    return others[0] if others else None


def _vectors(fields: Mapping[str, str], dims: int) -> list[list[float] | None]:
    """Per axis its direction, None for "none"."""
    if "spacedirections" not in fields:
        return []
    found = [
        _vector(text, "space directions") for text in re.findall(r"\([^()]*\)|[^\s()]+", fields["spacedirections"])
    ]
    if len(found) != dims:
        raise UnreadableFile(f"space directions are {len(found)} (expected {dims}, as dimension says)", fix=_FIX)
    return found


def _vector(text: str, field: str) -> list[float] | None:
    if text == "none":
        return None
    try:
        if text[0] + text[-1] != "()":
            raise ValueError(f"'{text[:40]}'")
        return [number(part.strip()) for part in text[1:-1].split(",")]
    except ValueError as error:
        raise UnreadableFile(f"{field} has no vector where one belongs: {error}", fix=_FIX) from None


def _grid(fields: Mapping[str, str], dims: int, channels: int | None) -> tuple[list[float], list[float], list[float]]:
    """Spacing, origin and direction of the axes of space, in mm and LPS."""
    axes = [axis for axis in range(dims) if axis != channels]
    if "spacedirections" not in fields:
        if "space" in fields or "spaceorigin" in fields:
            raise BadGeometry(
                "it names a space but no space directions", fix="state space directions, or leave space out"
            )
        return _spacings(fields, dims, axes), [0.0] * len(axes), np.eye(len(axes)).ravel().tolist()
    if "spacings" in fields:
        raise BadGeometry("it has both spacings and space directions", fix="remove the wrong one")
    flips = _flips(fields, len(axes))
    _check_units(fields, "spaceunits")
    columns = [vector for vector in _vectors(fields, dims) if vector is not None]
    origin = _vector(fields["spaceorigin"], "space origin") if "spaceorigin" in fields else [0.0] * len(axes)
    if origin is None or any(len(vector) != len(axes) for vector in [*columns, origin]):
        raise BadGeometry(f"a vector of space has not {len(axes)} numbers", fix=_FIX)
    if not np.isfinite([*columns, origin]).all():
        raise BadGeometry("space directions or space origin are not finite", fix=_FIX)
    matrix = np.array(columns).T * np.array(flips)[:, None]
    spacing = np.linalg.norm(matrix, axis=0)
    if not (spacing > 0).all():
        raise BadGeometry(f"space directions are {columns} (must be longer than 0 mm)", fix=_FIX)
    return spacing.tolist(), (np.array(origin) * flips).tolist(), (matrix / spacing).ravel().tolist()


def _flips(fields: Mapping[str, str], dims: int) -> tuple[int, ...]:
    space = fields.get("space", "").lower()
    if "space" in fields and "spacedimension" in fields:
        raise BadGeometry("it has both space and space dimension", fix="remove the wrong one")
    if dims == 2 and fields.get("spacedimension") == "2":
        return (1, 1)
    if dims != 3 or space not in _TO_LPS:
        problem = f"space is '{fields.get('space')}' (expected one of {', '.join(_TO_LPS)} for 3 axes)"
        raise BadGeometry(problem, fix="state space: left-posterior-superior, if that is what it is")
    return _TO_LPS[space]


def _spacings(fields: Mapping[str, str], dims: int, axes: list[int]) -> list[float]:
    _check_units(fields, "units")
    if "spacings" not in fields:
        logger.warning("an NRRD file without spacings: voxels are taken to be 1 mm wide")
        return [1.0] * len(axes)
    values = _words(fields, "spacings", dims, number)
    if not all(isfinite(values[axis]) and values[axis] > 0 for axis in axes):
        raise BadGeometry(f"spacings are '{fields['spacings']}' (must be finite and > 0 mm)", fix=_FIX)
    return [values[axis] for axis in axes]


def _check_units(fields: Mapping[str, str], field: str) -> None:
    units = re.findall(r'"([^"]*)"', fields.get(field, ""))
    if wrong := [unit for unit in units if unit.strip().lower() not in ("", "mm", "millimeter", "millimeters")]:
        raise BadGeometry(f"its lengths are in {wrong[0]} (expected mm)", fix="convert its spacing to mm")


def _skipped(fields: Mapping[str, str], packing: Packing, head: bytes, start: int) -> int:
    """The byte where voxels begin, after the lines and bytes to skip."""
    lines, skip = _whole(fields, "lineskip", "0"), _whole(fields, "byteskip", "0")
    if (lines or skip) and (packing != "raw" or lines < 0 or skip < 0):
        raise UnreadableFile("has line skip or byte skip (read with raw voxels and from 0 only)", fix=_FIX)
    for _ in range(lines):
        start = head.find(b"\n", start) + 1
        if not start:
            raise UnreadableFile(f"line skip is {lines}, but fewer lines follow its header", fix=_FIX)
    return start + skip
