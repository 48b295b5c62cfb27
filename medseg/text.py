"""Text of users, as the names of cases and classes, on its way into a small language: one door for each.

A name may hold anything. ``[/x]`` is markup to rich, ``$x_$`` mathematics to matplotlib, ``=1+2`` a formula to a
spreadsheet, an escape sequence a command to a terminal, ``NA`` nothing at all to pandas. HTML has jinja's autoescape;
`visible` is its filter for what no page should contain either.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.text import Text

HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # control, formatting (also of direction), bytes that are no UTF-8, new lines
JOINERS = "\u200c\u200d"  # formatting too, but several scripts are not readable without
FORMULA = "=+-@\t\r'"  # what a spreadsheet takes for a formula or for the mark of text
MARKDOWN = str.maketrans({symbol: f"\\{symbol}" for symbol in "\\`*_[]<>|~$&#"})
TEX = str.maketrans(
    {
        **{symbol: f"\\{symbol}" for symbol in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        '"': r"\textquotedbl{}",
    }
)


def visible(text: str) -> str:
    """One line in which control characters, escape sequences and marks of direction can be seen: ``\\x1b``, ``\\n``."""
    if text.isprintable():
        return text
    return "".join(_escaped(c) if unicodedata.category(c) in HIDDEN and c not in JOINERS else c for c in text)


def shortened(text: str, length: int = 24) -> str:
    """A text that does not push others out of the picture."""
    return text if len(text) <= length else text[: length - 1] + "…"


def for_terminal(text: str, style: str = "") -> Text:
    """For rich: a cell of a table, or a line, in which nothing is markup or an emoji code."""
    from rich.text import Text

    return Text(visible(text), style)


def for_figure(text: str, length: int = 24) -> str:
    """For matplotlib: dollars are no mathematics, and a label that begins with ``_`` is in the legend."""
    shown = shortened(visible(text), length).replace("$", r"\$")
    return " " + shown if shown.startswith("_") else shown


def for_markdown(text: str) -> str:
    """For a cell of a Markdown table."""
    return visible(text).translate(MARKDOWN)


def for_latex(text: str) -> str:
    """For LaTeX outside of mathematics."""
    return visible(text).translate(TEX)


def to_csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table as CSV; None is an empty cell. No text is a formula to a spreadsheet, and `from_cell` gives it back."""
    lines = [columns, *rows]
    return "".join(",".join(_cell(value) for value in line) + "\n" for line in lines)


def from_cell(text: str) -> str:
    """The text of a cell of `to_csv`."""
    return text[1:] if text[:1] == "'" and text[1:2] and text[1] in FORMULA else text


def _cell(value: Any) -> str:
    if not isinstance(value, str):
        return "" if value is None else str(value)
    if value[:1] and value[0] in FORMULA and (value[0] != "'" or from_cell(value) != value):
        value = "'" + value
    quoted = any(symbol in value for symbol in ',"\r\n') or value != value.strip()
    return '"' + value.replace('"', '""') + '"' if quoted else value


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
