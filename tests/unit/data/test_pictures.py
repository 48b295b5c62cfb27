"""Folders and lists of images and masks: layouts, splits, colours, instances, and what bad input gets."""

import json

import numpy as np
import pytest
from PIL import Image

from medseg.data.check import check_dataset
from medseg.data.dataset import keep_apart, open_dataset
from medseg.data.fingerprint import make_fingerprint
from medseg.data.splits import make_splits
from medseg.errors import BadDataset, BadLabels, InputRefused, UsageError
from medseg.inference.inputs import find_cases
from medseg.io import LabelCoding, read_labels


def picture(path, seed=0, mode="RGB", size=(24, 20)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


def mask(path, values=(0, 1), size=(24, 20)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full(size, values[0], np.uint8)
    for number, value in enumerate(values[1:], start=1):
        pixels[2 * number : 2 * number + 2] = value
    Image.fromarray(pixels).save(path)


def folder(root, count=6, images="images", masks="masks", suffix="", values=(0, 1), ending=".png"):
    for number in range(count):
        picture(root / images / f"c{number}{ending}", number)
        mask(root / masks / f"c{number}{suffix}.png", values)
    return root


def ids(cases):
    return [case.id for case in cases]


@pytest.mark.parametrize(
    ("images", "masks", "suffix", "ending"),
    [
        ("images", "masks", "", ".png"),
        ("Images", "Annotations", "_mask", ".jpg"),
        ("img", "ground_truth", "_segmentation", ".bmp"),
        ("images", "labels", "", ".tif"),
        (".", ".", "_mask", ".jpg"),
    ],
)
def test_images_beside_masks(tmp_path, images, masks, suffix, ending):
    dataset = open_dataset(folder(tmp_path, 3, images, masks, suffix, ending=ending))
    assert ids(dataset.training) == ["c0", "c1", "c2"]
    assert dataset.labels == {"background": 0, "foreground": 1}
    assert (dataset.spatial_dims, dataset.channel_names) == (2, ("R", "G", "B"))


@pytest.mark.parametrize("inner", [True, False])
def test_sides_as_folders(tmp_path, inner):
    for side, numbers in (("train", "01"), ("validation", "2"), ("test", "3")):
        for number in numbers:
            place = ("images/" + side, "masks/" + side) if inner else (side + "/images", side + "/masks")
            picture(tmp_path / place[0] / f"c{number}.png")
            mask(tmp_path / place[1] / f"c{number}.png")
    dataset = open_dataset(tmp_path)
    assert make_splits(dataset) == [{"train": ["c0", "c1"], "val": ["c2"]}]
    assert (ids(dataset.test), ids(dataset.validation)) == (["c3"], ["c2"])


def test_the_lists_of_the_folder_are_its_split(tmp_path):
    folder(tmp_path)
    (tmp_path / "val.txt").write_text("c1\nimages/c4.png\n# a remark\n\n")
    (tmp_path / "test.txt").write_text("c5\n")
    dataset = open_dataset(tmp_path)
    assert make_splits(dataset) == [{"train": ["c0", "c2", "c3"], "val": ["c1", "c4"]}]
    assert ids(dataset.test) == ["c5"]
    assert len(make_splits(dataset, own=False)) == 5
    (tmp_path / "train.txt").write_text("c0\n")  # then all others are on no side
    assert make_splits(open_dataset(tmp_path)) == [{"train": ["c0"], "val": ["c1", "c4"]}]
    (tmp_path / "val.txt").write_text("c11\n")
    with pytest.raises(BadDataset, match=r"c11 are not in the dataset; did you mean 'c1'\?"):
        open_dataset(tmp_path)


def test_a_file_of_ids_validates(tmp_path):
    dataset = open_dataset(folder(tmp_path / "data"))
    (tmp_path / "mine.txt").write_text("c2\n")
    assert make_splits(dataset, file=tmp_path / "mine.txt")[0]["val"] == ["c2"]


def test_cases_kept_apart_by_their_names(tmp_path):
    folder(tmp_path)
    (tmp_path / "val.txt").write_text("c1\nc5\n")
    apart = keep_apart(open_dataset(tmp_path), "c[45]")
    assert (ids(apart.test), apart.split) == (["c4", "c5"], {"train": ["c0", "c2", "c3"], "val": ["c1"]})
    with pytest.raises(UsageError, match=r"no case matches 'x\*' \(they are named like c0\)"):
        keep_apart(open_dataset(tmp_path), "x*")
    with pytest.raises(BadDataset, match="every training case"):
        keep_apart(open_dataset(tmp_path), "*")


ROWS = "image,mask,split,patient\nimages/c0.png,masks/c0.png,train,p0\nimages/c1.png,masks/c1.png,train,p1\n"


def test_a_list_is_a_dataset(tmp_path):
    folder(tmp_path)
    rows = ROWS + "images/c2.png,masks/c2.png,valid,p2\nimages/c3.png,,test,p3\n"
    for name, text in (("a.csv", rows), ("b.tsv", rows.replace(",", "\t")), ("c.csv", rows.replace(",", ";"))):
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        dataset = open_dataset(tmp_path / name)
        assert dataset.name == name[0]
        assert dataset.split == {"train": ["c0", "c1"], "val": ["c2"]}
        assert (ids(dataset.test), dataset.case("c1").metadata["patient"]) == (["c3"], "p1")
        assert check_dataset(dataset, progress=False).count("error") == 0


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("picture,mask\na,b\n", "its columns are picture, mask"),
        ("image,mask\n,masks/c0.png\n", "line 2 names no image"),
        ("image,mask\n../c0.png,masks/c0.png\n", "lies outside the dataset"),
        ("image,mask\nimages/c0.png,masks/c0.png\nimages/c0.png,masks/c0.png\n", "two rows are called 'c0'"),
        ("image,mask,split\nimages/c0.png,masks/c0.png,vall\n", "split is 'vall': did you mean 'val'"),
        ("image,mask\nimages/c0.png,masks/c9.png\n", "file is missing; did you mean"),
        ("image,mask\nimages/c0.png,masks/c0.png\nimages/c1.png,\n", r"1 image\(s\) have no mask: c1"),
        (ROWS + "images/c2.png,masks/c2.png,test,p1\n", "training and the test set share c2 of group 'p1', as c1"),
        (ROWS + "images/c2.png,masks/c2.png,val,p1\n", "fold 0 trains and validates on the same: c2 of group 'p1'"),
    ],
)
def test_refuses_a_bad_list(tmp_path, rows, message):
    folder(tmp_path)
    (tmp_path / "list.csv").write_text(rows)
    with pytest.raises(BadDataset, match=message):
        make_splits(open_dataset(tmp_path / "list.csv"))


def test_patients_of_a_list_stay_together(tmp_path):
    folder(tmp_path, 12)
    rows = [f"images/c{n}.png,masks/c{n}.png,p{n // 2}" for n in range(12)]
    (tmp_path / "list.csv").write_text("\n".join(["image,mask,patient", *rows]))
    for split in make_splits(open_dataset(tmp_path / "list.csv"), folds=3, group_by="patient"):
        patients = [{int(case[1:]) // 2 for case in split[side]} for side in ("train", "val")]
        assert not patients[0] & patients[1]


def test_values_may_be_named(tmp_path):
    folder(tmp_path, values=(0, 255))
    assert open_dataset(tmp_path).labels == {"background": 0, "foreground": 255}
    (tmp_path / "dataset.json").write_text('{"labels": {"lesion": 255}}')
    assert open_dataset(tmp_path).labels == {"background": 0, "lesion": 255}


def coloured(path, *colors, size=(24, 20)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((*size, 3), np.uint8)
    for number, color in enumerate(colors):
        pixels[2 * number] = color
    Image.fromarray(pixels).save(path)


def test_colours_become_classes(tmp_path):
    for number in range(2):
        picture(tmp_path / f"images/c{number}.png", number)
        coloured(tmp_path / f"masks/c{number}.png", (255, 0, 0), (0, 255, 0))
    description = {"colors": {"nucleus": [255, 0, 0], "cell": "#00ff00"}}
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    dataset = open_dataset(tmp_path)
    assert dataset.labels == {"background": 0, "nucleus": 1, "cell": 2}
    assert make_fingerprint(dataset, progress=False).cases[0].voxels == {0: 440, 1: 20, 2: 20}
    (tmp_path / "dataset.json").write_text(json.dumps({**description, "labels": {"nucleus": 7, "cell": 3}}))
    assert open_dataset(tmp_path).labels == {"background": 0, "nucleus": 7, "cell": 3}
    coloured(tmp_path / "masks/c1.png", (255, 0, 0), (0, 0, 9))
    found = check_dataset(open_dataset(tmp_path, strict=False), progress=False).findings
    assert [f.problem for f in found if f.severity == "error"] == [
        "colours (0, 0, 9) (20 pixels) are not in the map (expected (0, 0, 0), (255, 0, 0), (0, 255, 0))"
    ]


@pytest.mark.parametrize(
    "colors", [{}, {"a": [0, 0]}, {"a": "red"}, {"a": "#zzzzzz"}, {"a": [1, 2, 3], "b": [1, 2, 3]}]
)
def test_refuses_colours_that_are_none(tmp_path, colors):
    (folder(tmp_path) / "dataset.json").write_text(json.dumps({"colors": colors}))
    with pytest.raises(BadDataset, match=r"colou?r"):
        open_dataset(tmp_path)


def test_a_grey_mask_read_by_colour(tmp_path):
    mask(tmp_path / "m.png", (0, 255))
    coding = LabelCoding({(0, 0, 0): 0, (255, 255, 255): 4})
    assert set(np.unique(read_labels(tmp_path / "m.png", coding=coding).array)) == {0, 4}


def test_instances_are_one_class_by_choice(tmp_path):
    folder(tmp_path, masks="instances", values=(0, 1, 2, 3))
    with pytest.raises(BadDataset, match=r"numbers objects.*data\.instances=true"):
        open_dataset(tmp_path)
    dataset = open_dataset(tmp_path, instances=True)
    assert dataset.labels == {"background": 0, "foreground": 1}
    assert make_fingerprint(dataset, progress=False).cases[0].voxels == {0: 360, 1: 120}
    (tmp_path / "dataset.json").write_text('{"instances": true, "labels": {"nucleus": 1}}')
    assert open_dataset(tmp_path).labels == {"background": 0, "nucleus": 1}


def saved_as_jpeg(root, count=6):
    """Images beside masks of 0 and 255 in JPEG, as Kvasir-SEG has them: shades around the edges."""
    rows, columns = np.mgrid[:24, :20]
    polyp = (rows - 12) ** 2 + (columns - 9) ** 2 < 40
    for number in range(count):
        picture(root / "images" / f"c{number}.jpg", number)
        (root / "masks").mkdir(exist_ok=True)
        Image.fromarray(np.uint8(255 * polyp)).save(root / "masks" / f"c{number}.jpg", quality=60)
    return polyp


def test_masks_with_shades_by_a_threshold(tmp_path):
    polyp = saved_as_jpeg(tmp_path)
    with pytest.raises(BadLabels, match=r"beside 0 and 255.*data\.mask_threshold=128"):
        open_dataset(tmp_path)
    found = check_dataset(open_dataset(tmp_path, strict=False), progress=False).findings
    assert ["data.mask_threshold=128" in error.fix for error in found if error.severity == "error"] == 6 * [True]
    dataset = open_dataset(tmp_path, mask_threshold=128)
    assert dataset.labels == {"background": 0, "foreground": 1}
    assert make_fingerprint(dataset, progress=False).cases[0].voxels == {0: (~polyp).sum(), 1: polyp.sum()}
    assert not check_dataset(dataset, progress=False).findings
    (tmp_path / "dataset.json").write_text('{"mask_threshold": 128, "labels": {"polyp": 255}}')
    assert open_dataset(tmp_path).labels == {"background": 0, "polyp": 1}


def test_few_shades_in_jpeg_are_no_classes_either(tmp_path):
    folder(tmp_path, 4, values=(0, 255))
    for path in sorted((tmp_path / "masks").iterdir()):
        with Image.open(path) as stored:
            stored.save(path.with_suffix(".jpg"), quality=60)
        path.unlink()
    assert 2 < len(np.unique(read_labels(tmp_path / "masks/c0.jpg").array)) < 9
    with pytest.raises(BadLabels, match=r"data\.mask_threshold=128"):
        open_dataset(tmp_path)


def test_masks_of_1_and_of_255_by_a_threshold_of_1(tmp_path):
    folder(tmp_path, 4)
    mask(tmp_path / "masks/c0.png", (0, 255))
    with pytest.raises(BadLabels, match=r"data\.mask_threshold=1 .*values from 1 on"):
        open_dataset(tmp_path)
    cases = make_fingerprint(open_dataset(tmp_path, mask_threshold=1), progress=False).cases
    assert {tuple(sorted(case.voxels.items())) for case in cases} == {((0, 440), (1, 40))}


@pytest.mark.parametrize("threshold", [0, -1, True, "128", float("nan"), float("inf")])
def test_refuses_thresholds_that_are_none(tmp_path, threshold):
    with pytest.raises(UsageError, match="mask_threshold is"):
        open_dataset(folder(tmp_path), mask_threshold=threshold)


def test_refuses_a_threshold_beside_other_statements(tmp_path):
    with pytest.raises(UsageError, match="exclude each other"):
        open_dataset(folder(tmp_path), mask_threshold=128, instances=True)
    (tmp_path / "dataset.json").write_text('{"colors": {"a": [255, 0, 0]}}')
    with pytest.raises(BadDataset, match=r"'colors' and by a threshold"):
        open_dataset(tmp_path, instances=True)
    (tmp_path / "dataset.json").write_text('{"mask_threshold": "high"}')
    with pytest.raises(BadDataset, match=r"dataset\.json: mask_threshold is 'high'"):
        open_dataset(tmp_path)
    (tmp_path / "images").rename(tmp_path / "imagesTr")
    with pytest.raises(UsageError, match=r"what dataset\.json says.*folders of images and masks"):
        open_dataset(tmp_path, instances=True)


def test_grey_and_colour_are_brought_together_by_choice(tmp_path):
    folder(tmp_path)
    picture(tmp_path / "images/c3.png", 3, "L")
    problems = [finding.problem for finding in check_dataset(open_dataset(tmp_path), progress=False).findings]
    assert problems == ["has 1 channels (expected 3, as channel_names says)"]
    with pytest.raises(InputRefused, match=r"grey \(1 channel\) \(expected in colour.*data\.color=rgb"):
        make_fingerprint(open_dataset(tmp_path), progress=False)
    for color, channels in (("rgb", ("R", "G", "B")), ("grey", ("grey",))):
        dataset = open_dataset(tmp_path, color=color)
        assert check_dataset(dataset, progress=False).findings == ()
        fingerprint = make_fingerprint(dataset, progress=False)
        assert (fingerprint.channel_names, fingerprint.color) == (channels, color)
    with pytest.raises(UsageError, match="did you mean 'grey'"):
        open_dataset(tmp_path, color="gray")


def test_an_image_without_mask_is_refused_or_skipped_by_choice(tmp_path):
    folder(tmp_path)
    picture(tmp_path / "images/alone.png", 9)
    with pytest.raises(BadDataset, match=r"1 image\(s\) have no mask: alone\. Fix: .*data\.unlabelled=skip"):
        open_dataset(tmp_path)
    assert len(open_dataset(tmp_path, unlabelled="skip").training) == 6
    for choice, severity in (("refuse", "error"), ("skip", "note")):
        findings = check_dataset(open_dataset(tmp_path, strict=False, unlabelled=choice), progress=False)
        assert [(f.severity, f.case) for f in findings.findings] == [(severity, "alone")]


def test_shades_of_a_smoothed_mask_are_no_classes(tmp_path):
    folder(tmp_path, values=(0, 255))
    mask(tmp_path / "masks/c2.png", (0, 255, 3, 9, 30, 60, 90, 120, 150, 180, 210, 250))
    with pytest.raises(BadLabels, match=r"beside 0 and 255 the masks hold 3 \(40 pixels\).* and 2 more, first in c2"):
        open_dataset(tmp_path)
    found = check_dataset(open_dataset(tmp_path, strict=False), progress=False).findings
    assert [(f.severity, f.case) for f in found] == [("error", "c2")]


def test_masks_of_two_scales_are_not_two_classes(tmp_path):
    folder(tmp_path, values=(0, 255))
    mask(tmp_path / "masks/c2.png", (0, 1))
    with pytest.raises(BadLabels, match=r"hold 1 \(40 pixels\), first in c2"):
        open_dataset(tmp_path)


def test_a_tiny_picture_is_pointed_out(tmp_path):
    folder(tmp_path)
    picture(tmp_path / "images/c0.png", 0, size=(8, 20))
    mask(tmp_path / "masks/c0.png", size=(8, 20))
    found = check_dataset(open_dataset(tmp_path), progress=False).findings
    assert [f.problem for f in found] == ["has 8x20 pixels; a network that halves four times needs 16 along each side"]


REAL = {
    "isic2017_256": (1599, {}, {"background": 0, "foreground": 1}),
    "wbc": (240, {}, {"background": 0, "label_1": 1, "label_2": 2}),
    "cxr_lungs": (350, {}, {"background": 0, "foreground": 1}),
    "dsb2018_nuclei": (400, {"instances": True, "color": "grey"}, {"background": 0, "foreground": 1}),
}


@pytest.mark.realdata
@pytest.mark.parametrize("name", REAL)
def test_real_folders(name, shared_data):
    count, choices, labels = REAL[name]
    dataset = open_dataset(shared_data / name, **choices)
    assert (len(dataset.training), dataset.labels) == (count, labels)
    if name == "isic2017_256":
        assert [len(dataset.split[side]) for side in ("train", "val")] == [1399, 200]
        assert max(dataset.split["train"]) < min(dataset.split["val"])  # the first in file order train
    if name == "cxr_lungs":
        apart = keep_apart(dataset, "MCUCXR*")
        assert (len(apart.test), *(len(apart.split[side]) for side in ("train", "val"))) == (70, 220, 60)
        assert {case[:6] for case in apart.split["train"]} == {"CHNCXR"}
    if name != "isic2017_256":  # its near-duplicates are real
        assert check_dataset(dataset, progress=False).findings == ()


@pytest.mark.realdata
def test_instances_of_nuclei_need_a_choice(shared_data):
    with pytest.raises(BadDataset, match=r"data\.instances=true"):
        open_dataset(shared_data / "dsb2018_nuclei")


def test_a_name_on_two_sides_is_refused(tmp_path):
    folder(tmp_path / "train", 6)
    folder(tmp_path / "test", 2)
    with pytest.raises(BadDataset, match="two cases are called 'c0', one of train and one of test"):
        open_dataset(tmp_path)


def test_numbered_pictures_without_masks_are_cases_each(tmp_path):
    for number in range(6):
        picture(tmp_path / "train" / "images" / f"img_{number:04}.png", number)
        mask(tmp_path / "train" / "masks" / f"img_{number:04}.png")
        picture(tmp_path / "test" / "images" / f"img_{number + 6:04}.png", number)
    dataset = open_dataset(tmp_path)
    assert ids(dataset.test) == [f"img_{number:04}" for number in range(6, 12)]
    assert [case.id for case in find_cases(tmp_path / "test" / "images", 3)] == ids(dataset.test)
    (tmp_path / "train" / "masks" / "img_0003.png").unlink()
    with pytest.raises(BadDataset, match=r"1 image\(s\) have no mask: img_0003"):
        open_dataset(tmp_path)


def test_channels_of_test_images_follow_those_of_training(tmp_path):
    for side in ("train", "test"):
        for channel in range(2):
            picture(tmp_path / side / "images" / f"{side}_{channel:04}.png", channel, "L")
    mask(tmp_path / "train" / "masks" / "train.png")
    dataset = open_dataset(tmp_path)
    assert (ids(dataset.test), len(dataset.test[0].images)) == (["test"], 2)


@pytest.mark.parametrize(
    ("table", "column"),
    [
        ("id,patient\n{}.png,{}\n", "patient"),
        ("Case;Patient_ID\n{} ; {} \n", "Patient_ID"),
        ("case, Patient\nimages/{}.png,{}\n", "patient"),
    ],
)
def test_patients_of_the_table_are_found_however_it_is_written(tmp_path, table, column):
    head, row = table.splitlines()
    rows = [row.format(f"c{number}", f"p{number // 2}") for number in range(6)]
    (folder(tmp_path) / "metadata.csv").write_text("\n".join([head, *rows]))
    dataset = open_dataset(tmp_path)
    with pytest.raises(BadDataset, match="trains and validates on the same"):
        make_splits(dataset, folds=3)
    for split in make_splits(dataset, folds=3, group_by=column):
        assert not {name[1] for name in split["train"]} & {str(int(name[1]) ^ 1) for name in split["val"]}


def test_a_table_of_other_cases_is_refused(tmp_path):
    (folder(tmp_path, 2) / "metadata.csv").write_text("case,patient\nx,1\n")
    with pytest.raises(BadDataset, match=r"metadata.csv: it names none of the cases \(c0, c1\)"):
        open_dataset(tmp_path)


def test_a_diagnosis_called_label_is_no_mask(tmp_path):
    folder(tmp_path, 2)
    rows = "".join(f"images/c{n}.png,masks/c{n}.png,melanoma\n" for n in range(2))
    (tmp_path / "list.csv").write_text(f"Image,Mask,label\n{rows}")
    dataset = open_dataset(tmp_path / "list.csv")
    assert [case.label.parent.name for case in dataset.training] == ["masks", "masks"]
    assert dataset.training[0].metadata["label"] == "melanoma"


def test_two_images_of_one_name_are_refused(tmp_path):
    picture(folder(tmp_path, 2) / "images" / "c1.jpg")
    with pytest.raises(BadDataset, match=r"c1.jpg and c1.png are one image by their names"):
        open_dataset(tmp_path)


def test_masks_of_high_jpeg_quality_are_no_classes(tmp_path):
    for number in range(2):
        picture(tmp_path / "images" / f"c{number}.png", number)
        rows, columns = np.ogrid[:48, :48]
        (tmp_path / "masks").mkdir(exist_ok=True)
        disc = ((rows - 24) ** 2 + (columns - 24) ** 2 < 200).astype(np.uint8) * 255
        Image.fromarray(disc).save(tmp_path / "masks" / f"c{number}.jpg", quality=100)
    with pytest.raises(BadLabels, match="beside 0 and 255 the masks hold"):
        open_dataset(tmp_path)


def test_masks_without_foreground_are_refused(tmp_path):
    with pytest.raises(BadDataset, match="label maps of all 2 cases are empty"):
        open_dataset(folder(tmp_path, 2, values=(0,)))


def test_colour_masks_without_a_map_say_why(tmp_path):
    folder(tmp_path, 1)
    coloured(tmp_path / "masks" / "c0.png", (255, 0, 0))
    with pytest.raises(BadDataset, match=r"is a colour picture .* state in dataset.json what each colour is"):
        open_dataset(tmp_path)


def test_cases_of_no_list_are_left_out_without_validation_too(tmp_path):
    folder(tmp_path)
    (tmp_path / "train.txt").write_text("c0\nc1\nc2\n")
    (tmp_path / "test.txt").write_text("c5\n")
    dataset = open_dataset(tmp_path)
    assert (ids(dataset.training), ids(dataset.test)) == (["c0", "c1", "c2"], ["c5"])


def test_tables_beside_a_list_tell_of_patients_too(tmp_path):
    folder(tmp_path)
    rows = [f"images/c{n}.png,masks/c{n}.png,{'val' if n == 1 else 'train'}" for n in range(6)]
    (tmp_path / "list.csv").write_text("\n".join(["image,mask,split", *rows]))
    (tmp_path / "participants.tsv").write_text("participant_id\tpatient\n" + "".join(f"c{n}\tp{n}\n" for n in range(6)))
    assert make_splits(open_dataset(tmp_path / "list.csv"))[0]["val"] == ["c1"]
    (tmp_path / "metadata.csv").write_text("case,patient\nc0,p0\nc1,p0\n")  # has the say over the other table
    dataset = open_dataset(tmp_path / "list.csv")
    assert dataset.case("c5").metadata["patient"] == "p5"
    with pytest.raises(BadDataset, match="c1 of group 'p0', as c0"):
        make_splits(dataset)


def test_check_knows_the_split_of_a_short_list(tmp_path):
    folder(tmp_path)
    (tmp_path / "list.csv").write_text(ROWS + "images/c2.png,masks/c2.png,val,p1\n")
    found = check_dataset(open_dataset(tmp_path / "list.csv", strict=False), progress=False).findings
    assert "trains and validates on the same: c2 of group 'p1'" in found[0].problem
