"""medseg compare, from the folders that medseg evaluate wrote."""

import json

import numpy as np
import pandas as pd
import pytest

from medseg.cli import main
from medseg.errors import InputRefused, UsageError
from medseg.evaluation import compare, evaluate_folders, rank
from medseg.evaluation.compare_command import read_cases
from medseg.evaluation.ranking import SCHEMES
from medseg.evaluation.summary import to_csv
from medseg.io import Geometry, write_json, write_labels, write_text


@pytest.fixture
def folders(tmp_path):
    rng = np.random.default_rng(0)
    base = rng.beta(8, 2, 20)
    for name, shift in (("plain", 0.0), ("better", 0.04)):
        rows = [
            {
                "case": f"{i:03d}",
                "class": organ,
                "outcome": "scored",
                "dice": min(1, score + shift),
                "assd": 2 - score - shift,
            }
            for organ in ("liver", "spleen")
            for i, score in enumerate(base)
        ]
        (tmp_path / name).mkdir()
        pd.DataFrame(rows).to_csv(tmp_path / name / "cases.csv", index=False)
    return tmp_path


def run(*words):
    with pytest.raises(SystemExit) as end:
        main(["compare", *words])
    return end.value.code


def test_two_evaluations(folders, capsys):
    words = [f"a={folders / 'plain'}", f"b={folders / 'better' / 'cases.csv'}", "metrics=[dice,assd]"]
    assert run(*words, f"output={folders / 'out'}") == 0
    found = json.loads((folders / "out" / "comparison.json").read_text())
    assert [(r["metric"], r["name"], r["n"]) for r in found["results"]] == [
        (metric, organ, 20) for metric in ("dice", "assd") for organ in ("liver", "spleen")
    ]
    assert all(r["holm"] < 0.05 for r in found["results"])
    assert found["rankings"]["assd"][0]["ranks"] == {"a": 2.0, "b": 1.0}
    table = pd.read_csv(folders / "out" / "comparison.csv")
    assert table["difference"].iloc[0] == pytest.approx(found["results"][0]["difference"])
    assert (folders / "out" / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert "comparison.json" in capsys.readouterr().out


def test_more_than_two_by_name(folders):
    methods = ",".join(f"{name}:{folders / name}" for name in ("plain", "better"))
    assert run(f"methods={{{methods},third:{folders / 'plain'}}}", f"output={folders / 'out'}") == 0
    found = json.loads((folders / "out" / "comparison.json").read_text())
    assert len(found["results"]) == 6
    assert found["rankings"]["dice"][0]["ranks"] == {"plain": 2.5, "better": 1.0, "third": 2.5}


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["a=plain"], 2, "give a=FOLDER b=FOLDER"),
        (["a=plain", "b=nowhere"], 3, "there is no cases.csv"),
        (["a=plain", "b=better", "metrics=[dise]"], 2, "dice"),
        (["a=plain", "b=better", "cluster=patient"], 2, "metadata=FILE.csv"),
        (["a=plain", "b=better", "metric=dice"], 2, "metrics"),
    ],
)
def test_what_cannot_be_compared(folders, monkeypatch, capsys, words, code, message):
    monkeypatch.chdir(folders)
    assert run(*words) == code
    assert message in capsys.readouterr().err
    assert not (folders / "comparison").exists()


GRID = Geometry((10, 10, 10), np.eye(4))
NONE, FOUND, SHIFTED = (np.zeros(GRID.shape, np.uint8) for _ in range(3))
FOUND[2:7, 2:7, 2:7], SHIFTED[3:8, 2:7, 2:7] = 1, 1


def predict(folder, maps):
    for number, labels in enumerate(maps):
        write_labels(folder / f"c{number:02d}.nii.gz", labels, GRID)
    return folder


@pytest.fixture
def clinic(tmp_path):
    """Ten sick and ten healthy cases; "careful" is right everywhere, "eager" invents a lesion in every healthy one."""
    predict(tmp_path / "ref", [FOUND] * 10 + [NONE] * 10)
    predict(tmp_path / "careful", [FOUND] * 10 + [NONE] * 10)
    predict(tmp_path / "eager", [FOUND] * 20)
    return tmp_path


def evaluated(folder, name, **settings):
    settings = {"labels": {"lesion": 1}, "metrics": ["dice", "nsd"], "progress": False, **settings}
    return evaluate_folders(folder / name, folder / "ref", **settings)


def test_inventions_on_healthy_cases_cost(clinic, capsys):
    for name in ("careful", "eager"):
        saved(evaluated(clinic, name), clinic / f"report {name}")
    words = [f"a={clinic / 'report careful'}", f"b={clinic / 'report eager'}", "metrics=[dice,nsd]"]
    assert run(*words, f"output={clinic / 'out'}") == 0
    found = json.loads((clinic / "out" / "comparison.json").read_text())
    for result in found["results"]:
        assert (result["n"], result["mean_a"], result["mean_b"], result["difference"]) == (20, 1, 0.5, -0.5)
        assert [result[key] for key in ("empty_a", "empty_b", "invented_a", "invented_b")] == [10, 0, 0, 10]
        assert result["holm"] < 0.01
    assert found["measured_unknown"] == []
    for rankings in found["rankings"].values():
        assert all(ranking["ranks"] == {"a": 1, "b": 2} for ranking in rankings)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["dice", "a", "20", "1.0000", "10", "0", "-0.5000"] in [row[:7] for row in rows]
    assert ["lesion", "b", "0.5000", "0", "10", "to"] in [row[:6] for row in rows]


def test_a_right_empty_class_is_best_by_every_metric(tmp_path):
    """Where both are right they tie, a missing prediction loses, and nothing is dropped."""
    predict(tmp_path / "ref", [FOUND] * 3 + [NONE] * 3)
    predict(tmp_path / "careful", [FOUND] * 3 + [NONE] * 3)
    predict(tmp_path / "eager", [FOUND] * 6)
    predict(tmp_path / "lazy", [NONE] * 5)  # misses the sick, and gives nothing for the last one
    metrics = ["dice", "nsd", "hausdorff_distance_95", "specificity", "lesion_f1", "lesionwise_hd95", "cldice"]
    metrics += ["betti_0_error", "volume_error_ml", "implausible", "tp"]  # of every kind
    reports = {name: evaluated(tmp_path, name, metrics=metrics) for name in ("careful", "eager", "lazy")}
    frames = {name: report.frame for name, report in reports.items()}
    for metric in metrics:
        results = {(r.a, r.b): r for r in compare(frames, [metric]).results}
        assert {r.n for r in results.values()} == {6}
        best = reports["careful"].settings.metrics[metric].best
        if best is None:
            with pytest.raises(UsageError, match="quantity"):
                rank(frames, metric, resamples=5)
            continue
        for other in ("eager", "lazy"):
            careful = results["careful", other]
            assert careful.mean_a == best
            assert (careful.empty_a, careful.empty_b) == (3, {"eager": 0, "lazy": 2}[other])
        assert compare({"x": frames["careful"], "y": frames["careful"]}, [metric]).results[0].difference == 0
        for scheme in SCHEMES:
            ranking = rank(frames, metric, scheme=scheme, resamples=20)
            assert min(ranking.ranks, key=lambda name: ranking.ranks[name]) == "careful", metric
            assert ranking.cases == 6


def test_a_chosen_rule_is_kept_and_classes_of_no_case_say_nothing(clinic):
    rule = {"empty": {"only_prediction": "undefined"}}
    frames = {name: evaluated(clinic, name, **rule).frame for name in ("careful", "eager")}
    (result,) = compare(frames, ["dice"]).results
    assert (result.n, result.difference, result.invented_b) == (10, 0, 10)
    more = {"labels": {"lesion": 1, "nowhere": 2}}
    frames = {name: evaluated(clinic, name, **more).frame for name in ("careful", "eager")}
    found = compare(frames, ["dice"])
    assert [r.name for r in found.results] == ["lesion"]
    assert found.absent == ("nowhere",)
    assert "nowhere" in " ".join(found.remarks())
    assert found.results[0].holm == found.results[0].permutation, "a class of no case corrects nothing"


def saved(report, folder):
    """The two files that compare reads, without the pictures."""
    write_json(folder / "summary.json", report.summary())
    write_text(folder / "cases.csv", to_csv(report))


SETTINGS = [
    ({"tolerance": 1.0}, {"tolerance": 5.0}, "tolerance of class 'lesion' is 1.0 in a and 5.0 in b"),
    ({"tolerance": {"lesion": 2}}, {"tolerance": 3}, "tolerance of class 'lesion' is 2.0 in a and 3.0 in b"),
    ({}, {"surface": "voxel"}, "surface is surfel in a and voxel in b"),
    ({}, {"resample": "nearest"}, "resample is null in a and nearest in b"),
    ({}, {"ignore_label": 7}, "ignore_label is null in a and 7 in b"),
    ({}, {"empty": {"both_empty": "best"}}, "both_empty: undefined"),
    ({}, {"empty": {"nsd": {"only_reference": "undefined"}}}, "rule for empty masks of NSD"),
    ({}, {"labels": {"lesion": [1, 2]}}, "label of class 'lesion' is 1 in a and (1, 2) in b"),
]


@pytest.mark.parametrize(("first", "second", "message"), SETTINGS)
def test_methods_that_were_not_measured_alike_are_refused(clinic, capsys, first, second, message):
    reports = {name: evaluated(clinic, "careful", **settings) for name, settings in (("a", first), ("b", second))}
    for name, report in reports.items():
        saved(report, clinic / name)
    assert run(f"a={clinic / 'a'}", f"b={clinic / 'b'}", f"output={clinic / 'out'}") == 3
    assert not (clinic / "out").exists()
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    for judge in (compare, lambda frames: rank(frames, "dice")):
        with pytest.raises(InputRefused, match="not measured alike"):
            judge({name: report.frame for name, report in reports.items()})
    again = evaluated(clinic, "careful", **first).frame  # the advice: measured alike, they can be compared
    assert compare({"a": reports["a"].frame, "b": again}).results[0].difference == 0


def test_a_metric_that_changed_between_two_versions_of_medseg(clinic):
    for name in ("a", "b"):
        saved(evaluated(clinic, "careful", metrics=["dice", "cldice"]), clinic / name)
    summary = json.loads((clinic / "b" / "summary.json").read_text())
    del summary["metric_versions"]
    (clinic / "b" / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(InputRefused, match="version of clDice is 2 in a and 1 in b"):
        compare({name: read_cases(clinic / name) for name in ("a", "b")})


def test_other_references_are_refused_and_shared_classes_compared(clinic):
    careful = evaluated(clinic, "careful").frame
    predict(clinic / "ref", [SHIFTED] * 3 + [FOUND] * 8 + [NONE] * 9)
    with pytest.raises(InputRefused, match=r"case c10: class 'lesion' has 0 voxels in the reference of a and 125"):
        compare({"a": careful, "b": evaluated(clinic, "careful").frame})
    more = evaluated(clinic, "careful", labels={"rim": 2, "lesion": 1}).frame
    found = compare({"a": more, "b": evaluated(clinic, "careful").frame})
    assert [r.name for r in found.results] == ["lesion"]
    assert found.unshared_classes == {"a": ("rim",), "b": ()}
    assert rank({"a": more, "b": evaluated(clinic, "careful").frame}, resamples=5).ranks == {"a": 1.5, "b": 1.5}


def test_a_bare_table_is_said_to_be_one_and_repeated_rows_are_refused(clinic, capsys):
    saved(evaluated(clinic, "careful"), clinic / "a")
    text = (clinic / "a" / "cases.csv").read_text()
    (clinic / "bare.csv").write_text(text)
    assert run(f"a={clinic / 'a'}", f"b={clinic / 'bare.csv'}", f"output={clinic / 'out'}") == 0
    assert "nobody knows if alike: b" in " ".join(capsys.readouterr().out.split())
    assert json.loads((clinic / "out" / "comparison.json").read_text())["measured_unknown"] == ["b"]
    header, *rows = text.splitlines()
    (clinic / "twice.csv").write_text("\n".join([header, *rows, rows[3]]))
    (clinic / "word.csv").write_text("\n".join([header, rows[0].replace("1.0", "good", 1), *rows[1:]]))
    for file, message in (("twice.csv", "case c03: the table of cases has two rows"), ("word.csv", "'dice' is 'good'")):
        assert run(f"a={clinic / 'a'}", f"b={clinic / file}", f"output={clinic / 'no'}") == 3
        assert message in capsys.readouterr().err
    (clinic / "a" / "summary.json").write_text('{"mean": {}}')
    with pytest.raises(InputRefused, match=r"summary.json: is no summary that medseg evaluate wrote"):
        read_cases(clinic / "a")


@pytest.mark.parametrize("count", [1, 2, 5, 6])
def test_statements_at_the_extremes(clinic, capsys, count):
    cases = [f"c{number:02d}" for number in range(count)]
    frames = {
        "careful": evaluated(clinic, "careful").frame,
        "same": evaluated(clinic, "careful").frame,
    }
    frames = {name: frame[frame["case"].isin(cases)] for name, frame in frames.items()}
    found = compare(frames, ["dice", "nsd"])
    for result in found.results:
        assert (result.difference, result.holm, result.cohens_dz, result.smallest_difference) == (0, 1, None, None)
        assert (result.n, result.units) == (count, count)
    assert any("Too few" in line for line in found.remarks()) == (count < 6)
    ranking = rank(frames, resamples=10)
    assert ranking.kendall_tau == (None if count == 1 else 1), "a tie that never changes"
    assert ranking.frequency == {"careful": [0.5, 0.5], "same": [0.5, 0.5]}
    shifted = frames["careful"].assign(dice=lambda frame: frame["dice"] - 0.1)
    (result,) = compare({"a": frames["careful"], "b": shifted}).results
    assert result.cohens_dz is None, "a difference that is always the same has no spread"
    assert result.smallest_difference is None
    assert (result.holm < 0.05) == (count >= 6)
