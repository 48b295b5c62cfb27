"""Small, slow, literal readers of the bytes of a file, independent of medseg's: what campaign.py compares with.

Each takes the files of a sample (name -> bytes), the first of them the one that is opened, and gives the numbers that
they say, or raises: then medseg may refuse, or read what the undamaged file held. None of them is lenient.
"""

from __future__ import annotations

import bz2
import gzip
import io
import re
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

Files = Mapping[str, bytes]


@dataclass(frozen=True)
class Reading:
    """Voxels (C, *S), and voxel to RAS+ mm; None: a picture, which has no place."""

    array: np.ndarray
    affine: np.ndarray | None = None


def _need(condition: object) -> None:
    if not condition:
        raise ValueError("outside of the format")


def nifti(files: Files) -> Reading:
    """NIfTI-1 and NIfTI-2 in one file (nifti1.h, nifti2.h)."""
    data = next(iter(files.values()))
    data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    order = next(o for o in "<>" if struct.unpack_from(o + "i", data)[0] in (348, 540))
    first = struct.unpack_from(order + "i", data)[0] == 348
    places = (
        (b"n+1\0", 344, "8h", 40, "h", 70, "8f", 76, "f", 108, "ff", 112, 123, "hh", 252, "6f", 256, "12f", 280)
        if first
        else (b"n+2\0", 4, "8q", 16, "h", 12, "8d", 104, "q", 168, "dd", 176, 500, "ii", 344, "6d", 352, "12d", 400)
    )
    magic, at, *rest = places
    _need(data[at : at + 4] == magic)
    get = lambda form, position: struct.unpack_from(order + form, data, position)  # noqa: E731
    dim, (code,), pixdim = get(rest[0], rest[1]), get(rest[2], rest[3]), get(rest[4], rest[5])
    (offset,), (slope, intercept) = get(rest[6], rest[7]), get(rest[8], rest[9])
    units = data[rest[10]] if first else get("i", rest[10])[0]
    codes, q, s = get(rest[11], rest[12]), get(rest[13], rest[14]), get(rest[15], rest[16])
    _need(2 <= dim[0] <= 7 and all(n > 0 for n in dim[1 : dim[0] + 1]))
    shape = list(dim[1 : dim[0] + 1]) + [1] * (3 - dim[0])
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    _need(len(shape) <= 4)
    names = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
    dtype = np.dtype(order + names[code])
    count = int(np.prod(shape, dtype=object))
    _need(offset == int(offset) and len(data) == offset + count * dtype.itemsize)
    stored = np.frombuffer(data, dtype, count, int(offset)).reshape(shape, order="F").astype(np.float64)
    if slope != 0 and np.isfinite(slope):
        stored = stored * slope + intercept
    zooms = [pixdim[a] if dim[0] >= a else 1.0 for a in (1, 2, 3)]
    _need(all(np.isfinite(z) and z > 0 for z in zooms))
    affine = _sform(s) if codes[1] > 0 else _qform(q, zooms, pixdim[0]) if codes[0] > 0 else _centered(zooms, shape)
    affine = np.diag([*[{1: 1000.0, 3: 0.001}.get(units & 7, 1.0)] * 3, 1.0]) @ affine
    return Reading(np.moveaxis(stored, 3, 0) if stored.ndim == 4 else stored[None], affine)


def _sform(rows: tuple[float, ...]) -> np.ndarray:
    return np.vstack([np.reshape(rows, (3, 4)), [0, 0, 0, 1]]).astype(np.float64)


def _qform(q: tuple[float, ...], zooms: list[float], factor: float) -> np.ndarray:
    b, c, d = q[:3]
    a = np.sqrt(max(1.0 - b * b - c * c - d * d, 0.0))
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    affine = np.eye(4)
    affine[:3, :3] = rotation * [zooms[0], zooms[1], zooms[2] * (-1 if factor < 0 else 1)]
    affine[:3, 3] = q[3:]
    return affine


def _centered(zooms: list[float], shape: list[int]) -> np.ndarray:
    """What ANALYZE left open: nibabel's choice, the origin in the centre and x from right to left."""
    steps = np.array([-zooms[0], zooms[1], zooms[2]])
    affine = np.diag([*steps, 1.0])
    affine[:3, 3] = -steps * (np.array(shape[:3]) - 1) / 2
    return affine


def _floats(text: str, count: int) -> list[float]:
    words = text.split()
    _need(len(words) == count and all(re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", word) for word in words))
    return [float(word) for word in words]


def _placed(stored: np.ndarray, spacing: object, origin: object, direction: np.ndarray) -> Reading:
    """Voxels (C, i, j[, k]) and a grid of 2 or 3 axes in LPS as a reading."""
    dims = len(direction)
    affine = np.eye(4)
    affine[:dims, :dims] = direction * np.asarray(spacing)
    affine[:dims, 3] = origin
    array = stored.reshape(*stored.shape, *[1] * (3 - dims)).astype(np.float64)
    return Reading(array, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)


def metaimage(files: Files) -> Reading:
    """MetaIO's documentation, without what ITK adds to it."""
    data = next(iter(files.values()))
    fields: dict[str, str] = {}
    position = 0
    while "ElementDataFile" not in fields:
        end = data.index(b"\n", position)
        key, equals, value = data[position:end].decode("latin-1").partition("=")
        _need(equals and key.strip() not in fields)
        fields[key.strip()], position = value.strip(), end + 1
    name = fields["ElementDataFile"]
    voxels = data[position:] if name == "LOCAL" else files[name]
    _need(fields.get("HeaderSize", "0") == "0" and fields.get("BinaryData", "True") == "True")
    dims = {"2": 2, "3": 3}[fields["NDims"]]
    sizes, channels = fields["DimSize"].split(), fields.get("ElementNumberOfChannels", "1")
    _need(len(sizes) == dims and all(word.isdigit() for word in (*sizes, channels)))
    names = {"CHAR": "i1", "UCHAR": "u1", "SHORT": "i2", "USHORT": "u2", "INT": "i4", "UINT": "u4"}
    names |= {"FLOAT": "f4", "DOUBLE": "f8", "LONG_LONG": "i8", "ULONG_LONG": "u8", "LONG": "i4", "ULONG": "u4"}
    big = {fields[key] for key in ("BinaryDataByteOrderMSB", "ElementByteOrderMSB") if key in fields} or {"False"}
    _need(len(big) == 1)
    dtype = np.dtype({"True": ">", "False": "<"}[big.pop()] + names[fields["ElementType"].removeprefix("MET_")])
    if {"True": True, "False": False}[fields.get("CompressedData", "False")]:
        _need(int(fields.get("CompressedDataSize", len(voxels))) == len(voxels))
        voxels = _inflated(voxels)
    shape = (int(channels), *map(int, sizes))
    _need(len(voxels) == int(np.prod(shape, dtype=object)) * dtype.itemsize)
    stored = np.frombuffer(voxels, dtype).reshape(shape, order="F")
    spacing = next((_floats(fields[k], dims) for k in ("ElementSpacing", "ElementSize") if k in fields), [1.0] * dims)
    _need(min(spacing) > 0)
    origin = _same([_floats(fields[k], dims) for k in ("Offset", "Position", "Origin") if k in fields], [0.0] * dims)
    names_of_axes = [k for k in ("TransformMatrix", "Rotation", "Orientation") if k in fields]
    axes = _same([_floats(fields[k], dims * dims) for k in names_of_axes], np.eye(dims).ravel().tolist())
    return _placed(stored, spacing, origin, np.reshape(axes, (dims, dims)).T)


def _same(values: list[list[float]], default: list[float]) -> list[float]:
    _need(all(value == values[0] for value in values))
    return values[0] if values else default


def _inflated(data: bytes) -> bytes:
    stream = zlib.decompressobj(47)
    out = stream.decompress(data, 1 << 26)
    _need(stream.eof and not stream.unused_data)
    return out


def nrrd(files: Files) -> Reading:
    """The format's page, without detached headers."""
    data = next(iter(files.values()))
    head, empty, voxels = data.partition(b"\n\n")
    lines = head.decode("latin-1").split("\n")
    _need(empty and re.fullmatch("NRRD000[1-5]", lines[0]))
    fields: dict[str, str] = {}
    for line in lines[1:]:
        if not line.startswith("#") and ":=" not in line:
            key, colon, value = line.partition(":")
            key = key.lower().replace(" ", "")
            _need(colon and key not in fields)
            fields[key] = value.strip()
    dims = int(fields["dimension"])
    sizes = [int(word) for word in fields["sizes"].split()]
    _need(len(sizes) == dims and min(sizes) > 0)
    names = {"signed char": "i1", "unsigned char": "u1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2"}
    names |= {"unsigned short": "u2", "ushort": "u2", "int": "i4", "unsigned int": "u4", "float": "f4", "double": "f8"}
    names |= {
        "long long": "i8",
        "unsigned long long": "u8",
        "uint16": "u2",
        "int32": "i4",
        "uint32": "u4",
        "int8": "i1",
    }
    names |= {"longlong": "i8", "ulonglong": "u8", "int64": "i8", "uint64": "u8", "uint": "u4"}
    kind = names[fields["type"].lower()]
    dtype = np.dtype(({"big": ">", "little": "<"}[fields["endian"].lower()] if kind[1] != "1" else "<") + kind)
    unpack: dict[str, Callable[[bytes], bytes]] = {"raw": bytes, "gzip": _inflated, "gz": _inflated}
    unpack |= {"bzip2": bz2.decompress, "bz2": bz2.decompress}
    encoding = fields["encoding"].lower()
    _need({fields.get(key, "0") for key in ("lineskip", "byteskip")} == {"0"})
    count = int(np.prod(sizes, dtype=object))
    if encoding in ("ascii", "txt", "text"):
        words = voxels.split()
        _need(len(words) == count)
        stored = np.array([float(word) for word in words]).astype(dtype)
    else:
        raw = unpack[encoding](voxels)
        _need(len(raw) == count * dtype.itemsize)
        stored = np.frombuffer(raw, dtype)
    stored = stored.reshape(sizes, order="F")
    flips = {"left-posterior-superior": (1, 1, 1), "right-anterior-superior": (-1, -1, 1)}
    flips |= {"left-anterior-superior": (1, -1, 1), "lps": (1, 1, 1), "ras": (-1, -1, 1), "las": (1, -1, 1)}
    if "spacedirections" not in fields:
        _need("space" not in fields)
        kinds = fields.get("kinds", " ".join(["domain"] * dims)).lower().split()
        others = [axis for axis, kind in enumerate(kinds) if kind not in ("domain", "space")]
        _need(len(kinds) == dims and len(others) < 2)
        spacing = _floats(fields["spacings"], dims) if "spacings" in fields else [1.0] * dims
        spacing = [step for axis, step in enumerate(spacing) if axis not in others]
        stored = np.moveaxis(stored, others[0], 0) if others else stored[None]
        return _placed(stored, spacing, [0.0] * len(spacing), np.eye(len(spacing)))
    vectors = [_vector(text) for text in re.findall(r"none|\([^()]*\)", fields["spacedirections"])]
    _need(len(vectors) == dims)
    others = [axis for axis, vector in enumerate(vectors) if vector is None]
    space = [vector for vector in vectors if vector is not None]
    stored = np.moveaxis(stored, others[0], 0) if others else stored[None]
    flip = flips[fields["space"].lower()] if "space" in fields else (1,) * int(fields["spacedimension"])
    matrix = np.array(space).T * np.array(flip)[:, None]
    origin = np.array(_vector(fields["spaceorigin"]) if "spaceorigin" in fields else [0.0] * len(space)) * flip
    return _placed(stored, 1.0, origin, matrix)


def _vector(text: str) -> list[float] | None:
    return None if text == "none" else _floats(text[1:-1].replace(",", " "), text.count(",") + 1)


def png(files: Files) -> Reading:
    """Every chunk, every row (W3C, Portable Network Graphics)."""
    data = next(iter(files.values()))
    _need(data[:8] == b"\x89PNG\r\n\x1a\n")
    chunks, position = [], 8
    while not chunks or chunks[-1][0] != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, position)
        body = data[position + 8 : position + 8 + length]
        _need(
            len(body) == length and struct.unpack_from(">I", data, position + 8 + length)[0] == zlib.crc32(kind + body)
        )
        chunks.append((kind, body))
        position += 12 + length
    _need(
        chunks[0][0] == b"IHDR"
        and all(kind in (b"IHDR", b"PLTE", b"IDAT", b"IEND") or kind[0] > 96 for kind, _ in chunks)
    )
    width, height, depth, color, *rest = struct.unpack(">IIBBBBB", chunks[0][1])
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    _need(rest[:2] == [0, 0] and rest[2] in (0, 1) and width * height < 1 << 21 and width * height > 0)
    raw = zlib.decompress(b"".join(body for kind, body in chunks if kind == b"IDAT"))
    out = np.zeros((height, width, samples), np.int64)
    passes = ((0, 8, 0, 8), (4, 8, 0, 8), (0, 4, 4, 8), (2, 4, 0, 4), (0, 2, 2, 4), (1, 2, 0, 2), (0, 1, 1, 2))
    position = 0
    for x0, dx, y0, dy in passes if rest[2] else ((0, 1, 0, 1),):
        part = out[y0::dy, x0::dx]
        if part.size:
            row = -(-part.shape[1] * samples * depth // 8)
            lines = _unfiltered(
                raw[position : position + part.shape[0] * (row + 1)], part.shape[0], row, samples * depth
            )
            position += part.shape[0] * (row + 1)
            part[...] = _bits(lines, depth, part.shape[1] * samples).reshape(part.shape)
    _need(position == len(raw))
    if color == 3:
        palette = np.frombuffer(dict(chunks)[b"PLTE"], np.uint8).reshape(-1, 3)
        return Reading(np.moveaxis(palette[out[..., 0]], 2, 0))
    return Reading(np.moveaxis(out[..., : 3 if samples > 2 else 1], 2, 0))


def _unfiltered(raw: bytes, rows: int, length: int, pixel_bits: int) -> np.ndarray:
    _need(len(raw) == rows * (length + 1))
    back = max(1, pixel_bits // 8)
    lines = np.zeros((rows + 1, length + back), np.int64)
    for y in range(rows):
        kind, line = raw[y * (length + 1)], raw[y * (length + 1) + 1 : (y + 1) * (length + 1)]
        _need(kind <= 4)
        for x, value in enumerate(line):
            left, up, corner = (int(v) for v in (lines[y + 1, x], lines[y, x + back], lines[y, x]))
            nearest = min((left, up, corner), key=lambda v: abs(left + up - corner - v))  # ties: this order
            lines[y + 1, x + back] = (value + (0, left, up, (left + up) // 2, nearest)[kind]) & 255
    return lines[1:, back:].astype(np.uint8)


def _bits(lines: np.ndarray, bits: int, count: int) -> np.ndarray:
    """(rows, count) numbers of so many bits, the highest first."""
    flags = np.unpackbits(lines, axis=1)[:, : count * bits].reshape(len(lines), count, bits).astype(object)
    return (flags * (1 << np.arange(bits, dtype=object)[::-1])).sum(axis=2).astype(np.uint64)


def tiff(files: Files) -> Reading:
    """One directory of TIFF 6.0: strips or tiles, none, LZW, PackBits or deflate, predictors 1 and 2."""
    data = next(iter(files.values()))
    order = {b"II": "<", b"MM": ">"}[data[:2]]
    magic, start = struct.unpack_from(order + "HI", data, 2)
    _need(magic == 42)
    (count,) = struct.unpack_from(order + "H", data, start)
    _need(struct.unpack_from(order + "I", data, start + 2 + 12 * count)[0] == 0)
    tags: dict[int, list[int]] = {}
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind, number = struct.unpack_from(order + "HHI", data, entry)
        if kind in (1, 3, 4) and number < 1 << 20:
            form = f"{order}{number}{ {1: 'B', 3: 'H', 4: 'I'}[kind] }"
            at = entry + 8 if struct.calcsize(form) <= 4 else struct.unpack_from(order + "I", data, entry + 8)[0]
            _need(tag not in tags)
            tags[tag] = list(struct.unpack_from(form, data, at))
    one = lambda tag, default=None: (tags.get(tag) or [default])[0]  # noqa: E731
    width, height, samples, planar = one(256), one(257), one(277, 1), one(284, 1)
    bits, form = set(tags.get(258, [1])), set(tags.get(339, [1]))
    _need(len(bits) == len(form) == 1 and one(266, 1) == 1)
    bits_, kind_ = bits.pop(), {1: "u", 2: "i", 3: "f"}[form.pop()]
    photometric, compression, predictor = one(262), one(259, 1), one(317, 1)
    colors = {0: 1, 1: 1, 2: 3, 3: 1}[photometric]
    _need(samples - colors in (0, 1) and planar in (1, 2) and width * height * samples < 1 << 23)
    tiled = 322 in tags
    rows, columns = (one(323), one(322)) if tiled else (min(one(278, height), height), width)
    offsets, sizes = (tags[324], tags[325]) if tiled else (tags[273], tags[279])
    planes, each = (samples, 1) if planar == 2 and samples > 1 else (1, samples)
    down, across = -(-height // rows), -(-width // columns)
    _need(len(offsets) == len(sizes) == planes * down * across)
    out = np.zeros((height, width, samples), np.dtype(f"{kind_}{-(-bits_ // 8)}"))
    for number, (offset, size) in enumerate(zip(offsets, sizes, strict=True)):
        plane, place = divmod(number, down * across)
        top, left = place // across * rows, place % across * columns
        lines = rows if tiled else min(rows, height - top)
        row = -(-columns * each * bits_ // 8)
        _need(size > 0 and offset + size <= len(data))
        raw = _tiff_bytes(data[offset : offset + size], compression, lines * row)
        pixels = _tiff_numbers(raw, order, kind_, bits_, (lines, columns, each), row, predictor)
        part = out[top : top + rows, left : left + columns]
        chosen = pixels[: part.shape[0], : part.shape[1]]
        if planes > 1:
            part[..., plane] = chosen[..., 0]
        else:
            part[...] = chosen
    if photometric == 3:
        palette = (np.array(tags[320]).reshape(3, -1).T >> 8).astype(np.uint8)
        return Reading(np.moveaxis(palette[out[..., 0]], 2, 0))
    return Reading(np.moveaxis(out[..., :colors], 2, 0))


def _tiff_bytes(raw: bytes, compression: int, expected: int) -> bytes:
    if compression in (8, 32946):
        stream = zlib.decompressobj()
        out = stream.decompress(raw, expected + 1)
        _need(stream.eof)
    else:
        out = {1: bytes, 5: _lzw, 32773: _packbits}[compression](raw)
    _need(len(out) == expected or (compression != 1 and len(out) >= expected))
    return out[:expected]


def _packbits(raw: bytes) -> bytes:
    out, position = bytearray(), 0
    while position < len(raw):
        head = raw[position]
        if head < 128:
            out += raw[position + 1 : position + 2 + head]
            position += 2 + head
        else:
            out += raw[position + 1 : position + 2] * (257 - head if head > 128 else 0)
            position += 2 if head > 128 else 1
    return bytes(out)


def _lzw(raw: bytes) -> bytes:
    bits = "".join(f"{byte:08b}" for byte in raw)
    table: list[bytes] = []
    out, position, width, before = bytearray(), 0, 9, b""
    while position + width <= len(bits):
        code = int(bits[position : position + width], 2)
        position += width
        if code == 257:
            break
        if code == 256:
            table, width, before = [bytes([value]) for value in range(256)] + [b"", b""], 9, b""
            continue
        word = table[code] if code < len(table) else before + before[:1]
        _need(code <= len(table) and word)
        out += word
        if before:
            table.append(before + word[:1])
        before, width = word, min(12, max(9, (len(table) + 1).bit_length()))
    return bytes(out)


def _tiff_numbers(
    raw: bytes, order: str, kind: str, bits: int, shape: tuple[int, int, int], row: int, predictor: int
) -> np.ndarray:
    lines = np.frombuffer(raw, np.uint8).reshape(shape[0], row)
    if bits % 8:
        _need(kind == "u" and predictor == 1)
        return _bits(lines, bits, shape[1] * shape[2]).reshape(shape)
    if predictor == 1:
        return lines.reshape(-1).view(f"{order}{kind}{bits // 8}").reshape(shape)
    _need(predictor == 2)
    numbers = lines.reshape(-1).view(f"{order}u{bits // 8}").reshape(shape).astype(f"u{bits // 8}")
    return np.cumsum(numbers, axis=1, dtype=f"u{bits // 8}").view(f"{kind}{bits // 8}")


def jpeg(files: Files) -> Reading:
    """OpenCV's own libjpeg: JPEG has no checksum, so another decoder of the same bytes is all that can be asked."""
    import cv2

    pixels = cv2.imdecode(
        np.frombuffer(next(iter(files.values())), np.uint8), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION
    )
    _need(pixels is not None)
    return Reading(pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels[..., ::-1], 2, 0))


def dicom(files: Files) -> Reading:
    """pydicom's reading of uncompressed slices of one series, sorted along their normal."""
    import pydicom

    slices = [pydicom.dcmread(io.BytesIO(data)) for data in files.values()]
    for one in slices:
        _need(one.PhotometricInterpretation == "MONOCHROME2" and one.SamplesPerPixel == 1)
        _need(
            len(one.PixelData) == one.Rows * one.Columns * one.BitsAllocated // 8
            and one.BitsStored == one.BitsAllocated
        )
    _need(len({one.SeriesInstanceUID for one in slices}) == 1)
    across, down = (np.array(slices[0].ImageOrientationPatient[i : i + 3], float) for i in (0, 3))
    normal = np.cross(across, down)
    slices.sort(key=lambda one: float(np.dot(np.array(one.ImagePositionPatient, float), normal)))
    values = [one.pixel_array * float(one.RescaleSlope) + float(one.RescaleIntercept) for one in slices]
    first, last = (np.array(slices[i].ImagePositionPatient, float) for i in (0, -1))
    step = (last - first) / (len(slices) - 1) if len(slices) > 1 else normal * float(slices[0].SliceThickness)
    affine = np.eye(4)
    affine[:3, 0] = across * float(slices[0].PixelSpacing[1])
    affine[:3, 1] = down * float(slices[0].PixelSpacing[0])
    affine[:3, 2], affine[:3, 3] = step, first
    return Reading(np.stack(values).transpose(2, 1, 0)[None], np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)
