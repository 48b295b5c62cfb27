"""Datasets with landmarks and no masks: opened, checked and trained like any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medseg.data.check import check_dataset
from medseg.data.dataset import open_dataset
from medseg.data.findings import Findings
from medseg.errors import BadDataset, BadLabels
from medseg.io import read_labels, write_json

SQUARE = np.array([[2, 2], [10, 2], [10, 8], [2, 8]], np.float32)


def check(root: Path, **arguments: object) -> Findings:
    return check_dataset(open_dataset(root, strict=False), workers=0, progress=False, **arguments)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three images of 16x24 with a square and a triangle each."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = tmp_path / "data"
    for part in ("images", "landmarks"):
        (data / part).mkdir(parents=True)
    for n in range(3):
        Image.fromarray(np.random.default_rng(n).integers(0, 256, (16, 24), np.uint8)).save(data / f"images/c{n}.png")
        np.save(data / f"landmarks/c{n}.npy", np.concatenate([SQUARE + n, [[14, 2], [22, 2], [18, 12]]]))
    write_json(data / "landmarks.json", {"structures": {"square": 4, "triangle": 3}})
    return data


def test_masks_are_painted_from_the_points(root: Path, tmp_path: Path) -> None:
    before = sorted(root.rglob("*"))
    dataset = open_dataset(root)
    assert dataset.labels == {"background": 0, "square": 1, "triangle": 2}
    assert [case.id for case in dataset.training] == ["c0", "c1", "c2"]
    assert all(case.label.is_relative_to(tmp_path / "cache") for case in dataset.training)
    labels = read_labels(dataset.case("c0").label).array[0]
    assert labels.shape == (16, 24)
    assert (labels[3:8, 3:10] == 1).all()
    assert (labels == 1).sum() == pytest.approx(8 * 6, abs=16)
    assert labels[4, 18] == 2
    assert sorted(root.rglob("*")) == before
    assert open_dataset(root).case("c0").label == dataset.case("c0").label
    assert check(root).count("error") == 0


def test_a_description_may_name_the_classes(root: Path) -> None:
    write_json(root / "dataset.json", {"labels": {"square": 2, "triangle": 1}, "name": "shapes"})
    write_json(root / "landmarks.json", {"structures": {"a": 4, "b": 3}, "values": {"a": 2, "b": 1}})
    dataset = open_dataset(root)
    assert (dataset.name, dataset.labels) == ("shapes", {"background": 0, "square": 2, "triangle": 1})
    assert read_labels(dataset.case("c0").label).array[0, 5, 5] == 2


def test_changed_points_are_painted_anew(root: Path) -> None:
    first = open_dataset(root).case("c0").label
    np.save(root / "landmarks/c0.npy", np.concatenate([SQUARE + 3, [[14, 2], [22, 2], [18, 12]]]))
    second = open_dataset(root).case("c0").label
    assert second != first
    assert not np.array_equal(read_labels(first).array, read_labels(second).array)


def test_structures_may_share_a_class(root: Path) -> None:
    write_json(root / "landmarks.json", {"structures": {"a": 4, "b": 3}, "values": {"a": 1, "b": 1}})
    dataset = open_dataset(root)
    assert dataset.labels == {"background": 0, "a and b": 1}
    assert np.unique(read_labels(dataset.case("c1").label).array).tolist() == [0, 1]


def test_wrong_points_are_refused_and_all_of_them_listed_by_check(root: Path) -> None:
    np.save(root / "landmarks/c0.npy", SQUARE)
    np.save(root / "landmarks/c2.npy", np.full((7, 2), np.nan))
    with pytest.raises(BadLabels, match="has 4 landmarks"):
        open_dataset(root)
    errors = [(f.case, f.problem) for f in check(root).findings if f.severity == "error"]
    assert [case for case, _ in errors] == ["c0", "c2"]
    assert "has 4 landmarks (expected 7: square 4, triangle 3)" in errors[0][1]


def test_a_copy_has_landmarks_and_no_masks(root: Path, tmp_path: Path) -> None:
    np.save(root / "landmarks/c1.npy", SQUARE)
    check(root, fix=tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["images", "landmarks", "landmarks.json"]
    assert [case.id for case in open_dataset(tmp_path / "new").training] == ["c0", "c2"]


@pytest.mark.parametrize("suffix", ["", "_0000"])
def test_numbered_images_belong_to_the_landmarks_of_their_name(root: Path, suffix: str) -> None:
    for n in range(3):
        (root / f"images/c{n}.png").rename(root / f"images/case_000{n + 1}{suffix}.png")
        (root / f"landmarks/c{n}.npy").rename(root / f"landmarks/case_000{n + 1}.npy")
    assert [case.id for case in open_dataset(root).training] == ["case_0001", "case_0002", "case_0003"]


def test_unnamed_points_are_refused(root: Path) -> None:
    (root / "landmarks.json").unlink()
    with pytest.raises(BadDataset, match="nothing names the structures"):
        open_dataset(root)
