"""The table that ``medseg skips`` prints: every part of skip paths, and what it costs in a given model."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from medseg.blocks.skip import EDITS, MERGES, PYRAMID
from medseg.device import without_memory
from medseg.errors import UsageError
from medseg.models import MODELS, create_model
from medseg.registry import Registry

if TYPE_CHECKING:
    from rich.table import Table

REGISTRIES: dict[str, Registry[Any]] = {"pyramid": PYRAMID, "edit": EDITS, "merge": MERGES}


class PartCard(NamedTuple):
    """One line about a part; `added` parameters are relative to the model with its default path, None if refused."""

    role: str
    name: str
    source: str
    neutral: bool
    added: int | None
    summary: str


def describe_parts(model: Mapping[str, Any]) -> list[PartCard]:
    """Every registered part, and the parameters that it adds to a model (counted on the meta device).

    Args:
        model: name and arguments.

    Raises:
        UsageError: the model hosts no skip paths, or cannot be built with these arguments.
    """
    check_host(model["name"])
    whole = _parameters({**model, "skips": None})
    cards = []
    for role, registry in REGISTRIES.items():
        for name in registry.names():
            doc = inspect.getdoc(registry.get(name)) or ""
            source = re.search(r"^Source: (.+)$", doc, re.MULTILINE)
            neutral = bool(getattr(registry.get(name), "neutral_at_init", False))
            summary = " ".join(doc.partition("\n\n")[0].split())
            try:
                added = _parameters({**model, "skips": {role: name}}) - whole
            except UsageError:
                added = None
            cards.append(PartCard(role, name, source[1] if source else "-", neutral, added, summary))
    return cards


def check_host(name: str) -> None:
    """Raises UsageError if a model of that name hosts no skip paths."""
    if "skips" not in MODELS.arguments(name):
        raise UsageError(f"model '{name}' hosts no skip paths", fix="use one that takes the argument skips")


def _parameters(model: Mapping[str, Any]) -> int:
    with without_memory():
        return sum(p.numel() for p in create_model(**model).parameters())


def part_table(model: Mapping[str, Any]) -> Table:
    """A rich table with one row per part."""
    from rich.table import Table
    from rich.text import Text

    table = Table(
        "part", "adds", "neutral", "source", "summary", title=f"Skip paths: parameters added to {model['name']}"
    )
    for i, column in enumerate(table.columns):
        column.no_wrap, column.overflow = i == 1, "fold"
    table.columns[1].justify = "right"
    for card in describe_parts(model):
        added = "does not fit" if card.added is None else f"{card.added:+,}"
        plain = Text(card.source), Text(card.summary)  # what stands in brackets is no markup
        table.add_row(f"{card.role}: {card.name}", added, "yes" if card.neutral else "", *plain)
    return table


def skips_command(cfg: Mapping[str, Any]) -> None:
    """``medseg skips``: print every part with its paper, its cost in the model of `cfg`, and its purpose."""
    from medseg.tables import print_table

    known = MODELS.arguments(cfg["model"]["name"])
    facts: dict[str, Any] = {key: cfg[key] for key in ("spatial_dims", "in_channels", "out_channels") if key in known}
    given: dict[str, Any] = {key: value for key, value in cfg["model"].items() if value is not None}
    print_table(part_table({**given, **facts}))
