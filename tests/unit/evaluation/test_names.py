"""Nasty names of cases and classes from evaluate to report, compare and rank, in process."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from medseg.evaluation import CaseFiles, Evaluator, Report, compare, rank
from medseg.evaluation.compare_command import draw_differences, read_cases, report, results_table, save
from medseg.io import Geometry, write_labels
from medseg.text import visible

NASTY = [
    *(
        "lesion [/old]",
        "[bold]x",
        ":smile:",
        "cost $x_$",
        "a $\\frac$ b",
        "_hidden",
        "NA",
        "null",
        "None",
        "nan",
        "007",
    ),
    *(
        '=HYPERLINK("http://x")',
        "-1",
        "'=x",
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "a|b",
        "a,b",
        'q"q',
    ),
    *("a\nb", "a\rb", "\x1b[31mred", "\u202egpj.exe", " lead", "x" * 120, "50 % & #1 ~^\\{}", "Läsion 肝臓", "\udcfc"),
]
GRID = Geometry((8, 8), np.eye(4))


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Every nasty name is a class and a case."""
    root = tmp_path_factory.mktemp("names")
    labels = np.zeros(GRID.shape, np.uint8)
    labels.flat[: 2 * len(NASTY)] = np.repeat(np.arange(1, len(NASTY) + 1), 2)
    write_labels(root / "r.png", labels, GRID)
    write_labels(root / "p.png", np.roll(labels, 1, 1), GRID)
    cases = [CaseFiles(name, root / "r.png", root / "p.png") for name in NASTY]
    names = {name: value for value, name in enumerate(NASTY, 1)}
    metrics = ["dice", "reference_volume_ml"]
    found = Evaluator(names, metrics=metrics, progress=False, workers=1).evaluate(cases)
    found.save(root / "report")
    return found


@pytest.fixture
def folder(evaluated: Report) -> Path:
    return evaluated.results[0].files.reference.parent / "report"


def test_tables_hold_every_name_exactly(folder: Path) -> None:
    frame = read_cases(folder)
    plain = [name for name in NASTY if name != "\udcfc"]  # no character: it stands there as its escape
    assert [name for name in dict.fromkeys(frame["case"]) if name in plain] == plain
    assert [name for name in dict.fromkeys(frame["class"]) if name in plain] == plain
    assert len(frame) == len(NASTY) ** 2
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert list(summary["labels"].values()) == NASTY


def test_pages_and_papers_survive(folder: Path) -> None:
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert not any(word in page for word in ("<script>alert", "<img src=x", "\x1b", "\u202e"))
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert r"\u202egpj.exe" in page
    rows = (folder / "report.md").read_text(encoding="utf-8").splitlines()
    assert len([row for row in rows if row.startswith("| ")]) == len(NASTY) + 2
    assert len((folder / "table.tex").read_text(encoding="utf-8").splitlines()) == len(NASTY) + 7


def test_terminals_show_every_name_and_no_number_is_cut(evaluated: Report) -> None:
    console = Console(width=80, record=True)
    evaluated.print(console)
    text = console.export_text()
    assert "…" not in text
    for name in NASTY:
        assert visible(name)[:20].strip() in text
    assert text.count("found ") == len(NASTY)


def test_compare_and_rank_take_every_name(evaluated: Report, folder: Path, tmp_path, capsys) -> None:
    frames = {"[/a] $x": read_cases(folder), "=b": evaluated.frame.replace("\udcfc", "\\udcfc")}
    frames["=b"].attrs = frames["[/a] $x"].attrs
    found = compare(frames, ["dice"])
    assert [r.name for r in found.results][:-1] == NASTY[:-1]
    assert {r.n for r in found.results} == {len(NASTY)}
    rankings = {"dice": [rank(frames, "dice", resamples=5)]}
    save(found, rankings, tmp_path)
    report(found, rankings)
    assert "[/a] $x" in capsys.readouterr().out
    assert draw_differences(found).startswith(b"\x89PNG")
    console = Console(width=80, record=True)
    console.print(results_table(found))
    assert console.export_text().count("+0.0000") >= len(NASTY)
    assert "\n'=b," not in (tmp_path / "comparison.csv").read_text()
    assert ",'=b," in (tmp_path / "comparison.csv").read_text()
