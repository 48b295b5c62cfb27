"""MetaImage and NRRD: a header with any field changed gives what the file then says, or one line of refusal."""

from __future__ import annotations

import bz2
import gzip
import itertools
import re
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from medseg.errors import InputRefused, MedsegError
from medseg.io import read_geometry, read_labels, read_volume

VOXELS = np.random.default_rng(0).integers(0, 100, (4, 5, 6)).astype(np.int16)
MHA = b"""ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = False
CompressedData = False
TransformMatrix = 0 1 0 1 0 0 0 0 1
Offset = 5.5 -6 7
CenterOfRotation = 0 0 0
AnatomicalOrientation = RAI
ElementSpacing = 0.5 2 3
DimSize = 6 5 4
ElementNumberOfChannels = 1
ElementType = MET_SHORT
ElementDataFile = LOCAL
"""
NRRD = b"""NRRD0004
# a comment
type: short
dimension: 3
space: left-posterior-superior
sizes: 6 5 4
space directions: (0,0.5,0) (2,0,0) (0,0,3)
kinds: domain domain domain
endian: little
encoding: raw
space origin: (5.5,-6,7)
a key:=a note

"""
HEADERS = {".mha": MHA, ".nrrd": NRRD}
RAW = VOXELS.tobytes()


def written(path: Path, header: bytes, voxels: bytes = RAW) -> Path:
    path.write_bytes(header + voxels)
    return path


def refused(path: Path, said: str = "") -> None:
    for call in (read_volume, read_labels):
        with pytest.raises(MedsegError, match=said or None) as caught:
            call(path)
        assert caught.value.exit_code in (3, 5)
        assert "\n" not in str(caught.value)


def is_whole(path: Path) -> None:
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array[0], VOXELS.T)
    np.testing.assert_allclose(volume.affine @ (0, 0, 0, 1), (-5.5, 6, 7, 1))
    np.testing.assert_allclose(volume.affine @ (1, 0, 0, 1), (-5.5, 5.5, 7, 1))
    np.testing.assert_allclose(read_geometry(path).affine, volume.affine)


def lines(ending: str) -> list[bytes]:
    return [line for line in HEADERS[ending].splitlines() if re.search(rb"[=:] ", line)]


EVERY_LINE = [(ending, line) for ending in HEADERS for line in lines(ending)]


@pytest.mark.parametrize("ending", HEADERS)
def test_the_file_itself_is_read(tmp_path: Path, ending: str) -> None:
    is_whole(written(tmp_path / f"a{ending}", HEADERS[ending]))
    assert SimpleITK.ReadImage(str(tmp_path / f"a{ending}")).GetSpacing() == (0.5, 2, 3)


@pytest.mark.parametrize(("ending", "line"), EVERY_LINE)
def test_a_repeated_field_is_refused(tmp_path: Path, ending: str, line: bytes) -> None:
    if line.startswith(b"ElementDataFile"):
        return  # the first one ends the header
    header = HEADERS[ending].replace(line, line + b"\n" + line)
    refused(written(tmp_path / f"a{ending}", header), "twice")


@pytest.mark.parametrize(("ending", "line"), EVERY_LINE)
@pytest.mark.parametrize("word", [b"5.2x", b"1e30", b"nan", b"-3", b"1_0", b"0x6", b"", b"\xff", b"9" * 400])
def test_a_value_that_cannot_be(tmp_path: Path, ending: str, line: bytes, word: bytes) -> None:
    """Every word of every line: refused, or of no meaning for voxels and grid."""
    key, _, value = re.split(rb"([=:] )", line, maxsplit=1)
    start = HEADERS[ending].index(line) + len(line) - len(value)
    for found in re.finditer(rb"[\w.+-]+", value):
        header = bytearray(HEADERS[ending])
        header[start + found.start() : start + found.end()] = word
        path = written(tmp_path / f"a{ending}", bytes(header))
        if key.strip() in (b"CenterOfRotation", b"AnatomicalOrientation"):
            is_whole(path)
        elif word == b"-3" and (line.startswith((b"Offset", b"space origin")) or b"directions" in line):
            assert np.isfinite(read_volume(path).affine).all()
        else:
            refused(path)


@pytest.mark.parametrize(("ending", "line"), EVERY_LINE)
def test_a_misspelled_or_missing_field(tmp_path: Path, ending: str, line: bytes) -> None:
    whole, path = HEADERS[ending], tmp_path / f"a{ending}"
    key = re.split(rb" ?[=:] ", line)[0]
    if key not in (b"CenterOfRotation", b"AnatomicalOrientation"):
        refused(written(path, whole.replace(key, key[:-1] + b"z", 1)))
    optional = (b"BinaryData", b"Compressed", b"Center", b"Anatomical", b"ElementNumber", b"ObjectType", b"kinds")
    if key.startswith(optional):
        is_whole(written(path, whole.replace(line + b"\n", b"", 1)))
    elif not key.startswith((b"Transform", b"Offset", b"ElementSpacing", b"space origin")):  # 0, the axes and 1 mm
        refused(written(path, whole.replace(line + b"\n", b"", 1)))


@pytest.mark.parametrize("ending", HEADERS)
@pytest.mark.parametrize("change", [-2, -1, 1, 2, 5000])
def test_raw_voxels_have_the_promised_length(tmp_path: Path, ending: str, change: int) -> None:
    voxels = RAW[:change] if change < 0 else RAW + bytes(change)
    refused(written(tmp_path / f"a{ending}", HEADERS[ending], voxels), "its header promises 240")
    with pytest.raises(InputRefused):
        read_geometry(tmp_path / f"a{ending}")


def compressed(ending: str, how: bytes, note: bytes = b"") -> bytes:
    if ending == ".mha":
        return MHA.replace(b"CompressedData = False\n", b"CompressedData = True\n" + note)
    return NRRD.replace(b"encoding: raw", b"encoding: " + how)


PACKED = [(".mha", b"zlib", zlib.compress), (".nrrd", b"gzip", gzip.compress), (".nrrd", b"bzip2", bz2.compress)]


@pytest.mark.parametrize(("ending", "how", "pack"), PACKED)
def test_compressed_voxels_are_whole_or_refused(tmp_path: Path, ending: str, how: bytes, pack) -> None:
    path, header, packed = tmp_path / f"a{ending}", compressed(ending, how), pack(RAW)
    is_whole(written(path, header, packed))
    refused(written(path, header, packed + b"\0"), "follow")
    refused(written(path, header, pack(RAW + b"\0")), "its header promises 240")
    refused(written(path, header, pack(RAW[:-1])), "its header promises 240")
    for cut in range(0, len(packed), 17):
        refused(written(path, header, packed[:cut]))
    for position in range(12, len(packed), 13):
        broken = bytearray(packed)
        broken[position] ^= 0x10
        refused(written(path, header, bytes(broken)))


@pytest.mark.parametrize(("size", "right"), [(None, True), (0, True), (-1, False), (1, False), (-150, False)])
def test_compressed_data_size_is_that_of_the_file_or_absent(tmp_path: Path, size: int | None, right: bool) -> None:
    packed = zlib.compress(RAW)
    note = b"" if size is None else b"CompressedDataSize = %d\n" % (len(packed) + size)
    path = written(tmp_path / "a.mha", compressed(".mha", b"", note), packed)
    if right:
        is_whole(path)
    else:
        refused(path, "CompressedDataSize")


@pytest.mark.parametrize("sizes", [b"6 5", b"6 5 4 1", b"30 4", b"120", b"6 5 4 x"])
@pytest.mark.parametrize("dims", [2, 3])
def test_as_many_sizes_as_dimensions(tmp_path: Path, sizes: bytes, dims: int) -> None:
    if dims != len(sizes.split()):
        header = MHA.replace(b"NDims = 3", b"NDims = %d" % dims).replace(b"DimSize = 6 5 4", b"DimSize = " + sizes)
        refused(written(tmp_path / "a.mha", header))
        header = NRRD.replace(b"dimension: 3", b"dimension: %d" % dims).replace(b"sizes: 6 5 4", b"sizes: " + sizes)
        refused(written(tmp_path / "a.nrrd", header))


@pytest.mark.parametrize("old", ["Offset", "TransformMatrix", "ElementSpacing", "BinaryDataByteOrderMSB"])
def test_synonyms_mean_the_same_and_may_not_differ(tmp_path: Path, old: str) -> None:
    synonyms = {
        "Offset": ("Position", "Origin"),
        "TransformMatrix": ("Orientation", "Rotation"),
        "ElementSpacing": ("ElementSize",),
        "BinaryDataByteOrderMSB": ("ElementByteOrderMSB",),
    }[old]
    line = next(line for line in MHA.splitlines() if line.startswith(old.encode()))
    for name in synonyms:
        other = line.replace(old.encode(), name.encode())
        is_whole(written(tmp_path / "a.mha", MHA.replace(line, other)))
        is_whole(written(tmp_path / "a.mha", MHA.replace(line, line + b"\n" + other)))
        if old != "ElementSpacing":  # a slice can be thinner than the step to the next
            other = other.replace(b"False", b"True").replace(b"-6", b"-7").replace(b"0 1 0 1", b"1 0 0 1")
            refused(written(tmp_path / "a.mha", MHA.replace(line, line + b"\n" + other)), "differ")


@pytest.mark.parametrize("skip", [0, 7, -1])
def test_voxels_in_a_file_beside(tmp_path: Path, skip: int) -> None:
    header = MHA.replace(b"LOCAL", b"a.raw").replace(b"ElementDataFile", b"HeaderSize = %d\nElementDataFile" % skip)
    path = tmp_path / "a.mhd"
    path.write_bytes(header)
    (tmp_path / "a.raw").write_bytes(bytes(abs(skip)) + RAW)
    is_whole(path)
    (tmp_path / "a.raw").write_bytes(RAW[1:])
    refused(path)
    path.write_bytes(header.replace(b"HeaderSize = %d" % skip, b"HeaderSize = -2"))
    refused(path)


def test_big_endian_and_crlf_and_text(tmp_path: Path) -> None:
    swapped = VOXELS.byteswap().tobytes()
    is_whole(written(tmp_path / "a.mha", MHA.replace(b"MSB = False", b"MSB = True"), swapped))
    is_whole(written(tmp_path / "a.nrrd", NRRD.replace(b"endian: little", b"endian: big"), swapped))
    is_whole(written(tmp_path / "a.mha", MHA.replace(b"\n", b"\r\n")))
    is_whole(written(tmp_path / "a.nrrd", NRRD.replace(b"\n", b"\r\n")))
    header, text = NRRD.replace(b"encoding: raw", b"encoding: ascii"), " ".join(map(str, VOXELS.ravel())).encode()
    is_whole(written(tmp_path / "a.nrrd", header, text))
    for wrong in (
        text[:-3],
        text + b" 5",
        text + b".5",
        text[:-2] + b"x1",
        text + b"99999",
        text.replace(b" ", b"-", 1),
    ):
        refused(written(tmp_path / "a.nrrd", header, wrong))
    is_whole(
        written(tmp_path / "a.nrrd", NRRD.replace(b"type", b"line skip: 2\nbyte skip: 3\ntype"), b"a\nb\nxyz" + RAW)
    )


@pytest.mark.parametrize(
    "space", ["right-anterior-superior", "left-anterior-superior", "LPS", "RAS", "scanner-xyz", "3D"]
)
def test_a_space_of_nrrd_is_itks_or_refused(tmp_path: Path, space: str) -> None:
    path = written(tmp_path / "a.nrrd", NRRD.replace(b"left-posterior-superior", space.encode()))
    if space in ("scanner-xyz", "3D"):
        refused(path, "space is")
        return
    image = SimpleITK.ReadImage(str(path))
    for index in itertools.product((0, 2), repeat=3):
        left, posterior, superior = image.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose((read_volume(path).affine @ (*index, 1))[:3], (-left, -posterior, superior))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b"space directions: (0,0.5,0) (2,0,0) (0,0,3)\n", b"", "no space directions"),
        (b"space: left-posterior-superior\n", b"", "space is 'None'"),
        (b"(0,0.5,0)", b"(0,nan,0)", "not finite"),
        (b"(0,0.5,0)", b"(0,0,0)", "longer than 0"),
        (b"(0,0.5,0)", b"(0,0.5)", "has not 3 numbers"),
        (b"(0,0.5,0)", b"none", "disagree"),
        (b"(0,0.5,0)", b"(2,0,0)", "singular"),
        (b"kinds: domain", b"kinds: vector", "disagree"),
        (b"kinds: domain", b"kinds: complex", "of the kind 'complex'"),
        (b"type: short", b"type: block", "type is 'block'"),
        (b"encoding", b"spacings: 1 1 1\nencoding", "both spacings and space directions"),
        (b"encoding", b'space units: "m" "m" "m"\nencoding', "lengths are in m"),
        (b"encoding: raw", b"encoding: hex", "encoding is 'hex'"),
        (b"encoding", b"data file: a.raw\nencoding", "another file"),
    ],
)
def test_nrrd_that_names_no_grid(tmp_path: Path, old: bytes, new: bytes, said: str) -> None:
    refused(written(tmp_path / "a.nrrd", NRRD.replace(old, new, 1)), said)


@pytest.mark.parametrize(("ending", "how", "pack"), PACKED)
def test_memory_follows_what_the_file_holds_not_what_it_promises(tmp_path: Path, ending: str, how: bytes, pack) -> None:
    header = compressed(ending, how).replace(b"6 5 4", b"1000 500 900")  # 0.9 GiB
    path = written(tmp_path / f"a{ending}", header, pack(bytes(1000)))
    tracemalloc.start()
    refused(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 << 20
