"""Files that must be refused in one line with exit code 3, and writes that must leave the old file intact."""

from __future__ import annotations

import errno
import gzip
import os
import struct
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from PIL import Image

from medseg.errors import (
    BadGeometry,
    BadVoxels,
    InputRefused,
    MedsegError,
    ResourceError,
    UnreadableFile,
    UnsafeArtefact,
)
from medseg.io import (
    Geometry,
    load_array,
    read_geometry,
    read_labels,
    read_volume,
    save_array,
    save_checkpoint,
    save_model,
    write_json,
    write_labels,
)

AFFINE = np.array([[0.6, -1.6, 0, 5.25], [0.8, 1.2, 0, -6.5], [0, 0, 2.5, 7], [0, 0, 0, 1]])
SHAPE = (6, 5, 4)
# byte offsets in a NIfTI-1 header, nifti1.h
DIM, DATATYPE, PIXDIM, VOX_OFFSET, SLOPE, UNITS = 40, 70, 76, 108, 112, 123
QFORM_CODE, SFORM_CODE, QUATERN_B, QOFFSET_X, SROW_X, MAGIC = 252, 254, 256, 268, 280, 344


def nifti_bytes(dtype: type = np.int16, shape: tuple[int, ...] = SHAPE) -> bytes:
    voxels = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
    image = nib.Nifti1Image(voxels, AFFINE, dtype=dtype)
    image.set_qform(AFFINE, 1)
    image.set_sform(AFFINE, 1)
    return image.to_bytes()


def patched(offset: int, form: str, *values: float) -> bytes:
    data = bytearray(nifti_bytes())
    struct.pack_into("<" + form, data, offset, *values)
    return bytes(data)


def only_qform(*patches: tuple[int, str, float]) -> bytes:
    data = bytearray(patched(SFORM_CODE, "h", 0))
    for offset, form, value in patches:
        struct.pack_into("<" + form, data, offset, value)
    return bytes(data)


def neither_form_and(offset: int, form: str, *values: float) -> bytes:
    data = bytearray(patched(offset, form, *values))
    struct.pack_into("<hh", data, QFORM_CODE, 0, 0)
    return bytes(data)


NAN, INF = float("nan"), float("inf")
NIFTI_FAULTS: dict[str, tuple[bytes, type[InputRefused], str]] = {
    "empty": (b"", UnreadableFile, "not a NIfTI file"),
    "text": (b"this is no image at all, only words" * 20, UnreadableFile, "not a NIfTI file"),
    "header cut": (nifti_bytes()[:200], UnreadableFile, "its header alone takes 352"),
    "no voxels": (nifti_bytes()[:352], UnreadableFile, r"has 352 bytes \(its header promises 592\)"),
    "one byte short": (nifti_bytes()[:-1], UnreadableFile, r"has 591 bytes \(its header promises 592\)"),
    "one byte long": (nifti_bytes() + b"x", UnreadableFile, "is too long"),
    "magic gone": (patched(MAGIC, "4s", b"\0\0\0\0"), UnreadableFile, "magic"),
    "pair": (patched(MAGIC, "4s", b"ni1\0"), UnreadableFile, "header and voxels in one file"),
    "no dimension": (patched(DIM, "h", 0), UnreadableFile, r"dim\[0\] is 0"),
    "nine dimensions": (patched(DIM, "h", 9), UnreadableFile, r"dim\[0\] is 9"),
    "empty axis": (patched(DIM + 4, "h", 0), UnreadableFile, r"dim\[2\] is 0"),
    "negative axis": (patched(DIM + 2, "h", -6), UnreadableFile, r"dim\[1\] is -6"),
    "huge": (patched(DIM, "hhhh", 3, 32767, 32767, 32767), UnreadableFile, "is truncated"),
    "five dimensions": (patched(DIM, "hhhhhh", 5, 6, 5, 4, 1, 3), BadVoxels, "5 dimensions 6x5x4x1x3"),
    "negative code": (patched(QFORM_CODE, "h", -32768), BadGeometry, "qform_code is -32768"),
    "unknown code": (patched(SFORM_CODE, "h", 6), BadGeometry, "sform_code is 6"),
    "zero spacing": (patched(PIXDIM + 12, "f", 0), BadGeometry, r"pixdim\[3\] \(spacing\) is 0.0"),
    "negative spacing": (patched(PIXDIM + 4, "f", -1), BadGeometry, r"pixdim\[1\] \(spacing\) is -1.0"),
    "nan spacing": (patched(PIXDIM + 8, "f", NAN), BadGeometry, r"pixdim\[2\] \(spacing\) is nan"),
    "infinite spacing": (patched(PIXDIM + 8, "f", INF), BadGeometry, r"pixdim\[2\] \(spacing\) is inf"),
    "absurd spacing": (neither_form_and(PIXDIM + 4, "f", 1e30), BadGeometry, "must be within"),
    "singular affine": (patched(SROW_X, "4f", 0.8, 1.2, 0, 5), BadGeometry, "singular"),
    "nan affine": (patched(SROW_X, "f", NAN), BadGeometry, "not finite"),
    "zero column": (patched(SROW_X, "12f", *[0, 1, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0]), BadGeometry, "spacing is"),
    "huge origin": (patched(SROW_X + 12, "f", 1e30), BadGeometry, "origin"),
    "forms flipped": (patched(SROW_X, "4f", -0.6, 1.6, 0, 5.25), BadGeometry, "sform and qform disagree"),
    "forms moved": (patched(QOFFSET_X, "f", 5.55), BadGeometry, "sform and qform disagree"),
    "nan qform beside a sform": (patched(QOFFSET_X, "f", NAN), BadGeometry, "sform and qform disagree"),
    "not a rotation": (only_qform((QUATERN_B, "f", 1.5)), BadGeometry, "not a rotation"),
    "nan offset in the qform": (only_qform((QOFFSET_X, "f", NAN)), BadGeometry, "not finite"),
    "voxels overlap the header": (patched(VOX_OFFSET, "f", 0), UnreadableFile, "vox_offset is 0"),
    "voxels overlap the flag": (patched(VOX_OFFSET, "f", 348), UnreadableFile, "vox_offset is 348"),
    "negative offset": (patched(VOX_OFFSET, "f", -352), UnreadableFile, "vox_offset is -352"),
    "nan offset": (patched(VOX_OFFSET, "f", NAN), UnreadableFile, "vox_offset is nan"),
    "offset too far": (patched(VOX_OFFSET, "f", 1e9), UnreadableFile, "truncated"),
    "unknown type": (patched(DATATYPE, "h", 999), UnreadableFile, "data type code 999"),
    "complex": (patched(DATATYPE, "h", 32), BadVoxels, "complex64"),
    "colour": (patched(DATATYPE, "h", 128), BadVoxels, "RGB"),
    "infinite intercept": (patched(SLOPE, "ff", 1, INF), BadVoxels, "scl_inter"),
}


def refused(call: Callable[..., object], path: Path, kind: type[MedsegError], said: str) -> str:
    with pytest.raises(kind, match=said or None) as caught:
        call(path, case="c17")
    text = str(caught.value)
    assert text.startswith(f"case c17, {path}: ")
    assert "\n" not in text
    assert caught.value.exit_code == 3
    return text


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("fault", NIFTI_FAULTS)
def test_nifti_faults(tmp_path: Path, fault: str, ending: str) -> None:
    data, kind, said = NIFTI_FAULTS[fault]
    path = tmp_path / f"a{ending}"
    path.write_bytes(gzip.compress(data, mtime=0) if ending == ".nii.gz" else data)
    if ending == ".nii.gz" and fault in ("huge", "offset too far"):
        said = "more than .* bytes of gzip can hold"
    for call in (read_volume, read_labels):
        refused(call, path, kind, said)
    if ending == ".nii" or fault not in ("no voxels", "one byte short", "one byte long"):  # the header alone tells
        refused(read_geometry, path, kind, said)


def test_every_cut_of_a_gzip_is_found(tmp_path: Path) -> None:
    data = gzip.compress(nifti_bytes(), mtime=0)
    path = tmp_path / "a.nii.gz"
    for length in range(2, len(data)):
        path.write_bytes(data[:length])
        refused(read_volume, path, UnreadableFile, "truncated|damaged|not a NIfTI")


def test_every_flipped_byte_of_the_voxels_is_found(tmp_path: Path) -> None:
    data = gzip.compress(nifti_bytes(), mtime=0)
    path = tmp_path / "a.nii.gz"
    for position in range(10, len(data), 3):  # after gzip's own header: its time stamp may change
        broken = bytearray(data)
        broken[position] ^= 0x10
        path.write_bytes(broken)
        with pytest.raises(InputRefused) as caught:
            read_volume(path)
        assert "\n" not in str(caught.value)


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch) -> None:
    """64 MiB of zeros in 64 kB: whole and true to its header, but more than the memory that is free."""
    header = nib.Nifti1Header()
    header.set_data_shape((1024, 1024, 64))
    header.set_data_dtype(np.uint8)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    path = tmp_path / "a.nii.gz"
    with gzip.open(path, "wb", compresslevel=9) as file:
        file.write(header.binaryblock + bytes(4))
        for _ in range(64):
            file.write(bytes(1 << 20))
    assert path.stat().st_size < 100_000
    monkeypatch.setattr("medseg.io.memory.free_memory", lambda: 100 << 20)
    monkeypatch.setattr("medseg.io.nifti._read_voxels", None)
    refused(read_volume, path, InputRefused, "need 0.3 GiB of memory, 0.1 GiB are free")


def test_what_follows_the_promised_voxels_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(nifti_bytes() + bytes(50 << 20)))
    refused(read_volume, path, UnreadableFile, "is too long: it has 593 or more bytes")


def test_missing_folder_and_unknown_kind(tmp_path: Path) -> None:
    for name in ("no.nii.gz", "no.mha", "no.nrrd", "no.png"):
        for call in (read_volume, read_labels, read_geometry):
            refused(call, tmp_path / name, UnreadableFile, "cannot be read: No such file")
    (tmp_path / "folder.nii").mkdir()
    refused(read_volume, tmp_path / "folder.nii", UnreadableFile, "holds no DICOM image")
    refused(read_volume, tmp_path / "a.docx", UnreadableFile, "unknown kind of file")


def itk_bytes(path: Path, *, compress: bool) -> bytes:
    image = SimpleITK.GetImageFromArray(np.random.default_rng(0).integers(0, 100, (4, 5, 6)).astype(np.int16))
    SimpleITK.WriteImage(image, str(path), compress)
    return path.read_bytes()


MHA_FAULTS: dict[str, tuple[bytes, bytes, type[MedsegError], str]] = {
    "zero spacing": (b"ElementSpacing = 1 1 1", b"ElementSpacing = 1 0 1", BadGeometry, r"ElementSpacing\[1\] is 0"),
    "negative spacing": (b"ElementSpacing = 1 1 1", b"ElementSpacing = 1 1 -1", BadGeometry, r"ElementSpacing\[2\]"),
    "nan spacing": (b"ElementSpacing = 1 1 1", b"ElementSpacing = nan 1 1", BadGeometry, r"ElementSpacing is nan"),
    "no number": (b"ElementSpacing = 1 1 1", b"ElementSpacing = 1 one 1", UnreadableFile, "no number"),
    "singular": (b"Matrix = 1 0 0 0 1 0", b"Matrix = 1 0 0 1 0 0", BadGeometry, "direction|singular"),
    "huge": (b"DimSize = 6 5 4", b"DimSize = 60000 50000 40000", UnreadableFile, "its header promises"),
    "empty axis": (b"DimSize = 6 5 4", b"DimSize = 6 0 4", UnreadableFile, "DimSize is '6 0 4'"),
    "unknown type": (b"MET_SHORT", b"MET_OTHER", BadVoxels, "ElementType is 'MET_OTHER'"),
    "no header": (b"ElementDataFile", b"Nothing", UnreadableFile, "not a MetaImage"),
}


@pytest.mark.parametrize("fault", MHA_FAULTS)
def test_metaimage_faults(tmp_path: Path, fault: str) -> None:
    old, new, kind, said = MHA_FAULTS[fault]
    path = tmp_path / "a.mha"
    data = itk_bytes(path, compress=False)
    assert old in data
    path.write_bytes(data.replace(old, new))
    for call in (read_volume, read_geometry):
        refused(call, path, kind, said)


@pytest.mark.parametrize("name", ["../secret.raw", "/etc/passwd", "LIST", "slice%03d.raw 1 4 1"])
def test_voxels_from_elsewhere_are_not_followed(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.raw").write_bytes(bytes(240))
    path = tmp_path / "deep" / "a.mhd"
    path.parent.mkdir()
    itk_bytes(path, compress=False)
    path.write_bytes(path.read_bytes().replace(b"a.raw", name.encode()))
    with pytest.raises(UnsafeArtefact, match="expected one file in the same folder"):
        read_volume(path)
    nrrd = tmp_path / "deep" / "a.nrrd"
    itk_bytes(nrrd, compress=False)
    nrrd.write_bytes(nrrd.read_bytes().replace(b"encoding:", f"data file: {name}\nencoding:".encode()))
    with pytest.raises(UnsafeArtefact, match="another file"):
        read_volume(nrrd)


def test_a_missing_raw_file(tmp_path: Path) -> None:
    itk_bytes(tmp_path / "a.mhd", compress=False)
    (tmp_path / "a.raw").unlink()
    refused(read_volume, tmp_path / "a.mhd", UnreadableFile, "'a.raw' is missing")


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
def test_cut_itk_files(tmp_path: Path, ending: str, compress: bool) -> None:
    path = tmp_path / f"a{ending}"
    data = itk_bytes(path, compress=compress)
    for length in (0, 3, 100, len(data) - 30, len(data) - 10):
        path.write_bytes(data[:length])
        refused(read_volume, path, InputRefused, "")


@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
def test_flipped_bytes_of_compressed_itk_voxels_are_found(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    data = itk_bytes(path, compress=True)
    reference = read_volume(path).array
    start = data.index(b"LOCAL\n") + 8 if ending == ".mha" else data.index(b"\n\n") + 14
    for position in range(start, len(data), 7):
        broken = bytearray(data)
        broken[position] ^= 0x10
        path.write_bytes(broken)
        try:
            array = read_volume(path).array
        except InputRefused:
            continue
        np.testing.assert_array_equal(array, reference)  # only a byte that means nothing may pass


@pytest.mark.parametrize("ending", [".png", ".jpg", ".tif", ".bmp"])
def test_damaged_pictures(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50)).astype(np.uint8)).save(path)
    data = path.read_bytes()
    for length in (0, 2, len(data) // 2):
        path.write_bytes(data[:length])
        refused(read_volume, path, UnreadableFile, "")
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    refused(read_volume, path, UnreadableFile, "not a PNG")


def test_a_flipped_byte_of_a_png_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50)).astype(np.uint8)).save(path)
    data = path.read_bytes()
    for position in range(50, len(data) - 20, 97):
        broken = bytearray(data)
        broken[position] ^= 0x10
        path.write_bytes(broken)
        refused(read_volume, path, UnreadableFile, "")


@pytest.mark.parametrize("name", ["a.nii", "a.mha", "a.nrrd", "a.png", "a.tif"])
def test_random_damage_of_headers_never_ends_in_a_traceback(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    WRITERS[name](path, 3)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refusals: list[MedsegError] = []
    for _ in range(150):
        damaged = bytearray(whole)
        for position in rng.integers(0, min(len(whole), 400), 2):
            damaged[position] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            assert np.isfinite(read_volume(path).array).all()
        except MedsegError as error:
            refusals.append(error)
    assert len(refusals) > 20
    assert all(error.exit_code in (3, 5) and "\n" not in str(error) for error in refusals)


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("length", [0, 4, 60, 500])
def test_damaged_arrays(tmp_path: Path, length: int, mmap: bool) -> None:
    path = tmp_path / "a.npy"
    save_array(path, np.arange(100))
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UnreadableFile):
        load_array(path, mmap=mmap)


def write_nifti(path: Path, size: int) -> None:
    noise = np.random.default_rng(0).integers(0, 250, (size, 20, 20)).astype(np.uint8)
    write_labels(path, noise, Geometry(noise.shape, AFFINE))


def write_tensors(path: Path, size: int) -> None:
    import torch

    save_checkpoint(path, {"a": torch.rand(size * 100)})


WRITERS: dict[str, Callable[[Path, int], None]] = {
    "a.nii": write_nifti,
    "a.nii.gz": write_nifti,
    "a.mha": write_nifti,
    "a.mhd": write_nifti,
    "a.nrrd": write_nifti,
    "a.npy": lambda path, size: save_array(path, np.random.default_rng(0).random(size * 100)),
    "a.json": lambda path, size: write_json(path, list(range(size * 100))),
    "a.ckpt": write_tensors,
}


def write_picture(path: Path, size: int) -> None:
    noise = np.random.default_rng(0).integers(0, 250, (size, 400)).astype(np.uint8)
    write_labels(path, noise, Geometry(noise.shape, np.eye(4)))


WRITERS |= dict.fromkeys(("a.png", "a.tif", "a.bmp"), write_picture)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_disk_that_refuses_leaves_the_old_file(tmp_path: Path, name: str, code: int, monkeypatch) -> None:
    path = tmp_path / name
    WRITERS[name](path, 1)
    old = path.read_bytes()

    def refuse(handle: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("medseg.io.atomic.os.fsync", refuse)
    with pytest.raises(ResourceError, match=os.strerror(code)) as caught:
        WRITERS[name](path, 2)
    assert caught.value.exit_code == 4
    assert str(caught.value).endswith("The old file is intact.")
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == [name]


def test_a_model_folder_survives_a_full_disk(tmp_path: Path, monkeypatch) -> None:
    import torch

    save_model(tmp_path, {"a": torch.zeros(9)}, {"old": True})
    old = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("medseg.io.atomic.os.fsync", full)
    with pytest.raises(ResourceError, match="No space left"):
        save_model(tmp_path, {"a": torch.ones(9)}, {"old": False})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == old


FULL = """
    import resource, sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    import test_io_faults as faults
    from medseg.errors import ResourceError
    folder = Path(sys.argv[2])
    for name, write in faults.WRITERS.items():
        write(folder / name, 1)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    for name, write in faults.WRITERS.items():
        try:
            write(folder / name, 200)
        except ResourceError as error:
            print(name, error)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no file size limit for processes")
def test_a_write_cut_by_the_system_in_the_middle_leaves_the_old_files(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(FULL), str(Path(__file__).parent), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    refusals = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert refusals.keys() == WRITERS.keys()
    assert all("cannot be written" in text and "The old file is intact." in text for text in refusals.values())


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResourceError, match="cannot be written"):
        write_json(tmp_path / "file" / "a.json", {})
