"""TIFF: the one directory of a file, its tags as numbers (TIFF 6.0, section 2; BigTIFF)."""

from __future__ import annotations

import struct
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from medseg.errors import UnreadableFile

_BROKEN = "copy or export the file again"
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_WHOLE = {1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}  # type codes of whole numbers
_MOST_PAGES = 10_000
_DESCRIPTION = 270


@dataclass(frozen=True)
class _Form:
    """struct's letters for an offset, a number of entries and an entry's beginning, and an entry's size."""

    offset: str
    count: str
    entry: str
    size: int


_CLASSIC, _BIG = _Form("I", "H", "HHI", 12), _Form("Q", "Q", "HHQ", 20)


@dataclass(frozen=True)
class Directory:
    """What a directory holds.

    Attributes:
        order: "<" or ">".
        tags: values of those that were asked for.
        values_at: tag -> byte of its value in its entry, for a copy of the file with another value.
        description: the text of ImageDescription.
    """

    order: str
    tags: dict[int, list[int]]
    values_at: dict[int, int]
    description: str


def read_directory(data: bytes, wanted: Collection[int]) -> Directory:
    """The only directory of a file.

    Raises:
        UnreadableFile: not a TIFF, damaged, or several pages.
    """
    order = {b"II": "<", b"MM": ">"}.get(bytes(data[:2]), "")
    if not order or (magic := int(np.frombuffer(data[2:4].ljust(2, b"\0"), order + "u2")[0])) not in (42, 43):
        raise UnreadableFile("is not a TIFF file", fix="export the file again")
    form = _BIG if magic == 43 else _CLASSIC
    if form is _BIG and bytes(data[4:8]) != struct.pack(order + "HH", 8, 0):
        raise UnreadableFile("is not a BigTIFF file with offsets of 8 bytes", fix=_BROKEN)
    (start,) = _unpack(order + form.offset, data, 8 if form is _BIG else 4)
    _check_pages(data, order, form, start)
    (count,) = _unpack(order + form.count, data, start)
    found = Directory(order, {}, {}, "")
    description = b""
    first = start + struct.calcsize(order + form.count)
    for entry in range(first, first + count * form.size, form.size):
        tag, kind, number = _unpack(order + form.entry, data, entry)
        if tag in found.values_at:
            raise UnreadableFile(f"has its tag {tag} twice", fix=_BROKEN)
        found.values_at[tag] = entry + form.size - struct.calcsize(order + form.offset)
        if tag == _DESCRIPTION:
            description = _value(data, order, form, found.values_at[tag], kind, number)
        elif tag in wanted:
            found.tags[tag] = _numbers(_value(data, order, form, found.values_at[tag], kind, number), order, kind, tag)
    return Directory(order, found.tags, found.values_at, description.rstrip(b"\0").decode("latin-1"))


def _check_pages(data: bytes, order: str, form: _Form, start: int) -> None:
    pages, seen = 0, {0}
    while start not in seen and pages < _MOST_PAGES:
        seen.add(start)
        (count,) = _unpack(order + form.count, data, start)
        (start,) = _unpack(order + form.offset, data, start + struct.calcsize(order + form.count) + count * form.size)
        pages += 1
    if pages != 1 or start != 0:
        raise UnreadableFile(f"has {pages} pages (expected 1)", fix="write each page to a file of its own")


def _unpack(form: str, data: bytes, position: int) -> tuple[int, ...]:
    if not 0 <= position <= len(data) - struct.calcsize(form):
        raise UnreadableFile("is truncated: its directory is outside of the file", fix=_BROKEN)
    return struct.unpack_from(form, data, position)


def _value(data: bytes, order: str, form: _Form, start: int, kind: int, number: int) -> bytes:
    size = _SIZES.get(kind, 0) * number
    if size > struct.calcsize(order + form.offset):
        (start,) = _unpack(order + form.offset, data, start)
    if not size or start + size > len(data):
        raise UnreadableFile("is damaged: the value of a tag is outside of the file", fix=_BROKEN)
    return bytes(data[start : start + size])


def _numbers(value: bytes, order: str, kind: int, tag: int) -> list[int]:
    if kind not in _WHOLE:
        raise UnreadableFile(f"is damaged: its tag {tag} is of the type {kind} (expected whole numbers)", fix=_BROKEN)
    return np.frombuffer(value, order + _WHOLE[kind]).tolist()
