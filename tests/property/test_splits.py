"""Folds of any dataset: every case is validated on once, nothing is lost, groups are never divided."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import KFold

from medseg.data.splits import check_leakage, grouped_splits, nnunet_splits

names = st.lists(st.text("abcxyz019_", min_size=1, max_size=8), min_size=5, max_size=40, unique=True)


@settings(max_examples=60, deadline=None)
@given(ids=names, folds=st.integers(2, 5), seed=st.integers(0, 2**31))
def test_every_case_is_validated_once(ids, folds, seed):
    splits = nnunet_splits(ids, folds, seed)
    assert sorted(case for split in splits for case in split["val"]) == sorted(ids)
    for split in splits:
        assert sorted(split["train"] + split["val"]) == sorted(ids)
    check_leakage(splits, {})


@settings(max_examples=30, deadline=None)
@given(ids=names)
def test_the_rule_is_that_of_nnunet(ids):
    expected = KFold(n_splits=5, shuffle=True, random_state=12345).split(sorted(ids))
    validated = [[sorted(ids)[n] for n in val] for _, val in expected]
    assert [split["val"] for split in nnunet_splits(list(reversed(ids)))] == validated


@settings(max_examples=60, deadline=None)
@given(ids=names, data=st.data(), leave_out=st.booleans())
def test_groups_are_never_divided(ids, data, leave_out):
    groups = {case: f"g{number % 4 if number < 4 else data.draw(st.integers(0, 3))}" for number, case in enumerate(ids)}
    splits = grouped_splits(groups, folds=4, seed=1, leave_out=leave_out)
    check_leakage(splits, groups)
    assert len(splits) == 4
    assert sorted(case for split in splits for case in split["val"]) == sorted(ids)
