"""How campaign.py damages a file: generic changes of bytes, numbers of a header, lines of a header of text."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable

import numpy as np
from _campaign_formats import Field, Sample

Change = Callable[[np.random.Generator, bytes], bytes]
WORDS = (
    b"0",
    b"-1",
    b"1",
    b"2",
    b"3",
    b"1e30",
    b"nan",
    b"inf",
    b"5.2x",
    b"",
    b"65536",
    b"4294967295",
    b"0x10",
    b"1_0",
    b"True",
    b"LIST",
)
WORDS += (
    b"99999999999999999999",
    b"../a.raw",
    b"MET_FLOAT",
    b"MET_USHORT",
    b"big",
    b"raw",
    b"gzip",
    b"none",
    b"(0,0,0)",
    b"null",
    b"[]",
)


def _span(rng: np.random.Generator, data: bytes, most: int = 40) -> tuple[int, int]:
    start = int(rng.integers(0, max(1, len(data))))
    return start, min(len(data), start + 1 + int(rng.integers(most)))


def flip(rng: np.random.Generator, data: bytes) -> bytes:
    """1 to 4 bits."""
    out = bytearray(data)
    for position in rng.integers(0, max(1, len(out)), int(rng.integers(1, 5))):
        out[position] ^= 1 << int(rng.integers(8))
    return bytes(out)


def flip_head(rng: np.random.Generator, data: bytes) -> bytes:
    """1 to 4 bytes at the beginning."""
    out = bytearray(data)
    for position in rng.integers(0, min(len(out), 400), int(rng.integers(1, 5))):
        out[position] = int(rng.integers(256))
    return bytes(out)


def truncate(rng: np.random.Generator, data: bytes) -> bytes:
    """Anywhere, often near the end."""
    return data[: -int(rng.integers(1, 20))] if rng.random() < 0.4 else data[: int(rng.integers(0, len(data)))]


def insert(rng: np.random.Generator, data: bytes) -> bytes:
    """Random bytes somewhere."""
    start, _ = _span(rng, data)
    return data[:start] + rng.bytes(int(rng.integers(1, 20))) + data[start:]


def delete(rng: np.random.Generator, data: bytes) -> bytes:
    """Some bytes."""
    start, end = _span(rng, data)
    return data[:start] + data[end:]


def double(rng: np.random.Generator, data: bytes) -> bytes:
    """Some bytes twice."""
    start, end = _span(rng, data)
    return data[:end] + data[start:]


def swap(rng: np.random.Generator, data: bytes) -> bytes:
    """Two pieces change places."""
    size = int(rng.integers(1, 9))
    first, second = sorted(int(n) for n in rng.integers(0, max(1, len(data) - 2 * size), 2))
    second = max(second, first + size)
    return (
        data[:first]
        + data[second : second + size]
        + data[first + size : second]
        + data[first : first + size]
        + data[second + size :]
    )


def zero(rng: np.random.Generator, data: bytes) -> bytes:
    """A piece of zeros, as a lost block of a disk."""
    start, end = _span(rng, data, 200)
    return data[:start] + bytes(end - start) + data[end:]


def append(rng: np.random.Generator, data: bytes) -> bytes:
    """Bytes after the end: noise, zeros, or the file once more."""
    return data + (rng.bytes(int(rng.integers(1, 50))), bytes(int(rng.integers(1, 600))), data)[int(rng.integers(3))]


BYTES: dict[str, Change] = {
    "bits flipped": flip,
    "bytes of the header": flip_head,
    "truncated": truncate,
    "bytes inserted": insert,
    "bytes deleted": delete,
    "bytes doubled": double,
    "pieces swapped": swap,
    "block of zeros": zero,
    "appended": append,
}


def number(rng: np.random.Generator, data: bytes, fields: tuple[Field, ...]) -> bytes:
    """A number of the header: an extreme, a lie about a length, swapped bytes, or one more or less."""
    position, form = fields[int(rng.integers(len(fields)))]
    form = form if form[0] in "<>" else "<" + form
    size = struct.calcsize(form)
    if position + size > len(data):
        return data
    (old,) = struct.unpack_from(form, data, position)
    if form[1] in "fd":
        choices = [0.0, -old, math.nan, math.inf, 1e30, old * 2, old + 0.5, 1e-30, old * (1 + 1e-3), 352.0, -1.0]
        new = struct.pack(form, choices[int(rng.integers(len(choices)))])
    else:
        low, high = (-(1 << 8 * size - 1), (1 << 8 * size - 1) - 1) if form[1] in "bhiq" else (0, (1 << 8 * size) - 1)
        choices = [
            0,
            1,
            2,
            3,
            4,
            8,
            16,
            32,
            64,
            low,
            high,
            high // 2,
            old + 1,
            old - 1,
            old * 2,
            old // 2,
            old ^ (1 << int(rng.integers(8 * size))),
        ]
        value = choices[int(rng.integers(len(choices)))]
        new = struct.pack(form, min(max(value, low), high))
    if rng.random() < 0.15:
        new = data[position : position + size][::-1]
    return data[:position] + new + data[position + size :]


def text(rng: np.random.Generator, data: bytes, length: int) -> bytes:
    """A line of a header of text: twice, gone, in another place, with another word or key, or other ends of lines."""
    lines = data[:length].split(b"\n")
    at = int(rng.integers(max(1, len(lines) - 1)))
    match int(rng.integers(8)):
        case 0:
            lines.insert(int(rng.integers(len(lines))), lines[at])
        case 1:
            lines.pop(at)
        case 2:
            lines.insert(int(rng.integers(len(lines))), lines.pop(at))
        case 3:
            return data[:length].replace(b"\n", b"\r\n") + data[length:]
        case 4:
            lines[at] = flip(rng, lines[at]) if lines[at] else b"x"
        case 5:
            words = re.split(rb"(\s+)", lines[at])
            words.insert(int(rng.integers(len(words) + 1)), b" 7 ")
            lines[at] = b"".join(words)
        case _:
            found = list(re.finditer(rb"[\w.+-]+", lines[at]))
            if found:
                word = found[int(rng.integers(len(found)))]
                new = WORDS[int(rng.integers(len(WORDS)))]
                lines[at] = lines[at][: word.start()] + new + lines[at][word.end() :]
    return b"\n".join(lines) + data[length:]


def damaged(rng: np.random.Generator, sample: Sample) -> tuple[dict[str, bytes], str]:
    """The files of a sample with one kind of damage, or with none, and its name."""
    if rng.random() < 0.08:
        return dict(sample.files), "undamaged"
    name, files = next(iter(sample.files)), dict(sample.files)
    if not sample.text and len(files) > 1 and sample.several and rng.random() < 0.1:
        files.pop(list(files)[int(rng.integers(len(files)))])
        return files, "file missing"
    if len(files) > 1 and not sample.several and rng.random() < 0.25:
        name = list(files)[1]
        kind = str(rng.choice(list(BYTES)))
        return files | {name: BYTES[kind](rng, files[name])}, f"voxels apart: {kind}"
    data, pack, fields, where = files[name], bytes, sample.fields, ""
    if sample.inside is not None and rng.random() < 0.6:
        data, pack, fields = sample.inside(data)
        where = "inside: "
    if sample.text and rng.random() < 0.7:
        return files | {name: text(rng, data, sample.text)}, "line of the header"
    if fields and rng.random() < 0.6:
        return files | {name: pack(number(rng, data, fields))}, f"{where}number of the header"
    kind = str(rng.choice(list(BYTES)))
    return files | {name: pack(BYTES[kind](rng, data))}, where + kind
