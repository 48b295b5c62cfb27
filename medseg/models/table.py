"""The table that ``medseg models`` prints, derived from the models themselves so that it cannot go stale."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from medseg.device import without_memory
from medseg.errors import UsageError
from medseg.models import MODELS

if TYPE_CHECKING:
    from rich.table import Table


class Card(NamedTuple):
    """One line about a model."""

    name: str
    source: str
    spatial_dims: tuple[int, ...]
    parameters: int
    summary: str


def describe(name: str) -> Card:
    """What a model says of itself: its docstring's first line, its ``Source:`` line, its size with default arguments.

    Parameters are counted on the meta device: no memory is touched.
    """
    doc = inspect.getdoc(MODELS.get(name)) or ""
    source = re.search(r"^Source: (.+)$", doc, re.MULTILINE)
    return Card(
        name=name,
        source=source[1] if source else "-",
        spatial_dims=tuple(dims for dims in (2, 3) if _parameters(name, spatial_dims=dims)),
        parameters=_parameters(name),
        summary=doc.partition("\n")[0],
    )


def _parameters(name: str, **arguments: int) -> int:
    """Number of parameters, 0 where the model refuses the arguments."""
    with without_memory():
        try:
            return sum(p.numel() for p in MODELS.build(name, **arguments).parameters())
        except UsageError:
            return 0


def model_table(names: Iterable[str]) -> Table:
    """A rich table with one row per name."""
    from rich.table import Table

    table = Table("name", "source", "dims", "parameters", "summary", title="Models")
    table.columns[3].justify = "right"
    for card in map(describe, names):
        dims = ", ".join(f"{d}D" for d in card.spatial_dims)
        table.add_row(card.name, card.source, dims, f"{card.parameters:,}", card.summary)
    return table
