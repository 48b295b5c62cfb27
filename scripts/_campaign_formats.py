"""Small files of each format for campaign.py: what they hold, and where the numbers of their headers are."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import json
import struct
import tempfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import _campaign_reference as reference
import numpy as np
from _campaign_reference import Files, Reading

LARGE = 0.004  # share of files with about a million voxels
Field = tuple[int, str]  # byte and struct form of a number in a header


@dataclass(frozen=True)
class Sample:
    """A file, or a few.

    Attributes:
        files: name -> bytes; the first is the one that is damaged.
        fields: of its header.
        text: bytes of its header of text; 0: it is binary.
        inside: gives what is packed in the file, a function that packs it again with right checksums, and its fields.
        several: the folder of all files is opened, not the first.
    """

    files: dict[str, bytes]
    fields: tuple[Field, ...] = ()
    text: int = 0
    inside: Callable[[bytes], tuple[bytes, Callable[[bytes], bytes], tuple[Field, ...]]] | None = None
    several: bool = False


@dataclass(frozen=True)
class Format:
    """How samples are made, what their bytes say, and how medseg opens them ("volume", "model" or "checkpoint")."""

    make: Callable[[np.random.Generator], Sample]
    read: Callable[[Files], Reading]
    opened: str = "volume"
    exact: bool = True


def _shape(rng: np.random.Generator, dims: int = 3, *, large: float = 1.0) -> tuple[int, ...]:
    """Small, and at times large enough for what is read to be seen in the memory of the process."""
    low, high = ((90, 120) if dims == 3 else (700, 1000)) if rng.random() < LARGE * large else (2, 9)
    return tuple(int(n) for n in rng.integers(low, high, dims))


def _voxels(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return rng.normal(50, 20, shape).astype(dtype)
    low, high = max(np.iinfo(kind).min, -300), min(np.iinfo(kind).max, 30000)
    return rng.integers(low, high, shape, endpoint=True).astype(dtype)


# NIfTI-1 (nifti1.h), all but the texts
NIFTI_FIELDS: tuple[Field, ...] = (
    *((0, "i"), (39, "B"), (68, "h"), (70, "h"), (72, "h"), (74, "h"), (108, "f"), (112, "f"), (116, "f")),
    *((40 + 2 * n, "h") for n in range(8)),
    *((76 + 4 * n, "f") for n in range(8)),
    *((120, "h"), (122, "B"), (123, "B"), (124, "f"), (128, "f"), (136, "f"), (252, "h"), (254, "h"), (344, "I")),
    *((256 + 4 * n, "f") for n in range(18)),
    (348, "I"),
)


def _nifti_bytes(rng: np.random.Generator) -> bytes:
    import nibabel as nib

    shape = _shape(rng) if rng.random() < 0.8 else (*_shape(rng), 2)
    voxels = _voxels(rng, shape, str(rng.choice(["u1", "i1", "i2", "u2", "i4", "f4", "f8"])))
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * rng.uniform(0.3, 4, 3), rng.normal(0, 50, 3)
    image = (nib.Nifti1Image if rng.random() < 0.8 else nib.Nifti2Image)(voxels, affine, dtype=voxels.dtype)
    image.set_qform(affine, int(rng.integers(0, 2)))
    image.set_sform(affine, int(rng.integers(0, 2)))
    return image.to_bytes()


def _nifti_fields(data: bytes) -> tuple[Field, ...]:
    return NIFTI_FIELDS if data[:4] == struct.pack("<i", 348) else tuple((at, "q") for at in range(16, 168, 8))


def make_nifti(rng: np.random.Generator) -> Sample:
    """An uncompressed .nii."""
    data = _nifti_bytes(rng)
    return Sample({"a.nii": data}, _nifti_fields(data))


def make_nifti_gz(rng: np.random.Generator) -> Sample:
    """A .nii.gz; inside, the packed file is damaged and packed again."""
    data = _nifti_bytes(rng)
    pack = lambda raw: gzip.compress(raw, mtime=0)  # noqa: E731
    return Sample({"a.nii.gz": pack(data)}, inside=lambda packed: (gzip.decompress(packed), pack, _nifti_fields(data)))


def _grid(rng: np.random.Generator, dims: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    turn, _ = np.linalg.qr(rng.normal(size=(dims, dims)))
    return rng.uniform(0.3, 4, dims).round(3), rng.normal(0, 50, dims).round(3), turn


_MET = {
    "u1": "UCHAR",
    "i1": "CHAR",
    "u2": "USHORT",
    "i2": "SHORT",
    "u4": "UINT",
    "i4": "INT",
    "f4": "FLOAT",
    "f8": "DOUBLE",
}


def make_metaimage(rng: np.random.Generator) -> Sample:
    """A .mha, or a .mhd beside its .raw or .zraw."""
    dims, channels = int(rng.integers(2, 4)), int(rng.choice([1, 1, 1, 3]))
    dtype, big = str(rng.choice(list(_MET))), bool(rng.random() < 0.2)
    spacing, origin, turn = _grid(rng, dims)
    shape = _shape(rng, dims)
    voxels = _voxels(rng, (*shape[::-1], channels), dtype).astype((">" if big else "<") + dtype).tobytes()
    packed = bool(rng.random() < 0.5)
    stored = zlib.compress(voxels) if packed else voxels
    text = lambda values: " ".join(f"{value:.12g}" for value in np.ravel(values))  # noqa: E731
    lines = ["ObjectType = Image", f"NDims = {dims}", "BinaryData = True", f"BinaryDataByteOrderMSB = {big}"]
    lines += [f"CompressedData = {packed}"]
    if packed and rng.random() < 0.7:
        lines += [f"CompressedDataSize = {len(stored)}"]
    if rng.random() < 0.9:
        lines += [
            f"TransformMatrix = {text(turn.T)}",
            f"Offset = {text(origin)}",
            f"CenterOfRotation = {text([0] * dims)}",
        ]
    lines += [f"ElementSpacing = {text(spacing)}", f"DimSize = {text(shape)}"]
    if channels > 1 or rng.random() < 0.3:
        lines += [f"ElementNumberOfChannels = {channels}"]
    apart = bool(rng.random() < 0.4)
    lines += [f"ElementType = MET_{_MET[dtype]}", f"ElementDataFile = {'a.raw' if apart else 'LOCAL'}"]
    head = "\n".join(lines).encode() + b"\n"
    if apart:
        return Sample({"a.mhd": head, "a.raw": stored}, text=len(head))
    return Sample({"a.mha": head + stored}, text=len(head))


_TEEM = {
    "u1": "unsigned char",
    "i1": "signed char",
    "u2": "unsigned short",
    "i2": "short",
    "i4": "int",
    "f4": "float",
    "f8": "double",
}


def make_nrrd(rng: np.random.Generator) -> Sample:
    """A .nrrd of any encoding."""
    dims, channels = int(rng.integers(2, 4)), bool(rng.random() < 0.2)
    dtype, big = str(rng.choice(list(_TEEM))), bool(rng.random() < 0.2)
    encoding = str(rng.choice(["raw", "gzip", "bzip2", "ascii"]))
    spacing, origin, turn = _grid(rng, dims)
    sizes = (*((3,) if channels else ()), *_shape(rng, dims))
    voxels = _voxels(rng, sizes[::-1], dtype).astype((">" if big else "<") + dtype)
    vector = lambda values: "(" + ",".join(f"{value:.12g}" for value in values) + ")"  # noqa: E731
    lines = ["NRRD0004", "# made by a campaign", f"type: {_TEEM[dtype]}", f"dimension: {len(sizes)}"]
    spaces = ["left-posterior-superior", "right-anterior-superior", "left-anterior-superior"]
    directions = " ".join(["none"] * channels + [vector(column) for column in (turn * spacing).T])
    if dims == 2 or rng.random() < 0.85 or channels:
        lines += ["space dimension: 2" if dims == 2 else f"space: {rng.choice(spaces)}"]
        lines += [f"space directions: {directions}", f"space origin: {vector(origin)}"]
    else:
        lines += ["spacings: " + " ".join(f"{value:.12g}" for value in spacing)]
    lines += [f"sizes: {' '.join(map(str, sizes))}", f"kinds: {' '.join(['vector'] * channels + ['domain'] * dims)}"]
    lines += [f"endian: {'big' if big else 'little'}", f"encoding: {encoding}", "note:=of no meaning", "", ""]
    text = " ".join(f"{value!r}" for value in voxels.ravel().tolist()).encode()
    pack = {"raw": bytes, "gzip": gzip.compress, "bzip2": bz2.compress, "ascii": lambda _: text}[encoding]
    head = "\n".join(lines).encode()
    return Sample({"a.nrrd": head + pack(voxels.tobytes())}, text=len(head))


def png_bytes(rng: np.random.Generator, samples: np.ndarray, depth: int, color: int, interlaced: bool) -> bytes:
    """(H, W, S) of so many bits as a PNG with every filter."""
    rows = b""
    passes = ((0, 8, 0, 8), (4, 8, 0, 8), (0, 4, 4, 8), (2, 4, 0, 4), (0, 2, 2, 4), (1, 2, 0, 2), (0, 1, 1, 2))
    for x0, dx, y0, dy in passes if interlaced else ((0, 1, 0, 1),):
        part = samples[y0::dy, x0::dx]
        if part.size:
            rows += _filtered(rng, _packed_rows(part, depth), max(1, depth * samples.shape[2] // 8))
    facts = (samples.shape[1], samples.shape[0], depth, color, 0, 0, int(interlaced))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", *facts))]
    if rng.random() < 0.5:
        chunks += [(b"gAMA", struct.pack(">I", 45455)), (b"tEXt", b"Comment\0campaign")]
        channels = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}[color]
        chunks += [(b"sBIT", bytes([max(1, depth - 1 if color != 3 else 7)] * channels))]
    if color == 3:
        chunks += [(b"PLTE", rng.integers(0, 256, 3 * 2**depth).astype(np.uint8).tobytes())]
    stream = zlib.compress(rows)
    half = len(stream) // 2
    chunks += [(b"IDAT", stream[:half]), (b"IDAT", stream[half:]), (b"IEND", b"")]
    return png_file(chunks)


def png_file(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """Chunks with their lengths and checksums."""
    whole = (struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(whole)


def _packed_rows(part: np.ndarray, depth: int) -> np.ndarray:
    if depth >= 8:
        return part.astype(">u2" if depth == 16 else "u1").reshape(len(part), -1).view(np.uint8)
    flags = (part.reshape(len(part), -1, 1) >> np.arange(depth)[::-1]) & 1
    return np.packbits(flags.reshape(len(part), -1).astype(np.uint8), axis=1)


def _filtered(rng: np.random.Generator, lines: np.ndarray, back: int) -> bytes:
    padded = np.pad(lines.astype(np.int64), ((1, 0), (back, 0)))
    here, left, up, corner = padded[1:, back:], padded[1:, :-back], padded[:-1, back:], padded[:-1, :-back]
    guess = left + up - corner
    far = np.abs(np.stack([guess - left, guess - up, guess - corner]))
    nearest = np.choose(far.argmin(axis=0), [left, up, corner])
    made = [here, here - left, here - up, here - (left + up) // 2, here - nearest]
    out = b""
    for y in range(len(lines)):
        kind = int(rng.integers(5))
        out += bytes([kind]) + (made[kind][y] & 255).astype(np.uint8).tobytes()
    return out


PNG_KINDS = [(color, depth) for color in (0, 3) for depth in (1, 2, 4, 8)] + [(0, 16)]
PNG_KINDS += [(color, depth) for color in (2, 4, 6) for depth in (8, 16)]


def make_png(rng: np.random.Generator) -> Sample:
    """Any colour type and depth; inside, chunks are damaged and get right checksums again."""
    color, depth = PNG_KINDS[int(rng.integers(len(PNG_KINDS)))]
    samples_of = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    large = 0.3 if depth * samples_of <= 8 else 0.0  # the reference takes a second for a million samples
    shape = (*_shape(rng, 2, large=large), samples_of)
    samples = rng.integers(0, 2**depth, shape)
    data = png_bytes(rng, samples, depth, color, bool(rng.random() < 0.3))
    return Sample(
        {"a.png": data},
        ((16, ">I"), (20, ">I"), (24, "B"), (25, "B"), (26, "B"), (28, "B"), (8, ">I")),
        inside=_png_inside,
    )


def _png_inside(data: bytes) -> tuple[bytes, Callable[[bytes], bytes], tuple[Field, ...]]:
    """The header, or the unpacked rows; packed again with right checksums and lengths."""
    chunks, position = [], 8
    while position < len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        chunks.append((kind, data[position + 8 : position + 8 + length]))
        position += 12 + length
    rows = zlib.decompress(b"".join(body for kind, body in chunks if kind == b"IDAT"))
    header = chunks[0][1]
    others = [chunk for chunk in chunks if chunk[0] not in (b"IHDR", b"IDAT", b"IEND")]
    pack = lambda raw: png_file([(b"IHDR", raw[:13]), *others, (b"IDAT", zlib.compress(raw[13:])), (b"IEND", b"")])  # noqa: E731
    return header + rows, pack, ((0, ">I"), (4, ">I"), (8, "B"), (9, "B"), (10, "B"), (12, "B"))


def tiff_fields(data: bytes) -> tuple[Field, ...]:
    """Every entry of the directory: tag, type, count, value; and what the value points at, if that is small."""
    order = "<" if data[:2] == b"II" else ">"
    (start,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, start)
    fields: list[Field] = [(4, order + "I"), (2, order + "H"), (start, order + "H")]
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        kind = struct.unpack_from(order + "H", data, entry + 2)[0]
        fields += [(entry, order + "H"), (entry + 2, order + "H"), (entry + 4, order + "I")]
        fields += [(entry + 8, order + ("H" if kind == 3 else "I"))] * 3
    return (*fields, (start + 2 + 12 * count, order + "I"))


def make_tiff(rng: np.random.Generator) -> Sample:
    """Any type, order, layout and compression that is read."""
    import tifffile

    buffer = io.BytesIO()
    if rng.random() < 0.4:
        _pillow_tiff(rng, buffer)
    else:
        samples, dtype = int(rng.choice([1, 3, 4])), str(rng.choice(["u1", "u2", "u4", "i1", "i2", "i4", "f4", "f8"]))
        shape = _shape(rng, 2)
        data, apart = _voxels(rng, (samples, *shape), dtype), bool(rng.random() < 0.5)
        settings: dict[str, object] = {
            "compression": rng.choice([None, "zlib"]),
            "byteorder": str(rng.choice(["<", ">"])),
        }
        settings |= {"tile": (16, 16)} if rng.random() < 0.3 else {"rowsperstrip": int(rng.integers(1, 5))}
        if settings["compression"] and rng.random() < 0.5 and dtype != "f8":
            settings["predictor"] = dtype[0] != "f"
        if samples == 1:
            settings["photometric"] = str(rng.choice(["minisblack", "miniswhite"]))
        else:
            settings |= {"photometric": "rgb", "planarconfig": "separate" if apart else "contig"}
            settings |= {"extrasamples": ["unassalpha"]} if samples == 4 else {}
        turned = [(274, 3, 1, int(rng.integers(1, 9)), True)]
        picture = data[0] if samples == 1 else data if apart else np.moveaxis(data, 0, -1)
        tifffile.imwrite(buffer, picture, metadata=None, extratags=turned, **settings)
    whole = buffer.getvalue()
    return Sample({"a.tif": whole}, tiff_fields(whole))


def _pillow_tiff(rng: np.random.Generator, buffer: io.BytesIO) -> None:
    from PIL import Image

    shape = _shape(rng, 2, large=0.0)
    kind, packing = str(rng.choice(["1", "L", "P", "RGB", "I;16"])), str(rng.choice(["tiff_lzw", "packbits", "raw"]))
    pixels = rng.integers(0, 256, (*shape, 3)).astype(np.uint8)
    flat = pixels[..., 0]
    made = {"1": flat > 99, "I;16": flat.astype(np.uint16) * 200, "RGB": pixels}.get(kind, flat)
    picture = Image.fromarray(made)
    if kind == "P":
        picture = picture.convert("P")
        picture.putpalette(rng.integers(0, 256, 768).astype(np.uint8).tobytes())
    options = {317: 2} if packing == "tiff_lzw" and kind in ("L", "RGB", "I;16") and rng.random() < 0.5 else {}
    picture.save(buffer, format="TIFF", compression=packing, tiffinfo=options)


def make_jpeg(rng: np.random.Generator) -> Sample:
    """Baseline or progressive, grey or colour."""
    from PIL import Image

    color, buffer = bool(rng.random() < 0.6), io.BytesIO()
    small = rng.integers(0, 256, (4, 4, 3)).astype(np.uint8)
    picture = (
        Image.fromarray(small)
        .resize(_shape(rng, 2, large=0.0), Image.Resampling.BILINEAR)
        .resize((23, 17) if rng.random() < 0.99 else (900, 700))
    )
    settings = {"quality": int(rng.integers(50, 100)), "progressive": bool(rng.random() < 0.3)}
    (picture if color else picture.convert("L")).save(
        buffer, format="JPEG", subsampling=int(rng.integers(0, 3)), **settings
    )
    data = buffer.getvalue()
    return Sample({"a.jpg": data}, _jpeg_fields(data))


def _jpeg_fields(data: bytes) -> tuple[Field, ...]:
    fields: list[Field] = []
    position = 2
    while position + 4 < len(data) and data[position] == 255 and data[position + 1] not in (0xD9,):
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        fields.append((position + 2, ">H"))
        if marker in (0xC0, 0xC2):
            fields += [(position + 4, "B"), (position + 5, ">H"), (position + 7, ">H"), (position + 9, "B")] * 3
        if marker == 0xDA:
            break
        position += 2 + length
    return tuple(fields)


def _slice(rng: np.random.Generator, pixels: np.ndarray, number: int, series: str, step: float) -> bytes:
    import pydicom
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[series, str(number)])
    one = Dataset()
    one.file_meta = meta
    one.SOPClassUID, one.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    one.StudyInstanceUID, one.SeriesInstanceUID = series + ".1", series
    one.Modality, one.PatientID, one.InstanceNumber = "CT", "1", number + 1
    one.Rows, one.Columns = pixels.shape
    one.PixelSpacing, one.SliceThickness = [0.7, 0.8], step
    one.ImageOrientationPatient, one.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [10, -20, 30 + number * step]
    one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
    one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 1
    one.RescaleSlope, one.RescaleIntercept = 1, -1024
    one.PixelData = pixels.astype("<i2").tobytes()
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, one, enforce_file_format=True)
    return buffer.getvalue()


def _make_dicom(rng: np.random.Generator, slices: int) -> Sample:
    shape = _shape(rng, 2, large=0.0)
    series = f"1.2.826.0.1.{int(rng.integers(1, 10**9))}"
    files = {f"{n}.dcm": _slice(rng, rng.integers(-99, 3000, shape), n, series, 2.5) for n in range(slices)}
    return Sample(files, _dicom_fields(files["0.dcm"]), several=True)


def _dicom_fields(data: bytes) -> tuple[Field, ...]:
    import pydicom

    stored = pydicom.dcmread(io.BytesIO(data))
    fields: list[Field] = []
    for element in stored:
        at = element.file_tell or 0
        long = element.VR in ("OB", "OW", "UN", "SQ", "UT")
        fields += [(at - (12 if long else 8), "H"), (at - (4 if long else 2), "I" if long else "H")]
        if element.VR == "US":
            fields += [(at, "H")] * 3
    return tuple(fields)


def make_dicom(rng: np.random.Generator) -> Sample:
    """A folder with one slice."""
    return _make_dicom(rng, 1)


def make_dicom_series(rng: np.random.Generator) -> Sample:
    """A folder with four slices, of which one is damaged."""
    return _make_dicom(rng, 4)


@cache
def _model_files() -> Mapping[str, bytes]:
    from bench_startup import write_model

    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), base_channels=2, patch=16)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def make_model(rng: np.random.Generator) -> Sample:
    """model.json or its weights first."""
    names = ["model.json", "model.safetensors"]
    names = names if rng.random() < 0.6 else names[::-1]
    files = {name: _model_files()[name] for name in names}
    return Sample(files, text=len(files["model.json"]) if names[0] == "model.json" else 0, several=True)


def make_checkpoint(rng: np.random.Generator) -> Sample:
    """Tensors and plain data."""
    return Sample({"a.ckpt": _checkpoint()})


@cache
def _checkpoint() -> bytes:
    import torch

    from medseg.io import save_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        state = {"weight": torch.arange(40.0), "step": 7, "names": ["a", "b"]}
        save_checkpoint(Path(folder) / "a.ckpt", state)
        return (Path(folder) / "a.ckpt").read_bytes()


def read_model(files: Files) -> Reading:
    """All weights one after another, as safetensors' own reader gives them, where the description is whole."""
    from safetensors.numpy import load

    json.loads(files["model.json"])
    return _flat(load(files["model.safetensors"]))


def read_checkpoint(files: Files) -> Reading:
    """What the undamaged file holds: a zip has checksums, so that any other content is wrong."""
    return Reading(np.arange(40.0))


def _flat(tensors: Mapping[str, np.ndarray]) -> Reading:
    return Reading(np.concatenate([np.ravel(tensors[name]).astype(np.float64) for name in sorted(tensors)]))


FORMATS: dict[str, Format] = {
    "NIfTI (.nii)": Format(make_nifti, reference.nifti),
    "NIfTI (.nii.gz)": Format(make_nifti_gz, reference.nifti),
    "MetaImage": Format(make_metaimage, reference.metaimage),
    "NRRD": Format(make_nrrd, reference.nrrd),
    "PNG": Format(make_png, reference.png),
    "TIFF": Format(make_tiff, reference.tiff),
    "JPEG": Format(make_jpeg, reference.jpeg, exact=False),
    "DICOM file": Format(make_dicom, reference.dicom),
    "DICOM series": Format(make_dicom_series, reference.dicom),
    "model folder": Format(make_model, read_model, "model"),
    "checkpoint": Format(make_checkpoint, read_checkpoint, "checkpoint"),
}


def reading_of(form: Format, files: Files) -> Reading | None:
    """What the bytes say, or None where they are outside of the format for the reference."""
    with contextlib.suppress(Exception):  # a reader of damaged bytes may fail in any way
        return form.read(files)
    return None
