"""Folds: nnU-Net's rule, files, groups, and leakage that stops a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from medseg.data.dataset import Case, SegmentationDataset
from medseg.data.splits import check_leakage, make_splits, nnunet_splits, write_splits
from medseg.errors import BadDataset, UsageError
from medseg.io import read_json, write_json


def dataset(root: Path, rows: dict[str, dict[str, str]] | None = None, count: int = 10) -> SegmentationDataset:
    (root / "metadata.csv").touch()
    cases = tuple(Case(f"c{n:02d}", (root / f"c{n}.nii.gz",), root / f"l{n}.nii.gz") for n in range(count))
    cases = tuple(replace(case, metadata=(rows or {}).get(case.id, {})) for case in cases)
    return SegmentationDataset("d", root, ("CT",), {"background": 0}, None, None, cases, (), 3, ".nii.gz")


def by_patient(count: int = 10) -> dict[str, dict[str, str]]:
    return {f"c{n:02d}": {"patient": f"p{n // 2}", "site": "AAABBBBCCC"[n]} for n in range(count)}


def test_the_folds_never_change():
    # nnU-Net's generate_crossval_split is KFold(5, shuffle=True, random_state=12345) over the sorted ids.
    folds = nnunet_splits([f"case_{n:02d}" for n in reversed(range(12))])
    assert [split["val"] for split in folds][:2] == [
        ["case_00", "case_03", "case_08"],
        ["case_07", "case_10", "case_11"],
    ]


def test_one_fold_trains_on_all(tmp_path):
    splits = make_splits(dataset(tmp_path), folds=1)
    assert [len(splits[0][part]) for part in ("train", "val")] == [10, 0]


def test_own_file_is_read(tmp_path):
    mine = [{"train": ["c00", "c01"], "val": ["c02"]}]
    write_splits(tmp_path / "splits_final.json", mine)
    assert make_splits(dataset(tmp_path)) == mine
    other = tmp_path / "other.json"
    write_splits(other, [{"train": ["c05"], "val": []}])
    assert make_splits(dataset(tmp_path), file=other)[0]["train"] == ["c05"]


def test_written_file_is_that_of_nnunet(tmp_path):
    splits = make_splits(dataset(tmp_path))
    write_splits(tmp_path / "splits_final.json", splits)
    assert read_json(tmp_path / "splits_final.json") == splits
    assert make_splits(dataset(tmp_path)) == splits


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "expected a list"),
        ([{"train": ["c00"]}], "expected a list"),
        ([], "no fold"),
        ([{"train": [], "val": ["c00"]}], r"folds \[0\] have no training"),
        ([{"train": ["c00"], "val": ["c0l"]}], "c0l are not in the dataset; did you mean 'c09'"),
        ([{"train": ["c00", "c01"], "val": ["c01"]}], "fold 0 trains and validates on the same: c01"),
    ],
)
def test_refuses_a_wrong_file(tmp_path, content, message):
    write_json(tmp_path / "splits_final.json", content)
    with pytest.raises(BadDataset, match=message):
        make_splits(dataset(tmp_path))


def test_too_few_cases_and_folds(tmp_path):
    with pytest.raises(BadDataset, match=r"3 cannot be divided into 5 folds.*set data.folds=3"):
        make_splits(dataset(tmp_path, count=3))
    with pytest.raises(UsageError, match="folds is 0"):
        make_splits(dataset(tmp_path), folds=0)


def test_groups_stay_together(tmp_path):
    splits = make_splits(dataset(tmp_path, by_patient()), group_by="patient")
    assert len(splits) == 5
    for split in splits:
        assert len(split["val"]) == 2
        assert int(split["val"][0][1:]) // 2 == int(split["val"][1][1:]) // 2


def test_leave_one_site_out(tmp_path):
    rows = {case: {"site": row["site"]} for case, row in by_patient().items()}
    splits = make_splits(dataset(tmp_path, rows), group_by="site", leave_out=True)
    assert [len(split["val"]) for split in splits] == [3, 4, 3]
    assert splits[0]["val"] == ["c00", "c01", "c02"]


def test_a_patient_on_both_sides_stops_the_run(tmp_path):
    with pytest.raises(BadDataset, match=r"group 'p\d'") as caught:
        make_splits(dataset(tmp_path, by_patient()))
    assert caught.value.exit_code == 3
    with pytest.raises(BadDataset, match="group 'p1'"):  # c02 is of site A, c03 of site B
        make_splits(dataset(tmp_path, by_patient()), group_by="site", leave_out=True)


def test_leakage_names_cases_and_group():
    with pytest.raises(BadDataset, match=r"fold 1.* b2 of group 'p', as b1 in its training"):
        check_leakage([{"train": ["a"], "val": ["b1"]}, {"train": ["a", "b1"], "val": ["b2"]}], {"b1": "p", "b2": "p"})
    check_leakage([{"train": ["a"], "val": ["b"]}], {"b": "a"})  # a group may be called like another case


def test_group_errors(tmp_path):
    with pytest.raises(UsageError, match="did you mean 'site'"):
        make_splits(dataset(tmp_path, by_patient()), group_by="sites")
    with pytest.raises(UsageError, match="leave_out=true needs a group"):
        make_splits(dataset(tmp_path), leave_out=True)
    with pytest.raises(BadDataset, match="the only group is 'B'"):
        make_splits(dataset(tmp_path, {f"c{n:02d}": {"site": "B"} for n in range(10)}), group_by="site")
    with pytest.raises(BadDataset, match="c09 have no 'site'"):
        make_splits(dataset(tmp_path, {f"c{n:02d}": {"site": "B"} for n in range(9)}), group_by="site")
    (tmp_path / "metadata.csv").unlink()
    with pytest.raises(BadDataset, match="needs a table"):
        make_splits(replace(dataset(tmp_path), root=tmp_path / "elsewhere"), group_by="site")


def test_a_group_is_not_divided_between_training_and_test(tmp_path):
    whole = dataset(tmp_path, {f"c{n:02d}": {"lesion": f"l{n // 2}", "Site": "AB"[n % 2]} for n in range(10)})
    apart = replace(whole, training=whole.training[:-1], test=whole.training[-1:])
    with pytest.raises(BadDataset, match="training and the test set share c09 of group 'l4', as c08"):
        make_splits(apart, group_by="lesion", folds=2)
    assert len(make_splits(apart, group_by="site", leave_out=True)) == 2  # a test set may be of the same sites


def test_one_fold_of_groups_trains_on_all(tmp_path):
    (split,) = make_splits(dataset(tmp_path, by_patient()), group_by="patient", folds=1)
    assert (len(split["train"]), split["val"]) == (10, [])


def test_the_first_patient_column_has_the_say(tmp_path):
    rows = {case: {"patient": row["patient"], "subject": case} for case, row in by_patient().items()}
    with pytest.raises(BadDataset, match=r"group 'p\d'"):
        make_splits(dataset(tmp_path, rows))
