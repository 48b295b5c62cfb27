"""Undamaged pictures of every kind: exactly the numbers that were written, or a refusal whose advice works."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from medseg.errors import MedsegError, UnreadableFile
from medseg.io import read_geometry, read_labels, read_volume
from medseg.io.image2d import read
from medseg.io.jpeg import read_jpeg
from medseg.io.tiff import parse_tiff

sys.path.append(str(Path(__file__).parents[3] / "scripts"))
from _campaign_formats import PNG_KINDS, png_bytes

SHAPE = (13, 21)
TYPES = ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8")
LAYOUTS: tuple[dict[str, Any], ...] = (
    {"rowsperstrip": 4},
    {"tile": (16, 16)},
    {"rowsperstrip": 5, "byteorder": ">"},
    {"tile": (16, 16), "byteorder": ">", "compression": "zlib"},
    {"rowsperstrip": 3, "compression": "zlib", "bigtiff": True},
    {"rowsperstrip": 4, "compression": "zlib", "predictor": 2},
    {"rowsperstrip": 4, "compression": "zlib", "predictor": 2, "byteorder": ">"},
)
KINDS: tuple[tuple[int, dict[str, Any]], ...] = (
    (1, {"photometric": "minisblack"}),
    (1, {"photometric": "miniswhite"}),
    (3, {"photometric": "rgb", "planarconfig": "contig"}),
    (3, {"photometric": "rgb", "planarconfig": "separate"}),
    (4, {"photometric": "rgb", "planarconfig": "contig", "extrasamples": ["unassalpha"]}),
    (4, {"photometric": "rgb", "planarconfig": "separate", "extrasamples": ["assocalpha"]}),
)


def numbers(samples: int, dtype: str) -> np.ndarray:
    """(S, H, W), the extremes of the type among them."""
    rng = np.random.default_rng(0)
    if dtype[0] == "f":
        return rng.normal(size=(samples, *SHAPE)).astype(dtype)
    facts = np.iinfo(dtype)
    return rng.integers(facts.min, facts.max, (samples, *SHAPE), dtype=dtype, endpoint=True)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_tiff(tmp_path: Path, kind: tuple[int, dict[str, Any]], layout: dict[str, Any]) -> None:
    samples, settings = kind
    for orientation, dtype in enumerate(TYPES, start=1):
        if "predictor" in layout and dtype[0] == "f":
            continue
        array = numbers(samples, dtype)
        picture = array[0] if samples == 1 else array
        picture = np.moveaxis(array, 0, -1) if settings.get("planarconfig") == "contig" else picture
        turned = [(274, 3, 1, orientation % 8 + 1, True)]
        tifffile.imwrite(tmp_path / "a.tif", picture, extratags=turned, **settings, **layout)
        pixels, geometry = read(tmp_path / "a.tif")
        assert pixels.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(pixels, array[:3])
        assert geometry.shape == read_geometry(tmp_path / "a.tif").shape == SHAPE
        if samples == 1:
            np.testing.assert_array_equal(read(tmp_path / "a.tif", labels=True)[0], array)


@pytest.mark.parametrize(
    "packing", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "group3", "group4", "tiff_ccitt"]
)
@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "I;16", "I", "F"])
def test_tiff_of_libtiff(tmp_path: Path, mode: str, packing: str) -> None:
    rng = np.random.default_rng(1)
    array = rng.integers(0, 256, (*SHAPE, 4)).astype(np.uint8)
    made = {
        "1": array[..., 0] > 99,
        "L": array[..., 0],
        "P": array[..., 0],
        "LA": array[..., :2],
        "RGB": array[..., :3],
    }
    made |= {"I;16": array[..., 0].astype(np.uint16) * 200, "I": array[..., 0].astype(np.int32) - 99}
    made |= {"F": array[..., 0].astype(np.float32) / 7}
    pixels = made.get(mode, array)
    picture = Image.fromarray(pixels).convert("P") if mode == "P" else Image.fromarray(pixels)
    if mode == "P":
        picture.putpalette(list(range(256)) * 3)
    if packing in ("group3", "group4", "tiff_ccitt") and mode != "1":
        return
    for predictor in (1, 2, 3) if packing in ("tiff_lzw", "tiff_adobe_deflate") else (1,):
        if (predictor == 2 and mode in ("1", "F", "P")) or (predictor == 3 and mode != "F"):
            continue
        tags = {317: predictor} if predictor > 1 else {}
        picture.save(tmp_path / "a.tif", compression=packing, tiffinfo=tags)
        for as_labels in (False, True) if mode in ("1", "L", "I;16", "I", "F") else (mode == "P",):
            found, _ = read(tmp_path / "a.tif", labels=as_labels)
            expected = np.moveaxis(np.atleast_3d(np.asarray(picture)), 2, 0)
            np.testing.assert_array_equal(found, expected[: 1 if mode == "LA" else 3])


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 10, 12, 14])
def test_tiff_of_odd_bits(tmp_path: Path, bits: int) -> None:
    array = np.random.default_rng(0).integers(0, 2**bits, SHAPE)
    flags = ((array[..., None] >> np.arange(bits)[::-1]) & 1).reshape(SHAPE[0], -1).astype(np.uint8)
    rows = np.packbits(flags, axis=1).tobytes()
    plain = [
        (256, SHAPE[1]),
        (257, SHAPE[0]),
        (258, bits),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, 99),
        (279, len(rows)),
    ]
    (tmp_path / "a.tif").write_bytes(tiff_file(rows, plain))
    np.testing.assert_array_equal(read(tmp_path / "a.tif")[0][0], array)
    np.testing.assert_array_equal(read_labels(tmp_path / "a.tif").array[0], array)


@pytest.mark.parametrize("compression", [1, 8, 5])
def test_a_last_strip_that_is_filled_up(tmp_path: Path, compression: int) -> None:
    array = np.random.default_rng(0).integers(0, 256, (8, 9)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", array, rowsperstrip=4, metadata=None)
    if compression == 5:
        Image.fromarray(array).save(tmp_path / "a.tif", compression="tiff_lzw")
    elif compression == 8:
        tifffile.imwrite(tmp_path / "a.tif", array, rowsperstrip=4, metadata=None, compression="zlib")
    data = bytearray((tmp_path / "a.tif").read_bytes())
    data[parse_tiff(bytes(data)).values_at[257]] = 7  # one row less than the strips hold
    (tmp_path / "a.tif").write_bytes(data)
    np.testing.assert_array_equal(read(tmp_path / "a.tif")[0][0], array[:7])


def tiff_file(pixels: bytes, tags: list[tuple[int, int]]) -> bytes:
    entries = b"".join(
        np.array([tag, 4], "<u2").tobytes() + np.array([1, value], "<u4").tobytes() for tag, value in tags
    )
    start = 8 + len(pixels)
    return b"II*\0" + np.uint32(start).tobytes() + pixels + np.uint16(len(tags)).tobytes() + entries + bytes(4)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("color", "depth"), PNG_KINDS)
def test_png(tmp_path: Path, color: int, depth: int, interlaced: bool) -> None:
    """Every colour type and depth, with and without gamma, significant bits and transparency."""
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    for seed in range(4):
        rng = np.random.default_rng(seed)
        array = rng.integers(0, 2**depth, (*SHAPE, samples))
        (tmp_path / "a.png").write_bytes(png_bytes(rng, array, depth, color, interlaced))
        expected = np.moveaxis(array[..., : 3 if samples > 2 else 1], 2, 0)
        if color != 3:
            np.testing.assert_array_equal(read(tmp_path / "a.png")[0], expected)
        else:
            shown = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
            np.testing.assert_array_equal(read(tmp_path / "a.png")[0], np.moveaxis(shown, 2, 0))
        if samples < 3:
            np.testing.assert_array_equal(read_labels(tmp_path / "a.png").array, expected)
        assert read_geometry(tmp_path / "a.png").shape == SHAPE


@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
def test_bmp(tmp_path: Path, mode: str) -> None:
    array = np.random.default_rng(0).integers(0, 256, (*SHAPE, 3)).astype(np.uint8)
    picture = Image.fromarray({"1": array[..., 0] > 99, "L": array[..., 0]}.get(mode, array))
    picture.save(tmp_path / "a.bmp")
    expected = np.moveaxis(np.atleast_3d(np.asarray(picture)), 2, 0)
    np.testing.assert_array_equal(read(tmp_path / "a.bmp")[0], expected)
    whole = (tmp_path / "a.bmp").read_bytes()
    (tmp_path / "a.bmp").write_bytes(whole[:-1])
    with pytest.raises(UnreadableFile, match="its header promises"):
        read_volume(tmp_path / "a.bmp")


@pytest.mark.parametrize("photometric", ["rgb", "ycbcr", "minisblack"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_jpeg_in_tiff_is_libtiffs_and_never_turned(tmp_path: Path, photometric: str, orientation: int) -> None:
    ramp = np.linspace(0, 255, 16 * 24).reshape(16, 24).astype(np.uint8)
    picture = Image.fromarray(ramp if photometric == "minisblack" else np.stack([ramp, ramp[::-1], 255 - ramp], 2))
    made = picture.convert("YCbCr") if photometric == "ycbcr" else picture
    made.save(tmp_path / "a.tif", compression="jpeg", quality=100, tiffinfo={274: orientation})
    pixels, _ = read(tmp_path / "a.tif")
    expected = np.moveaxis(np.atleast_3d(np.asarray(picture)), 2, 0)
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).mean() < 6


REFUSED: dict[str, Any] = {
    "CMYK": lambda path: Image.new("CMYK", (9, 7)).save(path),
    "CMYK jpeg": lambda path: Image.new("CMYK", (9, 7)).save(path, format="JPEG"),
    "Lab": lambda path: Image.new("LAB", (9, 7)).save(path),
    "two samples": lambda path: tifffile.imwrite(path, np.zeros((7, 9, 2), np.uint8), photometric="minisblack"),
    "five samples": lambda path: tifffile.imwrite(path, np.zeros((7, 9, 5), np.uint8), photometric="minisblack"),
    "pages": lambda path: tifffile.imwrite(path, np.zeros((3, 7, 9), np.uint8), photometric="minisblack"),
    "a stack behind one page": lambda path: tifffile.imwrite(path, np.zeros((3, 7, 9), np.uint8), imagej=True),
    "a cut stack": lambda path: tifffile.imwrite(
        path, np.zeros((3, 7, 9), np.uint8), photometric="minisblack", metadata={"axes": "ZYX"}, truncate=True
    ),
    "YCbCr": lambda path: Image.new("YCbCr", (9, 7)).save(path),
    "animation": lambda path: Image.new("L", (9, 7)).save(
        path, format="PNG", save_all=True, append_images=[Image.new("L", (9, 7), 3)]
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_kinds_are_refused_and_the_advice_works(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.tif"
    REFUSED[kind](path)
    for call in (read_volume, read_labels):
        with pytest.raises(MedsegError, match="Fix:") as caught:
            call(path)
        assert caught.value.exit_code == 3
        assert "\n" not in str(caught.value)
    if "ordinary grey or RGB" in str(caught.value):
        Image.open(path).convert("RGB").save(path, format="PNG")
    else:
        assert "file per channel" in str(caught.value) or "a file of its own" in str(caught.value)
        pages = np.atleast_3d(np.asarray(Image.open(path)) if kind == "animation" else tifffile.imread(path))
        tifffile.imwrite(path, pages[0] if pages.shape[0] < 7 else pages[..., 0])
    assert read_volume(path).spatial_shape == (7, 9)


def test_a_tiff_whose_description_is_nested_without_end(tmp_path: Path) -> None:
    Image.new("L", (9, 7), 3).save(tmp_path / "a.tif", tiffinfo={270: '{"shape": ' + "[" * 100_000})
    assert read_volume(tmp_path / "a.tif").array.max() == 3


@pytest.mark.parametrize("kind", ["a.png", "a.tif", "a.jpg"])
def test_every_orientation_is_told_and_never_applied(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    array = np.full((16, 24), 7, np.uint8)
    array[:8] = 200
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[274] = orientation
        caplog.clear()
        Image.fromarray(array).save(tmp_path / kind, exif=exif)
        pixels, _ = read(tmp_path / kind)
        assert np.abs(pixels[0].astype(int) - array).max() <= (3 if kind == "a.jpg" else 0)
        assert (f"EXIF orientation {orientation} is not applied" in caplog.text) == (orientation > 1)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_ends_early_is_refused_whatever_ends_it(tmp_path: Path, progressive: bool) -> None:
    small = np.random.default_rng(0).integers(0, 256, (6, 6, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize((40, 32)).save(buffer, format="JPEG", progressive=progressive)
    whole = buffer.getvalue()
    assert read_jpeg(whole).samples.shape == (32, 40, 3)
    for length in range(len(whole) - 200, len(whole) - 5, 9):
        for end in (b"", b"\xff\xd9"):
            (tmp_path / "a.jpg").write_bytes(whole[:length] + end)
            with pytest.raises(UnreadableFile):
                read_volume(tmp_path / "a.jpg")


def test_a_palette_of_more_than_eight_bits_is_refused_as_an_image_and_read_as_labels(tmp_path: Path) -> None:
    colors = np.arange(3 * 256, dtype=np.uint16).reshape(3, 256) * 85
    array = np.arange(7 * 9, dtype=np.uint8).reshape(7, 9)
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="palette", colormap=colors)
    with pytest.raises(UnreadableFile, match="more than 8 bits"):
        read_volume(tmp_path / "a.tif")
