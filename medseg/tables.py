"""Tables on a terminal: words may break, numbers never do."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

NARROWEST = 12  # characters of a column of words


def print_table(table: Table, console: Console | None = None) -> None:
    """Print a table of which nothing is cut off.

    Columns that are justified to the right hold numbers and stay whole, the others break where they must. Where the
    numbers alone are too many for the terminal, lines run on over its edge.
    """
    from rich.console import Console

    console = console or Console()
    needed = 1
    for column in table.columns:
        column.no_wrap, column.overflow = column.justify == "right", "fold"
        column.min_width = None if column.no_wrap else min(NARROWEST, _longest(table, column))
        needed += 3 + (_longest(table, column) if column.no_wrap else column.min_width or 0)
    console.print(table, width=max(console.width, needed), crop=False, soft_wrap=False)


def _longest(table: Table, column: object) -> int:
    """Characters of a column's longest line, its heading included."""
    position = table.columns.index(column)  # type: ignore[arg-type]
    cells = [table.columns[position].header, *table.columns[position].cells]
    return max((len(line) for cell in cells for line in str(cell).splitlines()), default=1)
