"""What the channels of a file of probabilities stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from medseg.errors import UsageError
from medseg.evaluation.folders import PROBABILITIES
from medseg.io import file_ending, read_json

Groups = tuple[tuple[int, ...], ...]
FIX = "set labels={name: [values], ...} with a class for every channel, or evaluate with model="


def recorded_channels(file: Path) -> Groups | None:
    """Label values of every channel as `medseg predict` took them down beside the file; None where nothing says it."""
    case = file.name[: -len(file_ending(file))].removesuffix(PROBABILITIES)
    records = sorted(file.parent.glob("predictions*.json"))
    found = (_read(record, record.stat().st_mtime_ns).get(case) for record in records)
    return next((groups for groups in found if groups), None)


def assumed_channels(count: int, classes: Mapping[str, tuple[int, ...]], values: Sequence[int]) -> Groups:
    """Label values of the channels of another tool: one for each label, or for each region in the order of the regions.

    Args:
        count: of the channels.
        classes: what is scored, name -> label values.
        values: all labels, background included, ascending.

    Raises:
        UsageError: it may as well be something else.
    """
    if count == 1 and len(values) == 2:  # a network with one sigmoid channel
        return ((values[1],),)
    if count == len(values):
        return tuple((value,) for value in values)
    if count == len(classes) and any(len(group) > 1 for group in classes.values()):
        return tuple(classes.values())
    problem = f"nothing says what the {count} channels of the probabilities stand for (labels {list(values)})"
    raise UsageError(problem, fix=FIX)


def shares_by_class(
    channels: np.ndarray, groups: Groups, classes: Mapping[str, tuple[int, ...]]
) -> dict[tuple[int, ...], np.ndarray]:
    """Probabilities (*S) by the label values of each class: its own channel, or the sum of those of its labels.

    Args:
        channels: (K, *S).
        groups: label values of each channel.
        classes: name -> label values.

    Raises:
        UsageError: another number of channels, or a class that no channels make up. Only exclusive labels, of which the
            background is one, can be summed.
    """
    told = [list(group) for group in groups]
    if len(channels) != len(groups):
        raise UsageError(f"there are {len(channels)} channels of probabilities (expected {len(groups)}: {told})")
    own = {frozenset(group): channel for group, channel in zip(groups, channels, strict=True)}
    shares = {}
    for name, values in classes.items():
        single = [frozenset([value]) for value in values]
        if frozenset(values) in own:
            shares[values] = own[frozenset(values)]
        elif frozenset([0]) in own and all(value in own for value in single):
            shares[values] = np.sum([own[value] for value in single], axis=0)
        else:
            problem = f"no channel of the probabilities is of class '{name}' {list(values)} (they are of {told})"
            raise UsageError(problem, fix=FIX)
    return shares


@lru_cache(maxsize=8)
def _read(record: Path, changed: int) -> dict[str, Groups]:
    found = read_json(record)
    cases = found.get("cases") if isinstance(found, dict) else None
    listed = {case: facts.get("channels") for case, facts in (cases or {}).items()}
    return {case: tuple(tuple(group) for group in groups) for case, groups in listed.items() if groups}
