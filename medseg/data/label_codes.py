"""What a small dataset.json says of masks: classes by value or by colour, or one class from a value on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from medseg.data.description import DatasetDescription
from medseg.data.label_names import IGNORE_NAME, LabelTable, parse_labels
from medseg.errors import BadDataset, UsageError
from medseg.io import LabelCoding

BACKGROUND = "background"
Color = tuple[int, int, int]


def parse_masks(
    description: DatasetDescription, file: Path, *, threshold: float | None
) -> tuple[LabelTable | None, LabelCoding | None]:
    """The table of classes, None if it has to be found by reading the masks, and how their pixels are coded.

    Args:
        description: ``labels`` (name -> value; a background of 0 need not be named), ``colors`` (name -> [red, green,
            blue] or "#rrggbb"; black is background unless it is named), ``instances`` and ``mask_threshold`` as for
            `chosen_threshold`.
        file: for errors.
        threshold: the user's choice, which comes before the description's.

    Raises:
        BadDataset: colours that are none, two names for one, colours beside a threshold, a threshold as
            `chosen_threshold` refuses it, or labels as `parse_labels` does.
    """
    labels = _with_background(description.labels)
    table = parse_labels({**description.label_fields, "labels": labels}, file) if labels is not None else None
    threshold = _described_threshold(description, file) if threshold is None else threshold
    if description.colors is not None:
        if threshold is not None:
            raise BadDataset("classes are stated by 'colors' and by a threshold", path=file, fix="keep one of them")
        return _by_color(description.colors, table, file)
    if threshold is not None:
        name = next((name for name, value in table.labels.items() if value), None) if table else None
        return LabelTable({BACKGROUND: 0, name or "foreground": 1}), LabelCoding(threshold=threshold)
    return table, None


def chosen_threshold(instances: bool, mask_threshold: float | None) -> float | None:
    """From which value on a pixel of a mask is foreground; None: values are classes.

    Args:
        instances: the masks number objects, all of which are one class: a threshold of 1.
        mask_threshold: e.g. 128 for masks of black and white that JPEG or smoothing left with shades.

    Raises:
        UsageError: the threshold is no number above 0, or both are given.
    """
    if mask_threshold is None:
        return 1 if instances else None
    number = isinstance(mask_threshold, int | float) and not isinstance(mask_threshold, bool)
    if not number or not isfinite(mask_threshold) or mask_threshold <= 0:
        raise UsageError(f"mask_threshold is {mask_threshold!r} (expected a number above 0)", fix="use e.g. 128")
    if instances:
        raise UsageError("instances and mask_threshold exclude each other", fix="keep one of them")
    return float(mask_threshold)


def _described_threshold(description: DatasetDescription, file: Path) -> float | None:
    try:
        return chosen_threshold(bool(description.instances), description.mask_threshold)
    except UsageError as error:
        raise BadDataset(error.problem, path=file, fix=error.fix) from None


def harmless_threshold(masks: Sequence[Mapping[int, int]]) -> int | None:
    """The threshold, 128 or 1, that leaves no mask empty that has foreground; None: there is none.

    128 is for masks whose white was smoothed or saved as JPEG, 1 for some that hold 1 where others hold 255.

    Args:
        masks: of each mask, value -> number of pixels; only those are needed that have foreground.
    """
    highest = min((max(values) for values in masks if any(values)), default=0)
    found = {value for values in masks for value in values}
    if highest >= 128:
        return 128
    return 1 if found <= {0, 1, 255} else None


def threshold_fix(threshold: float) -> str:
    """The words to type for a threshold of masks, for training and for evaluation."""
    return f"data.mask_threshold={threshold:g} (medseg evaluate: mask_threshold={threshold:g})"


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
