"""Everything that can be predicted ends on its own grid."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from medseg.compose import compose
from medseg.errors import BadDataset, BadGeometry, BadVoxels, PartialFailure, UnreadableFile, UsageError
from medseg.inference import predict_cases
from medseg.inference.inputs import find_cases, take_shard
from medseg.io import Geometry, Volume, read_labels

FLAT = {"spatial_dims": 2, "spacing": [1.0, 1.0], "patch_size": [8, 8], "strides": [[1, 1]]}
RGB = {"channel_names": ["R", "G", "B"], "normalization": [{"scheme": "none"}] * 3}


def blob(*shape: int) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[tuple(slice(n // 4, n // 2 + 1) for n in shape)] = 1
    return mask


def save_nifti(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([-1.0, 1, 1, 1])), path)
    return path


def test_an_array_with_its_spacing(threshold_predictor: Callable) -> None:
    mask, predictor = blob(10, 12, 9), threshold_predictor()
    for array in (mask, mask.astype(np.float64), mask[None] > 0):
        segmentation = predictor.predict(array, spacing=(1, 1, 1))
        assert np.array_equal(segmentation.labels, mask)
    coarse = predictor.predict(mask, spacing=(2.0, 2.0, 2.0))
    assert coarse.geometry.spacing == (2.0, 2.0, 2.0)
    assert coarse.volume_ml()["organ"] == pytest.approx(coarse.labels.sum() * 8 / 1000)
    flat = threshold_predictor(**FLAT).predict(blob(20, 11), spacing=(0.5, 0.5))
    assert flat.labels.shape == (20, 11)
    three = threshold_predictor(**FLAT, **RGB).predict(np.stack([blob(20, 11)] * 3), spacing=(1, 1))
    assert np.array_equal(three.labels, blob(20, 11))


def test_arrays_that_cannot_be_placed(threshold_predictor: Callable) -> None:
    predictor, array = threshold_predictor(), np.zeros((8, 8, 8), np.float32)
    with pytest.raises(UsageError, match=r"give spacing=\(x, y, z\) in mm"):
        predictor.predict(array)
    with pytest.raises(BadVoxels, match=r"an array \(8, 8, 8\) of float32 with 1 numbers"):
        predictor.predict(array, spacing=(1,))
    with pytest.raises(BadVoxels, match="complex64"):
        predictor.predict(array.astype(np.complex64), spacing=(1, 1, 1))
    with pytest.raises(BadGeometry, match="expected numbers above 0"):
        predictor.predict(array, spacing=(1, 0, 1))
    with pytest.raises(UsageError, match="for arrays only"):
        predictor.predict("case.nii.gz", spacing=(1, 1, 1))


def test_nan_voxels_of_an_array_are_refused_or_zero_and_the_array_stays(threshold_predictor: Callable) -> None:
    array = blob(8, 8, 8).astype(np.float32)
    array[0, 0, 0] = np.nan
    with pytest.raises(BadVoxels, match="case A: 1 of 512 voxels are NaN"):
        threshold_predictor().predict(array, spacing=(1, 1, 1), case="A")
    segmentation = threshold_predictor().predict(array, spacing=(1, 1, 1), nan="zero")
    assert np.array_equal(segmentation.labels, blob(8, 8, 8))
    assert np.isnan(array[0, 0, 0])


def test_a_volume_keeps_its_orientation(threshold_predictor: Callable) -> None:
    geometry = Geometry((6, 9, 10), np.array([[0, 0, -1.0, 3], [1, 0, 0, 4], [0, 1, 0, 5], [0, 0, 0, 1]]))
    segmentation = threshold_predictor().predict(Volume(blob(6, 9, 10)[None].astype(np.int16), geometry))
    assert np.array_equal(segmentation.labels, blob(6, 9, 10))


def test_pictures_colours_and_four_dimensions(tmp_path: Path, threshold_predictor: Callable) -> None:
    grey = blob(20, 30)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert np.array_equal(threshold_predictor(**FLAT).predict(tmp_path / "grey.png").labels, grey)
    Image.fromarray(np.stack([grey] * 3, axis=2)).save(tmp_path / "colour.png")
    assert np.array_equal(threshold_predictor(**FLAT, **RGB).predict(tmp_path / "colour.png").labels, grey)
    several = save_nifti(tmp_path / "several.nii.gz", np.stack([blob(8, 9, 10)] * 3, axis=3))
    segmentation = threshold_predictor(**RGB).predict(several)
    segmentation.save(tmp_path / "seg.nii.gz")
    assert np.array_equal(read_labels(tmp_path / "seg.nii.gz").array[0], blob(8, 9, 10))


def test_dicom_slices_through_the_predictor_with_dicom_seg(
    tmp_path: Path, threshold_predictor: Callable, write_series: Callable
) -> None:
    import highdicom
    import pydicom

    mask = blob(9, 12, 10)  # slices, rows, columns
    paths = write_series(tmp_path / "in" / "study" / "ct", mask.astype(np.int16) + 1024)
    write_series(tmp_path / "in" / "study2" / "ct", mask[:4].astype(np.int16) + 1024)
    cases = find_cases(tmp_path / "in", channels=1)
    assert [case.id for case in cases] == ["study_ct", "study2_ct"]
    predictor = threshold_predictor(spacing=[0.75, 0.5, 2.5])
    files = predict_cases(predictor, cases, tmp_path / "out", dicom_seg=True, progress=False)
    assert [path.name for path in files] == ["study_ct.nii.gz", "study2_ct.nii.gz"]
    assert np.array_equal(np.asarray(nib.load(files[0]).dataobj), mask.T)
    read = highdicom.seg.segread(tmp_path / "out" / "study_ct.dcm")
    sources = [pydicom.dcmread(path).SOPInstanceUID for path in paths]
    frames = read.get_pixels_by_source_instance(sources, assert_missing_frames_are_empty=True)
    assert np.array_equal(frames[..., 0], mask)
    before = files[0].stat().st_mtime_ns
    predict_cases(predictor, cases, tmp_path / "out", dicom_seg=True, overwrite=False, progress=False)
    assert files[0].stat().st_mtime_ns == before
    assert [case.id for case in find_cases(tmp_path / "in" / "study" / "ct", 1)] == ["ct"]


def test_a_table_of_cases(tmp_path: Path) -> None:
    table = tmp_path / "cases.csv"
    table.write_text("case,image_0001,image_0000,site\na,in/a1.nii.gz,in/a0.nii.gz,x\nb,b1.nii,/data/b0.nii,y\n")
    cases = find_cases(table, channels=2)
    assert cases[0].images == (tmp_path / "in" / "a0.nii.gz", tmp_path / "in" / "a1.nii.gz")
    assert cases[1].images == (Path("/data/b0.nii"), tmp_path / "b1.nii")
    with pytest.raises(UsageError, match="2 channel files"):
        find_cases(table, channels=3)
    table.write_text("Case_ID;Image\na;a.nii\n")
    assert [(case.id, case.images) for case in find_cases(table, channels=1)] == [("a", (tmp_path / "a.nii",))]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("name,image\na,a.nii\n", "its columns are name, image"),
        ("", "no image found"),
        ("case,image\na,\n", "row 1 has an empty cell"),
        ("case,image\na,a.nii\na,b.nii\n", "two cases are called 'a'"),
        ("case,image\n../a,a.nii\n", "row 1: case '../a' is no file name"),
        ("case,image\n", "no image found"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, text: str, line: str) -> None:
    (tmp_path / "cases.csv").write_text(text)
    with pytest.raises(BadDataset, match=line):
        find_cases(tmp_path / "cases.csv", channels=1)


def test_a_table_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "cases.csv").write_bytes(b"case,image\n\xff\xfe\n")
    with pytest.raises(BadDataset, match="is not a table in UTF-8"):
        find_cases(tmp_path / "cases.csv", channels=1)


def test_files_folders_and_datasets(tmp_path: Path, tiny_phantoms: Path, write_series: Callable) -> None:
    single = save_nifti(tmp_path / "in" / "a_0000.nii.gz", blob(4, 4, 4))
    save_nifti(tmp_path / "in" / "b.nii.gz", blob(4, 4, 4))
    assert [case.id for case in find_cases(single, 1)] == ["a"]
    assert [case.id for case in find_cases(tmp_path / "in", 1)] == ["a", "b"]
    assert len(find_cases(tiny_phantoms, 1)) == 2
    write_series(tmp_path / "in", np.zeros((2, 4, 4), np.int16))
    with pytest.raises(UsageError, match=r"both image files, as a_0000.nii.gz, and DICOM slices"):
        find_cases(tmp_path / "in", 1)
    for nothing in (tmp_path / "absent", tmp_path / "in" / "001"):
        with pytest.raises(BadDataset, match=r"does not exist|no image found"):
            find_cases(nothing, 1)


def test_shards_divide_the_cases() -> None:
    cases = list("abcdefg")
    shards = [take_shard(cases, f"{n}/3") for n in (1, 2, 3)]
    assert shards == [["a", "d", "g"], ["b", "e"], ["c", "f"]]
    assert take_shard(cases, None) == cases
    assert take_shard(["a"], "2/2") == []
    assert compose("predict", ["model=m", "input=i", "output=o", "shard=2/3"])["shard"] == "2/3"


@pytest.mark.parametrize("shard", ["0/3", "4/3", "1", "1/0", "a/b", "-1/3", "1/3/5", 1])
def test_shards_that_are_none(shard: str) -> None:
    with pytest.raises(UsageError, match="expected i/n, from 1/n to n/n"):
        take_shard(["a"], shard)


NUMBERED = [  # files, channels of the model -> cases with the numbers of their files
    (["a_0000"], 1, {"a": ["a_0000"]}),
    (["a_0001"], 1, {"a_0001": ["a_0001"]}),
    (["a_0001"], 2, {"a_0001": ["a_0001"]}),
    (["a_0001", "a_0002"], 1, {"a_0001": ["a_0001"], "a_0002": ["a_0002"]}),
    (["a_0000", "a_0001"], 1, {"a_0000": ["a_0000"], "a_0001": ["a_0001"]}),
    (["a_0000", "a_0001"], 2, {"a": ["a_0000", "a_0001"]}),
    (["a_0000", "a_0002"], 2, {"a": ["a_0000", "a_0001"]}),  # a_0001 is not there, which reading says
    (["a_0001", "a_0002"], 2, {"a": ["a_0000", "a_0001"]}),
    (["a_0000", "a_0002"], 3, {"a": ["a_0000", "a_0001", "a_0002"]}),
    (["a_0000", "b_0000", "b_0001"], 2, {"a": ["a_0000"], "b": ["b_0000", "b_0001"]}),
    (["a", "a_0001"], 1, {"a": ["a"], "a_0001": ["a_0001"]}),
]


@pytest.mark.parametrize(("names", "channels", "cases"), NUMBERED, ids=str)
def test_numbered_files_are_channels_or_cases_but_never_another_channel(
    tmp_path: Path, names: list[str], channels: int, cases: dict[str, list[str]]
) -> None:
    for name in names:
        save_nifti(tmp_path / f"{name}.nii.gz", blob(4, 4, 4))
    found = find_cases(tmp_path, channels)
    assert {case.id: [path.name.removesuffix(".nii.gz") for path in case.images] for case in found} == cases
    for name in names:  # each alone: no two of them may have one name for their outputs
        assert len(find_cases(tmp_path / f"{name}.nii.gz", channels)) == 1
    if len(names) > 1 and channels == 1 and "_0000" not in names[0]:
        alone = [find_cases(tmp_path / f"{name}.nii.gz", channels)[0].id for name in names]
        assert len(set(alone)) == len(names)


def test_a_gap_among_channels_is_refused_by_its_name(tmp_path: Path, threshold_predictor: Callable) -> None:
    for name in ("good_0000", "good_0001", "gap_0000", "gap_0002"):
        save_nifti(tmp_path / "in" / f"{name}.nii.gz", blob(8, 9, 10))
    two = {"channel_names": ["T1", "T2"], "normalization": [{"scheme": "none"}] * 2}
    with pytest.raises(PartialFailure, match=r"1 of 2 cases failed: gap: cannot be read: No such file") as error:
        predict_cases(threshold_predictor(**two), find_cases(tmp_path / "in", 2), tmp_path / "out", progress=False)
    assert error.value.exit_code == 6
    assert (tmp_path / "out" / "good.nii.gz").is_file()
    with pytest.raises(UnreadableFile, match=r"gap_0001\.nii\.gz"):
        threshold_predictor(**two).predict(next(c for c in find_cases(tmp_path / "in", 2) if c.id == "gap"))


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_other_libraries_are_what_their_files_are(
    tmp_path: Path, threshold_predictor: Callable, channels: int
) -> None:
    import SimpleITK

    mask = blob(8, 9, 10).astype(np.int16)
    affine = np.array([[0, -1.5, 0, 3], [1, 0, 0, -20], [0, 0, 2, 7], [0, 0, 0, 1.0]])
    voxels = mask if channels == 1 else np.stack([mask] * 3, axis=3)
    image = nib.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm")
    nib.save(image, tmp_path / "a.nii.gz")
    colours = {"channel_names": list("RGB"), "normalization": [{"scheme": "none"}] * 3} if channels == 3 else {}
    predictor = threshold_predictor(**colours)
    expected = predictor.predict(tmp_path / "a.nii.gz")
    itk = SimpleITK.ReadImage(str(tmp_path / "a.nii.gz"))
    itk = itk if channels == 1 else SimpleITK.Compose([itk[..., n] for n in range(3)])
    for given in (image, nib.load(tmp_path / "a.nii.gz"), nib.Nifti2Image(voxels, affine), itk):
        found = predictor.predict(given)
        assert np.array_equal(found.labels, expected.labels)
        assert np.array_equal(found.geometry.affine, expected.geometry.affine)
        found.save(tmp_path / "b.nii.gz")
        assert np.array_equal(nib.load(tmp_path / "b.nii.gz").affine, affine)
    if channels == 1:
        old = nib.MGHImage(mask, affine)
        assert np.array_equal(predictor.predict(old).geometry.affine, expected.geometry.affine)


def test_what_is_no_image_is_refused_in_one_line(threshold_predictor: Callable) -> None:
    import torch

    predictor = threshold_predictor()
    for source in (torch.zeros(8, 8, 8), None, 3, [], [np.zeros((8, 8, 8))], {"image": "a.nii.gz"}, b"a.nii.gz"):
        with pytest.raises(UsageError, match=r"cannot be predicted .taken are a path") as error:
            predictor.predict(source)
        assert "\n" not in str(error.value)
    # What the line advises.
    assert predictor.predict(torch.zeros(8, 8, 8).numpy(), spacing=(1, 1, 1)).labels.shape == (8, 8, 8)
    with pytest.raises(UsageError, match="mask is a Tensor"):
        predictor.predict(np.zeros((8, 8, 8)), spacing=(1, 1, 1), mask=torch.ones(8, 8, 8))
    for image, line in (
        (nib.Nifti1Image(np.zeros((8, 8, 8), np.complex64), np.eye(4)), "complex64"),
        (nib.Nifti1Image(np.zeros((8, 8, 8), np.float32), np.diag([1e6, 1, 1, 1])), "spacing is"),
        (nib.Nifti1Image(np.zeros((8, 8, 8, 2, 2), np.float32), np.eye(4)), "has the dimensions"),
    ):
        with pytest.raises((BadVoxels, BadGeometry), match=line):
            predictor.predict(image)


def test_a_segmentation_is_not_saved_onto_what_it_was_made_from(
    tmp_path: Path, threshold_predictor: Callable, write_series: Callable
) -> None:
    path = save_nifti(tmp_path / "in" / "a.nii.gz", blob(8, 9, 10))
    (tmp_path / "link.nii.gz").symlink_to(path)
    before = path.read_bytes()
    segmentation = threshold_predictor().predict(path)
    for bad in (path, tmp_path / "link.nii.gz", tmp_path / "in" / ".." / "in" / "a.nii.gz"):
        with pytest.raises(UsageError, match="made from"):
            segmentation.save(bad)
        with pytest.raises(UsageError, match="made from"):
            segmentation.save(tmp_path / "b.nii.gz", uncertainty=bad)
    assert path.read_bytes() == before
    segmentation.save(tmp_path / "in" / "a_seg.nii.gz")
    slices = write_series(tmp_path / "ct", np.zeros((3, 8, 8), np.int16))
    made = threshold_predictor().predict(tmp_path / "ct")
    with pytest.raises(UsageError, match="made from"):
        made.save(tmp_path / "b.nii.gz", dicom_seg=slices[0])
