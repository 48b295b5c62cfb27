"""What the head of a JPEG, JPEG-LS or JPEG 2000 code stream says of its picture, and whether its end is there."""

from __future__ import annotations

from typing import NamedTuple

_END = b"\xff\xd9"
_FRAMES = {0xC0, 0xC1, 0xC2, 0xC3, 0xF7}  # start of a frame: baseline, extended, progressive, lossless; JPEG-LS
_NO_LENGTH = {0x01, *range(0xD0, 0xD9)}


class Codestream(NamedTuple):
    """Of the picture: columns and rows, number of components, bits of each value."""

    size: tuple[int, int]
    components: int
    precision: int


def read_codestream(content: bytes) -> Codestream | None:
    """The head of a code stream; None where it is none, or ends before its end.

    Sources: ITU-T T.81, B.2 (JPEG); T.87, C.2 (JPEG-LS); T.800, A.5 (JPEG 2000).
    """
    if not content.rstrip(b"\0").endswith(_END):
        return None
    if content[:4] == b"\xff\x4f\xff\x51":
        return _jpeg_2000(content)
    return _jpeg(content) if content[:2] == b"\xff\xd8" else None


def _jpeg_2000(content: bytes) -> Codestream | None:
    if len(content) < 43 or not _tiles_are_whole(content.rstrip(b"\0")):
        return None
    right, bottom, left, top = (_number(content, at, 4) for at in (8, 12, 16, 20))
    return Codestream((right - left, bottom - top), _number(content, 40, 2), (content[42] & 0x7F) + 1)


def _tiles_are_whole(content: bytes) -> bool:
    """Whether the lengths of the tile parts lead to the end: a decoder fills up a shorter one in silence."""
    at = 2
    while content[at : at + 2] not in (b"\xff\x90", b"", _END):  # the main header's segments
        at += 2 + _number(content, at + 2, 2)
    while content[at : at + 2] == b"\xff\x90":
        length = _number(content, at + 6, 4)
        at = at + length if length else len(content) - 2
    return at == len(content) - 2


def _jpeg(content: bytes) -> Codestream | None:
    at = 2
    while at + 10 <= len(content) and content[at] == 0xFF:
        marker = content[at + 1]
        if marker in _FRAMES:
            rows, columns = _number(content, at + 5, 2), _number(content, at + 7, 2)
            return Codestream((columns, rows), content[at + 9], content[at + 4])
        at += 1 if marker == 0xFF else 2 if marker in _NO_LENGTH else 2 + _number(content, at + 2, 2)
    return None


def _number(content: bytes, at: int, count: int) -> int:
    return int.from_bytes(content[at : at + count], "big")
