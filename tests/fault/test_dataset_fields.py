"""Every field of a dataset's own files with every kind of wrong value: used as it means, or refused in one line."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medseg.data.dataset import open_dataset
from medseg.data.splits import make_splits
from medseg.errors import MedsegError

REMOVED = object()
VALUES = {
    "removed": REMOVED,
    "null": None,
    "text": "x",
    "number": 3,
    "true": True,
    "negative": -1,
    "huge": 10**12,
    "float": 1.5,
    "nan": float("nan"),
    "infinite": float("inf"),
    "empty list": [],
    "empty object": {},
    "list": ["x", 1],
    "nested": [[{"a": [None]}]],
    "object": {"x": "y"},
    "blank": "",
}
LABELS = {"background": 0, "spot": 1}
ENTRY = {"image": "images/c0.png", "label": "masks/c0.png"}
OTHER = {"image": "images/c1.png", "label": "masks/c1.png"}
FORMS: dict[str, tuple[str, Any]] = {
    "nnunet": (
        "dataset.json",
        {
            "name": "d",
            "channel_names": {"0": "x"},
            "labels": {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3},
            "regions_class_order": [1, 2],
            "numTraining": 2,
            "file_ending": ".png",
            "synthetic": False,
            "dataset": {"c0": {"images": ["images/c0.png"], "label": "masks/c0.png"}, "c1": OTHER},
        },
    ),
    "decathlon": (
        "dataset.json",
        {
            "modality": {"0": "x"},
            "labels": {"0": "background", "1": "spot"},
            "training": [ENTRY, OTHER],
            "test": ["t.png"],
        },
    ),
    "masks": (
        "dataset.json",
        {
            "name": "d",
            "labels": LABELS,
            "color": "grey",
            "instances": False,
            "mask_threshold": 1,
            "channel_names": {"0": "x"},
        },
    ),
    "colors": ("dataset.json", {"colors": {"spot": [1, 1, 1], "core": "#020202"}, "labels": {"spot": 1, "core": 2}}),
    "splits": ("splits_final.json", [{"train": ["c0"], "val": ["c1"]}, {"train": ["c1"], "val": ["c0"]}]),
    "landmarks": (
        "landmarks.json",
        {"structures": {"ring": 3, "other": 3}, "edges": [[0, 1], [1, 2]], "values": {"ring": 1, "other": 2}},
    ),
}


def places(data: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Paths to everything inside plain data, the whole included."""
    yield path
    keys = data if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ()
    for key in keys:
        yield from places(data[key], (*path, key))


def changed(data: Any, path: tuple[str | int, ...], value: Any) -> Any:
    """A copy with one place replaced or removed."""
    if not path:
        return None if value is REMOVED else value
    data = copy.deepcopy(data)
    inner = data
    for key in path[:-1]:
        inner = inner[key]
    if value is REMOVED:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return data


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    for part in ("images", "masks"):
        (folder / part).mkdir()
        for n in range(2):
            mask = np.zeros((16, 20), np.uint8)
            mask[2:5, 2:9], mask[8:12, 3:9] = 1, 2
            Image.fromarray(mask * (1 if part == "masks" else 90 + n)).save(folder / part / f"c{n}.png")
    Image.fromarray(np.full((16, 20), 7, np.uint8)).save(folder / "t.png")
    rows = [f"c{n},{point},{4 + 3 * (point % 3)},{4 + point}" for n in range(2) for point in range(6)]
    (folder / "points.csv").write_text("\n".join(["case,point,x,y", *rows]))
    return folder


def attempt(root: Path, form: str) -> MedsegError | None:
    """Open the dataset and make its folds; what refuses it."""
    if form == "landmarks":  # lists points beside the masks, whose classes are then the structures'
        (root / "landmarks.csv").write_text((root / "points.csv").read_text())
    try:
        dataset = open_dataset(root)
        make_splits(dataset, folds=2)
    except MedsegError as error:
        return error
    finally:
        for name in ("dataset.json", "splits_final.json", "landmarks.json", "landmarks.csv"):
            (root / name).unlink(missing_ok=True)
    assert all(isinstance(name, str) and isinstance(value, int) for name, value in dataset.labels.items())
    return None


@pytest.mark.parametrize("form", FORMS)
def test_the_valid_form_is_opened(form: str, root: Path) -> None:
    file, data = FORMS[form]
    (root / file).write_text(json.dumps(data))
    assert attempt(root, form) is None


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("form", FORMS)
def test_every_place_with_every_value(form: str, value: str, root: Path) -> None:
    file, data = FORMS[form]
    refused = 0
    for path in places(data):
        (root / file).write_text(json.dumps(changed(data, path, VALUES[value])))
        error = attempt(root, form)
        if error is None:
            continue
        refused += 1
        told = f"{path}={value}: {error}"
        assert error.exit_code == 3, told
        assert len(str(error).splitlines()) == 1, told
        assert len(str(error)) < 600, told
        assert error.fix, told
        assert str(root) in str(error), told
    if value in ("nested", "object", "negative", "huge", "nan", "infinite"):
        assert refused > len(data) / 2


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("dataset.json", '{"labels": {"a": 1, "a": 2}}', "the key 'a' twice"),
        ("dataset.json", '{"labels": {"background": 0, "a": ' + "1" * 5000 + "}}", "digits"),
        ("dataset.json", "[" * 100_000, "nested too deeply"),
        ("dataset.json", '{"labels": {"\\ud800": 1}}', "half a character"),
        ("splits_final.json", '[{"train": [0], "val": [1]}]', r"\[0\].train\[0\] is 0 .*ids as text"),
        ("splits_final.json", '[{"train": ["c0", "c0"], "val": ["c1"]}]', "'c0' twice"),
        ("splits_final.json", '[{"train": ["c0"], "val": ["c2"]}]', r"c2 are not in the dataset; ids are like"),
        ("metadata.csv", "case,patient,patient\nc0,a,b\n", "column 'patient' twice"),
        ("metadata.csv", "case,patient\nc0,Smith, John\n", "row 2 has 3 cells"),
        ("list.csv", "image,mask\nimages\\c0.png,masks/c0.png\n", "backslash"),
        ("list.csv", "image,mask\nimages/c0.png,\n", "no image has a label.*column of masks"),
        ("list.csv", "", "no image|columns are none"),
    ],
)
def test_what_json_and_csv_allow_and_datasets_cannot(file: str, text: str, said: str, root: Path) -> None:
    (root / file).write_text(text)
    try:
        with pytest.raises(MedsegError, match=said) as refused:
            make_splits(open_dataset(root / file if file == "list.csv" else root), folds=2)
        assert refused.value.exit_code == 3
        assert "did you mean" not in str(refused.value)
    finally:
        (root / file).unlink()


@pytest.mark.parametrize("file", ["dataset.json", "splits_final.json", "val.txt", "metadata.csv", "landmarks.json"])
@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_other_encodings_are_named(file: str, encoding: str, root: Path) -> None:
    (root / file).write_text('{"labels": {"caf\u00e9": 1}}', encoding=encoding)
    try:
        with pytest.raises(MedsegError, match=r"UTF-8") as refused:
            make_splits(open_dataset(root), folds=2)
        assert refused.value.exit_code == 3
    finally:
        (root / file).unlink()
