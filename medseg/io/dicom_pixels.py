"""The values of one DICOM slice: its stored numbers, exactly as many as rows and columns say, and their rescaling.

Pixels that are not compressed are taken from their bytes here. For compressed ones GDCM, within SimpleITK, is the
codec and nothing else: it is given a file that holds the code stream and its format alone, so that none of what it
otherwise does on its own (rescaling, inverting, filling up) can reach a voxel.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medseg.errors import BadVoxels, UnreadableFile
from medseg.io.dicom_codestream import Codestream, read_codestream
from medseg.io.dicom_slice import CONVERT, EXPORT_AGAIN, NOT_NATIVE, PixelFormat, Slice, element, text

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.dataelem import RawDataElement

NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99", "")
RLE = "1.2.840.10008.1.2.5"
_JPEG = "1.2.840.10008.1.2.4."
CODESTREAMS = (RLE, *(_JPEG + end for end in ("50", "51", "57", "70", "80", "81", "90", "91")))
_ITEM = b"\xfe\xff\x00\xe0"  # tag of a fragment
MOST_COMPRESSED = 1000  # times; beyond it only what is small anyway is decoded
SMALL_BYTES = 2**25


def check_pixels(dataset: Dataset, one: Slice) -> None:
    """Refuse pixel data of another length or kind than the header says, before memory is taken for them.

    Raises:
        UnreadableFile: missing, too short or too long, or a compression that is not read.
        BadVoxels: floating point.
    """
    if "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset:
        raise BadVoxels("has pixels of floating point (expected whole numbers)", path=one.path, fix=CONVERT)
    raw = _pixel_data(dataset)
    if raw is None or not raw.value:
        raise UnreadableFile("is truncated: it has no PixelData", path=one.path, fix=EXPORT_AGAIN)
    expected = one.size[0] * one.size[1] * one.pixels.bits // 8
    syntax = transfer_syntax(dataset)
    if syntax in NATIVE and raw.length != NOT_NATIVE:
        if not expected <= len(raw.value) <= expected + expected % 2:
            size = "{}x{}".format(*one.size)
            problem = f"PixelData has {len(raw.value)} bytes ({expected} expected for {size} of {one.pixels.bits} bits)"
            raise UnreadableFile(f"is truncated or damaged: {problem}", path=one.path, fix=EXPORT_AGAIN)
    elif syntax in CODESTREAMS and raw.length == NOT_NATIVE:
        if expected > max(SMALL_BYTES, MOST_COMPRESSED * len(raw.value)):
            problem = f"its {len(raw.value)} bytes of PixelData promise {expected}"
            raise UnreadableFile(problem, path=one.path, fix=EXPORT_AGAIN)
    else:
        how = "in one piece" if raw.length != NOT_NATIVE else "in fragments"
        raise UnreadableFile(f"has pixels of transfer syntax '{syntax}' {how}", path=one.path, fix=CONVERT)


def slice_values(dataset: Dataset, one: Slice) -> np.ndarray:
    """The values of a slice that passed `check_pixels`, (rows, columns) float32.

    Raises:
        UnreadableFile: the code stream is damaged or of another size.
        BadVoxels: a value needs more bits than BitsStored.
    """
    raw = _pixel_data(dataset)
    assert raw is not None
    assert raw.value is not None
    if raw.length == NOT_NATIVE:
        stored = _decoded(raw.value, transfer_syntax(dataset), one)
    else:
        stored = _native(raw.value, raw.VR, dataset.original_encoding[1], one)
    values = _stored_bits(stored.reshape(one.size[::-1]), one.pixels, one.path)
    slope, intercept = one.pixels.rescale or (1.0, 0.0)
    return (values * np.float64(slope) + intercept).astype(np.float32)


def transfer_syntax(dataset: Dataset) -> str:
    """How the pixels are encoded; empty where the file has no meta information."""
    return text(dataset.file_meta, "TransferSyntaxUID")


def _pixel_data(dataset: Dataset) -> RawDataElement | None:
    """The element as it stands in the file, with its length there."""
    raw = element(dataset, "PixelData")
    return raw if isinstance(raw, tuple) else None


def _native(content: bytes, representation: str | None, little: bool | None, one: Slice) -> np.ndarray:
    dtype = one.pixels.dtype.newbyteorder("<" if little else ">")
    if dtype.itemsize == 1 and not little and representation == "OW":  # bytes came in words, which were swapped
        content = np.frombuffer(content, ">u2").astype("<u2").tobytes()
    return np.frombuffer(content, dtype, count=one.size[0] * one.size[1]).astype(one.pixels.dtype, copy=False)


def _stored_bits(values: np.ndarray, pixels: PixelFormat, path: Path) -> np.ndarray:
    """Values of BitsStored bits; above them there may be nothing but zeros or the sign."""
    spare = pixels.bits - pixels.stored
    if not spare:
        return values
    wanted = (values << spare) >> spare  # the sign fills up what is free
    masked = values.view(f"u{values.itemsize}") >> pixels.stored
    wrong = int(np.count_nonzero((wanted != values) & (masked != 0)))
    if wrong:
        problem = f"{wrong} of its values need more bits than the {pixels.stored} of BitsStored"
        raise BadVoxels(problem, path=path, fix=EXPORT_AGAIN)
    return np.asarray(wanted)


def _decoded(content: bytes, syntax: str, one: Slice) -> np.ndarray:
    """Stored values of compressed pixels."""
    fragments = _fragments(content, one)
    if syntax != RLE:
        _check_codestream(read_codestream(b"".join(fragments)), one)
    with tempfile.TemporaryDirectory(prefix="medseg-dicom-") as folder:
        file = Path(folder) / "slice.dcm"
        _write_bare(file, fragments, syntax, one)
        decoded = _run_codec(file, one.path)
    expected = (1, *one.size[::-1])
    if decoded.ndim == 2:
        decoded = decoded[None]
    if decoded.shape != expected or decoded.dtype.itemsize * 8 != one.pixels.bits:
        problem = f"its code stream holds {decoded.shape[::-1]} pixels of {decoded.dtype}"
        raise UnreadableFile(f"{problem} (the header says {expected[::-1]})", path=one.path, fix=EXPORT_AGAIN)
    return np.ascontiguousarray(decoded).view(one.pixels.dtype)


def _fragments(content: bytes, one: Slice) -> list[bytes]:
    """The pieces of the one frame's code stream, in their order."""
    at, pieces = 0, []
    while content[at : at + 4] == _ITEM:
        length = int.from_bytes(content[at + 4 : at + 8], "little")
        pieces.append(content[at + 8 : at + 8 + length])
        at += 8 + length
    if len(pieces) < 2 or at != len(content):
        raise UnreadableFile("has damaged fragments of PixelData", path=one.path, fix=EXPORT_AGAIN)
    return pieces[1:]  # after the table of offsets


def _check_codestream(found: Codestream | None, one: Slice) -> None:
    if found is None:
        raise UnreadableFile("its code stream is truncated or damaged", path=one.path, fix=EXPORT_AGAIN)
    if found.size != one.size or found.components != 1 or found.precision > one.pixels.bits:
        problem = "its code stream holds {}x{} pixels, {} components of {} bits".format(
            *found.size, found.components, found.precision
        )
        expected = "{}x{} pixels, 1 component, at most {} bits".format(*one.size, one.pixels.bits)
        raise UnreadableFile(f"{problem} (the header says {expected})", path=one.path, fix=EXPORT_AGAIN)


def _write_bare(file: Path, fragments: list[bytes], syntax: str, one: Slice) -> None:
    """A DICOM file with nothing but a code stream and its format."""
    import pydicom
    from pydicom.encaps import encapsulate

    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    dataset.SOPClassUID, dataset.SOPInstanceUID = pydicom.uid.SecondaryCaptureImageStorage, "2.25.1"
    dataset.Columns, dataset.Rows = one.size
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored = one.pixels.bits, one.pixels.stored
    dataset.HighBit, dataset.PixelRepresentation = one.pixels.stored - 1, int(one.pixels.signed)
    dataset.PixelData = encapsulate([b"".join(fragments)], has_bot=False)
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(file, enforce_file_format=True)


def _run_codec(file: Path, path: Path) -> np.ndarray:
    import SimpleITK

    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(file))
    try:
        return np.asarray(SimpleITK.GetArrayFromImage(reader.Execute()))
    except RuntimeError as error:
        last = str(error).strip().splitlines()[-1].replace(str(file), path.name)[:120]
        raise UnreadableFile(f"its code stream cannot be decoded: {last}", path=path, fix=EXPORT_AGAIN) from None
