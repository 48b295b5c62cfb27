"""What a type of a setting expects, in words, for messages and for ``--help``."""

from __future__ import annotations

import types
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

PLAIN = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}


def expected(field: FieldInfo) -> str:
    """E.g. ``"a whole number, 0 to 10, or null"``."""
    return in_words(field.annotation, field.metadata)


def in_words(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """Words for a type with its constraints."""
    marks = list(metadata)
    said = next((mark.text for mark in marks if hasattr(mark, "text")), None)
    if said is not None:
        return str(said)
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return in_words(parts[0], [*parts[1:], *marks])
    if origin in (Union, types.UnionType):
        words = [in_words(part) for part in parts if part is not type(None)]
        return ", or ".join(dict.fromkeys([*words, *(["null"] if type(None) in parts else [])]))
    if origin is Literal:
        return _listed([str(part) for part in parts])
    if origin in (tuple, list):
        items = list(dict.fromkeys(in_words(part) for part in parts if part is not Ellipsis))
        length = _range(marks) if Ellipsis in parts or origin is list else str(len(parts))
        return f"a list{f' of {length}' if length else ''}, each {' and '.join(items)}"
    if origin is dict:
        return f"a mapping of {in_words(parts[0])} to {in_words(parts[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"a mapping with the keys {', '.join(f.alias or n for n, f in annotation.model_fields.items())}"
    limits = _range(marks)
    return PLAIN.get(annotation, "a value") + (f", {limits}" if limits else "")


def choices(annotation: Any) -> list[str]:
    """The words of a type that knows a few words only, and perhaps null; of any other type none."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return [part for part in parts if isinstance(part, str)]
    several = [part for part in parts if part is not type(None)] if origin in (Union, types.UnionType) else []
    words = [choices(part) for part in several]
    return [word for known in words for word in known] if all(words) else []


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _range(marks: Iterable[Any]) -> str:
    """``ge``, ``gt``, ``le`` and ``lt`` of annotated_types, or the lengths of a list."""
    found: dict[str, Any] = {}
    for mark in marks:
        for name in ("ge", "gt", "le", "lt", "min_length", "max_length"):
            if (value := getattr(mark, name, None)) is not None:
                found[name.replace("min_length", "ge").replace("max_length", "le")] = value
    show = {name: f"{value:,}" if isinstance(value, int) else f"{value:,.10g}" for name, value in found.items()}
    if show.keys() >= {"ge", "le"}:
        return f"{show['ge']} to {show['le']}"
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    return " and ".join(f"{words[name]} {show[name]}" for name in words if name in show)
