"""One set of demands: `medseg check` returns 3 exactly where training refuses a dataset before its first step."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from medseg.data.catalogue import resolve_dataset
from medseg.data.check import SPLIT_KEYS, check_command
from medseg.data.fingerprint import make_fingerprint
from medseg.data.plan import check_stages, make_plan
from medseg.data.prepare import prepare
from medseg.data.sampling import PatchDataset
from medseg.data.splits import make_splits
from medseg.errors import MedsegError
from medseg.targets.base import configure_target

SIZE = (12, 10, 8)
LABELS = {"background": 0, "left": 1, "right": 2}
Fault = Callable[[Path], object]


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine), path)


def scan(number: int, size: tuple[int, ...] = SIZE) -> tuple[np.ndarray, np.ndarray]:
    image = gaussian_filter(np.random.default_rng(number).normal(size=size), 1.0).astype(np.float32)
    labels = np.zeros(size, np.uint8)
    labels[: size[0] // 3], labels[-size[0] // 3 :] = 1, 2
    return image, labels


def image(root: Path, case: int) -> Path:
    return root / f"imagesTr/c{case}_0000.nii.gz"


def label(root: Path, case: int) -> Path:
    return root / f"labelsTr/c{case}.nii.gz"


def volumes(root: Path, count: int = 6, size: tuple[int, ...] = SIZE) -> None:
    for number in range(count):
        pair = scan(number, size)
        save(image(root, number), pair[0])
        save(label(root, number), pair[1])
    describe(root, channel_names={"0": "MR"}, labels=LABELS, numTraining=count, file_ending=".nii.gz")


def pictures(root: Path, count: int = 6) -> None:
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True, exist_ok=True)
        for n in range(count):
            picture(
                root / f"{part}/c{n}.png", np.random.default_rng(n).normal(99, 30, (20, 24)) if part == "images" else 0
            )
            if part == "masks":
                picture(root / f"masks/c{n}.png", 255 * np.tri(20, 24, -3))


def picture(path: Path, array: Any) -> None:
    Image.fromarray(np.broadcast_to(array, (20, 24)).clip(0, 255).astype(np.uint8)).save(path)


def describe(root: Path, **fields: object) -> None:
    file = root / "dataset.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(known | fields))


def voxels(root: Path, case: int, change: Callable[[np.ndarray], np.ndarray]) -> None:
    save(image(root, case), change(scan(case)[0]))


def classes(root: Path, case: int, change: Callable[[np.ndarray], np.ndarray]) -> None:
    save(label(root, case), change(scan(case)[1]))


def put(array: np.ndarray, value: float, dtype: type = np.float32) -> np.ndarray:
    array = array.astype(dtype)
    array[0, 0, 0] = value
    return array


def shifted(by: float) -> np.ndarray:
    affine = np.eye(4)
    affine[0, 3] = by
    return affine


def rename_as_latin1(root: Path) -> None:
    for part, end in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        os.rename(root / part / f"c1{end}", os.fsencode(root / part) + b"/caf\xe9" + end.encode())


def as_list(root: Path, **entry: object) -> None:
    entries = [{"image": f"imagesTr/c{n}_0000.nii.gz", "label": f"labelsTr/c{n}.nii.gz"} for n in range(6)]
    describe(root, modality={"0": "MR"}, training=[{**entries[0], **entry}, *entries[1:]])


def flat(root: Path) -> None:
    picture(root / "image.png", np.random.default_rng(0).normal(99, 30, (20, 24)))
    picture(root / "label.png", np.tri(20, 24))
    as_list(root, image="image.png", label="label.png")


def both_cases(root: Path) -> None:
    for case in ("A", "a"):
        save(root / f"imagesTr/{case}_0000.nii.gz", scan(7)[0])
        save(root / f"labelsTr/{case}.nii.gz", scan(7)[1])


def folds(root: Path, content: object) -> None:
    (root / "splits_final.json").write_text(json.dumps(content))


VOLUMES: dict[str, tuple[int, Fault]] = {
    "clean": (0, lambda r: None),
    "label value 70000": (3, lambda r: describe(r, labels={**LABELS, "far": 70_000})),
    "a class of no value": (3, lambda r: describe(r, labels={"background": 0})),
    "ignore is a class": (3, lambda r: describe(r, labels={**LABELS, "ignore": 2})),
    "two names": (3, lambda r: describe(r, labels={**LABELS, "other": 2})),
    "numbers as channel names": (3, lambda r: describe(r, channel_names={"0": 7})),
    "regions that cannot be painted": (3, lambda r: describe(r, labels={"background": 0, "in": [2], "all": [1, 2]})),
    "a name that leads away": (3, lambda r: describe(r, name="../x")),
    "dataset.json in Latin-1": (3, lambda r: (r / "dataset.json").write_bytes(b'{"name": "caf\xe9"}')),
    "file names in Latin-1": (3, rename_as_latin1),
    "names that differ in capitals": (3, both_cases),
    "images of 4^3": (3, lambda r: volumes(r, size=(4, 4, 4))),
    "three cases": (3, lambda r: [p.unlink() for n in (0, 1, 2) for p in (image(r, n), label(r, n))]),
    "integer ids": (3, lambda r: folds(r, [{"train": [0, 1], "val": [2]}])),
    "unknown ids": (3, lambda r: folds(r, [{"train": ["c0"], "val": ["c9"]}])),
    "a fold without training": (3, lambda r: folds(r, [{"train": [], "val": ["c0"]}])),
    "a case on both sides": (3, lambda r: folds(r, [{"train": ["c0"], "val": ["c0"]}])),
    "good folds": (0, lambda r: folds(r, [{"train": ["c0", "c1"], "val": ["c2"]}])),
    "a patient on both sides": (3, lambda r: (r / "metadata.csv").write_text("case,patient\nc0,p\nc1,p\n")),
    "a table of others": (3, lambda r: (r / "metadata.csv").write_text("case,patient\nx,p\n")),
    "landmarks.json of numbers": (3, lambda r: (r / "landmarks.json").write_text('{"structures": 3}')),
    "a listed label is missing": (3, lambda r: as_list(r, label="labelsTr/c9.nii.gz")),
    "a list leads outside": (3, lambda r: as_list(r, image="../c0_0000.nii.gz")),
    "a good list": (0, as_list),
    "truncated": (3, lambda r: image(r, 1).write_bytes(image(r, 1).read_bytes()[:-99])),
    "empty file": (3, lambda r: label(r, 1).write_bytes(b"")),
    "NaN": (3, lambda r: voxels(r, 1, lambda a: put(a, np.nan))),
    "two channels": (3, lambda r: voxels(r, 1, lambda a: np.stack([a, a], -1))),
    "a missing channel": (3, lambda r: image(r, 1).rename(r / "imagesTr/c1_0001.nii.gz")),
    "a picture among volumes": (3, flat),
    "a volume of one slice": (0, lambda r: (voxels(r, 1, lambda a: a[..., 0]), classes(r, 1, lambda a: a[..., 0]))),
    "another shape": (3, lambda r: classes(r, 1, lambda a: a[1:])),
    "shifted by 3": (3, lambda r: save(label(r, 1), scan(1)[1], shifted(3))),
    "shifted by 0.2": (0, lambda r: save(label(r, 1), scan(1)[1], shifted(0.2))),
    "unknown label": (3, lambda r: classes(r, 1, lambda a: put(a, 9, np.uint8))),
    "negative label": (3, lambda r: classes(r, 1, lambda a: put(a, -1, np.int16))),
    "interpolated label": (3, lambda r: classes(r, 1, lambda a: put(a, 0.5))),
    "an empty mask": (0, lambda r: classes(r, 1, np.zeros_like)),
    "only empty masks": (3, lambda r: [classes(r, n, np.zeros_like) for n in range(6)]),
    "an absent class": (0, lambda r: describe(r, labels={**LABELS, "tumor": 3})),
    "an image without label": (0, lambda r: label(r, 5).unlink()),
    "two labels of a case": (0, lambda r: save(r / "labelsTr/c1.nii", scan(2)[1])),
    "two labels and no ending": (3, lambda r: (describe(r, file_ending=None), save(r / "labelsTr/c1.nii", scan(2)[1]))),
}  # fmt: skip

PICTURES: dict[str, tuple[int, Fault]] = {
    "clean pictures": (0, lambda r: None),
    "an image without mask": (3, lambda r: (r / "masks/c1.png").unlink()),
    "1 in one mask": (3, lambda r: picture(r / "masks/c1.png", np.tri(20, 24, -3))),
    "shades": (3, lambda r: picture(r / "masks/c1.png", 250 * np.tri(20, 24, -3))),
    "numbered objects": (3, lambda r: (r / "masks").rename(r / "instances")),
    "a color picture": (3, lambda r: Image.new("RGB", (24, 20), "red").save(r / "images/c1.png")),
    "no picture": (3, lambda r: (r / "images/c1.png").write_text("no picture")),
    "another size": (3, lambda r: Image.new("L", (9, 9)).save(r / "masks/c1.png")),
    "unknown id in val.txt": (3, lambda r: (r / "val.txt").write_text("c9\n")),
    "unknown side": (3, lambda r: (r / "metadata.csv").write_text("case,split\nc0,left\n")),
    "mask_threshold as text": (3, lambda r: describe(r, mask_threshold="128")),
}


def train_refuses(root: Path, cache: Path) -> MedsegError | None:
    """What `medseg.training.fitting.fit` asks of a dataset before its first step, in its order."""
    data: dict[str, Any] = {"path": str(root), "folds": 5}
    try:
        dataset = resolve_dataset(data)
        configure_target({"name": "exclusive"}, dataset.label_facts)
        if dataset.regions:
            configure_target({"name": "regions"}, dataset.label_facts)
        (split, *_) = make_splits(dataset, folds=5)
        plan = make_plan(make_fingerprint(dataset, cache_dir=cache, progress=False, workers=0))
        check_stages(plan)
        prepared = prepare(
            dataset, plan, sorted(split["train"] + split["val"]), cache_dir=cache, workers=0, progress=False
        )
        PatchDataset(prepared, plan, split["train"])[0]
    except MedsegError as error:
        return error
    return None


@pytest.mark.parametrize("fault", [*VOLUMES, *PICTURES])
def test_check_and_training_agree(fault: str, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root, make = tmp_path / "set", volumes if fault in VOLUMES else pictures
    code, spoil = {**VOLUMES, **PICTURES}[fault]
    make(root)
    spoil(root)
    refused = train_refuses(root, tmp_path / "cache")
    try:
        checked = check_command({"data": {"path": str(root), "folds": 5}, "json": True})
    except MedsegError as error:
        checked = error.exit_code
    shown = capsys.readouterr().out
    assert checked == code, shown
    assert (0 if refused is None else refused.exit_code) == code, refused
    assert refused is None or len(str(refused).splitlines()) == 1


def test_the_demands_are_those_of_the_settings(tmp_path: Path) -> None:
    """Folds and slices are checked as training would use them."""
    pictures(tmp_path, 3)
    data = {"path": str(tmp_path)}
    assert check_command({"data": {**data, "folds": 3}, "json": True}) == 0
    assert check_command({"data": {**data, "folds": 4}, "json": True}) == 3
    assert check_command({"data": {**data, "folds": 3, "slices": "axial"}, "json": True}) == 3
    assert set(SPLIT_KEYS.values()) >= {"folds", "split_file", "group_by", "leave_out", "own_split"}
