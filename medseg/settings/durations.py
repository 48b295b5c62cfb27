"""Spans of time in settings."""

from __future__ import annotations

import re

MAX_TIME = "DD:HH:MM:SS, more than zero, e.g. 00:00:30:00"
_MAX_TIME = re.compile(r"(\d{1,5}):(\d\d):(\d\d):(\d\d)", re.ASCII)


def checked_duration(text: str) -> str:
    """The text, where `seconds_of` knows it."""
    seconds_of(text)
    return text


def seconds_of(text: str) -> float:
    """``"DD:HH:MM:SS"`` -> seconds. Raises ValueError for anything else, and for no time at all."""
    match = _MAX_TIME.fullmatch(text)
    days, hours, minutes, seconds = map(int, match.groups()) if match else (0, 0, 0, 0)
    if not (total := ((days * 24 + hours) * 60 + minutes) * 60 + seconds):
        raise ValueError(f"expected {MAX_TIME}")
    return float(total)
