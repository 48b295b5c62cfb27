"""Voxels of DICOM slices in every encoding equal what pydicom, reading on its own, makes of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medseg.errors import BadVoxels, UnreadableFile
from medseg.io.dicom_series import read_series

pydicom = pytest.importorskip("pydicom")
from pydicom.encaps import encapsulate, generate_fragments  # noqa: E402
from pydicom.uid import (  # noqa: E402
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

Write = Callable[..., list[Path]]
SHAPE = (3, 7, 5)  # slices, rows, columns: odd numbers, so that 8-bit pixels are padded
EVEN = (3, 18, 16)  # GDCM refuses odd numbers of bytes and the tiniest pictures
NUMBERS = {  # allocated, stored, signed
    "uint8": (8, 8, 0),
    "int8": (8, 8, 1),
    "uint12": (16, 12, 0),
    "int12": (16, 12, 1),
    "uint16": (16, 16, 0),
    "int16": (16, 16, 1),
    "uint32": (32, 32, 0),
    "int32": (32, 32, 1),
}
SYNTAXES = {
    "explicit": ExplicitVRLittleEndian,
    "implicit": ImplicitVRLittleEndian,
    "big endian": ExplicitVRBigEndian,
    "deflated": DeflatedExplicitVRLittleEndian,
    "rle": RLELossless,
    "jpeg-ls": JPEGLSLossless,
}


def stored_values(stored: int, signed: int, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    low, high = (-(2 ** (stored - 1)), 2 ** (stored - 1)) if signed else (0, 2**stored)
    values = np.random.default_rng(stored).integers(low, high, shape)
    values[0, 0, :2] = low, high - 1
    return values


def encode(ds: Any, values: np.ndarray, syntax: str, numbers: str) -> None:
    bits, stored, signed = NUMBERS[numbers]
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = bits, stored, stored - 1, signed
    order = ">" if syntax == "big endian" else "<"
    content = values.astype(f"{order}{'i' if signed else 'u'}{bits // 8}").tobytes()
    ds.PixelData = content + b"\0" * (len(content) % 2)
    ds["PixelData"].VR = "OB" if bits == 8 else "OW"
    if syntax in ("rle", "jpeg-ls"):
        ds.compress(SYNTAXES[syntax], generate_instance_uid=False)
    else:
        ds.file_meta.TransferSyntaxUID = SYNTAXES[syntax]


def read(folder: Path) -> np.ndarray:
    """(slices, rows, columns), in the order of their places."""
    return np.stack(list(read_series(folder).values()))


def read_with_pydicom(folder: Path) -> np.ndarray:
    files = sorted(map(pydicom.dcmread, folder.iterdir()), key=lambda ds: float(ds.ImagePositionPatient[2]))
    slope, intercept = zip(*((float(ds.RescaleSlope), float(ds.RescaleIntercept)) for ds in files), strict=True)
    return np.stack([ds.pixel_array * s + i for ds, s, i in zip(files, slope, intercept, strict=True)])


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_every_encoding_gives_the_values_of_pydicom(tmp_path: Path, write_series: Write, syntax: str) -> None:
    for numbers, (bits, stored, signed) in NUMBERS.items():
        if syntax in ("rle", "jpeg-ls") and bits == 32:
            continue  # these have at most 16 bits
        values = stored_values(stored, signed, EVEN if syntax in ("rle", "jpeg-ls") else SHAPE)
        folder = tmp_path / numbers

        def change(ds, k, values=values, numbers=numbers):
            ds.PhotometricInterpretation = "MONOCHROME1" if NUMBERS[numbers][2] else "MONOCHROME2"
            encode(ds, values[k], syntax, numbers)

        write_series(folder, values.astype(np.int16), change=change, slope=lambda k: 0.5 + k)
        found, slopes = read(folder), 0.5 + np.arange(3)[:, None, None]
        np.testing.assert_allclose(found, read_with_pydicom(folder), rtol=1e-6)
        np.testing.assert_array_equal(found, (values * slopes - 1024).astype(np.float32))


@pytest.mark.parametrize(("compressor", "syntax"), [("JPEG", JPEGLosslessSV1), ("JPEG2000", JPEG2000Lossless)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
def test_code_streams_of_jpeg(tmp_path: Path, write_series: Write, compressor: str, syntax: str, dtype) -> None:
    values = stored_values(np.dtype(dtype).itemsize * 8, int(np.dtype(dtype).kind == "i"), EVEN).astype(dtype)
    write_series(tmp_path / "s", np.zeros(EVEN, np.int16), change=lambda ds, k: jpeg(ds, values[k], compressor))
    np.testing.assert_array_equal(read(tmp_path / "s"), values.astype(np.float32) - 1024)


def jpeg(ds: Any, values: np.ndarray, compressor: str) -> None:
    """Pixels as GDCM compresses them."""
    import tempfile

    import SimpleITK

    with tempfile.TemporaryDirectory() as folder:
        writer = SimpleITK.ImageFileWriter()
        writer.SetImageIO("GDCMImageIO")
        writer.SetFileName(f"{folder}/x.dcm")
        writer.UseCompressionOn()
        writer.SetCompressor(compressor)
        writer.Execute(SimpleITK.GetImageFromArray(values[None]))
        written = pydicom.dcmread(f"{folder}/x.dcm")
    ds.file_meta.TransferSyntaxUID, ds.PixelData = written.file_meta.TransferSyntaxUID, written.PixelData
    ds["PixelData"].is_undefined_length, ds["PixelData"].VR = True, "OB"
    for name in ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"):
        setattr(ds, name, getattr(written, name))


def test_bits_above_the_stored_ones_hold_nothing_or_the_sign(tmp_path: Path, write_series: Write) -> None:
    values = stored_values(12, 1).astype(np.int16)

    def write(change_pixels):
        def change(ds, k):
            encode(ds, values[k], "explicit", "int12")
            ds.PixelData = change_pixels(np.frombuffer(ds.PixelData, "<u2")).tobytes()

        write_series(tmp_path / "s", np.zeros(SHAPE, np.int16), change=change)
        return read(tmp_path / "s")

    for same in (lambda pixels: pixels, lambda pixels: pixels & 0x0FFF):
        np.testing.assert_array_equal(write(same), values.astype(np.float32) - 1024)
    with pytest.raises(BadVoxels, match="need more bits than the 12 of BitsStored"):
        write(lambda pixels: pixels ^ 0x5000)


def test_a_code_stream_of_another_size_or_without_its_end(tmp_path: Path, write_series: Write) -> None:
    values = stored_values(16, 0, EVEN).astype(np.uint16)

    def cut(content: bytes) -> bytes:
        return content[:-9] + b"\xff\xd9"

    def streams(compressor, rows, edit):
        def change(ds, k):
            jpeg(ds, values[k], compressor)
            ds.Rows = rows
            ds.PixelData = encapsulate([edit(b"".join(list(generate_fragments(ds.PixelData))[1:]).rstrip(b"\0"))])

        write_series(tmp_path / "s", np.zeros(EVEN, np.int16), change=change)
        return read(tmp_path / "s")

    np.testing.assert_array_equal(streams("JPEG2000", 18, bytes), values.astype(np.float32) - 1024)
    for compressor in ("JPEG", "JPEG2000"):
        with pytest.raises(UnreadableFile, match="holds 16x18 pixels, 1 components of 16 bits"):
            streams(compressor, 6, bytes)
        with pytest.raises(UnreadableFile, match="code stream is truncated"):
            streams(compressor, 18, lambda content: content[:-9])
    with pytest.raises(UnreadableFile, match="code stream is truncated"):
        streams("JPEG2000", 18, cut)


def test_pixels_in_another_way_than_the_header_says(tmp_path: Path, write_series: Write) -> None:
    def refused(change, line, kind=UnreadableFile):
        write_series(tmp_path / "s", np.zeros(SHAPE, np.int16), change=change)
        with pytest.raises(kind, match=line):
            read_series(tmp_path / "s")

    def float_pixels(ds, k):
        ds.FloatPixelData = ds.PixelData

    refused(float_pixels, "floating point", BadVoxels)
    for path in write_series(tmp_path / "s", np.zeros(SHAPE, np.int16)):
        path.write_bytes(path.read_bytes().replace(ExplicitVRLittleEndian.encode(), RLELossless.encode()))
    with pytest.raises(UnreadableFile, match=r"transfer syntax '1\.2\.840\.10008\.1\.2\.5' in one piece"):
        read_series(tmp_path / "s")

    def promise(ds, k):
        encode(ds, np.zeros(SHAPE[1:], int), "rle", "uint16")
        ds.Rows, ds.Columns = 60000, 40000

    refused(promise, "bytes of PixelData promise 4800000000")

    def broken(ds, k):
        encode(ds, np.zeros(SHAPE[1:], int), "rle", "uint16")
        ds.PixelData = ds.PixelData[:-4]

    write_series(tmp_path / "s", np.zeros(SHAPE, np.int16), change=broken)
    with pytest.raises(UnreadableFile, match="fragments"):
        read(tmp_path / "s")
