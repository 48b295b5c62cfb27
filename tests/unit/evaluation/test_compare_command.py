"""medseg compare, from the folders that medseg evaluate wrote."""

import json

import numpy as np
import pandas as pd
import pytest

from medseg.cli import main


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
