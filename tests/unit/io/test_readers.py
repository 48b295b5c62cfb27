"""The one door in and out: policies for NaN, labels, channels, and errors that name file and case."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg.errors import BadGeometry, BadLabels, BadVoxels, UnreadableFile
from medseg.io import (
    KNOWN_ENDINGS,
    Geometry,
    Volume,
    file_ending,
    label_ending,
    read_channels,
    read_geometry,
    read_labels,
    read_volume,
    write_labels,
    write_volume,
)

GRID = Geometry((3, 4, 5), np.diag([1.0, 1.0, 2.0, 1.0]))


def save(path: Path, array: np.ndarray, affine: np.ndarray = GRID.affine) -> Path:
    nib.save(nib.Nifti1Image(array, affine, dtype=array.dtype), path)
    return path


def test_endings() -> None:
    assert file_ending("a/b.c/case.x_0000.NII.GZ") == ".nii.gz"
    assert file_ending(Path("scan.mha")) == ".mha"
    assert {label_ending(ending) for ending in KNOWN_ENDINGS} == set(KNOWN_ENDINGS) - {".jpg", ".jpeg"}
    assert (label_ending(".bmp", 255), label_ending(".bmp", 256)) == (".bmp", ".png")
    with pytest.raises(UnreadableFile, match="known:"):
        file_ending("notes.txt")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_is_refused_or_made_zero_and_told(tmp_path: Path, bad: float, caplog) -> None:
    array = np.ones((3, 4, 5), np.float32)
    array[1, 2, 3] = bad
    path = save(tmp_path / "a.nii.gz", array)
    with pytest.raises(BadVoxels, match="1 of 60 voxels are NaN or infinite"):
        read_volume(path)
    volume = read_volume(path, nan="zero")
    assert volume.array[0, 1, 2, 3] == 0
    assert volume.array.sum() == 59
    assert "1 NaN or infinite voxels were set to 0" in caplog.text


def test_what_single_precision_cannot_hold_counts_as_infinite(tmp_path: Path) -> None:
    with pytest.raises(BadVoxels, match="60 of 60"):
        read_volume(save(tmp_path / "a.nii", np.full((3, 4, 5), 1e300)))


def test_channels_of_one_case_are_stacked(tmp_path: Path) -> None:
    arrays = [np.full((3, 4, 5), value, np.int16) for value in (1, 2, 3)]
    paths = [save(tmp_path / f"c_{i:04d}.nii.gz", array) for i, array in enumerate(arrays)]
    volume = read_channels(paths)
    np.testing.assert_array_equal(volume.array, np.stack(arrays))
    np.testing.assert_array_equal(volume.affine, GRID.affine)


def test_channels_on_other_grids_are_refused_with_both_grids(tmp_path: Path) -> None:
    moved = GRID.affine.copy()
    moved[0, 3] = 1
    first = save(tmp_path / "a.nii", np.zeros((3, 4, 5), np.int16))
    second = save(tmp_path / "b.nii", np.zeros((3, 4, 5), np.int16), moved)
    with pytest.raises(BadGeometry) as caught:
        read_channels([first, second], case="017")
    assert "case 017" in str(caught.value)
    assert "b.nii" in str(caught.value)
    assert "origin (0, 0, 0)" in str(caught.value)
    assert "origin (1, 0, 0)" in str(caught.value)


@pytest.mark.parametrize(
    ("values", "dtype"), [((0, 255), np.uint8), ((-1, 3), np.int16), ((0, 256), np.int16), ((0, 40000), np.int32)]
)
def test_labels_take_the_smallest_type(tmp_path: Path, values: tuple[int, int], dtype: type) -> None:
    labels = np.zeros((3, 4, 5), np.int32)
    labels[0, 0, :2] = values
    assert read_labels(save(tmp_path / "a.nii", labels)).array.dtype == dtype
    write_labels(tmp_path / "b.nii.gz", labels.astype(np.int64), GRID)
    assert nib.load(tmp_path / "b.nii.gz").get_data_dtype() == dtype
    np.testing.assert_array_equal(read_labels(tmp_path / "b.nii.gz").array[0], labels)


def test_float_labels_are_rounded_within_a_thousandth(tmp_path: Path) -> None:
    labels = np.zeros((3, 4, 5), np.float32)
    labels[0, 0] = [0.9999, 2.0005, 1, 0, 3]
    assert read_labels(save(tmp_path / "a.nii", labels)).array[0, 0, 0].tolist() == [1, 2, 1, 0, 3]
    labels[0, 0, :2] = 0.99, 0.5
    with pytest.raises(BadLabels, match=r"2 of 60 labels are not integers, e\.g\. 0\.5, 0\.99"):
        read_labels(save(tmp_path / "b.nii", labels), case="c")


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e12])
def test_labels_that_are_no_labels(tmp_path: Path, value: float) -> None:
    with pytest.raises(BadLabels):
        read_labels(save(tmp_path / "a.nii", np.full((3, 4, 5), value)))


def test_a_label_map_has_one_channel(tmp_path: Path) -> None:
    with pytest.raises(BadLabels, match="2 channels"):
        read_labels(save(tmp_path / "a.nii", np.zeros((3, 4, 5, 2), np.uint8)))


def test_label_values_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(BadLabels, match="not integers"):
        write_labels(tmp_path / "a.nii", np.full((3, 4, 5), 0.5), GRID)
    with pytest.raises(BadLabels, match="32 bits"):
        write_labels(tmp_path / "a.nii", np.full((3, 4, 5), 2**40), GRID)
    assert list(tmp_path.iterdir()) == []


def test_booleans_are_labels(tmp_path: Path) -> None:
    write_labels(tmp_path / "a.nii", np.ones((3, 4, 5), bool), GRID)
    assert read_labels(tmp_path / "a.nii").array.tolist() == np.ones((1, 3, 4, 5), int).tolist()


def test_errors_name_case_file_and_fix_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile) as caught:
        read_volume(tmp_path / "missing.nii.gz", case="017")
    text = str(caught.value)
    assert text.startswith(f"case 017, {tmp_path / 'missing.nii.gz'}: cannot be read: No such file")
    assert "written" not in text  # said only by who owns the writes
    assert caught.value.exit_code == 3
    assert "\n" not in text


def test_integers_stay_integers_and_doubles_become_single(tmp_path: Path) -> None:
    write_volume(tmp_path / "a.nii", Volume(np.ones((1, 3, 4, 5), np.int16), GRID))
    write_volume(tmp_path / "b.nii", Volume(np.ones((1, 3, 4, 5)), GRID))
    assert nib.load(tmp_path / "a.nii").get_data_dtype() == np.int16
    assert nib.load(tmp_path / "b.nii").get_data_dtype() == np.float32


def test_importing_io_loads_neither_torch_nor_itk() -> None:
    slow = "{'torch', 'SimpleITK', 'PIL', 'safetensors', 'rich', 'highdicom'}"  # nibabel loads pydicom and PIL if there
    code = f"import sys, nibabel; own = set(sys.modules); import medseg.io; print({slow} & (set(sys.modules) - own))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".mha", ".nrrd"])
@pytest.mark.parametrize("mm", [0.05e-6, 0.4e-6, 3.58e-6, 1.0, 5000.0])
def test_grids_from_tenths_of_nanometres_on_come_back(tmp_path: Path, ending: str, mm: float) -> None:
    turn = np.array([[0.6, -0.8, 0], [0.8, 0.6, 0], [0, 0, 1]]) * mm * [1, 1, 10]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn, [3 * mm, -5 * mm, 0]
    geometry = Geometry((6, 5, 4), affine)
    write_labels(tmp_path / f"a{ending}", np.zeros((6, 5, 4), np.uint8), geometry)
    again = read_geometry(tmp_path / f"a{ending}")
    assert geometry.difference(again, tolerance_voxels=1e-4) is None
    assert again.spacing == pytest.approx((mm, mm, 10 * mm), rel=1e-6)
