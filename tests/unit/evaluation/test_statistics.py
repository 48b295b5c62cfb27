"""Intervals against scipy and simulation, tests against scipy and hand-made numbers, rankings that can be checked."""

import numpy as np
import pandas as pd
import pytest

from medseg.errors import BadDataset, InputRefused, UsageError
from medseg.evaluation import bootstrap_interval, compare, rank, seed_variance, smallest_difference, stratify
from medseg.evaluation.comparison import holm, permutation_p, rank_biserial, wilcoxon_p
from medseg.evaluation.statistics import clusters_of, describe, read_table

RNG = np.random.default_rng(0)
SCORES = RNG.beta(8, 2, 30)


def cases(values, name="liver", metric="dice", first=0):
    ids = [f"case_{first + i:02d}" for i in range(len(values))]
    return pd.DataFrame({"case": ids, "class": name, "outcome": "scored", metric: values})


def test_intervals_agree_with_scipy():
    from scipy.stats import bootstrap

    theirs = bootstrap((SCORES,), np.mean, n_resamples=9999, method="BCa", rng=1).confidence_interval
    ours = bootstrap_interval(SCORES, resamples=9999)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=2e-3)
    assert (ours.n, ours.clusters) == (30, 30)


def test_intervals_cover_the_mean_about_as_often_as_they_say():
    covered = 0
    for seed in range(200):
        sample = np.random.default_rng(seed).exponential(1.0, 30)
        interval = bootstrap_interval(sample, resamples=400, seed=seed)
        covered += interval.low <= 1 <= interval.high
    assert 0.88 <= covered / 200 <= 0.99


def test_patients_with_several_cases_make_intervals_wider():
    patients = np.repeat(np.arange(10), 3)
    values = np.random.default_rng(1).normal(size=10)[patients] + 0.01 * RNG.normal(size=30)
    plain, clustered = bootstrap_interval(values), bootstrap_interval(values, clusters=patients.tolist())
    assert clustered.clusters == 10
    assert clustered.high - clustered.low > 1.3 * (plain.high - plain.low)
    singly = bootstrap_interval(values, clusters=[f"p{i}" for i in range(30)])
    assert singly == plain


def test_intervals_of_little():
    assert bootstrap_interval([0.5]) is None
    assert bootstrap_interval([0.5, None, np.nan]) is None
    assert bootstrap_interval([0.5, 0.7], clusters=["a", "a"]) is None
    same = bootstrap_interval([0.5] * 5)
    assert (same.low, same.high) == (0.5, 0.5)
    assert bootstrap_interval([0.1, None, 0.9]).n == 2
    assert bootstrap_interval(SCORES, seed=3) == bootstrap_interval(SCORES, seed=3)


def test_description():
    found = describe([1.0, 2.0, 3.0, 4.0, None])
    assert (found["n"], found["mean"], found["median"], found["q1"], found["q3"]) == (4, 2.5, 2.5, 1.75, 3.25)
    assert found["low"] < 2.5 < found["high"]
    assert describe([None])["mean"] is None
    assert describe([1.0])["sd"] is None


def test_the_smallest_difference_has_the_power_that_it_says():
    from scipy.stats import ttest_1samp

    n, sd = 25, 0.04
    size = smallest_difference(sd, n)
    seen = ttest_1samp(np.random.default_rng(0).normal(size, sd, (2000, n)), 0, axis=1).pvalue < 0.05
    assert seen.mean() == pytest.approx(0.8, abs=0.04)
    assert smallest_difference(sd, 1) is None


def test_wilcoxon_and_permutation_agree_with_scipy():
    from scipy.stats import permutation_test, wilcoxon

    difference = np.round(RNG.normal(0.02, 0.05, 12), 3)
    assert wilcoxon_p(difference) == pytest.approx(wilcoxon(difference, zero_method="pratt").pvalue)
    theirs = permutation_test((difference, np.zeros(12)), lambda x, y: np.mean(x - y), permutation_type="samples")
    assert permutation_p(difference) == pytest.approx(theirs.pvalue)
    many = RNG.normal(0.02, 0.05, 40)
    theirs = permutation_test((many, np.zeros(40)), lambda x, y, axis: np.mean(x - y, axis=axis), vectorized=True,
                              permutation_type="samples", n_resamples=9999, rng=0)  # fmt: skip
    assert permutation_p(many) == pytest.approx(theirs.pvalue, abs=0.01)


def test_signs_of_a_cluster_flip_together():
    difference = np.array([0.1, 0.1, 0.1, 0.1])
    assert permutation_p(difference) == pytest.approx(2 / 16)
    assert permutation_p(difference, np.array([0, 0, 1, 1])) == pytest.approx(2 / 4)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]


def test_a_method_that_is_better_everywhere():
    better = np.minimum(SCORES + 0.03, 1)
    result = compare({"a": cases(SCORES), "b": cases(better)}).results[0]
    assert (result.n, result.name, result.a, result.b) == (30, "liver", "a", "b")
    assert result.difference == pytest.approx(float((better - SCORES).mean()))
    assert 0 < result.low <= result.difference <= result.high
    assert max(result.wilcoxon, result.permutation, result.holm) < 0.001
    assert result.rank_biserial == 1
    assert result.cohens_dz > 1


def test_a_method_compared_with_itself(recwarn):
    result = compare({"a": cases(SCORES), "b": cases(SCORES)}).results[0]
    assert (result.difference, result.wilcoxon, result.permutation, result.holm) == (0, 1, 1, 1)
    assert (result.rank_biserial, result.cohens_dz, result.low, result.high) == (0, None, 0, 0)
    one = compare({"a": cases([0.5]), "b": cases([0.7])}).results[0]
    assert (one.n, one.low, one.permutation) == (1, None, 1)
    assert not recwarn.list


def test_cases_that_only_one_method_has_are_listed():
    found = compare({"a": cases(SCORES[:10]), "b": cases(SCORES[:10], first=2)})
    assert found.results[0].n == 8
    assert found.unshared == {"a": ("case_00", "case_01"), "b": ("case_10", "case_11")}
    assert found.frame["class"].tolist() == ["liver"]
    with pytest.raises(InputRefused, match="share no case"):
        compare({"a": cases([0.1]), "b": cases([0.1], first=5)})


def test_corrections_span_classes_and_pairs():
    tables = {
        name: pd.concat([cases(SCORES + shift), cases(SCORES, name="spleen")])
        for name, shift in (("a", 0.0), ("b", 0.02), ("c", 0.04))
    }
    results = compare(tables).results
    assert len(results) == 6
    smallest = min(results, key=lambda r: r.permutation)
    assert smallest.holm == pytest.approx(6 * smallest.permutation)


def test_clusters_come_from_the_metadata():
    metadata = pd.DataFrame({"case": [f"case_{i:02d}" for i in range(30)], "patient": np.arange(30) // 3})
    tables = {"a": cases(SCORES), "b": cases(SCORES + RNG.normal(0, 0.02, 30))}
    clustered = compare(tables, metadata=metadata, cluster="patient").results[0]
    assert clustered.low != compare(tables).results[0].low
    with pytest.raises(UsageError, match=r"no column 'patent'.*patient"):
        compare(tables, metadata=metadata, cluster="patent")


def test_wrong_questions():
    with pytest.raises(UsageError, match="at least two"):
        compare({"a": cases(SCORES)})
    with pytest.raises(UsageError, match=r"'dise' was not measured.*dice"):
        compare({"a": cases(SCORES), "b": cases(SCORES)}, ["dise"])


def test_strata():
    metadata = pd.DataFrame({"case": ["case_00", "case_01"], "site": ["Bern", "Graz"]})
    groups = stratify(cases([0.1, 0.2, 0.3]), metadata, "site")
    assert {name: frame["case"].tolist() for name, frame in groups.items()} == {
        "Bern": ["case_00"], "Graz": ["case_01"], "unknown": ["case_02"],
    }  # fmt: skip
    with pytest.raises(BadDataset, match="none of its cases"):
        stratify(cases([0.1]), metadata.assign(case=["x", "y"]), "site")


def test_variance_of_seeds():
    runs = {f"seed {i}": cases(SCORES[:10] + shift) for i, shift in enumerate((0.0, 0.01, 0.02))}
    found = seed_variance(runs, "dice")["liver"]
    assert found["sd_runs"] == pytest.approx(0.01)
    assert found["mean"] == pytest.approx(SCORES[:10].mean() + 0.01)
    assert found["standard_error_cases"] == pytest.approx(SCORES[:10].std(ddof=1) / np.sqrt(10))


def test_rankings():
    methods = {"good": cases(SCORES + 0.2), "bad": cases(SCORES - 0.2), "same": cases(SCORES - 0.2)}
    for scheme in ("mean_then_rank", "rank_then_mean"):
        found = rank(methods, scheme=scheme, resamples=50)
        assert found.ranks == {"good": 1.0, "bad": 2.5, "same": 2.5}
        assert found.frequency["good"] == [1.0, 0.0, 0.0]
    distances = {name: frame.rename(columns={"dice": "assd"}) for name, frame in methods.items()}
    assert rank(distances, "assd", resamples=10).ranks["good"] == 3
    coin = {"a": cases(SCORES), "b": cases(SCORES[::-1].copy())}
    assert rank(coin).kendall_tau < 0.6
    with pytest.raises(UsageError, match="quantity"):
        rank({name: frame.rename(columns={"dice": "tp"}) for name, frame in methods.items()}, "tp")


def test_rank_biserial_by_hand():
    assert rank_biserial(np.array([1.0, 2.0, -3.0])) == pytest.approx((1 + 2 - 3) / 6)


def test_tables_are_checked(tmp_path):
    (tmp_path / "a.csv").write_text("id,class\n1,2\n", encoding="utf-8")
    with pytest.raises(BadDataset, match="no column 'case'"):
        read_table(tmp_path / "a.csv")
    with pytest.raises(InputRefused, match="not a CSV table"):
        read_table(tmp_path / "missing.csv")


def test_cases_without_a_patient_are_clusters_of_their_own():
    metadata = pd.DataFrame({"case": ["a", "b", "c", "d"], "patient": ["p1", "p1", "", "NA"]})
    clusters, alone = clusters_of(["a", "b", "c", "d", "typo"], metadata, "patient")
    assert alone == ("c", "d", "typo")
    assert len(set(clusters)) == 4
    assert clusters[0] == clusters[1] == "p1"
    with pytest.raises(BadDataset, match="names cases more than once: a"):
        clusters_of(["a"], pd.concat([metadata, metadata]), "patient")
    with pytest.raises(UsageError, match="give metadata="):
        compare({"a": cases(SCORES), "b": cases(SCORES)}, cluster="patient")
