"""The label table of a dataset.json: nnU-Net's name -> number, the Decathlon's number -> name, regions, ignore."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.errors import BadDataset
from medseg.io.label_coding import LARGEST_LABEL, label_fault

IGNORE_NAME = "ignore"


@dataclass(frozen=True)
class LabelTable:
    """What the numbers in the label files mean.

    Attributes:
        labels: name -> value with the background (0), without the ignore label.
        ignore_label: value of voxels that nobody annotated.
        regions: name -> values, where classes overlap; every class is then a region.
        regions_class_order: value that each region, in order, paints into a label map.
    """

    labels: dict[str, int]
    ignore_label: int | None = None
    regions: dict[str, tuple[int, ...]] | None = None
    regions_class_order: tuple[int, ...] | None = None


def parse_labels(description: Mapping[str, Any], file: Path) -> LabelTable:
    """Read ``labels`` and ``regions_class_order`` of a dataset.json in either direction.

    Raises:
        BadDataset: no table, a name that is empty or comes twice, a value that is no whole number within
            0..65535, two names for one value, no background, no class, or a class that is the ignore label.
    """
    given = description.get("labels")
    if not isinstance(given, dict) or not given:
        raise BadDataset("'labels' is missing", path=file, fix='add e.g. "labels": {"background": 0, "liver": 1}')
    if _is_number_to_name(given):
        given = _inverted(given, file)
    if "" in given:
        raise BadDataset(f"labels {given} have a class without a name", path=file, fix="name it")
    values = {str(name): _values(name, value, file) for name, value in given.items()}
    ignore = values.pop(IGNORE_NAME, None)
    if ignore and len(ignore) > 1:
        raise BadDataset(f"label '{IGNORE_NAME}' has the values {list(ignore)}", path=file, fix="keep one of them")
    ignore_label = ignore[0] if ignore else None
    has_regions = any(isinstance(value, list) for value in given.values())
    labels = _single_labels(values, has_regions)
    _check_labels(labels, ignore_label, file)
    regions = {name: value for name, value in values.items() if value != (0,)} if has_regions else None
    for name, members in (regions or {}).items():
        if 0 in members or len(set(members)) < len(members):
            problem = f"region '{name}' has the values {list(members)} (expected different ones above 0)"
            raise BadDataset(problem, path=file, fix="list each label of the region once")
    order = _class_order(description.get("regions_class_order"), regions, file)
    return LabelTable(labels, ignore_label, regions, order)


def _is_number_to_name(given: Mapping[str, Any]) -> bool:
    return all(str(key).isdigit() and isinstance(name, str) and not name.isdigit() for key, name in given.items())


def _inverted(given: Mapping[str, str], file: Path) -> dict[str, str]:
    found = {name: value for value, name in given.items()}
    if len(found) < len(given):
        twice = next(name for name in found if list(given.values()).count(name) > 1)
        raise BadDataset(f"labels call two values '{twice}'", path=file, fix="name each value apart")
    return found


def _values(name: Any, value: Any, file: Path) -> tuple[int, ...]:
    values = tuple(_number(name, number, file) for number in (value if isinstance(value, list) else [value]))
    if not values:
        raise BadDataset(f"region '{name}' lists no label values", path=file, fix="list its labels, or remove it")
    return values


def _number(name: Any, value: Any, file: Path) -> int:
    digits = value if isinstance(value, str) and value.isascii() and value.isdigit() else ""
    whole = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= LARGEST_LABEL
    if (whole and value == int(value)) or (digits and len(digits) < 9 and int(digits) <= LARGEST_LABEL):
        return int(value)
    problem = f"label '{name}' has the value {value!r:.60} (expected a whole number from 0 to {LARGEST_LABEL})"
    raise BadDataset(problem, path=file, fix="number the classes from 0 on, in dataset.json and in the label files")


def _single_labels(values: Mapping[str, tuple[int, ...]], has_regions: bool) -> dict[str, int]:
    """One name per value; a value that occurs in regions only is called ``label_<value>``."""
    labels = {name: numbers[0] for name, numbers in values.items() if len(numbers) == 1}
    if has_regions:
        in_regions = {number for numbers in values.values() for number in numbers}
        labels |= {f"label_{number}": number for number in sorted(in_regions - set(labels.values()))}
    return dict(sorted(labels.items(), key=lambda item: item[1])) if has_regions else labels


def _check_labels(labels: Mapping[str, int], ignore_label: int | None, file: Path) -> None:
    if 0 not in labels.values():
        raise BadDataset(f"labels {dict(labels)} have no background (0)", path=file, fix='add "background": 0')
    if len(set(labels.values())) < len(labels):
        raise BadDataset(f"labels {dict(labels)} give two names to one value", path=file, fix="keep one of them")
    if fault := label_fault(labels.values(), ignore_label):
        raise BadDataset(f"labels {dict(labels)}: {fault}", path=file, fix="correct 'labels'")


def _class_order(given: Any, regions: Mapping[str, Any] | None, file: Path) -> tuple[int, ...] | None:
    if regions is None or given is None:
        return None
    if not isinstance(given, list) or len(given) != len(regions):
        problem = f"regions_class_order is {given} (expected one value for each region: {', '.join(regions)})"
        raise BadDataset(problem, path=file, fix="correct it, or leave it out")
    return tuple(_number("regions_class_order", value, file) for value in given)
