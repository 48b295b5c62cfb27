"""What a JSON file must hold, as a pydantic type: the first fault is told in one line, with its field and value."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from medseg.errors import BadDataset

Kind = TypeVar("Kind")


def validated(kind: type[Kind] | TypeAdapter[Kind], data: Any, path: str | Path, *, expected: str = "") -> Kind:
    """Plain data as a pydantic type, strictly: numbers are no text, text is no number, true is no 1.

    Args:
        kind: a model or a `TypeAdapter`.
        data: what the file holds.
        path: the file, for the error.
        expected: how the whole should look; else what the field should be is told.

    Raises:
        BadDataset: naming the first field that does not fit.
    """
    adapter: TypeAdapter[Kind] = kind if isinstance(kind, TypeAdapter) else TypeAdapter(kind)
    try:
        return adapter.validate_python(data, strict=True)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False)[0]
    wanted = expected or fault["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    found = "missing" if fault["type"] == "missing" else _shown(fault["input"])
    raise BadDataset(f"{_place(fault['loc'])} is {found} (expected {wanted})", path=path, fix="correct it")


def _place(parts: tuple[int | str, ...]) -> str:
    """``("training", 0, "image")`` -> ``"training[0].image"``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return text.removeprefix(".") or "it"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
