"""Text of users on its way into small languages: every nasty name through every door."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.errors import BadLabels
from medseg.evaluation.statistics import read_table
from medseg.text import for_figure, for_latex, for_markdown, for_terminal, from_cell, to_csv, visible

NASTY = [
    *(
        "[/old]",
        "[bold]x",
        ":smile:",
        "cost $x_$",
        "a $\\frac$ b",
        "$",
        "_hidden",
        "NA",
        "null",
        "None",
        "nan",
        "007",
        "1e5",
    ),
    *('=HYPERLINK("http://x")', "+1", "-1", "@x", "\t=x", "'=x", "'", "<script>alert(1)</script>"),
    *(
        "a\nb",
        "a\rb",
        "\x1b[31mred",
        "\u202egpj.exe",
        "\u2028",
        " lead",
        "x" * 120,
        "50 % & #1 ~^\\{}",
        "Läsion 肝臓",
        "a\x00b",
    ),
]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(min_size=1).filter(lambda text: text.isprintable() or not text.isspace()), min_size=1))
def test_any_text_comes_back_from_csv(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    file = tmp_path_factory.getbasetemp() / "any.csv"
    file.write_bytes(to_csv(["case", "dice"], [(name, 0.5) for name in names]).encode("utf-8", "surrogatepass"))
    assert read_table(file)["case"].tolist() == names


def test_no_cell_is_a_formula() -> None:
    rows = list(csv.reader(io.StringIO(to_csv(["name", "number"], [(name, -1.5) for name in NASTY]), newline="")))[1:]
    for (cell, number), name in zip(rows, NASTY, strict=True):
        assert cell[0] not in "=+-@\t\r"
        assert from_cell(cell) == name
        assert number == "-1.5"


@pytest.mark.parametrize("name", NASTY)
def test_a_terminal_gets_one_line_without_commands(name: str) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=200, file=io.StringIO(), force_terminal=True, color_system=None)
    table = Table("name")
    table.add_row(for_terminal(name))
    console.print(table)
    console.print(for_terminal(name))
    shown = console.file.getvalue()
    assert visible(name).isprintable()
    assert visible(name) in shown
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    line = str(BadLabels(f"has the class '{name}'", case=name))
    assert line.isprintable()


@pytest.mark.parametrize("name", NASTY)
def test_a_picture_shows_the_name_itself(name: str) -> None:
    from matplotlib.cbook import is_math_text
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    label = for_figure(name)
    assert len(label) <= 26 + label.count("\\$")
    axes = Figure().subplots()
    axes.plot([0], [0], label=label)
    assert axes.get_legend_handles_labels()[1] == [label], "in the legend"
    shown, math = Text(0, 0, label)._preprocess_math(label)
    assert math is False
    assert shown.strip() == visible(name)[:24].strip() if len(visible(name)) <= 24 else shown.endswith("…")
    assert is_math_text(label) is False


@pytest.mark.parametrize("name", NASTY)
def test_papers_get_escaped_names(name: str) -> None:
    for door, special in ((for_markdown, "|<*`$"), (for_latex, "%&#$_^~")):
        text = door(name)
        assert "\n" not in text
        plain = text.replace(r"\textasciitilde", "").replace(r"\textasciicircum", "")
        assert all(plain[i - 1 : i] == "\\" for i, letter in enumerate(plain) if letter in special), text
