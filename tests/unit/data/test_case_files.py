"""Which files are one case: numbers that are channels or names, doubles, links, and spellings of names."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medseg.data.case_files import channel_paths, describe_missing, group_images, label_files
from medseg.data.check import check_dataset
from medseg.data.dataset import SegmentationDataset, open_dataset
from medseg.errors import BadDataset, MedsegError
from medseg.io import read_labels


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def describe(root: Path, **fields: object) -> Path:
    known = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(known | fields))
    return root


def pictures(
    root: Path, names: Sequence[str], folders: tuple[str, str] = ("images", "masks"), ending: str = ".png"
) -> Path:
    """Images, and masks with two classes."""
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
        for n, name in enumerate(names):
            values = np.eye(16, 20, n, np.uint8) + 2 * np.eye(16, 20, -4, np.uint8)
            array = values if folder == folders[1] else np.random.default_rng(n).integers(0, 255, (16, 20), np.uint8)
            Image.fromarray(array).save(root / folder / f"{name}{ending}", format="png")
    return root


def grouped(files: Sequence[str], labelled: Sequence[str], *, suffixed: bool = True) -> dict[str, list[int]]:
    found = group_images([Path(f"{name}.nii.gz") for name in files], labelled, suffixed=suffixed)
    return {case: sorted(channels) for case, channels in found.items()}


@pytest.mark.parametrize(
    ("files", "labelled", "expected"),
    [
        (["amos_0001"], ["amos_0001"], {"amos_0001": [0]}),
        (["amos_0001"], ["amos"], {"amos": [1]}),
        (["amos_0000", "amos_0001"], ["amos"], {"amos": [0, 1]}),
        (["amos", "amos_0001"], ["amos", "amos_0001"], {"amos": [0], "amos_0001": [0]}),
        (
            ["amos_0000", "amos_0001", "amos_0001_0000", "amos_0001_0001"],
            ["amos", "amos_0001"],
            {"amos": [0, 1], "amos_0001": [0, 1]},
        ),
        (["amos_0001_0000"], ["amos_0001"], {"amos_0001": [0]}),
        (["a_0000", "b_0000"], [], {"a": [0], "b": [0]}),
        (["a_00000", "a_000"], [], {"a_00000": [0], "a_000": [0]}),
    ],
)
def test_four_digits_are_a_channel_or_a_name(files, labelled, expected):
    assert grouped(files, labelled) == expected


def test_without_labels_the_layout_says_what_four_digits_are():
    assert grouped(["scan_0001", "scan_0002"], [], suffixed=False) == {"scan_0001": [0], "scan_0002": [0]}
    assert grouped(["scan_0001", "scan_0002"], []) == {"scan": [1, 2]}


@pytest.mark.parametrize("there", [[1], [0, 2], [2], [0, 1, 3], [0, 9999]])
@pytest.mark.parametrize("wanted", [1, 2, 3])
def test_a_gap_is_a_missing_channel(there, wanted):
    missing = next(n for n in range(10_000) if n not in there)
    paths = channel_paths({n: Path(f"x/c_{n:04d}.mha") for n in there}, "c", wanted)
    assert [path.name for path in paths] == [f"c_{n:04d}.mha" for n in sorted({*there, missing})]


@pytest.mark.parametrize("folders", [("images", "masks"), ("imagesTr", "labelsTr")])
def test_channels_with_a_gap_are_refused(tmp_path, folders):
    touch(tmp_path, *(f"{folders[0]}/{case}_{n}.nii.gz" for case in "ab" for n in ("0000", "0002")))
    touch(tmp_path, *(f"{folders[1]}/{case}.nii.gz" for case in "ab"))
    if folders[0] == "imagesTr":
        describe(tmp_path, channel_names={"0": "T1", "1": "T2"})
    with pytest.raises(BadDataset, match=r"a_0001\.nii\.gz: file is missing"):
        open_dataset(tmp_path)


def test_of_two_labels_the_ending_of_the_dataset_decides(tmp_path):
    touch(tmp_path, "imagesTr/c_0000.nii.gz", "labelsTr/c.nii.gz", "labelsTr/c.nrrd")
    touch(tmp_path, "imagesTs/t_0000.nii.gz", "imagesTs/t_0000.nrrd", "labelsTs/t.nrrd", "labelsTs/t.nii.gz")
    dataset = open_dataset(describe(tmp_path))
    assert dataset.training[0].label == tmp_path / "labelsTr/c.nii.gz"
    assert dataset.test[0].label == tmp_path / "labelsTs/t.nii.gz"
    assert dataset.test[0].images == (tmp_path / "imagesTs/t_0000.nii.gz",)
    with pytest.raises(BadDataset, match=r"case c, .*c\.nii\.gz and c\.nrrd are both its label"):
        open_dataset(describe(tmp_path, file_ending=None))


@pytest.mark.parametrize(
    "files",
    [
        ("images/a.png", "images/a.jpg", "masks/a.png"),
        ("images/a.png", "masks/a.png", "masks/a.bmp"),
        ("images/a.png", "masks/a_mask.png", "masks/a_segmentation.png"),
        ("a.jpg", "a_mask.png", "a_seg.png"),
        ("train/images/a.png", "train/masks/a.png", "train/masks/a.tif"),
    ],
)
def test_two_files_for_one_are_refused_and_not_chosen_from(files, tmp_path):
    with pytest.raises(BadDataset, match=r"are both its label|are one image by their names") as refused:
        open_dataset(touch(tmp_path, *files))
    assert refused.value.fix


def test_images_and_labels_without_the_other_are_told(tmp_path, caplog):
    touch(tmp_path, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz", "imagesTr/c12_0000.nii.gz", "labelsTr/c13.nii.gz")
    dataset = open_dataset(describe(tmp_path))
    assert [case.id for case in dataset.training] == ["a"]
    assert "images without a label are left out: c12" in caplog.text
    findings = {finding.problem for finding in check_dataset(dataset, workers=0, progress=False).findings}
    assert "label without an image: it is left out" in findings
    assert any("image without a label: it is left out" in problem for problem in findings)


def test_a_file_of_another_case_was_not_meant(tmp_path):
    touch(tmp_path, "c01.nii.gz", "c0O.nii.gz")
    assert (
        describe_missing(tmp_path / "c00.nii.gz", [tmp_path / "c01.nii.gz", tmp_path / "c0O.nii.gz"])
        == "file is missing"
    )
    assert "did you mean 'c0O.nii.gz'" in describe_missing(tmp_path / "c00.nii.gz", [tmp_path / "c01.nii.gz"])


def facts(dataset: SegmentationDataset) -> tuple[list[str], int]:
    """Ids, and voxels of foreground: the files were found and read."""
    voxels = sum(int(np.count_nonzero(read_labels(case.label).array)) for case in dataset.training if case.label)
    return [case.id for case in dataset.training], voxels


def as_folders(root: Path) -> Path:
    return root


def as_nnunet(root: Path) -> Path:
    (root / "images").rename(root / "imagesTr")
    (root / "masks").rename(root / "labelsTr")
    labels = {"background": 0, "a": 1, "b": 2}
    return describe(root, file_ending=".png", labels=labels)


def as_decathlon(root: Path) -> Path:
    names = sorted(path.name for path in (root / "images").iterdir())
    entries = [{"image": f"./images/{name}", "label": f"masks/{name}"} for name in names]
    return describe(root, labels={"0": "background", "1": "a", "2": "b"}, training=entries)


def as_list(root: Path) -> Path:
    names = sorted(path.name for path in (root / "images").iterdir())
    rows = [f"images/{name},masks/{name}" for name in names]
    (root / "list.csv").write_text("\r\n".join(["image,mask", *rows, ""]), encoding="utf-8-sig")
    return root / "list.csv"


LAYOUTS = (as_folders, as_nnunet, as_decathlon, as_list)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("linked", ["root", "folders", "files"])
def test_links_are_followed(layout, linked, tmp_path):
    source = layout(pictures(tmp_path / "a/real", ["c0", "c1", "c2"]))
    expected = facts(open_dataset(source))
    root, link = tmp_path / "a/real", tmp_path / "b/link"
    link.parent.mkdir()
    if linked == "root":
        link.symlink_to(root)
    for entry in root.iterdir() if linked != "root" else ():
        link.mkdir(exist_ok=True)
        if linked == "folders" or entry.is_file():
            (link / entry.name).symlink_to(os.path.relpath(entry, link))
        else:
            (link / entry.name).mkdir()
            for file in entry.iterdir():
                (link / entry.name / file.name).symlink_to(file)
    dataset = open_dataset(link / source.relative_to(root))
    assert facts(dataset) == expected
    assert check_dataset(dataset, workers=0, progress=False, split={"folds": 3}).count("error") == 0
    copy = check_dataset(dataset, workers=0, progress=False, fix=tmp_path / "copy")
    assert copy.left_out == ()
    assert facts(open_dataset(tmp_path / "copy" / source.relative_to(root))) == expected


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_a_link_to_nothing_is_missing(layout, tmp_path):
    source = layout(pictures(tmp_path, ["c0", "c1", "c2"]))
    image = open_dataset(source).training[0].images[0]
    image.unlink()
    image.symlink_to(tmp_path / "gone.png")
    with pytest.raises(MedsegError, match=r"is a link to a file that is not there") as refused:
        open_dataset(source)
    assert refused.value.exit_code == 3


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("folder", ["with space", "caf\u00e9", "cafe\u0301", "[a-b] $x", "東京"])
def test_folders_may_have_any_name(layout, folder, tmp_path):
    source = layout(pictures(tmp_path / folder, ["c0", "c1", "c2"]))
    assert facts(open_dataset(source))[0] == ["c0", "c1", "c2"]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("names", [["a b", "x.y", "[1]"], ["caf\u00e9", "na\u00efve", "東京"]], ids=ascii)
def test_cases_have_one_spelling(layout, names, tmp_path):
    composed, split = ([unicodedata.normalize(form, name) for name in names] for form in ("NFC", "NFD"))
    root = pictures(tmp_path, composed)
    for part in ("images", "masks"):
        for before, after in zip(composed, split, strict=True):
            if part == "masks":  # as an archive made on a Mac mixes them
                (root / part / f"{before}.png").rename(root / part / f"{after}.png")
    (root / "val.txt").write_text(f"\ufeff{split[0]}\r\n", newline="")
    source = layout(root)
    if layout is not as_list:
        ids, voxels = facts(open_dataset(source))
        assert ids == sorted(composed)
        assert voxels > 0
    else:  # its rows say images/x,masks/x in the images' spelling
        assert facts(open_dataset(source))[0] == sorted(composed)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_endings_in_capitals(layout, tmp_path):
    source = layout(pictures(tmp_path, ["c0", "c1", "c2"], ending=".PNG"))
    assert facts(open_dataset(source))[0] == ["c0", "c1", "c2"]


def test_a_name_in_another_encoding_is_told(tmp_path):
    pictures(tmp_path, ["c0", "c1"])
    for part in ("images", "masks"):
        os.rename(tmp_path / part / "c0.png", os.fsencode(tmp_path / part) + b"/caf\xe9.png")
    with pytest.raises(BadDataset, match="bytes that are not UTF-8"):
        open_dataset(tmp_path)


def test_masks_named_otherwise_are_told(tmp_path):
    touch(tmp_path, "images/IMG0.png", "masks/img0.png")
    with pytest.raises(BadDataset, match=r"no mask is named as its image.*images/IMG0\.png and masks/img0\.png"):
        open_dataset(tmp_path)
    touch(tmp_path / "other", "pics/a.png", "pics2/a.png")
    with pytest.raises(BadDataset, match=r"no folder of images beside one of masks.*images \(imagestr, .*masks, "):
        open_dataset(tmp_path / "other")


def test_labels_of_a_folder_with_and_without_suffix(tmp_path):
    touch(tmp_path, "a_mask.png", "b.png", "c_seg.nii.gz")
    assert {"a", "a_mask", "b", "c", "c_seg"} == set(label_files(tmp_path))
