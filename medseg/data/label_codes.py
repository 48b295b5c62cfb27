"""What a small dataset.json says of masks: classes by value, classes by colour, or instances taken as one class."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medseg.data.label_names import IGNORE_NAME, LabelTable, parse_labels
from medseg.errors import BadDataset
from medseg.io import LabelCoding

BACKGROUND = "background"
Color = tuple[int, int, int]


def parse_masks(
    description: Mapping[str, Any], file: Path, *, instances: bool
) -> tuple[LabelTable | None, LabelCoding | None]:
    """The table of classes, None if it has to be found by reading the masks, and how their pixels are coded.

    Args:
        description: ``labels`` (name -> value; a background of 0 need not be named), ``colors`` (name -> [red, green,
            blue] or "#rrggbb"; black is background unless it is named), ``instances`` (true: objects are numbered).
        file: for errors.
        instances: the user's choice, beside the description's.

    Raises:
        BadDataset: colours that are none, two names for one, or labels as `parse_labels` refuses them.
    """
    labels = description.get("labels")
    table = parse_labels({**description, "labels": _with_background(labels)}, file) if labels is not None else None
    if description.get("colors") is not None:
        return _by_color(description["colors"], table, file)
    if instances or description.get("instances") is True:
        name = next((name for name, value in table.labels.items() if value), None) if table else None
        return LabelTable({BACKGROUND: 0, name or "foreground": 1}), LabelCoding(instances=True)
    return table, None


def _with_background(labels: Any) -> Any:
    """``{"lesion": 255}`` -> with a background of 0, unless something is 0 already; other forms as they are."""
    if not isinstance(labels, dict) or not labels or all(str(key).isdigit() for key in labels):
        return labels
    taken = any(value in (0, "0", [0]) for value in labels.values())
    return labels if taken else {BACKGROUND: 0, **labels}


def _by_color(given: Any, table: LabelTable | None, file: Path) -> tuple[LabelTable, LabelCoding]:
    if not isinstance(given, dict) or not given:
        raise BadDataset(f"'colors' is {given!r}", path=file, fix='give e.g. "colors": {"nucleus": [255, 0, 0]}')
    colors = {str(name): _color(name, value, file) for name, value in given.items()}
    if len(set(colors.values())) < len(colors):
        raise BadDataset("'colors' gives two names to one colour", path=file, fix="keep one of them")
    values = _values([name for name in colors if name != BACKGROUND], table, file)
    coding = {(0, 0, 0): 0} if BACKGROUND not in colors else {}
    coding |= {color: values.get(name, 0) for name, color in colors.items()}
    ignore = values.pop(IGNORE_NAME, None)
    return LabelTable({BACKGROUND: 0, **values}, ignore), LabelCoding(coding)


def _values(names: list[str], table: LabelTable | None, file: Path) -> dict[str, int]:
    """The class values: those that ``labels`` states, else 1, 2, ... in the order of the colours."""
    if table is None:
        return {name: number for number, name in enumerate(names, start=1)}
    known = {**table.labels, **({} if table.ignore_label is None else {IGNORE_NAME: table.ignore_label})}
    if missing := [name for name in names if name not in known]:
        raise BadDataset(f"'colors' names {', '.join(missing)}, 'labels' does not", path=file, fix="name them in both")
    return {name: known[name] for name in names}


def _color(name: Any, value: Any, file: Path) -> Color:
    if isinstance(value, str) and len(value) == 7 and value[0] == "#":
        try:
            value = list(bytes.fromhex(value[1:]))
        except ValueError:
            value = None
    valid = isinstance(value, list) and len(value) == 3 and all(isinstance(v, int) and 0 <= v <= 255 for v in value)
    if not valid:
        raise BadDataset(
            f"colour of '{name}' is none", path=file, fix='give [red, green, blue], 0 to 255, or "#rrggbb"'
        )
    return (value[0], value[1], value[2])
