"""Regions: named unions of label values that may overlap, e.g. whole tumour, core and enhancing tumour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from medseg.errors import UsageError, nearest

Regions = dict[str, tuple[int, ...]]
Given = Mapping[str, Any]  # name -> a label or several, each by its name or its value


def resolve_regions(given: Given, labels: Mapping[str, int]) -> Regions:
    """Region name -> label values, in the order given.

    Args:
        given: region name -> a label, or several, each by its name or its value.
        labels: class name -> label value.

    Raises:
        UsageError: no region, a label that the dataset does not have or that is the background, a label twice in a
            region, or a foreground label in no region.
    """
    if not isinstance(given, Mapping) or not given:
        raise UsageError(f"regions is {given!r} (expected at least one name: [labels])")
    regions = {str(name): _values(str(name), members, labels) for name, members in given.items()}
    covered = {value for values in regions.values() for value in values}
    missing = [f"'{name}' ({value})" for name, value in labels.items() if value and value not in covered]
    if missing:
        problem = f"no region has the dataset's labels {', '.join(missing)} (regions {_told(regions)})"
        raise UsageError(problem, fix="add it to the regions that it is part of")
    return regions


def region_order(regions: Regions, class_order: Sequence[int] | None) -> tuple[int, ...]:
    """The label value that each region paints into a label map, one after the other (nnU-Net's regions_class_order).

    Args:
        regions: name -> label values.
        class_order: asked for. None: of each region the first value that is in no later one.

    Raises:
        UsageError: not one value for each region, or a value that is not the region's own.
    """
    groups = list(regions.values())
    later = [{value for group in groups[i + 1 :] for value in group} for i in range(len(groups))]
    if class_order is None:
        chosen = [next((v for v in group if v not in rest), None) for group, rest in zip(groups, later, strict=True)]
        for name, value in zip(regions, chosen, strict=True):
            if value is None:
                problem = f"region '{name}' has no label of its own to be painted with (regions {_told(regions)})"
                raise UsageError(problem, fix="put the regions in order, the outermost first, or set class_order")
        return tuple(value for value in chosen if value is not None)
    if len(class_order) != len(groups):
        raise UsageError(f"class_order is {list(class_order)} (expected one value for each region: {_told(regions)})")
    for (name, group), rest, value in zip(regions.items(), later, class_order, strict=True):
        own = [v for v in group if v not in rest]
        if value not in own:
            raise UsageError(f"class_order paints region '{name}' with {value} (expected a label of its own: {own})")
    return tuple(int(value) for value in class_order)


def check_nested(regions: Regions) -> None:
    """Refuse regions of which one is not inside the one before it, or is the same. Raises UsageError naming both."""
    for (outer, around), (inner, within) in pairwise(regions.items()):
        outside = sorted(set(within) - set(around))
        if outside:
            problem = f"region '{inner}' has label values {outside} that '{outer}' around it does not have"
            raise UsageError(problem, fix="put the outermost first, or use target=regions, which need not be nested")
        if set(within) == set(around):
            raise UsageError(f"regions '{outer}' and '{inner}' are the same labels {sorted(within)}", fix="remove one")


def regions_of_levels(levels: Sequence[Any], labels: Mapping[str, int]) -> Regions:
    """Nested regions from the labels of each level, the outermost first: a level and all inside it are a region.

    Args:
        levels: of each level a label, or several, by name or value, e.g. ``["edema", "necrosis", "enhancing"]``.
        labels: class name -> label value.

    Returns:
        e.g. ``{"edema+necrosis+enhancing": (2, 1, 4), "necrosis+enhancing": (1, 4), "enhancing": (4,)}``.

    Raises:
        UsageError: an unknown label, or one that is named twice.
    """
    if isinstance(levels, str | Mapping) or not levels:
        raise UsageError(f"levels is {levels!r} (expected the labels of each level, the outermost first)")
    names = {value: name for name, value in labels.items()}
    rings = [_values(f"level {place}", members, labels) for place, members in enumerate(levels, start=1)]
    flat = [value for ring in rings for value in ring]
    for value in flat:
        if flat.count(value) > 1:
            raise UsageError(f"levels name '{names[value]}' ({value}) twice", fix="give each label one level")
    inside = [tuple(value for ring in rings[i:] for value in ring) for i in range(len(rings))]
    return {"+".join(names[value] for value in values): values for values in inside}


def swapped_places(groups: Sequence[Sequence[int]], pairs: Sequence[Sequence[int]]) -> list[int]:
    """Where each group of label values is found after pairs of values changed places, as in a mirror.

    Raises:
        UsageError: a group becomes none of the groups, so that a mirrored prediction cannot be turned back.
    """
    places = {frozenset(group): place for place, group in enumerate(groups)}
    exchanged = {value: value for group in groups for value in group}
    for left, right in pairs:
        exchanged[left], exchanged[right] = exchanged.get(right, right), exchanged.get(left, left)
    order = [places.get(frozenset(exchanged[value] for value in group)) for group in groups]
    for group, place in zip(groups, order, strict=True):
        if place is None:
            problem = f"mirroring exchanges labels {[list(p) for p in pairs]}, which makes {list(group)} no class"
            raise UsageError(problem, fix="predict without tta (tta=false)")
    return [place for place in order if place is not None]


def _values(name: str, members: Any, labels: Mapping[str, int]) -> tuple[int, ...]:
    given = [members] if isinstance(members, str | int) else list(members or ())
    values = tuple(_value(name, member, labels) for member in given)
    if not values or len(set(values)) < len(values):
        raise UsageError(f"'{name}' is {given} (expected different labels, at least one)")
    return values


def _value(name: str, member: Any, labels: Mapping[str, int]) -> int:
    """A number is one of the values, if there is such a one; text is one of the names, if there is such a one."""
    if isinstance(member, int) and member in labels.values():
        return _foreground(name, member)
    known = {**{str(value): value for value in labels.values()}, **labels}
    if str(member) not in known:
        raise UsageError(
            f"'{name}' has the label '{member}', which the dataset does not: {nearest(str(member), known)}"
        )
    return _foreground(name, known[str(member)])


def _foreground(name: str, value: int) -> int:
    if value == 0:
        raise UsageError(f"'{name}' has the background (0)", fix="name foreground labels only")
    return value


def _told(regions: Regions) -> str:
    return ", ".join(f"{name} {list(values)}" for name, values in regions.items())
