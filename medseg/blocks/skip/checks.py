"""Checks of the numbers that parts of skip paths are built with."""

from __future__ import annotations

import math
from numbers import Real


def is_number(value: object) -> bool:
    """Whether a setting is a finite number."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def check_finite(**settings: object) -> None:
    """Raises ValueError, which `SkipPath` tells the user of, for a setting that is no finite number."""
    for name, value in settings.items():
        if not is_number(value):
            raise ValueError(f"{name} is {value!r} (must be a finite number)")


def check_counts(**settings: object) -> None:
    """Raises ValueError for a setting that is no whole number of at least 1."""
    for name, value in settings.items():
        if type(value) is not int or value < 1:
            raise ValueError(f"{name} is {value!r} (must be a whole number of at least 1)")
