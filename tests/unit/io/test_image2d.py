"""Pictures: rows and columns, grey, colour and 16 bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from medseg.errors import BadLabels, UnreadableFile, UsageError
from medseg.io import Geometry, Volume, read_geometry, read_labels, read_volume, write_labels, write_volume

GREY = np.arange(20, dtype=np.uint8).reshape(4, 5)
COLOUR = np.random.default_rng(0).integers(0, 256, (4, 5, 3)).astype(np.uint8)


@pytest.mark.parametrize("ending", [".png", ".tif", ".tiff", ".bmp"])
def test_grey_and_colour(tmp_path: Path, ending: str) -> None:
    for pixels, channels in ((GREY[..., None], 1), (COLOUR, 3)):
        path = tmp_path / f"{channels}{ending}"
        Image.fromarray(pixels.squeeze()).save(path)
        volume = read_volume(path)
        assert volume.array.dtype == np.float32
        np.testing.assert_array_equal(volume.array, np.moveaxis(pixels, 2, 0))
        assert volume.spatial_shape == read_geometry(path).shape == (4, 5)
        assert volume.spacing == (1.0, 1.0)


@pytest.mark.parametrize("ending", [".jpg", ".jpeg", ".JPG"])
def test_jpeg(tmp_path: Path, ending: str) -> None:
    Image.fromarray(np.full((8, 9, 3), 120, np.uint8)).save(tmp_path / f"a{ending}")
    volume = read_volume(tmp_path / f"a{ending}")
    assert volume.array.shape == (3, 8, 9)
    np.testing.assert_allclose(volume.array, 120, atol=2)


def test_transparency_is_dropped(tmp_path: Path) -> None:
    alpha = np.full((4, 5, 1), 7, np.uint8)
    Image.fromarray(np.concatenate([COLOUR, alpha], 2)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.png").array, np.moveaxis(COLOUR, 2, 0))
    Image.fromarray(np.stack([GREY, GREY], 2)).save(tmp_path / "b.png")
    np.testing.assert_array_equal(read_volume(tmp_path / "b.png").array, GREY[None])


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_sixteen_bits(tmp_path: Path, ending: str) -> None:
    Image.fromarray(GREY.astype(np.uint16) * 3000).save(tmp_path / f"a{ending}")
    np.testing.assert_array_equal(read_volume(tmp_path / f"a{ending}").array[0], GREY * 3000.0)
    labels = read_labels(tmp_path / f"a{ending}")
    assert labels.array.dtype == np.int32
    np.testing.assert_array_equal(labels.array[0], GREY.astype(int) * 3000)


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_sixteen_bits_in_colour(tmp_path: Path, ending: str, channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (4, 5, channels)).astype(np.uint16)
    sitk.WriteImage(sitk.GetImageFromArray(pixels, isVector=True), str(tmp_path / f"a{ending}"))
    np.testing.assert_array_equal(read_volume(tmp_path / f"a{ending}").array, np.moveaxis(pixels[..., :3], 2, 0))


@pytest.mark.parametrize(("ending", "highest"), [(".png", 19), (".png", 60000), (".tif", 100000), (".bmp", 19)])
def test_labels_come_back_exactly(tmp_path: Path, ending: str, highest: int) -> None:
    labels = GREY.astype(np.int64)
    labels[0, 0] = highest
    write_labels(tmp_path / f"a{ending}", labels, Geometry((4, 5), np.eye(4)))
    np.testing.assert_array_equal(read_labels(tmp_path / f"a{ending}").array[0], labels)


@pytest.mark.parametrize("full", [False, True])
def test_a_palette_that_has_white_first_gives_its_greys_as_labels(tmp_path: Path, full: bool) -> None:
    mask = np.zeros((4, 6), np.uint8)
    mask[:, 4:] = 0 if full else 255
    picture = Image.fromarray((mask == 0).astype(np.uint8), mode="P")  # index 1 is black
    picture.putpalette([255, 255, 255, 0, 0, 0])
    picture.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png").array[0], mask)


def test_a_picture_turned_by_exif_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(GREY, mode="L").save(tmp_path / "a.jpg", exif=exif)
    read_volume(tmp_path / "a.jpg")
    assert "EXIF orientation 6 is not applied" in caplog.text


def test_a_palette_gives_indices_as_labels_and_colours_as_image(tmp_path: Path) -> None:
    picture = Image.fromarray(GREY % 3, mode="L").convert("P")
    picture.putdata((GREY % 3).ravel().tolist())
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    picture.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png").array[0], GREY % 3)
    assert read_volume(tmp_path / "a.png").array.shape == (3, 4, 5)


def test_one_bit_masks_are_zero_and_one(tmp_path: Path) -> None:
    Image.fromarray(GREY > 9).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png").array[0], GREY > 9)


def test_grey_stored_as_colour_is_a_label_map_and_colour_is_not(tmp_path: Path) -> None:
    Image.fromarray(np.stack([GREY] * 3, 2)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png").array[0], GREY)
    Image.fromarray(COLOUR).save(tmp_path / "b.png")
    with pytest.raises(BadLabels, match="colour"):
        read_labels(tmp_path / "b.png")


def test_images_are_written_as_they_are_or_not_at_all(tmp_path: Path) -> None:
    geometry = Geometry((4, 5), np.eye(4))
    colour = Volume(np.moveaxis(COLOUR, 2, 0).astype(np.float32), geometry)
    write_volume(tmp_path / "a.png", colour)
    np.testing.assert_array_equal(read_volume(tmp_path / "a.png").array, colour.array)
    fraction = Volume(GREY[None] / np.float32(7), geometry)
    write_volume(tmp_path / "a.tif", fraction)
    np.testing.assert_array_equal(read_volume(tmp_path / "a.tif").array, fraction.array)
    with pytest.raises(UsageError, match="cannot hold"):
        write_volume(tmp_path / "b.png", fraction)
    with pytest.raises(UsageError, match="channels"):
        write_volume(tmp_path / "b.png", Volume(np.zeros((2, 4, 5)), geometry))
    assert not (tmp_path / "b.png").exists()


def test_lossy_labels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"write \.png"):
        write_labels(tmp_path / "a.jpg", GREY, Geometry((4, 5), np.eye(4)))


def test_several_pages_are_refused(tmp_path: Path) -> None:
    pages = [Image.fromarray(GREY)] * 3
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(UnreadableFile, match="3 pages"):
        read_volume(tmp_path / "a.tif")
