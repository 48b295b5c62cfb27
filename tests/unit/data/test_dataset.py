"""Datasets: both published forms, plain folders, any file names, and what a broken folder is told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from medseg.data.dataset import open_dataset
from medseg.data.label_names import parse_labels
from medseg.errors import BadDataset, UnreadableFile, UsageError
from medseg.io import Geometry, write_labels, write_volume
from medseg.io.volume import Volume

LABELS = {"background": 0, "liver": 1}


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def describe(root: Path, **fields: object) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    description = {"channel_names": {"0": "CT"}, "labels": LABELS, "file_ending": ".nii.gz", **fields}
    (root / "dataset.json").write_text(json.dumps(description))
    return root


def nnunet(root: Path, ending: str = ".nii.gz", **fields: object) -> Path:
    touch(root, *(f"imagesTr/c{n}_0000{ending}" for n in (2, 1)), *(f"labelsTr/c{n}{ending}" for n in (1, 2)))
    return describe(root, file_ending=ending, **fields)


def test_reads_an_nnunet_folder_in_place(tmp_path):
    root = nnunet(tmp_path / "Dataset001_A", synthetic=True)
    touch(root, "imagesTs/t_0000.nii.gz", "imagesTs/u_0000.nii.gz", "labelsTs/t.nii.gz", "imagesTr/._c1_0000.nii.gz")
    dataset = open_dataset(root)
    assert [case.id for case in dataset.training] == ["c1", "c2"]
    assert dataset.case("c1").images == (root / "imagesTr/c1_0000.nii.gz",)
    assert dataset.case("c1").label == root / "labelsTr/c1.nii.gz"
    assert [(case.id, case.label is not None) for case in dataset.test] == [("t", True), ("u", False)]
    assert (dataset.name, dataset.channel_names, dataset.labels) == ("Dataset001_A", ("CT",), LABELS)
    assert (dataset.spatial_dims, dataset.file_ending, dataset.synthetic) == (3, ".nii.gz", True)
    assert open_dataset(root / "dataset.json") == dataset


def test_channels_are_ordered_by_number(tmp_path):
    names = {str(n): f"channel {n}" for n in (2, 10, 0)}
    touch(tmp_path, "labelsTr/x.mha", *(f"imagesTr/x_{n:04d}.mha" for n in (1, 2, 0)))
    dataset = open_dataset(describe(tmp_path, channel_names=names, file_ending=".mha"))
    assert dataset.channel_names == ("channel 0", "channel 2", "channel 10")
    assert [path.name for path in dataset.training[0].images] == ["x_0000.mha", "x_0001.mha", "x_0002.mha"]


def test_images_without_channel_number(tmp_path):
    touch(tmp_path, "imagesTr/scan_0001.nii.gz", "imagesTr/scan_0002.nii.gz", "imagesTr/b.nii.gz")
    touch(tmp_path, "labelsTr/scan_0001.nii.gz", "labelsTr/scan_0002.nii.gz", "labelsTr/b.nii.gz")
    touch(tmp_path, "imagesTs/scan_0003.nii.gz")
    dataset = open_dataset(describe(tmp_path))
    assert [case.id for case in dataset.training] == ["b", "scan_0001", "scan_0002"]
    assert [case.id for case in dataset.test] == ["scan_0003"]


def test_pictures_are_two_dimensional(tmp_path):
    colours = {"0": "R", "1": "G", "2": "B"}
    dataset = open_dataset(nnunet(tmp_path, ending=".png", channel_names=colours))
    assert dataset.spatial_dims == 2
    assert dataset.channel_names == ("R", "G", "B")
    assert len(dataset.training[0].images) == 1


def test_labels_may_have_another_ending(tmp_path):
    touch(tmp_path, "imagesTr/a.jpg", "labelsTr/a.png")
    assert open_dataset(describe(tmp_path, file_ending=".jpg")).training[0].label == tmp_path / "labelsTr/a.png"


def test_explicit_paths(tmp_path):
    touch(tmp_path, "scans/one.nii.gz", "truth/anything.nii.gz")
    entry = {"images": ["scans/one.nii.gz"], "label": "truth/anything.nii.gz"}
    case = open_dataset(describe(tmp_path, dataset={"p7": entry})).training[0]
    assert (case.id, case.images[0].name, case.label.name) == ("p7", "one.nii.gz", "anything.nii.gz")


def decathlon(root: Path, **fields: object) -> Path:
    touch(root, "imagesTr/h_001.nii.gz", "labelsTr/h_001.nii.gz", "imagesTr/._h_001.nii.gz", "imagesTs/h_002.nii.gz")
    description = {
        "modality": {"0": "FLAIR", "1": "T1w"},
        "labels": {"0": "background", "1": "edema"},
        "training": [{"image": "./imagesTr/h_001.nii.gz", "label": "./labelsTr/h_001.nii.gz"}],
        "test": ["./imagesTs/h_002.nii.gz"],
        **fields,
    }
    (root / "dataset.json").write_text(json.dumps(description))
    return root


def test_reads_a_decathlon_folder(tmp_path):
    dataset = open_dataset(decathlon(tmp_path))
    assert dataset.labels == {"background": 0, "edema": 1}
    assert dataset.channel_names == ("FLAIR", "T1w")
    assert [case.id for case in dataset.training] == ["h_001"]
    assert [case.id for case in dataset.test] == ["h_002"]
    assert dataset.training[0].images == (tmp_path / "imagesTr/h_001.nii.gz",)


def test_decathlon_with_labels_the_other_way_round(tmp_path):
    assert open_dataset(decathlon(tmp_path, labels=LABELS)).labels == LABELS


def test_plain_folders_are_scanned(tmp_path):
    geometry = Geometry((6, 5), np.eye(4))
    image = np.zeros((3, 6, 5), np.uint8)
    image[0, 1, 1] = 9
    for name, value in (("a", 2), ("b", 7)):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "masks").mkdir(exist_ok=True)
        write_volume(tmp_path / f"images/{name}.png", Volume(image, geometry))
        write_labels(tmp_path / f"masks/{name}_segmentation.png", np.full((6, 5), value, np.uint8), geometry)
    dataset = open_dataset(tmp_path)
    assert dataset.labels == {"background": 0, "label_2": 2, "label_7": 7}
    assert dataset.channel_names == ("R", "G", "B")
    assert [case.id for case in dataset.training] == ["a", "b"]


def test_metadata_goes_to_its_case(tmp_path):
    root = nnunet(tmp_path)
    (root / "metadata.csv").write_text("case,patient,site\nc1,p1,Bonn\n")
    dataset = open_dataset(root)
    assert dataset.case("c1").metadata == {"case": "c1", "patient": "p1", "site": "Bonn"}
    assert dataset.case("c2").metadata == {}


@pytest.mark.parametrize(
    ("table", "message"), [("name,site\nc1,Bonn\n", "no column"), ("case,site\nc1,A\nc1,B\n", "only 1 cases")]
)
def test_refuses_an_unusable_table(tmp_path, table, message):
    (nnunet(tmp_path) / "metadata.csv").write_text(table)
    with pytest.raises(BadDataset, match=message):
        open_dataset(tmp_path)


def test_regions_and_ignore(tmp_path):
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}
    dataset = open_dataset(nnunet(tmp_path, labels=labels, regions_class_order=[1, 2, 3]))
    assert dataset.regions == {"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}
    assert dataset.labels == {"background": 0, "label_1": 1, "label_2": 2, "enhancing": 3}
    assert dataset.ignore_label == 4
    assert dataset.regions_class_order == (1, 2, 3)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "'labels' is missing"),
        ({}, "'labels' is missing"),
        ({"liver": 1}, "no background"),
        ({"background": 0, "liver": 1.5}, "whole number"),
        ({"background": 0, "liver": -1}, "whole number"),
        ({"background": 0, "liver": "x"}, "whole number"),
        ({"background": 0, "a": 1, "b": 1}, "two names"),
        ({"background": 0, "region": []}, "no label values"),
    ],
)
def test_refuses_bad_labels(labels, message):
    with pytest.raises(BadDataset, match=message):
        parse_labels({"labels": labels}, Path("dataset.json"))


def test_refuses_a_class_order_of_another_length():
    description = {"labels": {"background": 0, "whole": [1, 2], "core": [2]}, "regions_class_order": [1]}
    with pytest.raises(BadDataset, match="one value for each region"):
        parse_labels(description, Path("dataset.json"))


def test_numbered_names_are_names():
    assert parse_labels({"labels": {"0": 0, "1": 1}}, Path("d")).labels == {"0": 0, "1": 1}


@pytest.mark.parametrize("outside", ["../secret.nii.gz", "/etc/hosts.nii.gz"])
def test_paths_stay_inside(tmp_path, outside):
    root = tmp_path / "inner"
    root.mkdir()
    with pytest.raises(BadDataset, match="outside the dataset"):
        open_dataset(decathlon(root, training=[{"image": outside, "label": "labelsTr/h_001.nii.gz"}]))


def test_missing_file_names_the_nearest(tmp_path):
    root = decathlon(tmp_path)
    (root / "labelsTr/h_001.nii.gz").rename(root / "labelsTr/h_01.nii.gz")
    with pytest.raises(BadDataset, match=r"h_001.*did you mean 'h_01.nii.gz'"):
        open_dataset(root)
    assert len(open_dataset(root, strict=False).training) == 1


def test_missing_channel_is_named(tmp_path):
    touch(tmp_path, "imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "imagesTr/b_0000.nii.gz")
    touch(tmp_path, "labelsTr/a.nii.gz", "labelsTr/b.nii.gz")
    with pytest.raises(BadDataset, match=r"case b.*b_0001.nii.gz: file is missing"):
        open_dataset(describe(tmp_path, channel_names={"0": "T1", "1": "T2"}))


def test_wrong_file_ending(tmp_path):
    with pytest.raises(BadDataset, match=r"file_ending is '.nrrd', but imagesTr holds .nii.gz"):
        open_dataset(describe(nnunet(tmp_path), file_ending=".nrrd"))


def test_folder_without_description(tmp_path):
    with pytest.raises(BadDataset, match=r"no dataset\.json"):
        open_dataset(tmp_path)
    nnunet(tmp_path / "Dataset001_A")
    with pytest.raises(BadDataset, match=r"Fix: give .*Dataset001_A"):
        open_dataset(tmp_path)


def test_refuses_folders_that_hold_nothing(tmp_path):
    with pytest.raises(BadDataset, match="no such folder"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(BadDataset, match="no training image"):
        open_dataset(describe(tmp_path))
    touch(tmp_path, "imagesTr/a_0000.nii.gz")
    with pytest.raises(BadDataset, match="no training image has a label"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("text", ["{", "[1]", '"text"'])
def test_refuses_a_damaged_description(tmp_path, text):
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises((UnreadableFile, BadDataset)):
        open_dataset(tmp_path)


@pytest.mark.parametrize("channels", [None, [], {}, ["CT"], {"first": "CT"}])
def test_refuses_bad_channel_names(tmp_path, channels):
    with pytest.raises(BadDataset, match="channel_names"):
        open_dataset(nnunet(tmp_path, channel_names=channels))


def test_unknown_case_names_the_nearest(tmp_path):
    with pytest.raises(UsageError, match="did you mean 'c1'"):
        open_dataset(nnunet(tmp_path)).case("c11")


@pytest.mark.parametrize("entries", [[], [{"label": "labelsTr/h_001.nii.gz"}], [{"image": 3}], [None]])
def test_refuses_a_decathlon_list_without_images(tmp_path, entries):
    with pytest.raises(BadDataset):
        open_dataset(decathlon(tmp_path, training=entries))
